"""The 14 operations of RandAugment, each with a magnitude that the caller gives.

They follow Pillow, which the published policies were built on: the tests compare every one with
it. Three families, and one kernel each, so that a random policy pays for a family once and not
for every operation in it:

    geometric   rotate, shear_x, shear_y, translate_x, translate_y   one bilinear warp
    enhancing   brightness, color, contrast, sharpness               one blend with a dull image
    tonal       posterize, solarize, autocontrast, equalize          a map of pixel values

Magnitudes are numbers, or arrays `[B]` with one value per image. The arithmetic is done in
float32 (float64 for float64 images) and the result has the dtype of the images.
"""

import jax.numpy as jnp
import numpy as np

from genreg_jax.augment import kernels
from genreg_jax.checks import as_array, check_number, is_concrete

# The order of torchvision's RandAugment; an operation is known by its place here.
OPS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


def check_images(x, *, any_channels=False):
    """Returns `x` as an array, or raises a `ValueError` that says what images must look like."""
    allowed = "allowed: floats [B, H, W, C] in [0, 1] with C = 1 or 3"
    x = as_array(x, "x", allowed.removeprefix("allowed: "))
    right = x.ndim == 4 and (any_channels or x.shape[-1] in (1, 3))
    if not right or 0 in x.shape[1:]:
        raise ValueError(f"x has shape {x.shape}; {allowed}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; {allowed} (divide 8-bit images by 255).")
    if is_concrete(x) and not np.isfinite(np.asarray(x, np.float32)).all():
        raise ValueError(f"x contains NaN or infinity; {allowed}.")
    return x


def identity(x):
    """Returns the images as they are.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.

    Returns:
      `x`.

    Raises:
      ValueError: `x` is not a batch of float images with 1 or 3 channels.

    Gradients flow to `x`.

    Example:
      >>> identity(jnp.ones((1, 4, 4, 3))).shape
      (1, 4, 4, 3)
    """
    return check_images(x)


# Geometric operations ---------------------------------------------------------------------------


def rotate(x, *, degrees):
    """Rotates about the centre of the image, counter-clockwise for positive angles.

    Bilinear, and black where the result looks outside of the image, as `PIL.Image.rotate`.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      degrees: the angle, a number or `[B]`.

    Returns:
      The rotated images, `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `degrees` has another shape.

    Gradients flow to `x` (linearly) and to `degrees`.

    Example:
      >>> x = jnp.zeros((1, 3, 3, 1)).at[0, 0, 2, 0].set(1.0)  # top right
      >>> rotate(x, degrees=90.0)[0, :, :, 0].round().astype(int).tolist()  # to the top left
      [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    """
    x = check_images(x)
    center = (x.shape[2] / 2, x.shape[1] / 2)
    return kernels.warp(
        x, kernels.affine_matrix(degrees=_per_image("degrees", degrees, x), anchor=center)
    )


def shear_x(x, *, level):
    """Moves every row to the right by `level` times its distance from the top edge.

    Bilinear, and black where the result looks outside of the image. Anchored at the top left
    corner, as in the published policies.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      level: pixels of shift per row, a number or `[B]`; negative values shear to the left.

    Returns:
      The sheared images, `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `level` has another shape.

    Gradients flow to `x` (linearly) and to `level`.

    Example:
      >>> shear_x(jnp.ones((1, 4, 4, 1)), level=0.3).shape
      (1, 4, 4, 1)
    """
    x = check_images(x)
    return kernels.warp(x, kernels.affine_matrix(shear_x=_per_image("level", level, x)))


def shear_y(x, *, level):
    """Moves every column down by `level` times its distance from the left edge.

    Bilinear, and black where the result looks outside of the image. Anchored at the top left
    corner, as in the published policies.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      level: pixels of shift per column, a number or `[B]`; negative values shear upwards.

    Returns:
      The sheared images, `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `level` has another shape.

    Gradients flow to `x` (linearly) and to `level`.

    Example:
      >>> shear_y(jnp.ones((1, 4, 4, 1)), level=-0.3).shape
      (1, 4, 4, 1)
    """
    x = check_images(x)
    return kernels.warp(x, kernels.affine_matrix(shear_y=_per_image("level", level, x)))


