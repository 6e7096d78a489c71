"""What a run shows of the test set, which it has read once."""

import base64
from typing import Any

import numpy as np

from genreg_jax.data import Dataset, Split
from genreg_jax.evaluate import principal_plane, reliability
from genreg_jax.report.images import small_png

_MOST_SHOWN = 200  # classes; a confusion matrix grows with their square
_MISTAKES = 16


def page_of_test(dataset: Dataset, test: dict[str, Any]) -> dict[str, Any]:
    """What the report shows of the test set, if it was read.

    Args:
      dataset: of the run.
      test: from `make_evaluate`, of the test images; or with `predictions` None.

    Returns:
      Arguments of `report.write_report`.
    """
    page: dict[str, Any] = {"class_names": dataset.class_names, "notes": []}
    if test["predictions"] is None:
        return page
    labels, k = dataset.test.labels, dataset.num_classes
    correct = test["predictions"] == labels
    page["per_class"] = np.stack(
        [np.bincount(labels[correct], minlength=k), np.bincount(labels, minlength=k)], axis=1
    )
    if np.isfinite(test["confidences"]).all():
        page["calibration"] = reliability(test["confidences"], correct)
        page["mistakes"] = worst_mistakes(dataset.test, test["predictions"], test["confidences"])
    if k > _MOST_SHOWN:
        page["notes"] = [
            f"With {k} classes there is no confusion matrix here and no plane of embeddings, which "
            f"are drawn for up to {_MOST_SHOWN}; `python -m genreg_jax.predict` gives the "
            "predictions."
        ]
        return page
    page["confusion"] = np.zeros((k, k), np.int64)
    np.add.at(page["confusion"], (labels, test["predictions"]), 1)
    points, explained = principal_plane(test["embeddings"][:1000])
    page["embeddings"] = {
        "points": points.round(4),
        "explained": explained.round(4),
        "labels": labels[:1000],
    }
    return page


def worst_mistakes(
    split: Split, predictions: np.ndarray, confidences: np.ndarray
) -> list[dict[str, Any]]:
    """The images with the highest probability of a wrong class, that first.

    Args:
      split: N images.
      predictions: int `[N]`.
      confidences: `[N]`, their probabilities.

    Returns:
      `mistakes` of `report.write_report`; an image without a file has its place in the split.

    Example:
      >>> split = Split(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]))
      >>> found = worst_mistakes(split, np.array([1, 1, 0]), np.array([0.6, 0.9, 0.7]))
      >>> [(mistake["name"], mistake["label"], mistake["predicted"]) for mistake in found]
      [('test image 2', 1, 0), ('test image 0', 0, 1)]
    """
    wrong = np.flatnonzero(predictions != split.labels)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")[:_MISTAKES]]
    return [
        {
            "image": base64.b64encode(small_png(split.images[i])).decode(),
            "name": f"test image {i}" if split.names is None else split.names[i],
            "label": int(split.labels[i]),
            "predicted": int(predictions[i]),
            "probability": float(confidences[i]),
        }
        for i in worst
    ]
