"""Evaluation of a classifier over a whole split."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from genreg_jax.models.contract import Model
from genreg_jax.objective import to_float


def make_evaluate(
    model: Model, *, batch_size: int, constrain: Callable[[Any], Any] = lambda tree: tree
) -> Callable[..., dict[str, Any]]:
    """Builds the evaluation of one classifier; its program compiles once for all splits.

    Args:
      model: classifier for images in [0, 1].
      batch_size: images per forward pass; the last batch is padded and its padding not counted.
      constrain: applied to every batch; such as a sharding constraint.

    Returns:
      `evaluate(params, model_state, images [N, H, W, C], labels [N])`, which returns a dict with
      `accuracy` in [0, 1], mean `loss` (cross-entropy in nats), and NumPy arrays `predictions`
      int `[N]` and `embeddings` `[N, D]`.
    """

    @jax.jit
    def forward(params, model_state, images, labels):
        images, labels = constrain((images, labels))
        outputs, _ = model.apply(params, model_state, to_float(images), rng=None, train=False)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, labels)
        return losses, jnp.argmax(outputs.logits, axis=-1), outputs.embedding

    def gather(out):
        return (
            multihost_utils.process_allgather(out, tiled=True) if jax.process_count() > 1 else out
        )

    def evaluate(params, model_state, images, labels):
        rows = []
        for start in range(0, len(labels), batch_size):
            x, y = images[start : start + batch_size], labels[start : start + batch_size]
            padding = batch_size - len(y)
            if padding:
                x = np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
                y = np.concatenate([y, np.zeros(padding, y.dtype)])
            out = jax.device_get(gather(forward(params, model_state, x, y)))
            rows.append([a[: batch_size - padding] for a in out])
        losses, predictions, embeddings = (np.concatenate(column) for column in zip(*rows))
        return {
            "accuracy": float(np.mean(predictions == labels)),
            "loss": float(np.mean(losses, dtype=np.float64)),
            "predictions": predictions,
            "embeddings": embeddings,
        }

    return evaluate
