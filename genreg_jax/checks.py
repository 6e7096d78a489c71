"""What is checked of an argument. Values are only looked at outside of `jit`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# Decoded and re-encoded pixels may leave [0, 1] by rounding; the logit has room for far more.
_TOLERANCE = 1e-3


def check_number(name, value, *, minimum=0, maximum=None, integer=False):
    """Raises a `ValueError` unless `value` is a finite number (or an integer) within the bounds."""
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    in_range = is_number and minimum <= value < np.inf and (maximum is None or value <= maximum)
    if not in_range:
        kind = "an integer" if integer else "a number"
        bounds = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} is {value!r}; allowed: {kind} {bounds}.")


def is_concrete(x) -> bool:
    """Whether the values of `x` can be read, which they cannot under a transformation."""
    return not isinstance(x, Tracer)


def at_least_float32(dtype: Any) -> Any:
    """float32, or a wider floating point type as it is; also where promotion is strict.

    Example:
      >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.dtype("float64"))
      (<class 'jax.numpy.float32'>, dtype('float64'))
    """
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits > 32
    return dtype if wide else jnp.float32


def check_positive(**values) -> None:
    """Checks that each keyword is a positive integer."""
    for name, value in values.items():
        if int(value) != value or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer.")


def as_images(x, image_shape, name: str = "x", *, in_range: bool = True) -> jax.Array:
    """Floating point images `[B, H, W, C]`, at least float32; a `ValueError` if they are not."""
    x = jnp.asarray(x)
    if x.ndim != 4 or x.shape[1:] != tuple(image_shape):
        raise ValueError(
            f"{name} has shape {x.shape}; allowed is [B, H, W, C] with [H, W, C] = "
            f"{tuple(image_shape)}."
        )
    if x.shape[0] == 0:
        raise ValueError(f"{name} has shape {x.shape}: the batch is empty.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {x.dtype}; allowed is floating point"
            + (" in [0, 1]: divide 8-bit images by 255." if in_range else ".")
        )
    x = x.astype(at_least_float32(x.dtype))
    if is_concrete(x):
        values = np.asarray(x)  # NumPy, since jnp would trace a constant under jit
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{name} contains NaN or infinity; allowed are finite values.")
        if in_range and (low < -_TOLERANCE or high > 1 + _TOLERANCE):
            raise ValueError(f"{name} has values in [{low:g}, {high:g}]; allowed is [0, 1].")
    return x


def as_labels(y, batch: int, num_classes: int | None, name: str = "y") -> jax.Array | None:
    """Integer labels `[B]`, or None for an unconditional flow."""
    if num_classes is None:
        if y is not None:
            raise ValueError(
                f"{name} was given to an unconditional flow; allowed is None. Build the flow with "
                "num_classes to condition it on labels."
            )
        return None
    if y is None:
        raise ValueError(
            f"{name} is None, but the flow is conditional: integer labels [{batch}] in "
            f"[0, {num_classes}) are needed."
        )
    y = jnp.asarray(y)
    if y.shape != (batch,) or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {y.shape} and dtype {y.dtype}; allowed are integer labels of shape "
            f"({batch},)."
        )
    if is_concrete(y):
        values = np.asarray(y)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} has labels in [{low}, {high}]; allowed is [0, {num_classes - 1}]."
            )
    return y


def as_split(images, labels, image_shape, num_classes: int | None, *, prefix: str = ""):
    """A whole split: images on the device, uint8 or floating point in [0, 1], and their labels."""
    images, name = jnp.asarray(images), f"{prefix}images"
    if images.dtype == jnp.uint8:
        as_images(images[:1].astype(jnp.float32) / 255, image_shape, name)
    else:
        images = as_images(images, image_shape, name)
    return images, as_labels(labels, images.shape[0], num_classes, f"{prefix}labels")
