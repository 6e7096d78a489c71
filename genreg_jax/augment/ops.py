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

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genreg_jax.checks import check_number

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


def check_images(x):
    """Returns `x` as an array, or raises a `ValueError` that says what images must look like."""
    x = jnp.asarray(x)
    allowed = "allowed: floats [B, H, W, C] in [0, 1] with C = 1 or 3"
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or 0 in x.shape[1:]:
        raise ValueError(f"x has shape {x.shape}; {allowed}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; {allowed} (divide 8-bit images by 255).")
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
    return warp(x, affine_matrix(degrees=_per_image("degrees", degrees, x), anchor=center))


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
    return warp(x, affine_matrix(shear_x=_per_image("level", level, x)))


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
    return warp(x, affine_matrix(shear_y=_per_image("level", level, x)))


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
    return warp(x, affine_matrix(translate_x=_per_image("pixels", pixels, x)))


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
    return warp(x, affine_matrix(translate_y=_per_image("pixels", pixels, x)))


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
    return _blend(x, _black(x), _per_image("factor", factor, x) - 1)


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
    return _blend(x, _grey(x), _per_image("factor", factor, x) - 1)


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
    return _blend(x, _mean_grey(x), _per_image("factor", factor, x) - 1)


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
    return _blend(x, _smooth(x), _per_image("factor", factor, x) - 1)


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
    return _posterize(x, _per_image("bits", bits, x))


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
    return _solarize(x, _per_image("threshold", threshold, x))


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
    return _autocontrast(check_images(x))


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
    return _equalize(check_images(x))


# One operation per image ------------------------------------------------------------------------


def apply_ops(x, op, level):
    """Applies operation `OPS[op[i]]` with magnitude `level[i]` to image `i`.

    Every family runs once for the whole batch and each image takes the result it drew: under
    `vmap` a `lax.switch` would run all 14 branches, five warps among them.

    Args:
      x: images `[B, H, W, C]`.
      op: places in `OPS`, integers `[B]`.
      level: `[B]`; degrees, pixels or shear for the geometric operations; `factor - 1` for the
        enhancing ones; removed bits for posterize; for solarize what is left of the 8-bit
        threshold 256. Level 0 is the identity for all that have a level.

    Returns:
      The images `[B, H, W, C]`.
    """
    height, width = x.shape[1:3]

    def level_of(name):
        return jnp.where(op == OPS.index(name), level, 0.0)

    def pick(name, then, otherwise):
        return jnp.where((op == OPS.index(name))[:, None, None, None], then, otherwise)

    rotated = op == OPS.index("rotate")
    out = warp(
        x,
        affine_matrix(
            degrees=level_of("rotate"),
            shear_x=level_of("shear_x"),
            shear_y=level_of("shear_y"),
            translate_x=level_of("translate_x"),
            translate_y=level_of("translate_y"),
            anchor=(jnp.where(rotated, width / 2, 0.0), jnp.where(rotated, height / 2, 0.0)),
        ),
    )

    degenerate = pick("color", _grey(x), _black(x))
    degenerate = pick("contrast", _mean_grey(x), degenerate)
    degenerate = pick("sharpness", _smooth(x), degenerate)
    enhanced = _blend(x, degenerate, level)
    for name in ("brightness", "color", "contrast", "sharpness"):
        out = pick(name, enhanced, out)

    out = pick("posterize", _posterize(x, 8 - level_of("posterize")), out)
    out = pick("solarize", _solarize(x, (256 - level_of("solarize")) / 255), out)
    out = pick("autocontrast", _autocontrast(x), out)
    return pick("equalize", _equalize(x), out)


# Kernels ----------------------------------------------------------------------------------------


def affine_matrix(
    *,
    degrees: ArrayLike = 0.0,
    shear_x: ArrayLike = 0.0,
    shear_y: ArrayLike = 0.0,
    translate_x: ArrayLike = 0.0,
    translate_y: ArrayLike = 0.0,
    anchor=(0.0, 0.0),
):
    """Builds the map from result to source coordinates, as `(a, b, c, d, e, f)`.

    `x_source = a x + b y + c` and `y_source = d x + e y + f`, Pillow's convention, in pixels with
    the top left *corner* of the image at 0. The anchor is the point that a rotation or a shear
    leaves in place. Give at most one of `degrees`, `shear_x` and `shear_y` a value per image: they
    are added, not composed.
    """
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    a, b = jnp.cos(angle), -jnp.sin(angle) - shear_x
    d, e = jnp.sin(angle) - shear_y, jnp.cos(angle)
    anchor_x, anchor_y = anchor
    moved_x, moved_y = anchor_x + translate_x, anchor_y + translate_y
    c = anchor_x - a * moved_x - b * moved_y
    f = anchor_y - d * moved_x - e * moved_y
    return a, b, c, d, e, f


