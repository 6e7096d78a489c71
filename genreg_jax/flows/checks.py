"""What the public flow functions accept. Values are only looked at outside of `jit`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# Decoded and re-encoded pixels may leave [0, 1] by rounding; the logit has room for far more.
_TOLERANCE = 1e-3


def is_concrete(x) -> bool:
    """Whether the values of `x` can be read, which they cannot under a transformation."""
    return not isinstance(x, Tracer)


def check_image_shape(image_shape, levels: int, *, squeezes: int) -> tuple[int, int, int]:
    """Checks that `image_shape` is `(H, W, C)` with sides divisible by `2 ** squeezes`."""
    if len(tuple(image_shape)) != 3 or any(int(n) != n or n < 1 for n in image_shape):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, channels), three positive "
            "integers."
        )
    height, width, channels = (int(n) for n in image_shape)
    if levels < 1 or int(levels) != levels:
        raise ValueError(f"levels={levels!r} must be a positive integer.")
    if height % 2 or width % 2:
        raise ValueError(
            f"image_shape={image_shape!r} has an odd side; a flow needs even ones. Pad the images "
            f"to {(height + height % 2, width + width % 2, channels)}."
        )
    factor = 2**squeezes
    if height % factor or width % factor:
        sides = np.gcd(height, width)
        most = int(sides & -sides).bit_length() - 1
        raise ValueError(
            f"levels={levels} is too many for image_shape={image_shape!r}: its sides must be "
            f"divisible by {factor}. At most levels={most} is allowed."
        )
    return height, width, channels


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
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
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


def check_architecture(steps, width, num_classes, scale, dropout, num_bins) -> None:
    """Checks what `glow` and `realnvp` share."""
    check_positive(steps=steps, width=width)
    if num_classes is not None:
        check_positive(num_classes=num_classes)
    if not scale > 0:
        raise ValueError(f"scale={scale!r} must be positive.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} must be in [0, 1).")
    if int(num_bins) != num_bins or num_bins < 2:
        raise ValueError(f"num_bins={num_bins!r} must be an integer of at least 2.")
