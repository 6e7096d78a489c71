"""Maximum, minimum and clip, with derivatives that hold in compiled programs.

The derivatives of `jnp.maximum` and `jnp.max` compare an argument with their value. XLA may compute
that argument twice, with different rounding; then nothing is equal, and the gradient is lost, or
0 / 0. On CPU the second derivative of max-pooling was, on GPUs the first one of `jnp.maximum` has
been (https://github.com/jax-ml/jax/issues/40564). These compare their arguments with each other,
where a last digit decides nothing but between two equal numbers.
"""

import jax
import jax.numpy as jnp


def maximum(a: jax.Array | float, b: jax.Array | float) -> jax.Array:
    """`jnp.maximum(a, b)`; of two equal numbers the first has the gradient. NaN stays NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax.bounds import maximum
      >>> jax.grad(lambda x: maximum(x, 2.0).sum())(jnp.array([1.0, 2.0, 3.0])).tolist()
      [0.0, 1.0, 1.0]
    """
    return jnp.where((a < b) | jnp.isnan(b), b, a)


def minimum(a: jax.Array | float, b: jax.Array | float) -> jax.Array:
    """`jnp.minimum(a, b)`; of two equal numbers the first has the gradient. NaN stays NaN."""
    return jnp.where((a > b) | jnp.isnan(b), b, a)


def clip(x: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """`jnp.clip(x, low, high)` with derivative 1 on the closed interval. NaN stays NaN.

    `jnp.clip` gives the end points half of the gradient, and black or white pixels are common.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax.bounds import clip
      >>> x = jnp.array([-1.0, 0.0, 0.5, 2.0])
      >>> jax.grad(lambda x: clip(x, 0.0, 1.0).sum())(x).tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    return minimum(maximum(x, low), high)
