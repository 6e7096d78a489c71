"""A 3x3 "same" convolution that is fast on every backend.

XLA's CPU convolution reaches about half of what its matrix product does at the sizes of a flow's
couplings, and is another 20 times slower inside `lax.scan`. On CPU the convolution is therefore
nine shifted images and one matrix product; on accelerators it is the library's own. The choice is
made here and nowhere else; both forms agree to rounding.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_OFFSETS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


def _shift(x: jax.Array, i: int, j: int) -> jax.Array:
    """`out[:, r, c] = x[:, r + i, c + j]`, zero outside, as one negative padding."""
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), (-i, i, 0), (-j, j, 0), (0, 0, 0)))


def _by_products(x: jax.Array, kernel: jax.Array, precision) -> jax.Array:
    channels_in, channels_out = kernel.shape[2:]
    if channels_in <= channels_out:
        patches = jnp.concatenate([_shift(x, i, j) for i, j in _OFFSETS], axis=-1)
        return jnp.matmul(patches, kernel.reshape(-1, channels_out), precision=precision)
    # Few output channels: shifting the nine products moves less memory than shifting the input.
    # `split` and not indexing, because its transpose is one concatenation.
    stacked = kernel.transpose(2, 0, 1, 3).reshape(channels_in, -1)
    parts = jnp.split(jnp.matmul(x, stacked, precision=precision), 9, axis=-1)
    return reduce(jnp.add, [_shift(part, i, j) for part, (i, j) in zip(parts, _OFFSETS)])


def conv3x3_planes(
    x: jax.Array, kernel: jax.Array, *, precision: Any = lax.Precision.HIGHEST
) -> jax.Array:
    """`conv3x3` of planes: `[C, B, H, W]` to `[O, B, H, W]`, with the same kernel `[3, 3, C, O]`.

    Example:
      >>> import jax.numpy as jnp
      >>> conv3x3_planes(jnp.ones((1, 1, 2, 2)), jnp.ones((3, 3, 1, 1)))[0, 0].tolist()
      [[4.0, 4.0], [4.0, 4.0]]
    """
    if jax.default_backend() == "cpu":
        return _by_products_of_planes(x, kernel, precision)
    numbers = ("CNHW", "HWIO", "CNHW")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers, precision=precision
    )


def _by_products_of_planes(x: jax.Array, kernel: jax.Array, precision) -> jax.Array:
    zero = jnp.zeros((), x.dtype)
    channels_in, channels_out = kernel.shape[2:]

    def shift(x, i, j):
        return lax.pad(x, zero, ((0, 0, 0), (0, 0, 0), (-i, i, 0), (-j, j, 0)))

    if channels_in <= channels_out:
        patches = jnp.concatenate([shift(x, i, j) for i, j in _OFFSETS])
        stacked = kernel.reshape(-1, channels_out).T
        return jnp.tensordot(stacked, patches, 1, precision=precision)
    stacked = kernel.transpose(0, 1, 3, 2).reshape(-1, channels_in)
    parts = jnp.split(jnp.tensordot(stacked, x, 1, precision=precision), 9)
    return reduce(jnp.add, [shift(part, i, j) for part, (i, j) in zip(parts, _OFFSETS)])


def conv3x3(
    x: jax.Array, kernel: jax.Array, *, precision: Any = lax.Precision.HIGHEST
) -> jax.Array:
    """3x3 convolution with zero padding and stride 1.

    `out[b, r, c, o] = sum_{i, j, k} x[b, r + i, c + j, k] kernel[1 + i, 1 + j, k, o]`.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[3, 3, C, O]`.
      precision: of the products; the default keeps TF32 out, which would break a flow's round
        trip.

    Returns:
      `[B, H, W, O]`.

    Gradients flow to both arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> conv3x3(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
      [[4.0, 4.0], [4.0, 4.0]]
    """
    if jax.default_backend() == "cpu":
        return _by_products(x, kernel, precision)
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
