"""The lines of a study's results: one a run, their file, their table, and merging those of others.

A line counts only while the study has its row and would still run it with the same settings. Others
are kept beside the table, in `left_out.jsonl`, and come back when they count again.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import scipy.stats

from experiments.study import Changes, Study, settings_of
from genreg_jax.config import config_hash
from genreg_jax.errors import UserError
from genreg_jax.settings import Settings

KEPT = (
    "test_accuracy validation_accuracy best_step steps train_examples seconds processor_seconds "
    "images_per_second test_intra_class_similarity test_inter_class_similarity parameters seed "
    "flow finder_spread finder_distance finder_share strengths stages skipped_updates subset_hash "
    "config_hash versions device commit"
).split()
LEFT_OUT = "left_out.jsonl"


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
    """Mean difference over the seeds that both have, its standard error, p, and their number.

    p is of a paired t-test; where all differences are the same, of the test of their signs.
    """
    seeds = sorted(a.keys() & b.keys())
    gains = [a[s] - b[s] for s in seeds]
    if len(seeds) < 2:
        return statistics.fmean(gains) if gains else math.nan, math.nan, math.nan, len(seeds)
    mean, error = mean_and_error(gains)
    if max(gains) - min(gains) < 1e-9:
        return mean, error, 2.0 ** (1 - len(seeds)) if abs(mean) > 1e-9 else 1.0, len(seeds)
    test: Any = scipy.stats.ttest_1samp(gains, 0)
    return mean, error, float(test.pvalue), len(seeds)


def difference(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]
) -> tuple[str, str, int]:
    """Paired difference in test accuracy, its p-value, and the number of seeds; "" below two."""
    a, b = ({s: 100 * r["test_accuracy"] for s, r in of.items()} for of in (runs, others))
    mean, error, p, n = paired(a, b)
    return (f"{mean:+.2f} ± {error:.2f}", f"{p:.3f}", n) if n > 1 else ("", "", n)


def current_lines(
    study: Study, changes: Mapping[str, Changes], path: pathlib.Path
) -> list[Mapping[str, Any]]:
    """The lines of a table that count; writes nothing, and says how many do not."""
    lines, left = _lines(study, changes, path)
    if left:
        print(
            f"{len(left)} lines of {path.name} are left out: the study no longer has their row, "
            f"or its settings have changed. They are kept in {LEFT_OUT}."
        )
    return lines


def add_lines(
    study: Study,
    changes: Mapping[str, Changes],
    path: pathlib.Path,
    new: Sequence[Mapping[str, Any]],
) -> list[Mapping[str, Any]]:
    """Merges lines into a table's file, writes the table, and returns all of its lines.

    Lines of other shards and of earlier calls stay; a new line replaces its own. What no longer
    counts goes to `LEFT_OUT`. One process at a time.
    """
    with locked(path.parent):
        lines, left = _lines(study, changes, path)
        merged = {_key(r): r for r in [*lines, *new]}
        order = list(study.rows).index
        lines = sorted(merged.values(), key=lambda r: (*_key(r)[:2], order(r["row"])))
        aside = path.with_name(LEFT_OUT)
        if left or aside.exists():
            write_lines(aside, left)
        write_lines(path, lines)
        path.with_suffix(".md").write_text(table(study, lines))
    return lines


def _key(line: Mapping[str, Any]) -> tuple[int, int, str]:
    return line["labels_per_class"], line["seed"], line["row"]


def _lines(
    study: Study, changes: Mapping[str, Changes], path: pathlib.Path
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The lines that count, and the others, of a table and of what was left out of it."""
    every = [*read_lines(path.with_name(LEFT_OUT)), *read_lines(path)]
    counts = [is_current(study, changes, line) for line in every]
    lines = {_key(line): line for line, c in zip(every, counts) if c}
    left = [line for line, c in zip(every, counts) if not c]
    return list(lines.values()), [line for i, line in enumerate(left) if line not in left[:i]]


