"""What the page shows of the test set: accuracies, mistakes, calibration and embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genreg_jax.report.html import hint, table, text
from genreg_jax.report.svg import (
    COLOURS,
    MARKERS,
    TEXT_COLOUR,
    Texts,
    colour,
    marker,
    rc,
    short,
    svg,
)

_FIRST = 20  # classes that are shown at once; the others can be unfolded
_MOST_CLASSES = 1000  # in a table or a legend
_Z = 1.959964  # of a normal distribution, 95 % within


def _name(c: int, class_names: Sequence[str] | None) -> str:
    return str(class_names[c]) if class_names and 0 <= c < len(class_names) else str(c)


def _names(class_names: Sequence[str] | None, k: int) -> list[str]:
    """K names; numbers where there are none."""
    return [str(i) for i in range(k)] if class_names is None else [str(n) for n in class_names]


# ------------------------------------------------------------------------------ accuracy by class


def wilson(right: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share after Wilson (1927): what it can be if `right` of n were seen.

        the p with |right / n - p| <= z sqrt(p (1 - p) / n)

    Example:
      >>> low, high = wilson(9, 10)
      >>> round(low, 3), round(high, 3)
      (0.596, 0.982)
    """
    share, extra = right / n, _Z**2 / n
    middle = share + extra / 2
    half = math.sqrt(extra * (share * (1 - share) + extra / 4))
    return max(0.0, (middle - half) / (1 + extra)), min(1.0, (middle + half) / (1 + extra))


def draw_accuracies(per_class: Any, confusion: Any, class_names: Sequence[str] | None) -> str:
    """The accuracy on each class of the test images, the worst first.

    Args:
      per_class: [K, 2], of each class how many images were right and how many there are; None for
        those of `confusion`.
      confusion: [K, K] counts, row the true class, or None.
      class_names: K names; None numbers the classes.

    Returns:
      HTML, empty where there are no counts.

    Raises:
      ValueError: the counts do not fit `class_names`.
    """
    if per_class is None and confusion is None:
        return ""
    if per_class is None:
        counts = np.asarray(confusion)
        per_class = np.stack([np.diagonal(counts), counts.sum(axis=1)], axis=1)
    per_class = np.asarray(per_class)
    k = len(per_class)
    names = _names(class_names, k)
    if len(names) != k:
        raise ValueError(
            f"class_names must have {k} names, as there are accuracies; got {len(names)}"
        )
    right, n = per_class.T.astype(np.float64)
    shares = np.divide(right, n, out=np.full(k, np.inf), where=n > 0)
    order = np.lexsort((-n, shares))  # of equal shares, the one that is known better first
    rows = [_accuracy_row(int(c), names[c], int(right[c]), int(n[c])) for c in order]
    head = "<tr><th>class</th><th></th><th>accuracy</th><th>95 % interval</th><th>images</th></tr>"
    as_table = lambda rows: f'<table class="accuracies">{head}{"".join(rows)}</table>'
    shown = as_table(rows[:_FIRST])
    if k > _FIRST:
        most = min(k, _MOST_CLASSES)
        label = f"All {k} classes" if most == k else f"The worst {most} of {k} classes"
        shown += f"<details><summary>{label}</summary>{as_table(rows[:most])}</details>"
    return shown + hint(
        "The worst class first; the line is Wilson's 95 % interval. A class whose interval lies "
        "below the others is hard, or its labels are noisy: look at its mistakes. A wide interval "
        "only says that there are few test images."
    )


def _accuracy_row(number: int, name: str, right: int, n: int) -> str:
    place = "" if name == str(number) else f" <small>{number}</small>"
    line, share, interval = "", "no test images", ""
    if n:
        low, middle, high = (100 * share for share in sorted((*wilson(right, n), right / n)))
        share, interval = f"{middle:.1f} %", f"{low:.0f} to {high:.0f} %"
        line = (
            f'<span class="interval"><i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
            f'<b style="left:{middle:.1f}%"></b></span>'
        )
    return (
        f'<tr><th scope="row"><bdi>{text(name)}</bdi>{place}</th><td>{line}</td><td>{share}</td>'
        f"<td>{interval}</td><td>{n:,}</td></tr>"
    )


# --------------------------------------------------------------------------------- worst mistakes


def draw_mistakes(
    mistakes: Sequence[Mapping[str, Any]] | None, class_names: Sequence[str] | None
) -> str:
    """The test images that were taken most surely for another class.

    Args:
      mistakes: of each `image`, a PNG in base64, `name`, `label` and `predicted`, places in the
        class names, and `probability`; or None.
      class_names: K names; None numbers the classes.

    Returns:
      HTML, empty where there are none.
    """
    if not mistakes:
        return ""

    def name(c: int) -> str:
        full = _name(c, class_names)
        return f'<bdi title="{text(full)}">{text(short(full, 40))}</bdi>'

    shown = "".join(
        f'<figure><img alt="{text(m["name"])}" src="data:image/png;base64,{m["image"]}">'
        f"<figcaption><b>{name(m['predicted'])}</b> {100 * m['probability']:.1f}&nbsp;%"
        f"<br>is {name(m['label'])}<br><small>{text(m['name'])}</small></figcaption></figure>"
        for m in mistakes
    )
    return f'<div class="mistakes">{shown}</div>' + hint(
        "The test images with the highest probability of a wrong class, which is the bold one; "
        "below it what they are, and which image it is. Look for wrong labels, "
        "pictures of two classes at once, ones that are cut badly, and for what they share: that "
        "is what more training images, or another augmentation, should show."
    )


