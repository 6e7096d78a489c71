"""Classifiers (Flax Linen) and the contract through which the library sees any classifier."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from genreg_jax.checks import as_dtype, check_choice, check_positive, short
from genreg_jax.contract import Model, Outputs, standardized
from genreg_jax.models.adapters import from_equinox, from_haiku, from_linen, from_nnx
from genreg_jax.models.convnet import ConvNet
from genreg_jax.models.efficientnet import EfficientNet
from genreg_jax.models.finder import Finder
from genreg_jax.models.resnet import ResNet, WideResNet

__all__ = [
    "ConvNet",
    "EfficientNet",
    "Entry",
    "Finder",
    "MODELS",
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


class Entry(NamedTuple):
    """A row of `MODELS`.

    Attributes:
      module: called as `module(num_classes=K, dtype=dtype, **options)`; returns a Linen module, or
        a `Model`, for standardised images.
      options: settings of `config.model` that it takes, by the names of its own arguments.

    Example:
      A network of one's own that a config can name, here a linear one without a hidden layer:

      >>> import flax.linen as nn
      >>> from genreg_jax import models
      >>> class Linear(nn.Module):
      ...     num_classes: int
      ...     dtype: Any = "float32"
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         x = x.reshape(len(x), -1)
      ...         return nn.Dense(self.num_classes)(x), x
      >>> models.MODELS["linear"] = models.Entry(Linear)
      >>> models.make("linear", num_classes=3) is not None
      True
      >>> del models.MODELS["linear"]
    """

    module: Callable[..., Any]
    options: Mapping[str, str] = MappingProxyType({})


# The classifiers that `config.model.name` can name.
MODELS = {
    "convnet": Entry(ConvNet, {"widths": "widths", "pooling": "pooling"}),
    "resnet18": Entry(ResNet, {"width": "width"}),
    "resnet18_imagenet": Entry(functools.partial(ResNet, stem="imagenet")),
    "resnet50_imagenet": Entry(
        functools.partial(ResNet, stages=(3, 4, 6, 3), stem="imagenet", bottleneck=True)
    ),
    "efficientnet_lite0": Entry(EfficientNet),
    "wide_resnet": Entry(WideResNet, {"depth": "depth", "width": "widening"}),
}


def make(name: str, *, num_classes: int, dtype: Any = "float32", **options: Any) -> Model:
    """Builds one of the classifiers of `MODELS` by name.

    Args:
      name: `convnet` (options: `widths`, `pooling`), `resnet18` (`width`), `wide_resnet`
        (`depth`, `width`, its widening factor), or a network that ImageNet's weights are for:
        `resnet18_imagenet`, `resnet50_imagenet`, `efficientnet_lite0`.
      num_classes: K, number of logits.
      dtype: computation dtype, `float32` or `bfloat16`.
      **options: passed to the module.

    Returns:
      A `Model` for standardised images `[B, H, W, C]`.

    Raises:
      ValueError: unknown name or option, or a size that is not a positive integer.

    Example:
      >>> from genreg_jax import models
      >>> model = models.make("convnet", num_classes=10, widths=(8, 16))
    """
    check_choice("name", name, sorted(MODELS))
    if as_dtype(dtype) is None:
        raise ValueError(f"dtype is {short(dtype)}; allowed: float32 or bfloat16.")
    check_positive(num_classes=num_classes)
    for option, value in options.items():
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(number, str):
                check_positive(**{option: number})
    try:
        module = MODELS[name].module(num_classes=num_classes, dtype=as_dtype(dtype), **options)
    except TypeError as error:
        raise ValueError(f"The model {name!r} cannot be made: {error}.") from None
    return module if isinstance(module, Model) else from_linen(module)