def merged(
    study: Study,
    changes: Mapping[str, Changes],
    lines: Sequence[Mapping[str, Any]],
    path: pathlib.Path,
) -> Sequence[Mapping[str, Any]]:
    """The lines of another machine's table, of the same study, settings, data and commit.

    Args:
      study: this one.
      changes: of its rows, as tuned.
      lines: of the table so far.
      path: of the other table's lines.

    Raises:
      UserError: the file has no line, or one that is not whole, of other settings, data or commit
        than the table's, or with another result than the same line there; the message names what
        differs.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; give the table.jsonl of another machine to --merge.")
    found = read_lines(path)
    if not found:
        raise UserError(f"{path} has no line to merge; give a table.jsonl of this study.")
    there = {_key(line): line for line in lines}
    for line in found:
        name = f"{path}: row {line['row']!r}, seed {line['seed']}"
        if words := _refused(study, changes, line):
            raise UserError(f"{name} {words}")
        own = there.get(_key(line), line)
        if differing := [
            f"{key} = {line.get(key)!r}, here {own.get(key)!r}"
            for key in ("test_accuracy", "validation_accuracy")
            if line.get(key) != own.get(key)
        ]:
            raise UserError(
                f"{name} is in the table already, with another result ({', '.join(differing)}). "
                "Take the line out of one of the two files, or run it again with --again."
            )
        check_data([*lines, *found], line, name)
    known = {line["commit"] for line in lines or found}
    if others := {line["commit"] for line in found} - known:
        words = [", ".join(sorted(map(str, commits))) for commits in (others, known)]
        raise UserError(
            f"{path} has lines of commit {words[0]}, and the table those of {words[1]}: different "
            "code may differ in more than settings. Run the shard at the table's commit."
        )
    return found


def _refused(study: Study, changes: Mapping[str, Changes], line: Mapping[str, Any]) -> str:
    """Why a line from elsewhere cannot be of the table; empty where it can."""
    row = line["row"]
    if row not in study.rows:
        return f"is of no row of this study; it has {', '.join(map(repr, study.rows))}."
    if row not in changes:
        return "is of a row that has not been tuned here; take its tuned.json, too."
    if line["labels_per_class"] not in study.sizes or line["seed"] not in study.seeds:
        return (
            f"with {line['labels_per_class']} labels per class is no run of this study, which has "
            f"{', '.join(map(str, study.sizes))} labels and seeds up to {max(study.seeds)}."
        )
    if absent := [key for key in ("settings_hash", "commit") if key not in line]:
        return f"lacks its {absent[0]}, without which nobody knows what was run."
    if words := _no_result(line):
        return f"is no whole line of a table: {words}."
    here = as_read(changes[row]) | {"members": study.members.get(row, 1)}
    theirs = line["changes"] | {"members": line.get("members", 1)}
    keys = sorted(k for k in here.keys() | theirs.keys() if here.get(k) != theirs.get(k))
    if keys or not is_current(study, changes, line):
        differing = ", ".join(f"{k} = {theirs.get(k)!r}, here {here.get(k)!r}" for k in keys)
        return (
            f"was run with other settings ({differing or 'those of all rows'}). Run it again "
            "there with this study and its tuned.json."
        )
    return ""


def check_data(lines: Iterable[Mapping[str, Any]], new: Mapping[str, Any], name: str) -> None:
    """Raises a `UserError` where a line's labelled images are not those of its pair of lines."""
    for line in lines:
        there, here = (str(r.get("subset_hash")) for r in (line, new))
        if _key(line)[:2] == _key(new)[:2] and "None" not in (there, here) and there != here:
            raise UserError(
                f"{name} has other labelled images than row {line['row']!r} of the same seed "
                f"(subset_hash {here[:12]}, there {there[:12]}), so that the two do not compare. "
                "Was it another --data_dir? The table was not changed."
            )


def _no_result(line: Mapping[str, Any]) -> str:
    """What is wrong with the result of a line; empty for nothing."""
    for key, most in (("test_accuracy", 1), ("validation_accuracy", 1), ("seconds", math.inf)):
        value = line.get(key)
        if not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
            return f"{key} is {value!r}"
    return ""


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds a folder of results, so that another process waits."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file, none if it is missing; a half-written line is left out and said."""
    types = {"row": str, "labels_per_class": int, "seed": int, "changes": dict}
    records = []
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            found = None
        if isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in types.items()):
            records.append(found)
        else:
            print(f"Line {number} of {path.name} is no whole record and is left out.")
    return records


def write_lines(path: pathlib.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file by these records, or leaves it whole."""
    new = path.with_name(path.name + ".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new.replace(path)


def put_line(
    path: pathlib.Path, new: Mapping[str, Any], key: Callable[[Mapping[str, Any]], Any]
) -> None:
    """Writes a record into a file, in the place of the one with the same key if there is one."""
    with locked(path.parent):
        lines = read_lines(path)
        places = [i for i, line in enumerate(lines) if key(line) == key(new)]
        if places:
            lines[places[-1]] = dict(new)
        else:
            lines.append(dict(new))
        write_lines(path, lines)


def as_read(value: Any) -> Any:
    """What JSON makes of a value, so that it compares with what was read."""
    return json.loads(json.dumps(value))


def is_current(study: Study, changes: Mapping[str, Changes], line: Mapping[str, Any]) -> bool:
    """Whether a line is of a run of the study, with the settings that it would run it with now.

    Lines from before `settings_hash` was recorded are compared by the row's changes alone.
    """
    row, size, seed = line["row"], line["labels_per_class"], line["seed"]
    if row not in changes or size not in study.sizes or seed not in study.seeds:
        return False
    if line["changes"] != as_read(changes[row]) or _no_result(line):
        return False
    if line.get("members", 1) != study.members.get(row, 1):
        return False
    if line.get("settings_hash") is None:
        return True
    # Settings are made anew for each line that is added, of all lines.
    key = study.config, json.dumps(changes[row]), size, seed
    if key not in _HASHES:
        _HASHES[key] = config_hash(settings_of(study, changes[row], size, seed, ""))
    return line["settings_hash"] == _HASHES[key]


_HASHES: dict[tuple[Callable[[], Any], str, int, int], str] = {}
