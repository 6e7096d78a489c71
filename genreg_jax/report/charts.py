"""The curves of the report, as SVG inside HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from genreg_jax.report.html import hint, number, text
from genreg_jax.report.svg import TEXT_COLOUR, colour, rc, svg

_MAX_POINTS = 400  # a curve with more is averaged down to this many, which a page can show


class _Panel(NamedTuple):
    """One picture with curves.

    Attributes:
      title: above the picture.
      kinds: of metrics that it shows. A metric is of a kind if one part of its name between slashes
        is the kind or ends in `_` and the kind: `train/embedding_loss` is a `loss`.
      label: of the vertical axis.
      look: what to look for, in a sentence or two.
      log: whether that axis is logarithmic where all values are positive.
      mark: whether the chosen step is marked. On the schedules it would say nothing.
      phase: whose metrics it shows; a flow counts steps of its own.
    """

    title: str
    kinds: tuple[str, ...]
    label: str
    look: str
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
    _Panel(
        "Losses",
        _LOSSES,
        "loss",
        "All should fall. A training loss that falls while the validation cross-entropy rises is "
        "overfitting; one that jumps or never falls asks for a lower learning rate.",
        log=True,
        mark=True,
    ),
    _Panel(
        "Accuracy",
        ("accuracy",),
        "accuracy",
        "A gap that grows between training and validation is overfitting; validation that still "
        "rises at the end asks for more epochs.",
        mark=True,
    ),
    _Panel(
        "Similarity",
        ("similarity",),
        "mean cosine",
        "Of embeddings within a class (intra) and between two (inter): the farther apart the two "
        "curves, the better the classes are separated.",
    ),
    _Panel(
        "Learning rate",
        ("learning_rate",),
        "learning rate",
        "The schedule as it was run; compare its turns with those of the losses.",
    ),
    _Panel(
        "Gradient",
        ("gradient_norm",),
        "norm",
        "Steady or slowly falling is well. Growth and spikes go before a divergence: clip the "
        "gradient or lower the learning rate.",
        log=True,
    ),
    _Panel(
        "Hypergradient",
        ("hypergradient_norm", "hypergradient"),
        "norm",
        "How strongly the outer loss moves the finder and the learned strengths. Zero all along: "
        "they learn nothing; spikes: lower their learning rate.",
        log=True,
    ),
    _Panel(
        "Search",
        ("search_spread", "search_distance"),
        "relative to the draws",
        "A spread that falls towards 0 is a finder that collapses to one sample a class; a "
        "distance of 0 is one that does nothing.",
    ),
    _Panel(
        "Outer loss",
        ("outer_decrease", "search_gain"),
        "decrease in a step",
        "Above 0, a step helps on images that it was not taken on; search_gain is the finder's "
        "part of that.",
    ),
    _Panel(
        "Learned strengths",
        ("strength",),
        "strength",
        "A strength that levels off has found its value, as far as the outer batch can tell; one "
        "that still rises or falls wants more updates or a larger config.tune.learning_rate.",
        log=True,
    ),
    _Panel(
        "Skipped updates",
        ("skipped_updates",),
        "updates",
        "Should be 0: updates whose loss or gradient was not finite. Many ask for a lower learning "
        "rate.",
    ),
    _Panel("Other", (".*",), "value", "Metrics that belong to no other picture."),
    _Panel(
        "Flow",
        ("bits_per_dim",),
        "bits per dimension",
        "Both should fall and level off. Validation that rises while training falls is "
        "overfitting; both still falling at the end ask for more updates.",
        phase="flow",
    ),
    _Panel(
        "Flow, other",
        (".*",),
        "value",
        "Metrics of the flow that belong to no other picture.",
        phase="flow",
    ),
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
                f"{_curve_svg(curves, panel.label, panel.log, mark=mark)}"
                f"{hint(panel.look)}</figure>"
            )
    return f'<div class="curves">{"".join(drawn)}</div>' if drawn else ""


def _legend(names: Iterable[str]) -> str:
    return "".join(
        f'<span><i style="background:{colour(i)}"></i>{text(name)}</span>'
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
    with mpl.rc_context(rc("|".join(series))):
        canvas = Canvas(figsize=(5.2, 2.8))
        # Fixed margins: the axes of all pictures stand in line.
        axes = canvas.add_axes((0.15, 0.16, 0.82, 0.8))
        for i, (steps, value) in enumerate(series.values()):
            axes.plot(
                steps,
                value,
                color=colour(i),
                linewidth=1.6,
                marker="o" if np.isfinite(value).sum() < 3 else None,
                markersize=4,
            )
        if log and (values > 0).all():
            _logarithmic(axes, values)
        if label == "accuracy":
            axes.set_ylim(top=min(1.01, axes.get_ylim()[1]))
        if mark is not None:
            axes.axvline(mark, color=TEXT_COLOUR, alpha=0.5, linewidth=1, linestyle=(0, (2, 3)))
            left, right = axes.get_xlim()
            before = mark > (left + right) / 2  # on the side where there is room
            axes.annotate(
                "chosen",
                (mark, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if before else 4, 0),
                textcoords="offset points",
                ha="right" if before else "left",
                fontsize=8,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", alpha=0.18, linewidth=0.8)
        return svg(canvas)


def _logarithmic(axes: Any, values: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    decades = math.log10(values.max() / values.min())
    # Less than about two decades show no or one power of ten, so 2 and 5 are labelled too.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
