"""Datasets: loading by name, labelled subsets, and preparing official archives."""

from genreg_jax.data.arrays import from_arrays, validate_images
from genreg_jax.data.dataset import Dataset, Split
from genreg_jax.data.sources import SOURCES, from_folder, from_settings, load
from genreg_jax.data.stored import Stored

__all__ = [
    "SOURCES",
    "Dataset",
    "Split",
    "Stored",
    "from_arrays",
    "from_folder",
    "from_settings",
    "load",
    "validate_images",
]
