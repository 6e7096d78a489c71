"""Mixup and CutMix: the input-mixing baselines that regularisers are compared with.

Both pair every example with another one of the batch and mix images and labels in one proportion
`lam ~ Beta(alpha, alpha)`:

    mixup     x = lam x_i + (1 - lam) x_j                  y = lam y_i + (1 - lam) y_j
    CutMix    x = x_i with a rectangle of x_j pasted in    y = lam y_i + (1 - lam) y_j,
              where 1 - lam is the area of the rectangle, as a fraction, after clipping to the image

Both reduce to the plain batch, bit for bit, at `alpha = 0`.
"""

import math

import jax
import jax.numpy as jnp

from genreg_jax.checks import as_array, split


def mixup(key, x, y_onehot, *, alpha, per_example=False):
    """Mixes every example, and its label, with another one of the batch.

    One `lam` is drawn for the whole batch, as in the authors' code; `per_example=True` draws one
    for each pair. The pairing is a random permutation of the batch as the program sees it.

    Args:
      key: a PRNG key.
      x: inputs `[B, ...]`, floats.
      y_onehot: label distributions `[B, K]`, floats.
      alpha: parameter of the Beta distribution, a Python number; 0 turns mixing off. The paper
        uses 1 on CIFAR-10 and 0.2 on ImageNet.
      per_example: draw one proportion for each example instead of one for the batch.

    Returns:
      `(x, y)`, mixed, with the shapes and dtypes of the arguments. Every row of `y` keeps its sum.

    Raises:
      ValueError: `alpha` is negative or not a number, or the arrays do not fit each other.

    Gradients flow to `x` and `y_onehot`.

    Example:
      >>> x, y = jnp.zeros((4, 8, 8, 1)), jnp.eye(4)
      >>> x, y = mixup(jax.random.key(0), x, y, alpha=1.0)
      >>> x.shape, y.sum(axis=1).round(4).tolist()
      ((4, 8, 8, 1), [1.0, 1.0, 1.0, 1.0])

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412.
    """
    x, y = _check(x, y_onehot, alpha)
    if alpha == 0:
        return x, y
    pair_key, lam_key = split(key)
    partner = jax.random.permutation(pair_key, x.shape[0])
    lam = _proportion(lam_key, x.shape[0], alpha, per_example)
    return _mix(x, x[partner], lam), _mix(y, y[partner], lam)


def cutmix(key, x, y_onehot, *, alpha, per_example=False):
    """Pastes a rectangle of another image of the batch into every image, and mixes the labels.

    One rectangle is drawn for the whole batch, as in the authors' code; `per_example=True` draws
    one for each pair. Its centre is uniform and it is clipped at the border; labels are mixed by
    the area that is really pasted. The pairing is a random permutation of the batch as the program
    sees it.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]`, floats.
      y_onehot: label distributions `[B, K]`, floats.
      alpha: parameter of the Beta distribution, a Python number; 0 turns mixing off. The paper
        uses 1.
      per_example: draw one rectangle for each example instead of one for the batch.

    Returns:
      `(x, y)`, mixed, with the shapes and dtypes of the arguments. Every row of `y` keeps its sum.

    Raises:
      ValueError: `alpha` is negative or not a number, or the arrays do not fit each other.

    Gradients flow to `x` and `y_onehot`.

    Example:
      >>> x, y = jnp.zeros((4, 8, 8, 1)), jnp.eye(4)
      >>> x, y = cutmix(jax.random.key(0), x, y, alpha=1.0)
      >>> x.shape, y.sum(axis=1).round(4).tolist()
      ((4, 8, 8, 1), [1.0, 1.0, 1.0, 1.0])

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
      Localizable Features", arXiv:1905.04899.
    """
    x, y = _check(x, y_onehot, alpha)
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}; allowed: images [B, H, W, C].")
    if alpha == 0:
        return x, y
    pair_key, lam_key, place_key = jax.random.split(key, 3)
    partner = jax.random.permutation(pair_key, x.shape[0])
    lam = _proportion(lam_key, x.shape[0], alpha, per_example)
    inside = _rectangles(place_key, lam, *x.shape[1:3])
    kept = 1 - inside.mean(axis=(1, 2))
    return jnp.where(inside[..., None], x[partner], x), _mix(y, y[partner], kept)


def _proportion(key, batch, alpha, per_example):
    """`[B]`, or `[1]` where the batch shares one draw."""
    return jax.random.beta(key, alpha, alpha, (batch if per_example else 1,), jnp.float32)


def _mix(first, second, lam):
    """`lam first + (1 - lam) second`, in float32 at least and back in the dtype of `first`."""
    dtype = first.dtype if first.dtype == jnp.float64 else jnp.float32
    lam = lam.astype(dtype).reshape(-1, *[1] * (first.ndim - 1))
    return (lam * first.astype(dtype) + (1 - lam) * second.astype(dtype)).astype(first.dtype)


def _rectangles(key, lam, height, width):
    """Masks `[N, H, W]` of rectangles with the proportions of the image and area `1 - lam`."""
    side = jnp.sqrt(1 - lam)

    def covered(key, length):
        size = jnp.floor(length * side).astype(jnp.int32)
        center = jax.random.randint(key, lam.shape, 0, length)
        distance = jnp.arange(length)[None, :] - (center - size // 2)[:, None]
        # The authors' code takes size // 2 pixels on both sides of the centre.
        return (0 <= distance) & (distance < 2 * (size // 2)[:, None])

    row_key, column_key = split(key)
    return covered(row_key, height)[:, :, None] & covered(column_key, width)[:, None, :]


def _check(x, y_onehot, alpha):
    x, y = as_array(x, "x", "floats [B, ...]"), as_array(y_onehot, "y_onehot", "floats [B, K]")
    if not isinstance(alpha, (int, float)) or not 0 <= alpha < math.inf:
        raise ValueError(f"alpha is {alpha!r}; allowed: a Python number >= 0.")
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has shape {x.shape} and dtype {x.dtype}; allowed: floats [B, ...].")
    if y.ndim != 2 or y.shape[0] != x.shape[0] or not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f"y_onehot has shape {y.shape} and dtype {y.dtype}; allowed: floats [B, K] with "
            f"B = {x.shape[0]}, such as jax.nn.one_hot(labels, num_classes)."
        )
    return x, y
