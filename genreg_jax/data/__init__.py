"""Datasets in memory: loading by name, labelled subsets, and preparing official archives."""

from genreg_jax.data.dataset import Dataset, Split, from_arrays, validate_images
from genreg_jax.data.sources import SOURCES, from_folder, from_settings, load

__all__ = [
    "SOURCES",
    "Dataset",
    "Split",
    "from_arrays",
    "from_folder",
    "from_settings",
    "load",
    "validate_images",
]