# ------------------------------------------------------------------------------------- calibration


def draw_calibration(sums: Mapping[str, Any] | None) -> str:
    """The reliability diagram, and how far confidence is from accuracy.

    Args:
      sums: from `evaluate.reliability`, or None.

    Returns:
      HTML, empty where there is nothing to draw.
    """
    if not sums or not sum(sums["images"]):
        return ""
    n, right, confidence = (
        np.asarray(sums[name], np.float64) for name in ("images", "right", "confidence")
    )
    error, gap = np.abs(right - confidence).sum() / n.sum(), (confidence - right).sum() / n.sum()
    edges = np.linspace(0, 1, len(n) + 1)
    rows = [
        (
            f"{100 * edges[m]:.0f} to {100 * edges[m + 1]:.0f} %",
            f"{n[m]:,.0f}",
            f"{100 * confidence[m] / n[m]:.1f} %",
            f"{100 * right[m] / n[m]:.1f} %",
        )
        for m in np.flatnonzero(n)
    ]
    words = "surer than it is right" if gap > 0 else "less sure than it could be"
    return (
        f'<div class="calibration"><figure>{_calibration_svg(n, right, confidence, edges)}'
        + hint(
            "Bars on the dashed line: of the images that it is 80 % sure of, 80 % are right. Bars "
            "below it are too sure, bars above it too modest. The dots stand at the mean "
            "confidence; a long whisker has few images, which are counted below."
        )
        + f"</figure><div><h3>Expected calibration error {100 * error:.1f} %</h3>"
        f"<p>The mean distance between confidence and accuracy, in {len(n)} equal parts (Guo et "
        f"al., 2017). On average the classifier is {100 * abs(gap):.1f} points {words}.</p>"
        + table(rows, ("confidence", "images", "mean", "right"))
        + "</div></div>"
    )


def _calibration_svg(
    n: np.ndarray, right: np.ndarray, confidence: np.ndarray, edges: np.ndarray
) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(rc("calibration")):
        canvas = Canvas(figsize=(5.2, 4.4))
        upper = canvas.add_axes((0.15, 0.36, 0.83, 0.61))
        lower = canvas.add_axes((0.15, 0.11, 0.83, 0.2), sharex=upper)
        there = np.flatnonzero(n)
        share, width = right[there] / n[there], edges[1] - edges[0]
        middle = edges[there] + width / 2
        upper.bar(middle, share, 0.86 * width, color=colour(0), alpha=0.75)
        intervals = np.array([wilson(right[m], n[m]) for m in there])
        upper.vlines(middle, *intervals.T, color=TEXT_COLOUR, linewidth=1, alpha=0.7)
        upper.plot([0, 1], [0, 1], color=TEXT_COLOUR, linewidth=1, linestyle=(0, (4, 3)))
        upper.scatter(confidence[there] / n[there], share, s=9, color=TEXT_COLOUR, zorder=3)
        upper.set_ylabel("share that is right")
        upper.set_ylim(0, 1.03)
        upper.set_xlim(0, 1)
        upper.tick_params(labelbottom=False)
        lower.bar(middle, n[there], 0.86 * width, color=colour(5))
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        lower.set_ylabel("images")
        lower.set_xlabel("confidence: probability of the predicted class")
        return svg(canvas)


# --------------------------------------------------------------------------------------- confusion


def draw_confusion(confusion: Any, class_names: Sequence[str] | None) -> str:
    """The confusion matrix and its most frequent mistakes.

    Args:
      confusion: [K, K] counts, row the true class, column the predicted one, or None.
      class_names: K names; None numbers the classes.

    Returns:
      HTML, empty where there is no matrix.

    Raises:
      ValueError: `confusion` is not square or does not fit `class_names`.
    """
    if confusion is None:
        return ""
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise ValueError(f"confusion must be [K, K], got shape {counts.shape}")
    names = _names(class_names, len(counts))
    if len(names) != len(counts):
        raise ValueError(
            f"class_names must have {len(counts)} names, as confusion has rows; got {len(names)}"
        )
    look = hint(
        "All on the diagonal is right. A dark cell beside it is a pair that is mixed up; a dark "
        "column is a class that others are taken for."
    )
    return (
        f'<div class="confusion"><figure>{_confusion_svg(counts, names)}{look}</figure>'
        f"<div>{_most_confused(counts, names)}</div></div>"
    )


