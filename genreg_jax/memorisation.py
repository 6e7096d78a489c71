"""Are synthetic images copies of the training images, do they show their class, do they differ?

A generator fitted to a few hundred images may return them. Held-out real images, which it has not
seen, say what is near: their distances to the nearest training image are those of new images of the
same kind. Synthetic images that are nearer than nearly all of these are copies.

Everything is computed on the host in float64, block by block, in memory that does not depend on the
number of images.
"""

from collections.abc import Callable, Mapping

import numpy as np

from genreg_jax.checks import check_number

# Images of a class that its diversity is measured on.
_PER_CLASS = 500

Embed = Callable[[np.ndarray], np.ndarray]


def memorisation_report(
    synthetic: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    train_labels: np.ndarray | None = None,
    predictions: np.ndarray | None = None,
    quantile: float = 0.05,
    embed: Embed | None = None,
    block: int = 1024,
) -> dict[str, float]:
    """Compares synthetic images with the training images and with unseen real ones.

    Distances are Euclidean, over all numbers of an image in [0, 1] or of its embedding.

    Args:
      synthetic: images `[N, H, W, C]`, uint8 or floating point in [0, 1].
      train: the images that the generator was trained on, `[M, H, W, C]`, likewise.
      held_out: real images that it was not trained on, `[L, H, W, C]`, likewise.
      labels: of the synthetic images, int `[N]`.
      train_labels: int `[M]`.
      predictions: classes that a classifier, trained on real images, gives the synthetic images,
        int `[N]`.
      quantile: of the held-out images' distances, below which a synthetic image counts as a copy.
      embed: `images [b, H, W, C] float32 in [0, 1] -> embeddings [b, ...]`, in which distances are
        measured instead of in pixels.
      block: number of images on either side of a block of distances.

    Returns:
      A flat dict of floats.
      `synthetic_distance`, `held_out_distance`: medians of the distances to the nearest training
      image.
      `distance_ratio`: the first over the second; 1 for images as new as held-out ones.
      `copies`: share of the synthetic images that are nearer to a training image than the quantile
      of the held-out ones, or at no distance at all; about `quantile` for images like the held-out
      ones.
      `duplicates`: share of the synthetic images that are within 1/512 for each number of a
      training image: the same image after rounding to 8 bits. Not with `embed`.
      `label_agreement`, with `labels` and `predictions`: share of the synthetic images that the
      classifier gives their label.
      `synthetic_diversity`, `train_diversity`, with `labels` and `train_labels`: mean distance
      between two images of a class, averaged over the classes that have two of both kinds, on the
      first 500 of each. `diversity_ratio`: the first over the second. NaN where there is no such
      class.

    Raises:
      ValueError: images of different shapes, none at all, another dtype, values that are not finite
        or outside of [0, 1], labels that do not fit, a quantile outside of [0, 1], or a block below
        1.

    Example:
      >>> import numpy as np
      >>> import genreg_jax as gr
      >>> rng = np.random.default_rng(0)
      >>> train, held_out = rng.integers(0, 256, (2, 50, 4, 4, 1), np.uint8)
      >>> report = gr.memorisation_report(train[:20], train, held_out)
      >>> report["synthetic_distance"], report["copies"], report["duplicates"]
      (0.0, 1.0, 1.0)
      >>> report = gr.memorisation_report(held_out, train, held_out)
      >>> report["distance_ratio"], report["copies"], report["duplicates"]
      (1.0, 0.06, 0.0)

    Source: none; the comparison with held-out images as in Meehan et al., A Non-Parametric Test to
    Detect Data-Copying in Generative Models, arXiv:2004.05675.
    """
    check_number("quantile", quantile, maximum=1)
    check_number("block", block, minimum=1, integer=True)
    images = {"synthetic": synthetic, "train": train, "held_out": held_out}
    images = {name: _check_images(name, value) for name, value in images.items()}
    shape = images["train"].shape[1:]
    for name, value in images.items():
        if value.shape[1:] != shape:
            raise ValueError(
                f"{name} has images of shape {value.shape[1:]}; allowed is that of train, {shape}."
            )
    count = len(images["synthetic"])
    labels = _check_labels("labels", labels, count)
    predictions = _check_labels("predictions", predictions, count)
    train_labels = _check_labels("train_labels", train_labels, len(images["train"]))

    if embed is None:
        points = images
    else:
        points = {name: _embedded(value, embed, block) for name, value in images.items()}
    made, index = nearest(points["synthetic"], points["train"], block=block)
    real, _ = nearest(points["held_out"], points["train"], block=block)
    limit = np.quantile(real, quantile)
    report = {
        "synthetic_distance": float(np.median(made)),
        "held_out_distance": float(np.median(real)),
        "distance_ratio": _ratio(np.median(made), np.median(real)),
        "copies": float(np.mean((made < limit) | (made == 0))),
    }
    if embed is None:
        same = [
            _largest_difference(images["synthetic"][rows], images["train"][index[rows]]) <= 1 / 512
            for rows in _blocks(count, block)
        ]
        report["duplicates"] = float(np.mean(np.concatenate(same)))
    if labels is not None and predictions is not None:
        report["label_agreement"] = float(np.mean(labels == predictions))
    if labels is not None and train_labels is not None:
        pairs = [
            (_spread(points["synthetic"], a, block), _spread(points["train"], b, block))
            for a, b in (
                (np.flatnonzero(labels == c), np.flatnonzero(train_labels == c))
                for c in np.intersect1d(labels, train_labels)
            )
            if min(len(a), len(b)) > 1
        ]
        means = np.mean(pairs, axis=0) if pairs else (np.nan, np.nan)
        report["synthetic_diversity"], report["train_diversity"] = map(float, means)
        report["diversity_ratio"] = _ratio(*means)
    return report


