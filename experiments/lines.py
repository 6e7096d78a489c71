"""The lines of a study's results: one a run, their file, their table, and merging those of others.

A line counts only while the study has its row and would still run it with the same settings.
"""

import fcntl
import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import scipy.stats

from experiments.study import Changes, Study, settings_of
from genreg_jax.config import config_hash
from genreg_jax.settings import Settings

KEPT = (
    "test_accuracy validation_accuracy best_step steps train_examples seconds processor_seconds "
    "images_per_second test_intra_class_similarity test_inter_class_similarity parameters seed "
    "flow finder_spread finder_distance finder_share strengths stages skipped_updates subset_hash "
    "config_hash versions device commit"
).split()


def record(
    row: str, size: int, changes: Changes, summary: Mapping[str, Any], settings: Settings
) -> dict[str, Any]:
    """One line of the results.

    `settings_hash` is of the study's settings, `config_hash` of the run's, which also has the hash
    of the shared flow.
    """
    return {
        "row": row,
        "labels_per_class": size,
        "changes": dict(changes),
        "settings_hash": config_hash(settings),
        **{name: summary.get(name) for name in KEPT},
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error, the latter NaN for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def with_error(values: Sequence[float]) -> str:
    """`mean ± standard error`, the mean alone of a single value."""
    mean, error = mean_and_error(values)
    return f"{mean:.2f} ± {error:.2f}" if len(values) > 1 else f"{mean:.2f}"


def by_row(
    lines: Iterable[Mapping[str, Any]], size: int
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The lines of a number of labels per class: row to seed to line."""
    of: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["labels_per_class"] == size:
            of.setdefault(line["row"], {})[line["seed"]] = line
    return of


def table(study: Study, records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: accuracy, paired difference to the first row with its p-value, seconds."""
    reference = study.first
    lines = [
        f"| labels per class | row | n | test accuracy, % | paired difference to {reference} | "
        "p (paired t) | median seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = [
        "| labels per class | row | compared with | n | paired difference | p (paired t) |",
        "|---|---|---|---|---|---|",
    ]
    for size in study.sizes:
        there = by_row(records, size)
        of = {row: there.get(row, {}) for row in study.rows}
        for row, runs in of.items():
            if not runs:
                continue
            accuracy = with_error([100 * r["test_accuracy"] for r in runs.values()])
            gain, p, _ = ("", "", 0) if row == reference else difference(runs, of[reference])
            seconds = statistics.median(r["seconds"] for r in runs.values())
            lines.append(
                f"| {size} | {row} | {len(runs)} | {accuracy} | {gain} | {p} | {seconds:.0f} |"
            )
        for row, other in study.pairs:
            gain, p, n = difference(of[row], of[other])
            if n > 1:
                pairs.append(f"| {size} | {row} | {other} | {n} | {gain} | {p} |")
    return "\n".join(lines + ["", *pairs] * (len(pairs) > 2)) + "\n"


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float, float, int]:
    """Mean difference over the seeds that both have, its standard error, p, and their number."""
    seeds = sorted(a.keys() & b.keys())
    gains = [a[s] - b[s] for s in seeds]
    if len(seeds) < 2:
        return statistics.fmean(gains) if gains else math.nan, math.nan, math.nan, len(seeds)
    mean, error = mean_and_error(gains)
    test: Any = scipy.stats.ttest_1samp(gains, 0) if any(gains) else None
    p = 1.0 if test is None else float(test.pvalue)
    return mean, error, p, len(seeds)


def difference(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]
) -> tuple[str, str, int]:
    """Paired difference in test accuracy, its p-value, and the number of seeds; "" below two."""
    a, b = ({s: 100 * r["test_accuracy"] for s, r in of.items()} for of in (runs, others))
    mean, error, p, n = paired(a, b)
    return (f"{mean:+.2f} ± {error:.2f}", f"{p:.3f}", n) if n > 1 else ("", "", n)


def add_lines(
    study: Study,
    changes: Mapping[str, Changes],
    path: pathlib.Path,
    new: Sequence[Mapping[str, Any]],
) -> list[Mapping[str, Any]]:
    """Merges lines into a table's file, writes the table, and returns all of its lines.

    Lines of other shards and of earlier calls stay; a new line replaces its own. Called without new
    ones it drops those that no longer count. One process at a time.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        old = read_lines(path)
        current = [line for line in old if new or is_current(study, changes, line)]
        if len(current) < len(old):
            print(
                f"{len(old) - len(current)} lines of {path.name} are left out: the study no longer "
                "has their row, or its settings have changed."
            )
        key = lambda r: (r["labels_per_class"], r["seed"], list(study.rows).index(r["row"]))
        merged = {key(r): r for r in [*current, *new]}
        lines = [merged[k] for k in sorted(merged)]
        write_lines(path, lines)
        path.with_suffix(".md").write_text(table(study, lines))
        return lines
    finally:
        os.close(folder)


def merged(
    study: Study,
    changes: Mapping[str, Changes],
    lines: Sequence[Mapping[str, Any]],
    path: pathlib.Path,
) -> Sequence[Mapping[str, Any]]:
    """The lines of another machine's table, of the same study, settings and commit.

    Args:
      study: this one.
      changes: of its rows, as tuned.
      lines: of the table so far.
      path: of the other table's lines.

    Raises:
      ValueError: the file has no line, or one of other settings or of another commit; the message
        names what differs.
    """
    found = read_lines(path)
    if not found:
        raise ValueError(f"{path} has no line to merge; give a table.jsonl of this study.")
    for line in found:
        name = f"{path}: row {line['row']!r}, seed {line['seed']}"
        if line["row"] not in changes:
            raise ValueError(f"{name}: this study has no such row; it has {', '.join(changes)}.")
        here, there = as_read(changes[line["row"]]), line["changes"]
        if not is_current(study, changes, line):
            keys = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
            differing = ", ".join(f"{k} = {there.get(k)!r}, here {here.get(k)!r}" for k in keys)
            raise ValueError(
                f"{name} was run with other settings ({differing or 'those of all rows'}). Run it "
                "again there with this study and its tuned.json."
            )
    known = {line["commit"] for line in lines} or {found[0]["commit"]}
    if others := {line["commit"] for line in found} - known:
        words = [", ".join(sorted(map(str, commits))) for commits in (others, known)]
        raise ValueError(
            f"{path} has lines of commit {words[0]}, and the table those of {words[1]}: different "
            "code may differ in more than settings. Run the shard at the table's commit."
        )
    return found


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file, none if it is missing; a half-written line is left out and said."""
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"Line {number} of {path.name} is no whole record and is left out.")
    return records


def write_lines(path: pathlib.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file by these records, or leaves it whole."""
    new = path.with_name(path.name + ".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new.replace(path)


def as_read(value: Any) -> Any:
    """What JSON makes of a value, so that it compares with what was read."""
    return json.loads(json.dumps(value))


def is_current(study: Study, changes: Mapping[str, Changes], line: Mapping[str, Any]) -> bool:
    """Whether the study has a line's row and would run it with the settings that it was run with.

    Lines from before `settings_hash` was recorded are compared by the row's changes alone.
    """
    row = line["row"]
    if row not in changes or line["changes"] != as_read(changes[row]):
        return False
    if line.get("members", 1) != study.members.get(row, 1):
        return False
    settings = settings_of(study, changes[row], line["labels_per_class"], line["seed"], "")
    return line.get("settings_hash") in (None, config_hash(settings))
