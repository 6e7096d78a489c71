"""One `report.html` a run: the result, the curves, the pictures, and how to get it again.

The page is a single file that refers to nothing outside itself, so it can be mailed, attached or
opened years later. `python -m genreg_jax.report --workdir=DIR` writes it again from what the run
left in its directory.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genreg_jax.errors import UserError
from genreg_jax.images import read_caption
from genreg_jax.logs import format_seconds, read_metrics, to_json, write_atomically, write_json

Figure = tuple[str, str | os.PathLike]

# Colours that keep their contrast on a white and on a dark page (Okabe and Ito's, slightly shifted,
# told apart by people with any colour vision).
_COLOURS = ("#0f7fc2", "#e07b00", "#0a9f73", "#cc6fa5", "#b59a00", "#d64f2a", "#4aa8dd", "#888888")

# matplotlib wants a real colour; this one is replaced by the text colour of the page.
_TEXT_COLOUR = "#010203"

_UNFINISHED = (
    "This run is not finished: it has no summary.json yet. Give its command again to continue it."
)

_MAX_POINTS = 400  # a curve with more is averaged down to this many, which a page can show


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str,
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    figures: Sequence[Figure] | None = None,
    confusion: Any = None,
    embeddings: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    command: str | None = None,
    notes: str | Sequence[str] = (),
) -> Path:
    """Writes `report.html` into the workdir.

    What the page shows beyond the summary, the config and the metrics goes to `report.json`, so
    that `regenerate` can write the same page again.

    Curves come from the workdir's `metrics.jsonl`, by the names of the metrics: what contains
    `accuracy`, `loss` (or the name of a loss), `learning_rate`, `hypergradient`, and `bits_per_dim`
    under `flow/`. What a run does not have is left out of the page.

    Args:
      workdir: Directory of the run.
      title: What was run, such as "MGR on digits".
      summary: Results. Shown first: `test_accuracy`, `validation_accuracy` (fractions; with
        `test_examples` the standard error too), `train_examples`, `steps`, `seconds`, `device`,
        `images_per_second`. `best_step` is marked in the curves; `seed`, `versions`, `commit` and
        `config_hash` are shown last.
      config: The full config, nested or flat.
      defaults: The config's defaults; keys that differ from them are shown first.
      figures: (caption, PNG file) in the order to show; None shows `samples/*.png`, of each
        numbered series the last.
      confusion: [K, K] counts, row the true class, column the predicted one.
      embeddings: The test set's in a plane: `points` [N, 2], `labels` [N] and the fractions of the
        variance that the two axes explain, `explained` [2].
      class_names: K names.
      command: The exact command that gives this run.
      notes: One or several paragraphs, shown below the headline.

    Returns:
      The path of the page.

    Raises:
      UserError: a figure does not exist, or `metrics.jsonl` is damaged.
      ValueError: `confusion` is not square or does not fit `class_names`.

    Example:
      >>> import tempfile
      >>> path = write_report(tempfile.mkdtemp(), title="MGR on digits",
      ...                     summary={"test_accuracy": 0.972}, config={"seed": 0})
      >>> "97.2" in path.read_text(encoding="utf-8")
      True
    """
    workdir = Path(workdir)
    # As they come back from JSON, so that a page written again is the same page.
    summary, config, defaults = to_json(summary), to_json(config), to_json(defaults)
    notes = [notes] if isinstance(notes, str) else list(notes)
    sections = [
        _header(title, summary, notes),
        _section("Training", _curves(read_metrics(workdir), summary.get("best_step"))),
        _section("Pictures", _pictures(_sample_figures(workdir) if figures is None else figures)),
        _section("Confusion on the test set", _confusion(confusion, class_names)),
        _section("Embeddings of the test set", _embeddings(to_json(embeddings), class_names)),
        _section("Configuration", _configuration(config, defaults)),
        _section("How to get this result again", _reproduction(command, summary)),
    ]
    page = _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(filter(None, sections)))
    if figures is not None:
        figures = [(caption, os.path.relpath(file, workdir)) for caption, file in figures]
    extras = {
        "title": title,
        "command": command,
        "notes": notes,
        "defaults": defaults,
        "figures": figures,
        "class_names": class_names,
        "confusion": confusion,
        "embeddings": embeddings,
    }
    write_json(workdir / "report.json", extras)
    path = workdir / "report.html"
    write_atomically(path, page)
    return path


def regenerate(workdir: str | os.PathLike) -> Path:
    """Writes the report again from what a run left in its directory.

    Reads `config.json`, `summary.json`, `metrics.jsonl`, `samples/*.png` and the `report.json` of
    an earlier page. A run that is not finished has no summary yet; its page says so.

    Args:
      workdir: Directory of the run.

    Returns:
      The path of the page.

    Raises:
      UserError: the directory does not exist, holds no run, or a file in it cannot be read.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(
            f"There is no directory {str(workdir)!r}. Give the --workdir of a run that was made"
            " with `python -m genreg_jax.main --config=... --workdir=...`."
        )
    if not any((workdir / name).exists() for name in ("config.json", "metrics.jsonl")):
        raise UserError(
            f"{str(workdir)!r} holds no run: neither config.json nor metrics.jsonl is in it. Give"
            " the --workdir that was given to `python -m genreg_jax.main`."
        )
    summary = _read_json(workdir / "summary.json")
    earlier = _read_json(workdir / "report.json") or {}
    extras: dict[str, Any] = {"title": workdir.resolve().name, **earlier}
    if summary is None:
        extras = {"title": extras["title"], "notes": _UNFINISHED}
    elif extras.get("figures"):
        extras["figures"] = [(caption, workdir / file) for caption, file in extras["figures"]]
    config = _read_json(workdir / "config.json") or {}
    return write_report(workdir, summary=summary or {}, config=config, **extras)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(prog="python -m genreg_jax.report", description=__doc__)
    parser.add_argument("--workdir", required=True, help="directory of the run")
    try:
        print(regenerate(parser.parse_args(argv).workdir))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(content).__name__}.")
    return content


