"""How the pixels of a batch lie: images squeezed, and images as planes.

A squeeze trades pixels for channels. A frozen flow works on planes `[C, B, H, W]`: the thin tensors
between two couplings have few channels, and only with the pixels last do shifts, halves and
elementwise functions of them run at the speed of memory on CPU. Accelerators choose their own
layout.
"""

import jax
import jax.numpy as jnp


def squeeze(x: jax.Array) -> jax.Array:
    """Trades each 2x2 block of pixels for four channels: `[B, H, W, C]` to `[B, H/2, W/2, 4C]`.

    A permutation, so its log-determinant is zero.

    Args:
      x: images with even sides.

    Returns:
      The squeezed images; the channels of one pixel stay together, in the order top left, top
      right, bottom left, bottom right.

    Example:
      >>> import jax.numpy as jnp
      >>> squeeze(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
      [[[[0.0, 1.0, 2.0, 3.0]]]]
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze(x: jax.Array) -> jax.Array:
    """The inverse of `squeeze`: `[B, H, W, 4C]` to `[B, 2H, 2W, C]`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(24.0).reshape(1, 4, 2, 3)
      >>> bool((unsqueeze(squeeze(x)) == x).all())
      True
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def to_planes(x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` to `[C, B, H, W]`."""
    return jnp.transpose(x, (3, 0, 1, 2))


def from_planes(h: jax.Array) -> jax.Array:
    """`[C, B, H, W]` to `[B, H, W, C]`."""
    return jnp.transpose(h, (1, 2, 3, 0))


def squeeze_planes(h: jax.Array) -> jax.Array:
    """`squeeze` of planes."""
    c, b, height, width = h.shape
    h = h.reshape(c, b, height // 2, 2, width // 2, 2).transpose(3, 5, 0, 1, 2, 4)
    return h.reshape(4 * c, b, height // 2, width // 2)


def unsqueeze_planes(h: jax.Array) -> jax.Array:
    """`unsqueeze` of planes."""
    c, b, height, width = h.shape
    h = h.reshape(2, 2, c // 4, b, height, width).transpose(2, 3, 4, 0, 5, 1)
    return h.reshape(c // 4, b, 2 * height, 2 * width)


def column(v: jax.Array) -> jax.Array:
    """`[C]` as planes that broadcast, `[C, 1, 1, 1]`."""
    return v[:, None, None, None]
