"""What embeddings look like: similarity within and between classes, and a plane to draw them in."""

from typing import Any

import numpy as np


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
      >>> from genreg_jax.embeddings import class_similarity
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
    with np.errstate(invalid="ignore"):
        intra = np.float64(within - np.sum(x**2)) / np.float64(pairs_within - len(x))
        inter = np.float64(everything - within) / np.float64(pairs - pairs_within)
    return {"intra_class_similarity": float(intra), "inter_class_similarity": float(inter)}


def principal_plane(embeddings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two principal components of embeddings.

    Args:
      embeddings: `[N, D]`.

    Returns:
      Coordinates `[N, 2]`, and the fractions of the variance that the two explain, `[2]`. The
      largest loading of a component is positive, so that a picture has one orientation.

    Example:
      >>> from genreg_jax.embeddings import principal_plane
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
