"""Finished runs beside each other: what differs in their settings, and what came out.

    python -m genreg_jax.compare runs/*                     # a Markdown table
    python -m genreg_jax.compare runs/* --format=csv > runs.csv

Runs that differ in their seed alone are one line: mean and standard error over the seeds. A run
that is given twice, itself or a copy, counts once. Where runs of one data set's name are of
different images, the column `data` has the folder of `config.data.dir` and the first digits of the
images' fingerprint.
"""

import argparse
import csv
import io
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genreg_jax.checks import path_of
from genreg_jax.config import from_config, identity, to_dict
from genreg_jax.devices import warn
from genreg_jax.door import leave, through
from genreg_jax.errors import UserError
from genreg_jax.logs import read_json, read_summary
from genreg_jax.report.html import flatten
from genreg_jax.settings import Settings
from genreg_jax.workdir import check_summary_of

# Result in a summary, its head, and what it is multiplied by.
RESULTS = (
    ("test_accuracy", "test accuracy, %", 100),
    ("validation_accuracy", "validation accuracy, %", 100),
    ("test_bits_per_dim", "test bits/dim", 1),
)


def compare(workdirs: Sequence[str | Path]) -> list[dict[str, str]]:
    """A line for each group of runs that differ in their seed alone, in the order given.

    Runs of different images are never in one group, whatever their config says. Of runs that have
    settings, seed and images in common the first counts, and the others are named on stderr.

    Args:
      workdirs: of finished runs.

    Returns:
      Lines with the same keys: `run` (the first one's folder), each setting that differs between
      the groups, `n` (seeds), the results that there are as `mean ± standard error`, and
      `seconds`, the median.

    Raises:
      UserError: a folder is no workdir of a finished run, or there is none.

    Example:
      >>> import tempfile
      >>> import genreg_jax as gr
      >>> from genreg_jax.compare import compare
      >>> folder = tempfile.mkdtemp()
      >>> for seed in (0, 1):
      ...     config = {"seed": seed, "data": {"name": "digits", "per_class": 5},
      ...               "model": {"widths": [4]},
      ...               "train": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 10,
      ...                         "progress": False}}
      ...     _ = gr.train_and_evaluate(config, f"{folder}/{seed}")
      >>> (line,) = compare([f"{folder}/0", f"{folder}/1"])
      >>> line["n"], "±" in line["test accuracy, %"]
      ('2', True)
    """
    if not workdirs:
        raise UserError("There is nothing to compare; name the workdirs of finished runs.")
    groups: dict[tuple, list[tuple[Path, dict[str, Any], dict[str, Any]]]] = {}
    for workdir in map(path_of, workdirs):
        if not (workdir / "config.json").exists() or not (workdir / "summary.json").exists():
            raise UserError(
                f"{str(workdir)!r} is no workdir of a finished run: config.json or summary.json is "
                "missing. Leave it out, or finish the run with its command."
            )
        summary = read_summary(workdir)
        settings = from_config(read_json(workdir / "config.json"))
        check_summary_of(settings, summary, workdir)
        used = (summary.get("flow") or {}).get("hash", "") if settings.flow.workdir else ""
        values = flatten(
            identity(settings, flow_hash=used, init_hash=summary.get("init_hash") or "")
        )
        values["dataset"] = summary.get("dataset")
        values["own"] = ", ".join(summary.get("own") or ())
        values["data"] = summary.get("fingerprint")
        values.pop("seed")
        key = tuple(sorted((name, repr(value)) for name, value in values.items()))
        # What is shown of the images; the folder alone does not tell them apart.
        digits = str(values["data"] or "unknown")[:8]
        values["data"] = f"{settings.data.dir} ({digits})" if settings.data.dir else digits
        runs = groups.setdefault(key, [])
        same = [run for run, _, other in runs if _of_one_run(summary, other)]
        if same:
            warn(
                f"{str(workdir)!r} and {str(same[0])!r} are the same run: settings, seed and images"
                f" are the same. It counts once, with the result of {str(same[0])!r}."
            )
            continue
        runs.append((workdir, values, summary))
    firsts = [runs[0][1] for runs in groups.values()]
    names = dict.fromkeys(name for values in firsts for name in values)
    defaults = flatten(to_dict(Settings()))
    for values in firsts:
        for name in names:  # a setting is left out of an identity where it has its default
            values.setdefault(name, defaults.get(name, ""))
    images = {(dict(key)["dataset"], dict(key)["data"]) for key in groups}
    if len(images) == len({dataset for dataset, _ in images}):
        names.pop("data")  # the data set's name says it
    differing = [n for n in names if len({repr(values[n]) for values in firsts}) > 1]
    # The name says in a word what the other settings say in detail.
    differing.sort(key=lambda name: name != "name")
    return [_line(runs, differing) for runs in groups.values()]


def _of_one_run(summary: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(summary.get(n) == other.get(n) for n in ("config_hash", "seed", "subset_hash"))


def _line(
    runs: Sequence[tuple[Path, Mapping[str, Any], Mapping[str, Any]]], differing: Sequence[str]
) -> dict[str, str]:
    workdir, values, _ = runs[0]
    summaries = [summary for _, _, summary in runs]
    line = {"run": str(workdir), **{name: str(values[name]) for name in differing}}
    line["n"] = str(len({summary.get("seed") for summary in summaries}))
    for key, head, scale in RESULTS:
        found = [scale * s[key] for s in summaries if isinstance(s.get(key), (int, float))]
        line[head] = _mean(found) if found else ""
    seconds = [s["seconds"] for s in summaries if isinstance(s.get("seconds"), (int, float))]
    line["seconds"] = f"{statistics.median(seconds):.0f}" if seconds else ""
    return line


def _mean(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.2f} ± {error:.2f}"


def as_text(lines: Sequence[Mapping[str, str]], style: str) -> str:
    """The lines as a table, `markdown` or `csv`; columns without anything are left out."""
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    if style == "csv":
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerows([columns, *([line[name] for name in columns] for line in lines)])
        return text.getvalue()
    cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
    rows = [columns, ["---"] * len(columns), *([cell(line[n]) for n in columns] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(
        prog="python -m genreg_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdirs of finished runs")
    parser.add_argument("--format", choices=("markdown", "csv"), default="markdown")
    args = parser.parse_args(argv)
    show = lambda: sys.stdout.write(as_text(compare(args.runs), args.format)) and None
    return through(show, product=True)


if __name__ == "__main__":
    leave(main())
