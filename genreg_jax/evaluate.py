"""Evaluation: of a classifier over a split, of its embeddings, of a finder."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from genreg_jax.checks import widened
from genreg_jax.contract import Model, to_float
from genreg_jax.data import Split
from genreg_jax.state import TrainState


def make_evaluate(
    model: Model,
    *,
    batch_size: int,
    constrain: Callable[[Any], Any] = lambda tree: tree,
    fetch: Callable[[Any, np.ndarray], Any] = lambda array, rows: array[rows],
    probabilities: bool = False,
) -> Callable[..., dict[str, Any]]:
    """Builds the evaluation of one classifier; its program compiles once for all splits.

    Args:
      model: classifier for images in [0, 1].
      batch_size: images per forward pass; the last image fills the last batch and counts once.
      constrain: applied to every batch; such as a sharding constraint.
      fetch: what reads rows of the images, and of the labels.
      probabilities: return them too.

    Returns:
      `evaluate(params, model_state, images [N, H, W, C], labels [N])`, which returns a dict with
      `accuracy` in [0, 1], mean `loss` (cross-entropy in nats, the negative log-likelihood),
      `calibration_error` in [0, 1], and NumPy arrays `predictions` int `[N]`, their probabilities
      `confidences` `[N]`, `embeddings` `[N, D]`, and maybe `probabilities` `[N, K]`.
    """

    @jax.jit
    def forward(params, model_state, images, labels):
        images, labels = constrain((images, labels))
        outputs, _ = model.apply(params, model_state, to_float(images), rng=None, train=False)
        logits = widened(outputs.logits)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        predictions = jnp.argmax(outputs.logits, axis=-1)
        chances = jax.nn.softmax(outputs.logits.astype(jnp.float32))
        more = (chances,) if probabilities else ()
        return losses, predictions, jnp.max(chances, axis=-1), outputs.embedding, *more

    def gather(out):
        return (
            multihost_utils.process_allgather(out, tiled=True) if jax.process_count() > 1 else out
        )

    def evaluate(params, model_state, images, labels):
        rows = []
        for start in range(0, len(labels), batch_size):
            which = np.minimum(np.arange(start, start + batch_size), len(labels) - 1)
            x, y = fetch(images, which), fetch(labels, which)
            out = jax.device_get(gather(forward(params, model_state, x, y)))
            rows.append([a[: len(labels) - start] for a in out])
        columns = [np.concatenate(column) for column in zip(*rows)]
        losses, predictions, confidences, embeddings, *more = columns
        return {
            "accuracy": float(np.mean(predictions == labels)),
            "loss": float(np.mean(losses, dtype=np.float64)),
            "calibration_error": calibration_error(reliability(confidences, predictions == labels)),
            "predictions": predictions,
            "confidences": confidences,
            "embeddings": embeddings,
            **({"probabilities": more[0]} if more else {}),
        }

    return evaluate


def validate(evaluate: Callable, state: TrainState, split: Split) -> dict[str, float]:
    """Metrics on the validation images, none where there are none."""
    if not len(split.labels):
        return {}
    result = evaluate(state.params, state.model_state, split.images, split.labels)
    return {
        "validation/accuracy": result["accuracy"],
        "validation/cross_entropy": result["loss"],
        **{
            f"validation/{name}": value
            for name, value in class_similarity(result["embeddings"], split.labels).items()
        },
    }


def class_similarity(embeddings: Any, labels: Any) -> dict[str, float]:
    """Mean cosine similarity of pairs of one class and of pairs of two classes.

    Phantom embeddings are said to raise the former and to lower the latter.

    Args:
      embeddings: `[N, D]`; a zero vector is similar to nothing.
      labels: int `[N]`.

    Returns:
      `{"intra_class_similarity": ..., "inter_class_similarity": ...}`, each in [-1, 1], NaN where
      there is no such pair. A sample is not paired with itself.

    Example:
      >>> from genreg_jax.evaluate import class_similarity
      >>> class_similarity([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], [0, 0, 1])
      {'intra_class_similarity': 1.0, 'inter_class_similarity': 0.0}
    """
    x, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(norms > 0, norms, 1.0)
    # The sum over all pairs of a set is the squared length of its sum.
    sums = np.stack([x[labels == c].sum(axis=0) for c in np.unique(labels)])
    sizes = np.unique(labels, return_counts=True)[1]
    within, everything = np.sum(sums**2), np.sum(sums.sum(axis=0) ** 2)
    pairs_within, pairs = np.sum(sizes**2), len(x) ** 2
    # Where there is no pair, rounding may leave something of a sum.
    mean = lambda total, count: float(total / count) if count else math.nan
    return {
        "intra_class_similarity": mean(within - np.sum(x**2), pairs_within - len(x)),
        "inter_class_similarity": mean(everything - within, pairs - pairs_within),
    }


def reliability(confidences: Any, correct: Any, *, bins: int = 15) -> dict[str, np.ndarray]:
    """How often predictions of a confidence are right: the sums of a reliability diagram.

    Args:
      confidences: `[N]`, probabilities of the predicted classes, in [0, 1].
      correct: bool `[N]`, whether these are the true ones.
      bins: M equal parts of [0, 1]; part m is `(m / M, (m + 1) / M]`, and 0 is in the first.

    Returns:
      Of each part, `[M]`: `images`, how many are `right`, and the sum of their `confidence`.

    Example:
      >>> from genreg_jax.evaluate import reliability
      >>> reliability([0.4, 0.5, 0.9], [True, False, True], bins=2)["right"].tolist()
      [1, 1]
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    place = np.digitize(confidences, np.arange(1, bins) / bins, right=True)
    return {
        "images": np.bincount(place, minlength=bins),
        "right": np.bincount(place[correct], minlength=bins),
        "confidence": np.bincount(place, confidences, minlength=bins),
    }


