"""Datasets in memory: loading by name, labelled subsets, and preparing official archives."""

from genreg_jax.data.sources import (
    Dataset,
    Split,
    from_arrays,
    from_settings,
    load,
    validate_images,
)

__all__ = ["Dataset", "Split", "from_arrays", "from_settings", "load", "validate_images"]