# ----------------------------------------------------------------------------- headline and tables


def _text(value: Any) -> str:
    return html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>\n{body}</section>" if body else ""


def _number(value: Any) -> float | None:
    """Returns a finite float, or None for what is missing, null or not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _header(title: str, summary: Mapping[str, Any], notes: Iterable[str]) -> str:
    cards = []
    for key, label in (
        ("test_accuracy", "test accuracy"),
        ("validation_accuracy", "validation accuracy"),
    ):
        if (accuracy := _number(summary.get(key))) is not None:
            error = _standard_error(accuracy, summary.get(key.replace("accuracy", "examples")))
            cards.append((f"{100 * accuracy:.1f} %", label, error))
    for key, label in (
        ("test_bits_per_dim", "test bits per dimension"),
        ("validation_bits_per_dim", "validation bits per dimension"),
    ):
        if (bits := _number(summary.get(key))) is not None:
            cards.append((f"{bits:.3f}", label, ""))
    if (error := _number(summary.get("reconstruction_error_max"))) is not None:
        median = _number(summary.get("reconstruction_error_median"))
        detail = f"median {median:.1e}" if median is not None else ""
        cards.append((f"{error:.1e}", "largest reconstruction error", detail))
    examples = "training images" if "test_bits_per_dim" in summary else "training labels"
    for key, label in (("train_examples", examples), ("steps", "training steps")):
        if (count := _number(summary.get(key))) is not None:
            cards.append((f"{count:,.0f}", label, ""))
    if (seconds := _number(summary.get("seconds"))) is not None:
        speed = _number(summary.get("images_per_second"))
        detail = f"{speed:,.0f} images/s" if speed else ""
        cards.append((format_seconds(seconds), "wall time", detail))
    if summary.get("device"):
        cards.append((_device(summary["device"]), "device", ""))
    shown = "".join(
        f'<div class="card"><dt>{_text(label)}</dt>'
        + f'<dd class="{"long" if len(value) > 12 else "short"}">{_text(value)}</dd>'
        + (f"<p>{_text(detail)}</p>" if detail else "")
        + "</div>"
        for value, label, detail in cards
    )
    return (
        f"<header><h1>{_text(title)}</h1>"
        + "".join(f'<p class="note">{_text(note)}</p>' for note in notes)
        + (f'<dl class="cards">{shown}</dl>' if shown else "")
        + "</header>"
    )


def _standard_error(accuracy: float, examples: Any) -> str:
    n = _number(examples)
    if not n:
        return ""
    error = math.sqrt(max(accuracy * (1 - accuracy), 0) / n)
    return f"± {100 * error:.1f} s.e., n = {n:,.0f}"


def _device(device: Any) -> str:
    if not isinstance(device, Mapping):
        return str(device)
    kind = str(device.get("kind") or device.get("platform") or "unknown")
    count = device.get("count") or 1
    return kind if count == 1 else f"{count} x {kind}"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), marked: Iterable = ()) -> str:
    """Makes an HTML table; the first cell of a row names it, `marked` first cells stand out."""
    marked = set(marked)
    lines = []
    for name, *cells in rows:
        mark = ' class="marked"' if name in marked else ""
        values = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{_text(name)}</th>{values}</tr>')
    if not lines:
        return ""
    top = "<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>" if head else ""
    return f"<table>{top}{''.join(lines)}</table>"


def _configuration(config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> str:
    flat = _flatten(config)
    if not flat:
        return ""
    if defaults is None:
        return _table(flat.items())
    base = _flatten(defaults)
    missing = object()
    changed = [key for key, value in flat.items() if base.get(key, missing) != value]
    rows = [(key, flat[key], base.get(key, "(none)")) for key in changed]
    return (
        (_table(rows, ("key", "value", "default")) or "<p>Every key has its default.</p>")
        + f"<details><summary>All {len(flat)} keys</summary>"
        + _table(flat.items(), marked=changed)
        + "</details>"
    )


def _reproduction(command: str | None, summary: Mapping[str, Any]) -> str:
    keys = ("seed", "config_hash", "commit")
    rows = [(key, summary[key]) for key in keys if summary.get(key) is not None]
    if summary.get("device"):
        rows.append(("device", _device(summary["device"])))
    versions = summary.get("versions")
    if isinstance(versions, Mapping):
        found = [f"{name} {version}" for name, version in versions.items() if version]
        rows.append(("versions", ", ".join(found)))
    return (f"<pre>{_text(command)}</pre>" if command else "") + _table(rows)


# ---------------------------------------------------------------------------------------- pictures


def _sample_figures(workdir: Path) -> list[Figure]:
    """Finds `samples/*.png`; of a series `name_000100.png`, `name_000200.png`, only the last."""
    series: dict[str, tuple[int, Path]] = {}
    for path in sorted((workdir / "samples").glob("*.png")):
        match = re.fullmatch(r"(.*?)[_-]?(\d+)", path.stem)
        name, number = (match[1] or path.stem, int(match[2])) if match else (path.stem, 0)
        if name not in series or number > series[name][0]:
            series[name] = (number, path)
    return [(_caption(name, path), path) for name, (_, path) in series.items()]


def _caption(name: str, path: Path) -> str:
    try:
        caption = read_caption(path)
    except OSError as error:
        raise UserError(f"{path} is not a picture that can be read: {error}.") from None
    return caption or name.replace("_", " ").strip().capitalize()


def _pictures(figures: Sequence[Figure]) -> str:
    shown = []
    for caption, path in figures:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"The figure {str(path)!r} cannot be read: {error.strerror}.") from None
        shown.append(
            f'<figure><img alt="{_text(caption)}" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""


# ------------------------------------------------------------------------------------------ curves

_LOSS_NAMES = ("ce", "cross_entropy", "pcr", "phantom", "attraction", "separation", "nll")


def _is_flow(name: str) -> bool:
    return name.startswith("flow/")


def _is_loss(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return not _is_flow(name) and ("loss" in name or last in _LOSS_NAMES)


# Title, which metrics, vertical axis, logarithmic where all values are positive. A metric goes to
# the first panel that takes it.
_PANELS: tuple[tuple[str, Callable[[str], bool], str, bool], ...] = (
    ("Accuracy", lambda name: "accuracy" in name and not _is_flow(name), "accuracy", False),
    ("Flow", lambda name: _is_flow(name) and "bits_per_dim" in name, "bits per dimension", False),
    ("Hypergradient", lambda name: "hypergradient" in name, "norm", True),
    ("Similarity", lambda name: "similarity" in name, "mean cosine", False),
    ("Losses", _is_loss, "loss", True),
    ("Learning rate", lambda name: "learning_rate" in name, "learning rate", False),
)


def _curves(metrics: Sequence[Mapping[str, Any]], best_step: Any) -> str:
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name in dict.fromkeys(name for line in metrics for name in line if name != "step"):
        panel = next((title for title, takes, *_ in _PANELS if takes(name)), None)
        steps, values = _series(metrics, name)
        if panel is not None and np.isfinite(values).any():
            panels.setdefault(panel, {})[name] = (steps, values)
    look = {title: (label, log) for title, _, label, log in _PANELS}
    drawn = []
    for title in ("Losses", "Accuracy", "Similarity", "Learning rate", "Hypergradient", "Flow"):
        if title in panels:
            # The flow counts other steps, and on the schedules the mark would say nothing.
            mark = _number(best_step) if title in ("Losses", "Accuracy") else None
            drawn.append(
                f"<figure><figcaption><h3>{title}</h3>{_legend(panels[title])}</figcaption>"
                f"{_curve_svg(panels[title], *look[title], mark=mark)}</figure>"
            )
    return f'<div class="curves">{"".join(drawn)}</div>' if drawn else ""


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _legend(names: Iterable[str]) -> str:
    return "".join(
        f'<span><i style="background:{_colour(i)}"></i>{_text(name)}</span>'
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


def _confusion(confusion: Any, class_names: Sequence[str] | None) -> str:
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
    return f"<h3>Most frequent mistakes</h3>{_table(rows, head)}"


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


def _embeddings(plane: Mapping[str, Any] | None, class_names: Sequence[str] | None) -> str:
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


# -------------------------------------------------------------------------------------------- page

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --quiet: #5f6873; --line: #e3e6ea;
  --raised: #f6f7f9; --accent: #0b66a3; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e4e7eb; --quiet: #99a2ad;
  --line: #2d333a; --raised: #1c2026; --accent: #6db7ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial,
  "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; font-weight: 600; margin: 0 0 .75rem; line-height: 1.25; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.75rem 0 1rem; padding-bottom: .35rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; font-weight: 600; margin: 0 0 .5rem; }
.note { color: var(--quiet); max-width: 46rem; margin: .25rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr));
  gap: .6rem; margin: 1.25rem 0 0; }
.card { background: var(--raised); border-radius: 8px; padding: .5rem .8rem .65rem;
  display: flex; flex-direction: column; }
.card dt { color: var(--quiet); font-size: .82rem; }
.card dd { order: -1; margin: 0; font-size: 1.2rem; line-height: 2.3rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.card p { margin: 0; color: var(--quiet); font-size: .78rem; }
.card:first-child dd { color: var(--accent); font-size: 1.8rem; }
.card .short { white-space: nowrap; }
.card .long { font-size: 1rem; line-height: 1.3; padding: .5rem 0; }
figure { margin: 0; }
figcaption { color: var(--quiet); font-size: .85rem; margin-top: .35rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1.75rem 1.5rem; align-items: end; }
.curves figcaption { margin: 0 0 .25rem; line-height: 1.4; }
.curves h3 { color: var(--text); margin: 0; }
.curves span { display: inline-block; margin-right: 1.1rem; }
.curves i { display: inline-block; width: 1.1rem; height: .2rem; border-radius: 2px;
  margin-right: .4rem; vertical-align: .22rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: inherit !important; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 1.75rem 1.5rem; align-items: start; }
img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
.confusion { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; align-items: flex-start; }
.confusion figure { flex: 0 1 30rem; }
.embeddings { max-width: 36rem; }
table { border-collapse: collapse; font-size: .87rem; }
th, td { text-align: left; font-weight: 400; padding: .2rem 1.75rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--quiet); }
td { font-variant-numeric: tabular-nums; }
tr.marked th, tr.marked td { color: var(--accent); font-weight: 600; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); margin-bottom: .5rem; }
pre { background: var(--raised); border-radius: 8px; padding: .8rem 1rem; margin: 0 0 1rem;
  overflow-x: auto; font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
@media print { details > * { display: block; } section { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


if __name__ == "__main__":
    sys.exit(main())
