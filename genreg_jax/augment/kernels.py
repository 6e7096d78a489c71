"""The pixel kernels behind the operations: each does a whole batch, `[B, H, W, C]`.

A magnitude is one value per image, `[B]`. Nothing is checked here; `ops` does that.
"""

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genreg_jax.bounds import clip


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


def resize_boxes(x, top, left, height, width):
    """A box of each image, brought to the size of the whole one: Pillow's antialiased bilinear.

    `top`, `left`, `height` and `width` are whole numbers `[B]`. Every result is a mean of pixels of
    the box, weighted by a triangle that is as wide as a result's part of the box, or two pixels if
    that is more. Linear in `x`; the whole image as the box returns `x` to rounding.
    """
    rows = _box_weights(x.shape[1], top, height)
    columns = _box_weights(x.shape[2], left, width)
    exact = jax.lax.Precision.HIGHEST
    out = jnp.einsum("boh,bhwc->bowc", rows, _wide(x), precision=exact)
    return jnp.einsum("bpw,bowc->bopc", columns, out, precision=exact).astype(x.dtype)


def _box_weights(size, start, length):
    """Weights `[B, size, size]`: of what each pixel gives to each result, along one side."""
    start, length = (a.astype(jnp.float32)[:, None, None] for a in (start, length))
    pixel = jnp.arange(size, dtype=jnp.float32)[None, None, :] + 0.5
    result = jnp.arange(size, dtype=jnp.float32)[None, :, None] + 0.5
    ratio = length / size
    distance = jnp.abs(pixel - (start + result * ratio)) / jnp.maximum(ratio, 1)
    inside = (start < pixel) & (pixel < start + length)
    weights = jnp.where(inside, jnp.maximum(1 - distance, 0), 0)
    return weights / weights.sum(axis=2, keepdims=True)


def blend(x, degenerate, amount):
    """Moves `x` away from `degenerate` by the factor `1 + amount`; exactly `x` at amount 0."""
    wide = _wide(x)
    amount = amount.astype(wide.dtype)[:, None, None, None]
    return clip(wide + amount * (wide - degenerate), 0, 1).astype(x.dtype)


def black(x):
    """All black, in the precision of the arithmetic."""
    return jnp.zeros_like(_wide(x))


def grey(x):
    """The luma of ITU-R 601-2, repeated for every channel."""
    x = _wide(x)
    if x.shape[-1] == 1:
        return x
    # Not dm_pix.rgb_to_grayscale: its weights add up to 0.9999, which would darken grey images.
    luma = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    return jnp.broadcast_to(luma, x.shape)


def mean_grey(x):
    """The mean luma of each image."""
    return jnp.broadcast_to(grey(x).mean(axis=(1, 2), keepdims=True), x.shape)


def smooth(x):
    """The 3 x 3 filter with 5 in the middle, 1 around it and sum 13; the border is kept."""
    x = _wide(x)
    if min(x.shape[1:3]) < 3:
        return x
    # Shifted sums: a convolution of one channel at a time is slow on CPU.
    box = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    box = box[:, :, :-2] + box[:, :, 1:-1] + box[:, :, 2:]
    middle = x[:, 1:-1, 1:-1]
    return x.at[:, 1:-1, 1:-1].set((box + 4 * middle) / 13)


def posterize(x, bits):
    """The highest `bits` of the 8 bits of every pixel; straight through."""
    drop = (8 - jnp.round(bits)).astype(jnp.int32)[:, None, None, None]
    kept = jnp.left_shift(jnp.right_shift(_levels(x), drop), drop)
    return _straight_through(x, _from_levels(kept, x))


def solarize(x, threshold):
    """Pixels at or above the threshold inverted."""
    wide = _wide(x)
    return pix.solarize(wide, threshold.astype(wide.dtype)[:, None, None, None]).astype(x.dtype)


def autocontrast(x):
    """Every channel stretched to the full range, unless it is constant."""
    wide = _wide(x)
    low = _extreme(wide, jnp.min)
    span = _extreme(wide, jnp.max) - low
    constant = span < 0.5 / 255
    # The division is made safe before it is done: a `where` after it would let a NaN into the
    # gradient of constant channels.
    stretched = (wide - low) / jnp.where(constant, 1.0, span)
    return jnp.where(constant, x, clip(stretched, 0, 1).astype(x.dtype))


def _extreme(x, choose):
    """`choose`, `jnp.min` or `jnp.max`, of each channel; equal pixels share the gradient.

    Equal within 1e-6, since rounding may differ: see `bounds`.
    """
    constant = jax.lax.stop_gradient(x)
    found = choose(constant, axis=(1, 2), keepdims=True)
    equal = (jnp.abs(constant - found) < 1e-6).astype(x.dtype)
    shares = equal / jnp.maximum(equal.sum(axis=(1, 2), keepdims=True), 1)
    return _straight_through(jnp.sum(shares * x, axis=(1, 2), keepdims=True), found)


def equalize(x):
    """Every channel with a flat histogram, by Pillow's rule; straight through."""
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


def _levels(x):
    """The 8-bit grey levels, integers from 0 to 255."""
    return jnp.clip(jnp.round(_wide(x) * 255), 0, 255).astype(jnp.int32)


def _from_levels(levels, x):
    return (levels.astype(_wide(x).dtype) / 255).astype(x.dtype)


def _straight_through(x, value):
    """Exactly `value`, with the gradient of `x`."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))
