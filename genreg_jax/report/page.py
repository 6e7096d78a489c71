"""One `report.html` a run: the result, the curves, the pictures, and how to get it again.

The page is a single file that refers to nothing outside itself, so it can be mailed, attached or
opened years later. `python -m genreg_jax.report --workdir=DIR` writes it again from what the run
left in its directory.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genreg_jax.checks import path_of
from genreg_jax.door import through
from genreg_jax.errors import UserError
from genreg_jax.logs import (
    format_seconds,
    read_bytes,
    read_json,
    read_metrics,
    read_summary,
    to_json,
    write_atomically,
    write_json,
)
from genreg_jax.report.charts import draw_curves
from genreg_jax.report.classes import (
    draw_accuracies,
    draw_calibration,
    draw_confusion,
    draw_embeddings,
    draw_mistakes,
)
from genreg_jax.report.extras import check_extras
from genreg_jax.report.html import (
    PAGE,
    STYLE,
    Figure,
    flatten,
    hint,
    number,
    section,
    table,
    text,
)
from genreg_jax.report.images import read_caption

_UNFINISHED = (
    "This run is not finished: it has no summary.json yet. Give its command again to continue it."
)


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
    per_class: Any = None,
    mistakes: Sequence[Mapping[str, Any]] | None = None,
    calibration: Mapping[str, Any] | None = None,
    command: str | None = None,
    notes: str | Sequence[str] = (),
    drawing_seconds: float | None = None,
) -> Path:
    """Writes `report.html` into the workdir.

    What the page shows beyond the summary, the config and the metrics goes to `report.json`, so
    that `regenerate` can write the same page again.

    Curves come from the workdir's `metrics.jsonl`. Every metric is drawn: the kind that its name
    ends in chooses the picture (`charts.panel_of`), and what is of no kind is under "Other". What a
    run does not have is left out of the page.

    Args:
      workdir: Directory of the run.
      title: What was run, such as "MGR on digits".
      summary: Results. Shown first: `test_accuracy`, `validation_accuracy` (fractions; with
        `test_examples` the standard error too), `train_examples`, `steps`, `seconds`, `device`,
        `images_per_second`. `best_step` is marked in the curves; `stages` are the seconds of each
        part of the run; `seed`, `versions`, `commit` and `config_hash` are shown last.
      config: The full config, nested or flat.
      defaults: The config's defaults; keys that differ from them are shown first.
      figures: (caption, PNG file) in the order to show; None shows `samples/*.png`, of each
        numbered series the last.
      confusion: [K, K] counts, row the true class, column the predicted one.
      embeddings: The test set's in a plane: `points` [N, 2], `labels` [N] and the fractions of the
        variance that the two axes explain, `explained` [2].
      class_names: K names, in any script.
      per_class: [K, 2], of each class of the test set how many images were right and how many there
        are; None for those of `confusion`.
      mistakes: The test images that were taken most surely for another class: of each `image`, a
        PNG in base64, `name`, `label` and `predicted` (places in `class_names`), `probability`.
      calibration: The test set's, from `evaluate.reliability`.
      command: The exact command that gives this run.
      notes: One or several paragraphs, shown below the headline.
      drawing_seconds: What drawing an earlier version of the page took; None measures it.

    Returns:
      The path of the page.

    Raises:
      UserError: a figure does not exist, or `metrics.jsonl` is damaged.
      ValueError: `confusion` is not square, or it or `per_class` does not fit `class_names`.

    Example:
      >>> import tempfile
      >>> path = write_report(tempfile.mkdtemp(), title="MGR on digits",
      ...                     summary={"test_accuracy": 0.972}, config={"seed": 0})
      >>> "97.2" in path.read_text(encoding="utf-8")
      True
    """
    workdir, began = path_of(workdir), time.perf_counter()
    # As they come back from JSON, so that a page written again is the same page.
    summary, config, defaults = to_json(summary), to_json(config), to_json(defaults)
    notes = [notes] if isinstance(notes, str) else list(notes)
    sections = [
        section("Training", draw_curves(read_metrics(workdir), summary.get("best_step"))),
        section(
            "Accuracy on each class of the test set",
            draw_accuracies(per_class, confusion, class_names),
        ),
        section("Worst mistakes on the test set", draw_mistakes(to_json(mistakes), class_names)),
        section("Confusion on the test set", draw_confusion(confusion, class_names)),
        section("Calibration on the test set", draw_calibration(to_json(calibration))),
        section("Embeddings of the test set", draw_embeddings(to_json(embeddings), class_names)),
        section("Pictures", _pictures(_sample_figures(workdir) if figures is None else figures)),
    ]
    if drawing_seconds is None:
        drawing_seconds = round(time.perf_counter() - began, 2)
    seconds = _seconds(summary.get("stages"), drawing_seconds)
    sections = [
        _header(title, summary, notes, seconds),
        *sections,
        section("Where the time went", _stages(seconds)),
        section("Configuration", _configuration(config, defaults)),
        section("How to get this result again", _reproduction(command, summary)),
    ]
    page = PAGE.format(title=text(title), style=STYLE, body="\n".join(filter(None, sections)))
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
        "per_class": per_class,
        "mistakes": mistakes,
        "calibration": calibration,
        "drawing_seconds": drawing_seconds,
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
    workdir = path_of(workdir)
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
    config, extras = (
        read_json(workdir / name) if (workdir / name).exists() else {}
        for name in ("config.json", "report.json")
    )
    finished = (workdir / "summary.json").exists()
    summary = read_summary(workdir) if finished else {}
    check_extras(workdir / "report.json", extras)
    extras = {"title": workdir.resolve().name, **extras}
    if not finished:
        extras = {"title": extras["title"], "notes": _UNFINISHED}
    elif extras.get("figures"):
        extras["figures"] = [
            (caption, _inside(workdir, file)) for caption, file in extras["figures"]
        ]
    try:
        return write_report(workdir, summary=summary, config=config, **extras)
    except OSError as error:
        raise UserError(
            f"The report in {str(workdir)!r} cannot be written or what it is made of cannot be "
            f"read ({error.strerror}). Make the folder writable, or make room."
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(prog="python -m genreg_jax.report", description=__doc__)
    parser.add_argument("--workdir", required=True, help="directory of the run")
    workdir = parser.parse_args(argv).workdir
    return through(lambda: print(regenerate(workdir)))


def _inside(workdir: Path, file: str) -> Path:
    """A picture that `report.json` names, which may not be any file of this machine."""
    path = workdir / file
    if not path.resolve().is_relative_to(workdir.resolve()):
        raise UserError(
            f"{workdir / 'report.json'} names the picture {file!r}, which is not in the workdir. "
            "Copy it there, or take it out of that file."
        )
    return path


# ----------------------------------------------------------------------------- headline and tables


def _header(
    title: str, summary: Mapping[str, Any], notes: Iterable[str], stages: Mapping[str, float]
) -> str:
    cards = []
    for key, label in (
        ("test_accuracy", "test accuracy"),
        ("validation_accuracy", "validation accuracy"),
    ):
        if (accuracy := number(summary.get(key))) is not None:
            error = _standard_error(accuracy, summary.get(key.replace("accuracy", "examples")))
            cards.append((f"{100 * accuracy:.1f} %", label, error))
    for key, label in (
        ("test_bits_per_dim", "test bits per dimension"),
        ("validation_bits_per_dim", "validation bits per dimension"),
    ):
        if (bits := number(summary.get(key))) is not None:
            cards.append((f"{bits:.3f}", label, ""))
    if (error := number(summary.get("reconstruction_error_max"))) is not None:
        median = number(summary.get("reconstruction_error_median"))
        detail = f"median {median:.1e}" if median is not None else ""
        cards.append((f"{error:.1e}", "largest reconstruction error", detail))
    examples = "training images" if "test_bits_per_dim" in summary else "training labels"
    for key, label in (("train_examples", examples), ("steps", "training steps")):
        if (count := number(summary.get(key))) is not None:
            cards.append((f"{count:,.0f}", label, ""))
    seconds = sum(stages.values()) or number(summary.get("seconds"))
    if seconds is not None:
        speed = number(summary.get("images_per_second"))
        detail = f"{speed:,.0f} images/s" if speed else ""
        cards.append((format_seconds(seconds), "wall time", detail))
    if summary.get("device"):
        cards.append((_device(summary["device"]), "device", ""))
    shown = "".join(
        f'<div class="card"><dt>{text(label)}</dt>'
        + f'<dd class="{"long" if len(value) > 12 else "short"}">{text(value)}</dd>'
        + (f"<p>{text(detail)}</p>" if detail else "")
        + "</div>"
        for value, label, detail in cards
    )
    return (
        f"<header><h1>{text(title)}</h1>"
        + "".join(f'<p class="note">{text(note)}</p>' for note in notes)
        + (f'<dl class="cards">{shown}</dl>' if shown else "")
        + "</header>"
    )


def _standard_error(accuracy: float, examples: Any) -> str:
    n = number(examples)
    if n is None or n <= 0:
        return ""
    error = math.sqrt(max(accuracy * (1 - accuracy), 0) / n)
    return f"± {100 * error:.1f} s.e., n = {n:,.0f}"


def _seconds(stages: Any, drawing_seconds: float) -> dict[str, float]:
    """The seconds of each stage, of a summary that may hold anything; none where it has none."""
    items = stages.items() if isinstance(stages, Mapping) else ()
    found = {name: s for name, value in items if (s := number(value)) is not None and s >= 0}
    return {**found, "report": drawing_seconds} if found else {}


# Where time goes, in words; a run has those of its kind.
_STAGES = {
    "data": "reading the images",
    "flow": "training the flow, or restoring it",
    "compilation": "making the model and compiling the step",
    "checkpoints": "saving",
    "evaluation": "the test set, and what the samples are like",
    "pictures": "drawing the pictures",
    "report": "drawing this page",
    "earlier processes": "of an earlier version, which did not tell them apart",
}


def _stages(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    whole = max(sum(seconds.values()), 1e-9)
    rows = [
        (name, format_seconds(spent), f"{100 * spent / whole:.0f} %", _STAGES.get(name, ""))
        for name, spent in seconds.items()
    ]
    rows.append(("all", format_seconds(whole), "", ""))
    return table(rows, ("stage", "wall time", "share", ""), ["all"], "stages") + hint(
        "All processes of the run together. Not in it: starting Python, and what a process that "
        "was killed did after it had saved last. Look at the largest share before making anything "
        "faster; many short epochs make validation and saving large."
    )


def _device(device: Any) -> str:
    if not isinstance(device, Mapping):
        return str(device)
    kind = str(device.get("kind") or device.get("platform") or "unknown")
    count = device.get("count") or 1
    return kind if count == 1 else f"{count} x {kind}"


def _configuration(config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> str:
    flat = flatten(config)
    if not flat:
        return ""
    if defaults is None:
        return table(flat.items())
    base = flatten(defaults)
    missing = object()
    changed = [key for key, value in flat.items() if base.get(key, missing) != value]
    rows = [(key, flat[key], base.get(key, "(none)")) for key in changed]
    return (
        (table(rows, ("key", "value", "default")) or "<p>Every key has its default.</p>")
        + f"<details><summary>All {len(flat)} keys</summary>"
        + table(flat.items(), marked=changed)
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
    return (f"<pre>{text(command)}</pre>" if command else "") + table(rows)


# ---------------------------------------------------------------------------------------- pictures


def _sample_figures(workdir: Path) -> list[Figure]:
    """Finds `samples/*.png`; of a series `name_000100.png`, `name_000200.png`, only the last.

    Links that lead out of the workdir are passed over.
    """
    series: dict[str, tuple[int, Path]] = {}
    for path in sorted((workdir / "samples").glob("*.png")):
        match = re.fullmatch(r"(.*?)[_-]?(\d+)", path.stem)
        name, number = (match[1] or path.stem, int(match[2])) if match else (path.stem, 0)
        if name not in series or number > series[name][0]:
            series[name] = (number, path)
    return [
        (_caption(name, path), path)
        for name, (_, path) in series.items()
        if path.resolve().is_relative_to(workdir.resolve())
    ]


def _caption(name: str, path: Path) -> str:
    try:
        read_bytes(path)  # a pipe would be waited for
        caption = read_caption(path)
    except OSError as error:
        raise UserError(f"{path} is not a picture that can be read: {error}.") from None
    return caption or name.replace("_", " ").strip().capitalize()


def _pictures(figures: Sequence[Figure]) -> str:
    shown = []
    for caption, path in figures:
        try:
            data = read_bytes(path)
        except OSError as error:
            raise UserError(f"The figure {str(path)!r} cannot be read: {error.strerror}.") from None
        shown.append(
            f'<figure><img alt="{text(caption)}" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            f"<figcaption>{text(caption)}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""