def _most_confused(counts: np.ndarray, names: Sequence[str]) -> str:
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    pairs = [
        np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:5]
    ]
    rows = [
        (names[true], names[predicted], f"{wrong[true, predicted]:g}")
        for true, predicted in pairs
        if wrong[true, predicted] > 0
    ]
    if not rows:
        return "<p>No mistakes.</p>"
    head = ("true class", "taken for", "images")
    return f"<h3>Most frequent mistakes</h3>{table(rows, head)}"


def _confusion_svg(counts: np.ndarray, names: Sequence[str]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    k = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with mpl.rc_context(rc("confusion")):
        size = min(max(2.6 + 0.3 * k, 3.2), 5.6)
        canvas, texts = Canvas(figsize=(size, size), layout="constrained"), Texts()
        axes = canvas.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        every = math.ceil(k / 25)  # more labels than this run into each other
        labels = [short(name) for name in names[::every]]
        # Anchored at the matrix, as the reader's font may be wider than what was measured.
        turned = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
        texts.ticks(
            axes.xaxis, range(0, k, every), labels, **(turned if max(map(len, labels)) > 3 else {})
        )
        texts.ticks(axes.yaxis, range(0, k, every), labels)
        if k <= 20:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    dark = shares[row, column] > 0.5
                    axes.text(
                        column,
                        row,
                        f"{count:g}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if dark else "black",
                    )
        return svg(canvas, texts)


# -------------------------------------------------------------------------------------- embeddings


def draw_embeddings(plane: Mapping[str, Any] | None, class_names: Sequence[str] | None) -> str:
    """The embeddings of the test set in a plane, a dot an image.

    Args:
      plane: `points` [N, 2], `labels` [N] and `explained` [2], the share of the variance; or None.
      class_names: one name a class; None numbers the classes.

    Returns:
      HTML, empty where there is no plane.

    Raises:
      ValueError: the points do not fit the labels.
    """
    if not plane:
        return ""
    points, labels = np.asarray(plane["points"], np.float64), np.asarray(plane["labels"])
    if points.shape != (len(labels), 2):
        raise ValueError(
            f"embeddings must have points [N, 2] for its {len(labels)} labels, got points of shape "
            f"{points.shape}"
        )
    classes = {int(c): _name(int(c), class_names) for c in np.unique(labels)}
    legend = "".join(
        f'<span title="{text(name)}"><i style="color:{colour(c)}">{MARKERS[marker(c)]}</i>'
        f"<bdi>{text(short(name, 30))}</bdi></span>"
        for c, name in list(classes.items())[:_MOST_CLASSES]
    )
    if len(classes) > 2 * len(COLOURS):
        legend = f"<details><summary>{len(classes)} classes</summary>{legend}</details>"
    return (
        f'<div class="embeddings"><figure>{_embeddings_svg(points, labels, plane, classes)}'
        f'<figcaption class="legend">{legend}</figcaption></figure>'
        + hint(
            "Two principal components of the embeddings, a dot an image, a colour and a marker a "
            "class. Look for classes that lie in each other, and for single dots in another class: "
            "hard or wrongly labelled images. Classes that overlap here may be apart in the "
            "other directions, the more so the less of the variance the axes have."
        )
        + "</div>"
    )


def _embeddings_svg(
    points: np.ndarray, labels: np.ndarray, plane: Mapping[str, Any], classes: Mapping[int, str]
) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(rc("embeddings")):
        canvas, texts = Canvas(figsize=(5.6, 4.4)), Texts()
        axes = canvas.add_axes((0.06, 0.08, 0.92, 0.9))
        axes.margins(0.08)
        size = min(max(3000 / len(labels), 9), 30)
        for c in classes:
            x, y = points[labels == c].T
            axes.scatter(x, y, s=size, color=colour(c), marker=marker(c), alpha=0.7, linewidths=0)
        for axis, part in zip((axes.set_xlabel, axes.set_ylabel), plane["explained"]):
            axis(f"{100 * part:.0f} % of the variance")
        axes.set_xticks([])
        axes.set_yticks([])
        _label(axes, texts, points, labels, classes)
        return svg(canvas, texts)


def _label(
    axes: Any, texts: Texts, points: np.ndarray, labels: np.ndarray, classes: Mapping[int, str]
) -> None:
    """Names at the middle of their dots, or near it; where there is no room, the legend is left."""
    axes.autoscale_view()  # matplotlib would do it when it draws
    placed, room = [], axes.get_window_extent()
    steps = sorted(np.ndindex(3, 7), key=lambda s: abs(s[0] - 1) + abs(s[1] - 3))
    for c, name in classes.items():
        label = axes.annotate(
            "",
            np.median(points[labels == c], axis=0),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            weight="bold",
        )
        texts.set(label, short(name, 14))
        for across, up in steps:
            label.set_position((30 * (across - 1), 12 * (up - 3)))
            box = label.get_window_extent().padded(2)
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 <= room.y1
            if inside and not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
        else:
            label.remove()
