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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genreg_jax.door import through
from genreg_jax.errors import UserError
from genreg_jax.logs import (
    format_seconds,
    read_json,
    read_metrics,
    to_json,
    write_atomically,
    write_json,
)
from genreg_jax.report.charts import draw_confusion, draw_curves, draw_embeddings
from genreg_jax.report.html import PAGE, STYLE, Figure, flatten, number, section, table, text
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
    command: str | None = None,
    notes: str | Sequence[str] = (),
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
        section("Training", draw_curves(read_metrics(workdir), summary.get("best_step"))),
        section("Pictures", _pictures(_sample_figures(workdir) if figures is None else figures)),
        section("Confusion on the test set", draw_confusion(confusion, class_names)),
        section("Embeddings of the test set", draw_embeddings(to_json(embeddings), class_names)),
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
    config, extras = (
        read_json(workdir / name) if (workdir / name).exists() else {}
        for name in ("config.json", "report.json")
    )
    finished = (workdir / "summary.json").exists()
    summary = read_json(workdir / "summary.json") if finished else {}
    _check_extras(workdir / "report.json", extras)
    extras = {"title": workdir.resolve().name, **extras}
    if not finished:
        extras = {"title": extras["title"], "notes": _UNFINISHED}
    elif extras.get("figures"):
        extras["figures"] = [
            (caption, _inside(workdir, file)) for caption, file in extras["figures"]
        ]
    return write_report(workdir, summary=summary, config=config, **extras)


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


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_plane(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"points", "explained", "labels"}:
        return False
    points, explained, labels = value["points"], value["explained"], value["labels"]
    return (
        _is_list(points, lambda point: _is_list(point, _is_number) and len(point) == 2)
        and _is_list(explained, _is_number)
        and len(explained) == 2
        and _is_list(labels, lambda label: type(label) is int)
        and len(labels) == len(points)
    )


# What `report.json` may hold; each entry may be null, but for the title.
_EXTRAS: dict[str, Callable[[Any], bool]] = {
    "title": _is_text,
    "command": _is_text,
    "notes": lambda value: _is_text(value) or _is_list(value, _is_text),
    "defaults": lambda value: isinstance(value, dict),
    "figures": lambda value: _is_list(value, lambda f: _is_list(f, _is_text) and len(f) == 2),
    "class_names": lambda value: _is_list(value, _is_text),
    "confusion": lambda value: _is_list(
        value,
        lambda row: _is_list(row, lambda n: type(n) is int and n >= 0) and len(row) == len(value),
    ),
    "embeddings": _is_plane,
}


def _check_extras(path: Path, extras: Mapping[str, Any]) -> None:
    for name, value in extras.items():
        right = name in _EXTRAS and (_EXTRAS[name](value) or (value is None and name != "title"))
        if not right:
            raise UserError(
                f"{path} is damaged: its {name[:60]!r} is not what a report has there. Put the "
                "file back, or remove it: the page is then written without what it holds."
            )
    names, counts = extras.get("class_names"), extras.get("confusion")
    if names is not None and counts is not None and len(names) != len(counts):
        raise UserError(
            f"{path} is damaged: it has {len(names)} class names and a confusion matrix of "
            f"{len(counts)}. Put the file back, or remove it."
        )


# ----------------------------------------------------------------------------- headline and tables


def _header(title: str, summary: Mapping[str, Any], notes: Iterable[str]) -> str:
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
    if (seconds := number(summary.get("seconds"))) is not None:
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
            f'<figure><img alt="{text(caption)}" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            f"<figcaption>{text(caption)}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""
