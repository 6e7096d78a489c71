"""Classifiers (Flax Linen) and the contract through which the library sees any classifier."""

from typing import Any

import jax.numpy as jnp

from genreg_jax.models.adapters import from_equinox, from_haiku, from_linen, from_nnx
from genreg_jax.models.contract import Model, Outputs, standardized
from genreg_jax.models.convnet import ConvNet
from genreg_jax.models.finder import Finder
from genreg_jax.models.resnet import ResNet, WideResNet

__all__ = [
    "ConvNet",
    "Finder",
    "Model",
    "Outputs",
    "ResNet",
    "WideResNet",
    "from_equinox",
    "from_haiku",
    "from_linen",
    "from_nnx",
    "make",
    "standardized",
]


def make(name: str, *, num_classes: int, dtype: Any = "float32", **options: Any) -> Model:
    """Builds one of the shipped classifiers by name.

    Args:
      name: `convnet` (options: `widths`, `pooling`), `resnet18` or `wide_resnet`
        (options: `depth`, `width`).
      num_classes: K, number of logits.
      dtype: computation dtype, `float32` or `bfloat16`.
      **options: passed to the module.

    Returns:
      A `Model` for standardised images `[B, H, W, C]`.

    Raises:
      ValueError: unknown name.

    Example:
      >>> from genreg_jax import models
      >>> model = models.make("convnet", num_classes=10, widths=(8, 16))
    """
    modules = {"convnet": ConvNet, "resnet18": ResNet, "wide_resnet": WideResNet}
    if name not in modules:
        raise ValueError(f"name must be one of {sorted(modules)}, got {name!r}.")
    return from_linen(modules[name](num_classes=num_classes, dtype=jnp.dtype(dtype), **options))
