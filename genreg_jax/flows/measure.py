"""How good a trained flow is: bits per dimension, and how exactly it inverts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax import checks
from genreg_jax.flows.flow import Flow


@functools.partial(jax.jit, static_argnums=0)
def _measure(flow: Flow, params, frozen, key, x, y):
    """Bits per dimension, and the error of the round trip through the flow and the frozen flow."""
    x = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x
    again = flow.decode(params, flow.encode(params, x, y)[0], y)[0]
    frozen_again = frozen.decode(frozen.encode(x, y), y)
    return flow.bits_per_dim(params, x, y, key=key), jnp.abs(again - x), jnp.abs(frozen_again - x)


def evaluate_flow(
    flow: Flow, params, images, labels=None, *, key: jax.Array, batch_size: int = 256
) -> dict[str, float]:
    """Bits per dimension and reconstruction errors over a whole split.

    The error of a pixel is `|x - decode(encode(x))|`; its maximum and its median are over all
    pixels of all images.

    Args:
      flow: from `glow` or `realnvp`.
      params: its parameters.
      images: `[N, H, W, C]`, uint8, or floating point in [0, 1].
      labels: `[N]`, for a conditional flow.
      key: of the dequantisation noise.
      batch_size: images at a time.

    Returns:
      `bits_per_dim` and its standard error `bits_per_dim_error`, `reconstruction_error_max` and
      `reconstruction_error_median`, and the latter two of the frozen flow under `frozen_...`.

    Raises:
      ValueError: on a wrong shape, dtype, range or label.

    Example:
      >>> import jax, numpy as np
      >>> from genreg_jax import flows
      >>> flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
      >>> params = flow.init(jax.random.key(0), x / np.float32(255))
      >>> result = evaluate_flow(flow, params, x, key=jax.random.key(1), batch_size=16)
      >>> 7 < result["bits_per_dim"] < 9, result["reconstruction_error_max"] < 1e-5
      (True, True)
    """
    checks.check_positive(batch_size=batch_size)
    images, labels = checks.as_split(images, labels, flow.image_shape, flow.num_classes)
    frozen = flow.freeze(params)
    n = images.shape[0]
    batch_size = min(batch_size, n)
    columns = []
    for first in range(0, n, batch_size):
        # The last batch repeats the last image, so that one program serves all of them.
        rows = np.minimum(np.arange(first, first + batch_size), n - 1)
        y = None if labels is None else labels[rows]
        out = _measure(flow, params, frozen, jax.random.fold_in(key, first), images[rows], y)
        columns.append([np.asarray(a)[: n - first] for a in out])
    bits, errors, frozen_errors = (np.concatenate(column) for column in zip(*columns))
    return {
        "bits_per_dim": float(np.mean(bits, dtype=np.float64)),
        "bits_per_dim_error": float(np.std(bits, dtype=np.float64) / np.sqrt(n)),
        "reconstruction_error_max": float(errors.max()),
        "reconstruction_error_median": float(np.median(errors)),
        "frozen_reconstruction_error_max": float(frozen_errors.max()),
        "frozen_reconstruction_error_median": float(np.median(frozen_errors)),
    }


def test_key(seed: int) -> jax.Array:
    """The key of the dequantisation noise with which a run measures its flow."""
    return jax.random.fold_in(jax.random.key(seed), 5)


def print_result(count: int, result: dict[str, Any]) -> None:
    """Prints what `evaluate_flow` returned."""
    print(
        f"test set, {count} images: {result['bits_per_dim']:.4f} ± "
        f"{result['bits_per_dim_error']:.4f} bits/dim (mean, standard error)"
    )
    for name, prefix in (("flow", ""), ("frozen flow", "frozen_")):
        print(
            f"reconstruction error of the {name}: max "
            f"{result[f'{prefix}reconstruction_error_max']:.2e}, median "
            f"{result[f'{prefix}reconstruction_error_median']:.2e}"
        )