def warp(x, matrix):
    """Samples `x` bilinearly where `matrix` (scalars or `[B]`, see `affine_matrix`) points.

    A pixel whose source lies outside of the image is black; within half a pixel of the edge the
    edge is continued. That is Pillow's rule. Linear in `x`; the identity matrix returns `x` bit
    for bit.
    """
    batch, height, width, channels = x.shape
    a, b, c, d, e, f = [
        jnp.broadcast_to(entry, (batch,)).reshape(batch, 1, 1, 1) for entry in matrix
    ]
    column = (jnp.arange(width, dtype=jnp.float32) + 0.5).reshape(1, 1, width, 1)
    row = (jnp.arange(height, dtype=jnp.float32) + 0.5).reshape(1, height, 1, 1)
    source_x = a * column + b * row + c
    source_y = d * column + e * row + f
    inside = (0 <= source_x) & (source_x < width) & (0 <= source_y) & (source_y < height)

    left, top = jnp.floor(source_x - 0.5), jnp.floor(source_y - 0.5)
    pixels = _wide(x).reshape(batch, height * width, channels)

    def pixel(row, column):
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        where = (row * width + column).reshape(batch, height * width)
        # A batched gather, so that a batch sharded over devices stays where it is.
        take = jax.vmap(lambda image, i: image.at[i].get(mode="promise_in_bounds"))
        return take(pixels, where).reshape(x.shape)

    def between(first, second, weight):
        return first + weight.astype(first.dtype) * (second - first)

    to_right, to_bottom = source_x - 0.5 - left, source_y - 0.5 - top
    upper = between(pixel(top, left), pixel(top, left + 1), to_right)
    lower = between(pixel(top + 1, left), pixel(top + 1, left + 1), to_right)
    out = between(upper, lower, to_bottom)
    return jnp.where(inside, out, 0.0).astype(x.dtype)


def _blend(x, degenerate, amount):
    """Moves `x` away from `degenerate` by the factor `1 + amount`; exactly `x` at amount 0."""
    wide = _wide(x)
    amount = amount.astype(wide.dtype)[:, None, None, None]
    return _clip(wide + amount * (wide - degenerate)).astype(x.dtype)


def _black(x):
    return jnp.zeros_like(_wide(x))


def _grey(x):
    """The luma of ITU-R 601-2, repeated for every channel."""
    x = _wide(x)
    if x.shape[-1] == 1:
        return x
    # Not dm_pix.rgb_to_grayscale: its weights add up to 0.9999, which would darken grey images.
    luma = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    return jnp.broadcast_to(luma, x.shape)


def _mean_grey(x):
    return jnp.broadcast_to(_grey(x).mean(axis=(1, 2), keepdims=True), x.shape)


def _smooth(x):
    """The 3 x 3 filter with 5 in the middle, 1 around it and sum 13; the border is kept."""
    x = _wide(x)
    if min(x.shape[1:3]) < 3:
        return x
    # Shifted sums: a convolution of one channel at a time is slow on CPU.
    box = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    box = box[:, :, :-2] + box[:, :, 1:-1] + box[:, :, 2:]
    middle = x[:, 1:-1, 1:-1]
    return x.at[:, 1:-1, 1:-1].set((box + 4 * middle) / 13)


def _posterize(x, bits):
    drop = (8 - jnp.round(bits)).astype(jnp.int32)[:, None, None, None]
    kept = jnp.left_shift(jnp.right_shift(_levels(x), drop), drop)
    return _straight_through(x, _from_levels(kept, x))


def _solarize(x, threshold):
    wide = _wide(x)
    return pix.solarize(wide, threshold.astype(wide.dtype)[:, None, None, None]).astype(x.dtype)


def _autocontrast(x):
    wide = _wide(x)
    low = wide.min(axis=(1, 2), keepdims=True)
    span = wide.max(axis=(1, 2), keepdims=True) - low
    constant = span < 0.5 / 255
    # The division is made safe before it is done: a `where` after it would let a NaN into the
    # gradient of constant channels.
    stretched = (wide - low) / jnp.where(constant, 1.0, span)
    return jnp.where(constant, x, _clip(stretched).astype(x.dtype))


def _equalize(x):
    batch, height, width, channels = x.shape
    size = height * width
    # Channels first: counting pixels that lie apart in memory costs several times more.
    levels = jnp.moveaxis(_levels(x), 3, 1).reshape(batch * channels, size)

    def darker_pixels(levels):
        histogram = jnp.zeros(256, jnp.int32).at[levels].add(1, mode="promise_in_bounds")
        darker = jnp.cumsum(histogram) - histogram
        return darker.at[levels].get(mode="promise_in_bounds")

    brightest = (levels == levels.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
    step = (size - brightest) // 255
    count = step // 2 + jax.vmap(darker_pixels)(levels)
    # Whole numbers below 2 ** 24, so that the float division is exact; integers divide slowly.
    flat = jnp.floor(count.astype(jnp.float32) / jnp.maximum(step, 1).astype(jnp.float32))
    flat = jnp.minimum(flat, 255.0).reshape(batch, channels, height, width)
    equalized = _straight_through(x, _from_levels(jnp.moveaxis(flat, 1, 3), x))
    return jnp.where(step.reshape(batch, 1, 1, channels) > 0, equalized, x)


def _wide(x):
    """`x` in the precision of the arithmetic, float32 or better."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _per_image(name, value, x):
    """`value` as a float array `[B]`."""
    value = jnp.asarray(value).astype(jnp.float32)
    if value.shape not in ((), x.shape[:1]):
        raise ValueError(f"{name} has shape {value.shape}; allowed: a number or {x.shape[:1]}.")
    return jnp.broadcast_to(value, x.shape[:1])


def _clip(x):
    """Clips to `[0, 1]` with derivative 1 on the closed interval.

    `jnp.clip` gives the end points half of the gradient, and black or white pixels are common.
    """
    return jnp.where(x < 0, 0.0, jnp.where(x > 1, 1.0, x))


def _levels(x):
    """The 8-bit grey levels, integers from 0 to 255."""
    return jnp.clip(jnp.round(_wide(x) * 255), 0, 255).astype(jnp.int32)


def _from_levels(levels, x):
    return (levels.astype(_wide(x).dtype) / 255).astype(x.dtype)


def _straight_through(x, value):
    """Exactly `value`, with the gradient of `x`."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))
