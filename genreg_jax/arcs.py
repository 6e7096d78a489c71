"""The great arc between latents, whose points are as long as latents are."""

import jax
import jax.numpy as jnp

from genreg_jax import bounds


def cosine_of(start: jax.Array, end: jax.Array) -> jax.Array:
    """Cosine `[B, 1, ...]` of the angle between latents `[B, ...]`; 0 beside one of zeros."""
    axes = tuple(range(1, start.ndim))
    dot = lambda a, b: jnp.sum(a * b, axes, keepdims=True)
    return dot(start, end) / bounds.maximum(jnp.sqrt(dot(start, start) * dot(end, end)), 1e-12)


def great_arc(
    start: jax.Array, end: jax.Array, share: jax.Array | float, cosine: jax.Array
) -> jax.Array:
    """`sin((1 - t) a) / sin(a) start + sin(t a) / sin(a) end`, with `a` the angle between the two.

    Args:
      start: `[B, ...]`, floating point.
      end: of the same shape.
      share: `t`, 0 at the start and 1 at the end; broadcasts.
      cosine: of `a`, as `cosine_of` has it; broadcasts.

    Gradients flow to all arguments. Between parallel latents it is the straight line.

    Example:
      >>> import jax.numpy as jnp
      >>> from genreg_jax.arcs import cosine_of, great_arc
      >>> start, end = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> middle = great_arc(start, end, 0.5, cosine_of(start, end))
      >>> jnp.linalg.norm(middle, axis=1).round(4).tolist()
      [2.0]

    Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    # Kept away from 0 and pi, where the arc is undefined; near 0 it is the straight line.
    angle = jnp.arccos(bounds.clip(cosine, -0.9999, 0.9999))
    return (jnp.sin((1 - share) * angle) * start + jnp.sin(share * angle) * end) / jnp.sin(angle)