def translate_x(x, *, pixels):
    """Moves the image to the right by a number of pixels, not necessarily a whole one.

    Bilinear, and black where the result looks outside of the image.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      pixels: the shift, a number or `[B]`; negative values move to the left.

    Returns:
      The moved images, `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `pixels` has another shape.

    Gradients flow to `x` (linearly) and to `pixels`.

    Example:
      >>> translate_x(jnp.ones((1, 1, 3, 1)), pixels=2)[0, 0, :, 0].tolist()
      [0.0, 0.0, 1.0]
    """
    x = check_images(x)
    return kernels.warp(x, kernels.affine_matrix(translate_x=_per_image("pixels", pixels, x)))


def translate_y(x, *, pixels):
    """Moves the image down by a number of pixels, not necessarily a whole one.

    Bilinear, and black where the result looks outside of the image.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      pixels: the shift, a number or `[B]`; negative values move upwards.

    Returns:
      The moved images, `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `pixels` has another shape.

    Gradients flow to `x` (linearly) and to `pixels`.

    Example:
      >>> translate_y(jnp.ones((1, 3, 1, 1)), pixels=-1)[0, :, 0, 0].tolist()
      [1.0, 1.0, 0.0]
    """
    x = check_images(x)
    return kernels.warp(x, kernels.affine_matrix(translate_y=_per_image("pixels", pixels, x)))


# Enhancing operations ---------------------------------------------------------------------------


def brightness(x, *, factor):
    """Multiplies the pixels by `factor`: 0 is black, 1 the image, more is brighter.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      factor: a number or `[B]`.

    Returns:
      The images `[B, H, W, C]`, clipped to `[0, 1]`; `x` itself, bit for bit, at factor 1.

    Raises:
      ValueError: `x` is not a batch of float images, or `factor` has another shape.

    Gradients flow to `x` and `factor`, and stop at pixels that were clipped.

    Example:
      >>> brightness(jnp.full((1, 1, 1, 1), 0.5), factor=0.5).item()
      0.25

    Source: `PIL.ImageEnhance.Brightness`.
    """
    x = check_images(x)
    return kernels.blend(x, kernels.black(x), _per_image("factor", factor, x) - 1)


def color(x, *, factor):
    """Blends with the grey image: 0 is grey, 1 the image, more is more colourful.

    Images with one channel are returned as they are.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      factor: a number or `[B]`.

    Returns:
      The images `[B, H, W, C]`, clipped to `[0, 1]`; `x` itself, bit for bit, at factor 1.

    Raises:
      ValueError: `x` is not a batch of float images, or `factor` has another shape.

    Gradients flow to `x` and `factor`, and stop at pixels that were clipped.

    Example:
      >>> x = jnp.array([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)
      >>> jnp.allclose(color(x, factor=0.0), 0.299)
      Array(True, dtype=bool)

    Source: `PIL.ImageEnhance.Color`.
    """
    x = check_images(x)
    return kernels.blend(x, kernels.grey(x), _per_image("factor", factor, x) - 1)


def contrast(x, *, factor):
    """Blends with the mean grey level of the image: 0 is flat, 1 the image, more is harsher.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      factor: a number or `[B]`.

    Returns:
      The images `[B, H, W, C]`, clipped to `[0, 1]`; `x` itself, bit for bit, at factor 1.

    Raises:
      ValueError: `x` is not a batch of float images, or `factor` has another shape.

    Gradients flow to `x` and `factor`, and stop at pixels that were clipped.

    Example:
      >>> contrast(jnp.array([0.25, 0.75]).reshape(1, 1, 2, 1), factor=2.0).ravel().tolist()
      [0.0, 1.0]

    Source: `PIL.ImageEnhance.Contrast`.
    """
    x = check_images(x)
    return kernels.blend(x, kernels.mean_grey(x), _per_image("factor", factor, x) - 1)