def memorisation_in_words(report: Mapping[str, float]) -> str:
    """What `memorisation_report` found, as sentences for people.

    Example:
      >>> import numpy as np
      >>> train, held_out = np.random.default_rng(0).integers(0, 256, (2, 50, 4, 4, 1), np.uint8)
      >>> print(memorisation_in_words(memorisation_report(train, train, held_out)))
      Synthetic images are 0.00 times as far from the nearest training image as unseen real ones; \
100.0% are nearer than nearly all of these, 100.0% the same to 8 bits: the generator returns its \
training images.
    """
    near, same = report["copies"], report.get("duplicates", 0.0)
    text = (
        f"Synthetic images are {report['distance_ratio']:.2f} times as far from the nearest "
        f"training image as unseen real ones; {near:.1%} are nearer than nearly all of these, "
        f"{same:.1%} the same to 8 bits"
    )
    text += ": the generator returns its training images." if same > 0.5 else "."
    if "label_agreement" in report:
        text += f" The classifier gives {report['label_agreement']:.0%} of them their label."
    if np.isfinite(report.get("diversity_ratio", np.nan)):
        text += (
            f" Two of a class differ {report['diversity_ratio']:.2f} times as much as two real "
            "images."
        )
    return text


def nearest(
    queries: np.ndarray, references: np.ndarray, *, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each query to its nearest reference, and which that is.

    Args:
      queries: `[N, ...]`, floating point, or uint8, which is divided by 255.
      references: `[M, ...]`, likewise.
      block: number of rows on either side of a block of distances.

    Returns:
      Euclidean distances, float64 `[N]`, exactly 0 for a copy, and indices, int `[N]`; the first
      where several are nearest.

    Raises:
      ValueError: arrays without rows, or with rows of different shapes, or a block below 1.

    Example:
      >>> import numpy as np
      >>> from genreg_jax.memorisation import nearest
      >>> distances, index = nearest(np.array([[0.0, 4.0]]), np.array([[9.0, 9.0], [3.0, 0.0]]))
      >>> distances.tolist(), index.tolist()
      ([5.0], [1])
    """
    check_number("block", block, minimum=1, integer=True)
    queries, references = np.asarray(queries), np.asarray(references)
    if queries.shape[1:] != references.shape[1:] or 0 in (queries.size, references.size):
        raise ValueError(
            f"queries and references must have rows of one shape, got shapes {queries.shape} and "
            f"{references.shape}."
        )
    best = np.full(len(queries), np.inf)
    index = np.zeros(len(queries), int)
    for columns in _blocks(len(references), block):
        right = _matrix(references[columns])
        for rows in _blocks(len(queries), block):
            squares = _squared_distances(_matrix(queries[rows]), right)
            closest = np.argmin(squares, axis=1)
            square = squares[np.arange(len(closest)), closest]
            better = square < best[rows]
            best[rows] = np.where(better, square, best[rows])
            index[rows] = np.where(better, closest + columns.start, index[rows])
    # Again from the differences: the squares above are differences of large numbers.
    exact = [
        np.linalg.norm(_matrix(queries[rows]) - _matrix(references[index[rows]]), axis=1)
        for rows in _blocks(len(queries), block)
    ]
    return np.concatenate(exact), index


# --------------------------------------------------------------------------------------------------


def _blocks(count: int, block: int) -> list[slice]:
    return [slice(first, min(first + block, count)) for first in range(0, count, block)]


def _matrix(rows: np.ndarray) -> np.ndarray:
    """Rows as vectors in float64."""
    scale = 255 if rows.dtype == np.uint8 else 1
    return rows.reshape(len(rows), -1).astype(np.float64) / scale


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0)


def _largest_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.max(np.abs(_matrix(a) - _matrix(b)), axis=1)


def _spread(points: np.ndarray, rows: np.ndarray, block: int) -> float:
    """Mean distance between two of these rows."""
    rows = rows[:_PER_CLASS]
    total = 0.0
    for left in _blocks(len(rows), block):
        a = _matrix(points[rows[left]])
        for right in _blocks(len(rows), block):
            squares = _squared_distances(a, _matrix(points[rows[right]]))
            if left == right:
                np.fill_diagonal(squares, 0)
            total += float(np.sum(np.sqrt(squares)))
    return total / (len(rows) * (len(rows) - 1))


def _embedded(images: np.ndarray, embed: Embed, block: int) -> np.ndarray:
    parts = []
    for rows in _blocks(len(images), block):
        part = images[rows]
        scale = np.float32(255 if part.dtype == np.uint8 else 1)
        parts.append(np.asarray(embed(part.astype(np.float32) / scale), np.float64))
        if parts[-1].shape[:1] != part.shape[:1] or not np.all(np.isfinite(parts[-1])):
            raise ValueError(
                f"embed returned an array of shape {parts[-1].shape} for {len(part)} images; "
                "allowed: finite numbers, one row for each image."
            )
    return np.concatenate(parts)


def _ratio(a, b) -> float:
    """a / b; infinite or NaN where b is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(a) / np.float64(b))


def _check_images(name: str, images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"{name} has shape {images.shape}; allowed: [N, H, W, C] with at least one image."
        )
    if images.dtype == np.uint8:
        return images
    # bfloat16 is no subtype of np.floating, hence the kind.
    if images.dtype.kind in "biuc":
        raise ValueError(f"{name} must be uint8 or floats in [0, 1], got {images.dtype}.")
    low, high = float(np.min(images)), float(np.max(images))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} has values in [{low:g}, {high:g}]; allowed: [0, 1].")
    return images


def _check_labels(name: str, labels: np.ndarray | None, count: int) -> np.ndarray | None:
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has shape {labels.shape} and dtype {labels.dtype}; allowed: integers of shape "
            f"{(count,)}, one for each image."
        )
    return labels