def calibration_error(sums: Mapping[str, Any]) -> float:
    """The expected calibration error (Guo et al., 2017, arXiv:1706.04599).

        sum over parts m of n_m / N |accuracy_m - confidence_m|

    Args:
      sums: from `reliability`.

    Returns:
      In [0, 1]; NaN where there are no images.

    Example:
      >>> from genreg_jax.evaluate import calibration_error, reliability
      >>> calibration_error(reliability([0.75, 0.75], [True, False]))
      0.25
    """
    with np.errstate(invalid="ignore"):
        gaps = np.abs(np.subtract(sums["right"], sums["confidence"]))
        return float(np.sum(gaps) / np.float64(np.sum(sums["images"])))


def principal_plane(embeddings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two principal components of embeddings.

    Args:
      embeddings: `[N, D]`.

    Returns:
      Coordinates `[N, 2]`, and the fractions of the variance that the two explain, `[2]`. The
      largest loading of a component is positive, so that a picture has one orientation.

    Example:
      >>> from genreg_jax.evaluate import principal_plane
      >>> points, explained = principal_plane([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
      >>> points[:, 0].round(6).tolist(), explained.round(6).tolist()
      ([-5.0, 0.0, 5.0], [1.0, 0.0])
    """
    x = np.asarray(embeddings, np.float64)
    n, width = x.shape
    x = np.pad(x - x.mean(axis=0), ((0, max(2 - n, 0)), (0, max(2 - width, 0))))
    _, values, components = np.linalg.svd(x, full_matrices=False)
    components = components[:2]
    largest = np.take_along_axis(components, np.argmax(np.abs(components), 1)[:, None], 1)
    variances = values**2 / max(np.sum(values**2), 1e-300)
    points = x[:n] @ (components * np.where(largest < 0, -1.0, 1.0)).T
    return points, variances[:2]


def search_in_words(spread: float, distance: float, share: float | None = None) -> str:
    """What a finder does to its latents, in words for people.

    Args:
      spread: how different the found latents of a class are, relative to the draws.
      distance: mean distance from the draw, relative to its norm.
      share: from `finder_share`.

    Example:
      >>> search_in_words(0.34, 1.2)[:40]
      'The finder has collapsed: the latents th'
    """
    if distance < 0.01:
        return (
            f"The finder does nothing: it moves a latent by {distance:.1%} of its length, so that "
            "the samples are those of the source."
        )
    if spread < 0.8:
        return (
            f"The finder has collapsed: the latents that it makes of the draws of a class have "
            f"{spread:.0%} of their spread, so that the samples of a class are nearly one picture. "
            "A config.meta.radius of 0.3 or less prevents that."
        )
    gain = "" if share is None else f" {share:.1%} of the outer loss's decrease is its doing."
    return (
        f"The finder moves a latent by {distance:.0%} of its length and keeps {spread:.0%} of the "
        f"spread within a class.{gain}"
    )


def finder_share(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """How much of what a step takes off the outer loss is the finder's doing.

    To first order in the finder's offset; both are summed over the training. None where the outer
    loss did not fall, or nothing was recorded.

    Args:
      metrics: lines of `metrics.jsonl`, with `train/search_gain` and `train/outer_decrease`.

    Example:
      >>> from genreg_jax.evaluate import finder_share
      >>> line = {"train/search_gain": 0.01, "train/outer_decrease": 0.2}
      >>> finder_share([line, line])
      0.05
    """
    sums = [
        sum(line.get(name) or 0.0 for line in metrics)
        for name in ("train/search_gain", "train/outer_decrease")
    ]
    return round(sums[0] / sums[1], 4) if sums[1] > 0 else None