def sharpness(x, *, factor):
    """Blends with a smoothed image: 0 is smoothed, 1 the image, more is sharper.

    The outermost pixels are not smoothed, and so do not change.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      factor: a number or `[B]`.

    Returns:
      The images `[B, H, W, C]`, clipped to `[0, 1]`; `x` itself, bit for bit, at factor 1.

    Raises:
      ValueError: `x` is not a batch of float images, or `factor` has another shape.

    Gradients flow to `x` and `factor`, and stop at pixels that were clipped.

    Example:
      >>> x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(0.65)
      >>> round(sharpness(x, factor=0.0)[0, 1, 1, 0].item(), 4)  # 5 / 13 of it is left
      0.25

    Source: `PIL.ImageEnhance.Sharpness`.
    """
    x = check_images(x)
    return kernels.blend(x, kernels.smooth(x), _per_image("factor", factor, x) - 1)


# Tonal operations -------------------------------------------------------------------------------


def posterize(x, *, bits):
    """Keeps the highest `bits` of the 8 bits of every pixel.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`; rounded to 8 bits first.
      bits: whole numbers from 1 to 8, one or `[B]`.

    Returns:
      The images `[B, H, W, C]`, with at most `2 ** bits` different values.

    Raises:
      ValueError: `x` is not a batch of float images, or `bits` is no such number.

    Gradients flow to `x` straight through: they are those of the identity.

    Example:
      >>> (posterize(jnp.full((1, 1, 1, 1), 0.7), bits=1) * 255).item()
      128.0

    Source: `PIL.ImageOps.posterize`.
    """
    x = check_images(x)
    if isinstance(bits, (int, float)):
        check_number("bits", bits, minimum=1, maximum=8, integer=True)
    return kernels.posterize(x, _per_image("bits", bits, x))


def solarize(x, *, threshold):
    """Inverts the pixels that are at or above a threshold.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.
      threshold: a pixel value in `[0, 1]`, a number or `[B]`; above 1 nothing changes.

    Returns:
      The images `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `threshold` has another shape.

    Gradients flow to `x`, with the sign changed where the pixel is inverted.

    Example:
      >>> solarize(jnp.array([0.25, 0.75]).reshape(1, 1, 2, 1), threshold=0.5).ravel().tolist()
      [0.25, 0.25]

    Source: `PIL.ImageOps.solarize`.
    """
    x = check_images(x)
    return kernels.solarize(x, _per_image("threshold", threshold, x))


def autocontrast(x):
    """Stretches every channel of every image to the full range.

    A channel that spans less than half an 8-bit grey level is constant for Pillow, which leaves
    it alone. So does this, and no gradient is multiplied by more than 510.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`.

    Returns:
      The images `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images.

    Gradients flow to `x`, through the darkest and the brightest pixels too.

    Example:
      >>> autocontrast(jnp.array([0.25, 0.5, 0.75]).reshape(1, 1, 3, 1)).ravel().tolist()
      [0.0, 0.5, 1.0]

    Source: `PIL.ImageOps.autocontrast`.
    """
    return kernels.autocontrast(check_images(x))


def equalize(x):
    """Flattens the histogram of every channel of every image.

    Pillow's rule: where fewer than 255 pixels of a channel are darker than its brightest value,
    as in any image of 8 x 8, the channel is left alone.

    Args:
      x: images `[B, H, W, C]` in `[0, 1]`; rounded to 8 bits for the histogram.

    Returns:
      The images `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images.

    Gradients flow to `x` straight through: they are those of the identity.

    Example:
      >>> x = 0.5 + jnp.linspace(0.0, 0.1, 1024).reshape(1, 32, 32, 1)
      >>> y = equalize(x)
      >>> y.min().item(), y.max().item()
      (0.0, 1.0)

    Source: `PIL.ImageOps.equalize`.
    """
    return kernels.equalize(check_images(x))


def _per_image(name, value, x):
    """`value` as a float array `[B]`."""
    value = jnp.asarray(value).astype(jnp.float32)
    if value.shape not in ((), x.shape[:1]):
        raise ValueError(f"{name} has shape {value.shape}; allowed: a number or {x.shape[:1]}.")
    return jnp.broadcast_to(value, x.shape[:1])
