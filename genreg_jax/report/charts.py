"""The charts of the report, as SVG inside HTML: curves, the confusion matrix, the embeddings."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from genreg_jax.report.html import number, table, text

# Colours that keep their contrast on a white and on a dark page (Okabe and Ito's, slightly shifted,
# told apart by people with any colour vision).
_COLOURS = ("#0f7fc2", "#e07b00", "#0a9f73", "#cc6fa5", "#b59a00", "#d64f2a", "#4aa8dd", "#888888")

# matplotlib wants a real colour; this one is replaced by the text colour of the page.
_TEXT_COLOUR = "#010203"

_MAX_POINTS = 400  # a curve with more is averaged down to this many, which a page can show


class _Panel(NamedTuple):
    """One picture with curves.

    Attributes:
      title: above the picture.
      kinds: of metrics that it shows. A metric is of a kind if one part of its name between slashes
        is the kind or ends in `_` and the kind: `train/embedding_loss` is a `loss`.
      label: of the vertical axis.
      log: whether that axis is logarithmic where all values are positive.
      mark: whether the chosen step is marked. On the schedules it would say nothing.
      phase: whose metrics it shows; a flow counts steps of its own.
    """

    title: str
    kinds: tuple[str, ...]
    label: str
    log: bool = False
    mark: bool = False
    phase: str = ""

    def takes(self, name: str) -> bool:
        """Whether a metric belongs here."""
        if name.startswith("flow/") != (self.phase == "flow"):
            return False
        return bool(re.search(rf"(^|[/_])({'|'.join(self.kinds)})(/|$)", name))


_LOSSES = ("loss", "ce", "cross_entropy", "pcr", "phantom", "attraction", "separation", "nll")

# In the order of the page. A metric is in the first panel that takes it, and there is one for every
# metric: what nobody thought of is shown under "Other" and not left out.
_PANELS = (
    _Panel("Losses", _LOSSES, "loss", log=True, mark=True),
    _Panel("Accuracy", ("accuracy",), "accuracy", mark=True),
    _Panel("Similarity", ("similarity",), "mean cosine"),
    _Panel("Learning rate", ("learning_rate",), "learning rate"),
    _Panel("Gradient", ("gradient_norm",), "norm", log=True),
    _Panel("Hypergradient", ("hypergradient_norm", "hypergradient"), "norm", log=True),
    _Panel("Search", ("search_spread", "search_distance"), "relative to the draws"),
    _Panel("Outer loss", ("outer_decrease", "search_gain"), "decrease in a step"),
    _Panel("Skipped updates", ("skipped_updates",), "updates"),
    _Panel("Other", (".*",), "value"),
    _Panel("Flow", ("bits_per_dim",), "bits per dimension", phase="flow"),
    _Panel("Flow, other", (".*",), "value", phase="flow"),
)


def panel_of(name: str) -> str:
    """The title of the panel that shows a metric.

    Args:
      name: of the metric, as in `metrics.jsonl`.

    Returns:
      The title.

    Example:
      >>> [panel_of(name) for name in ("train/embedding_loss", "train/gradient_norm", "mystery")]
      ['Losses', 'Gradient', 'Other']
    """
    return next(panel.title for panel in _PANELS if panel.takes(name))


def draw_curves(metrics: Sequence[Mapping[str, Any]], best_step: Any) -> str:
    """The curves of all metrics, a picture a panel.

    Args:
      metrics: lines of `metrics.jsonl`. What is never finite is not drawn.
      best_step: the chosen step, which is marked; None for none.

    Returns:
      HTML, empty where there is nothing to draw.
    """
    shown: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name in dict.fromkeys(name for line in metrics for name in line if name != "step"):
        steps, values = _series(metrics, name)
        if np.isfinite(values).any():
            shown.setdefault(panel_of(name), {})[name] = (steps, values)
    drawn = []
    for panel in _PANELS:
        if curves := shown.get(panel.title):
            mark = number(best_step) if panel.mark else None
            drawn.append(
                f"<figure><figcaption><h3>{panel.title}</h3>{_legend(curves)}</figcaption>"
                f"{_curve_svg(curves, panel.label, panel.log, mark=mark)}</figure>"
            )
    return f'<div class="curves">{"".join(drawn)}</div>' if drawn else ""


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _legend(names: Iterable[str]) -> str:
    return "".join(
        f'<span><i style="background:{_colour(i)}"></i>{text(name)}</span>'
        for i, name in enumerate(names)
    )


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    lines = [line for line in metrics if name in line]
    steps = np.array([line["step"] for line in lines], np.float64)
    values = np.array([np.nan if line[name] is None else line[name] for line in lines], np.float64)
    if len(steps) <= _MAX_POINTS:
        return steps, values
    bins = np.array_split(np.arange(len(steps)), _MAX_POINTS)
    # Plain means: a value that was not finite stays visible as a gap.
    return (
        np.array([steps[i].mean() for i in bins]),
        np.array([values[i].mean() for i in bins]),
    )


def _curve_svg(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label: str,
    log: bool,
    *,
    mark: float | None,
) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    values = np.concatenate([value for _, value in series.values()])
    values = values[np.isfinite(values)]
    with mpl.rc_context(_rc("|".join(series))):
        canvas = Canvas(figsize=(5.2, 2.8))
        # Fixed margins: the axes of all pictures stand in line.
        axes = canvas.add_axes((0.15, 0.16, 0.84, 0.8))
        for i, (steps, value) in enumerate(series.values()):
            axes.plot(
                steps,
                value,
                color=_colour(i),
                linewidth=1.6,
                marker="o" if np.isfinite(value).sum() < 3 else None,
                markersize=4,
            )
        if log and (values > 0).all():
            _logarithmic(axes, values)
        if label == "accuracy":
            axes.set_ylim(top=min(1.01, axes.get_ylim()[1]))
        if mark is not None:
            axes.axvline(mark, color=_TEXT_COLOUR, alpha=0.5, linewidth=1, linestyle=(0, (2, 3)))
            axes.annotate(
                "chosen",
                (mark, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 0),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", alpha=0.18, linewidth=0.8)
        return _svg(canvas)


def _logarithmic(axes: Any, values: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    decades = math.log10(values.max() / values.min())
    # Less than about two decades show no or one power of ten, so 2 and 5 are labelled too.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _rc(salt: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": salt,  # ids that differ between pictures and not between calls
        "text.parse_math": False,  # a "$" in a metric's name is a dollar sign
        "text.color": _TEXT_COLOUR,
        "axes.labelcolor": _TEXT_COLOUR,
        "axes.edgecolor": _TEXT_COLOUR,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _TEXT_COLOUR,
        "ytick.color": _TEXT_COLOUR,
        "grid.color": _TEXT_COLOUR,
        "font.size": 9.5,
    }


def _svg(canvas: Any) -> str:
    out = io.StringIO()
    unwanted = {"Creator": None, "Date": None, "Format": None, "Type": None}
    canvas.savefig(out, format="svg", transparent=True, metadata=unwanted)
    svg = out.getvalue()
    # Inside HTML the XML prologue has no place, and it names an address.
    return svg[svg.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")


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
    names = [str(i) for i in range(len(counts))] if class_names is None else list(class_names)
    if len(names) != len(counts):
        raise ValueError(
            f"class_names must have {len(counts)} names, as confusion has rows; got {len(names)}"
        )
    return (
        f'<div class="confusion"><figure>{_confusion_svg(counts, names)}</figure>'
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
    with mpl.rc_context(_rc("confusion")):
        size = min(max(2.6 + 0.3 * k, 3.2), 5.6)
        canvas = Canvas(figsize=(size, size), layout="constrained")
        axes = canvas.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        every = math.ceil(k / 25)  # more labels than this run into each other
        long = max(map(len, map(str, names))) > 3
        axes.set_xticks(range(0, k, every), names[::every], rotation=90 if long else 0)
        axes.set_yticks(range(0, k, every), names[::every])
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
        return _svg(canvas)


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
    names = class_names if class_names is not None else range(int(labels.max(initial=-1)) + 1)
    return (
        f'<div class="embeddings"><figure>{_embeddings_svg(points, labels, plane, list(names))}'
        "<figcaption>Two principal components, a dot an image, a colour a class.</figcaption>"
        "</figure></div>"
    )


def _embeddings_svg(
    points: np.ndarray, labels: np.ndarray, plane: Mapping[str, Any], names: Sequence[Any]
) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(_rc("embeddings")):
        canvas = Canvas(figsize=(5.6, 4.4), layout="constrained")
        axes = canvas.add_subplot()
        for c in np.unique(labels):
            of_class = points[labels == c]
            axes.scatter(*of_class.T, s=7, color=_colour(int(c)), alpha=0.7, linewidths=0)
        for c in np.unique(labels)[:20]:  # more names than this run into each other
            x, y = np.median(points[labels == c], axis=0)
            name = str(names[c]) if c < len(names) else str(c)
            axes.annotate(name, (x, y), ha="center", va="center", weight="bold")
        for axis, part in zip((axes.set_xlabel, axes.set_ylabel), plane["explained"]):
            axis(f"{100 * part:.0f} % of the variance")
        axes.set_xticks([])
        axes.set_yticks([])
        return _svg(canvas)
