"""The files of a study's lines: what counts of them, adding to them, merging those of others.

A line counts only while the study has its row and would still run it with the same settings. Others
are kept beside the table, in `left_out.jsonl`, and come back when they count again.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments.lines import table
from experiments.study import Changes, Study, settings_of
from genreg_jax.config import config_hash
from genreg_jax.errors import UserError
from genreg_jax.logs.files import write_atomically

LEFT_OUT = "left_out.jsonl"
# Of a line from elsewhere, beside its result.
NEEDED = "settings_hash subset_hash commit device versions parameters steps train_examples".split()
Line = Mapping[str, Any]


# -------------------------------------------------------------------------------- which lines count


def key_of(line: Line) -> tuple[int, int, str]:
    """Labels per class, seed and row: a table has one line of each."""
    return line["labels_per_class"], line["seed"], line["row"]


def is_current(study: Study, changes: Mapping[str, Changes], line: Line) -> bool:
    """Whether a line is of a run of the study, with the settings that it would run it with now.

    Lines from before `settings_hash` was recorded are compared by the row's changes alone.
    """
    size, seed, row = key_of(line)
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


def current_lines(
    study: Study, changes: Mapping[str, Changes], path: pathlib.Path
) -> tuple[list[Line], list[Line]]:
    """The lines that count, of a table and of what was left out of it, and those that do not."""
    lines, left = {}, []
    for file in (path, path.with_name(LEFT_OUT)):
        for line in read_lines(file):
            if is_current(study, changes, line) and key_of(line) not in lines:
                lines[key_of(line)] = line
            elif line != lines.get(key_of(line)):
                left.append(line)
    once = {json.dumps(line): line for line in left}
    return list(lines.values()), list(once.values())


def _no_result(line: Line) -> str:
    """What is wrong with the result of a line of a table; empty for nothing."""
    for key, least, most in (("test_accuracy", 0, 1), ("seconds", 1e-6, 1e9)):
        value = line.get(key)
        if not _is_number(value, least, most):
            return f"its {key} is {value!r}"
    return ""


# -------------------------------------------------------------------------------- adding to a table


def add_lines(
    study: Study, changes: Mapping[str, Changes], path: pathlib.Path, new: Sequence[Line]
) -> list[Line]:
    """Adds lines to a table's file, writes the table, and returns all of its lines.

    Lines of other processes and of earlier calls stay; a new line replaces its own. What no longer
    counts goes to `LEFT_OUT`. One process at a time.

    Raises:
      UserError: a line's labelled images are not those of other rows of its seed; nothing is
        written then.
    """
    with locked(path.parent):
        lines, left = current_lines(study, changes, path)
        own = {key_of(line) for line in new}
        _check_images([line for line in lines if key_of(line) not in own], new)
        return _write(study, path, [*lines, *new], left)


def merge(
    study: Study, changes: Mapping[str, Changes], path: pathlib.Path, files: Sequence[pathlib.Path]
) -> list[Line]:
    """Adds the lines of other machines' tables, and returns all lines.

    Raises:
      UserError: a file has no line, or one that is not whole, of other settings, labelled images or
        commit than the table's, or with another result than the same line there; the message names
        what differs. Nothing is written then.
    """
    with locked(path.parent):
        lines, left = current_lines(study, changes, path)
        there = {key_of(line): line for line in lines}
        for file in files:
            found = _read_other(file)
            for line in found:
                if words := _refused(study, changes, line, there.get(key_of(line))):
                    raise UserError(f"{file}: row {line['row']!r}, seed {line['seed']} {words}")
                there[key_of(line)] = line
            known = {line.get("commit") for line in lines or found}
            if others := {line["commit"] for line in found} - known:
                words = [", ".join(sorted(map(str, commits))) for commits in (others, known)]
                raise UserError(
                    f"{file} has lines of commit {words[0]}, and the table those of {words[1]}: "
                    "different code may differ in more than settings. Run the shard at the "
                    "table's commit."
                )
            _check_images(lines, found)
            lines = list(there.values())
        return _write(study, path, lines, left)


def _write(
    study: Study, path: pathlib.Path, lines: Sequence[Line], left: Sequence[Line]
) -> list[Line]:
    """Writes the files of a table; of lines of one key the last counts."""
    order = list(study.rows).index
    merged = {key_of(line): line for line in lines}
    rows = sorted(merged.values(), key=lambda r: (*key_of(r)[:2], order(r["row"])))
    # A line that comes or goes is in both files until both are written.
    aside = path.with_name(LEFT_OUT)
    before = read_lines(aside)
    moved = left != before
    if moved:
        write_lines(aside, [*before, *(line for line in left if line not in before)])
    write_lines(path, rows)
    if moved:
        write_lines(aside, left)
    write_atomically(path.with_suffix(".md"), table(study, rows))
    return rows


def _read_other(file: pathlib.Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise UserError(f"{file} is no file; give the table.jsonl of another machine to --merge.")
    found = read_lines(file)
    if not found:
        raise UserError(f"{file} has no line to merge; give a table.jsonl of this study.")
    return found


def _refused(study: Study, changes: Mapping[str, Changes], line: Line, own: Line | None) -> str:
    """Why a line from elsewhere cannot be of the table; empty where it can."""
    size, seed, row = key_of(line)
    if row not in study.rows:
        return f"is of no row of this study; it has {', '.join(map(repr, study.rows))}."
    if row not in changes:
        return "is of a row that has not been tuned here; take its tuned.json, too."
    if size not in study.sizes or seed not in study.seeds:
        return (
            f"with {size} labels per class is no run of this study, which has "
            f"{', '.join(map(str, study.sizes))} labels and seeds up to {max(study.seeds)}."
        )
    if absent := [key for key in NEEDED if not line.get(key)]:
        return f"is no whole line of a table: it lacks its {absent[0]}."
    if words := _no_result(line):
        return f"is no whole line of a table: {words}."
    if line["commit"].endswith("-dirty"):
        return "was run with code that is not committed. Commit it there, and run it again."
    here = as_read(changes[row]) | {"members": study.members.get(row, 1)}
    theirs = line["changes"] | {"members": line.get("members", 1)}
    differing = _differing(theirs, here, sorted(here.keys() | theirs.keys()))
    if differing or not is_current(study, changes, line):
        return (
            f"was run with other settings ({differing or 'those of all rows'}). Run it again "
            "there with this study and its tuned.json."
        )
    results = ("test_accuracy", "validation_accuracy")
    if own and (differing := _differing(line, own, results)):
        return f"is there already with another result ({differing}). Take one of the two out."
    return ""


def _differing(theirs: Mapping[str, Any], here: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The keys whose values differ, with both; empty where none does."""
    differ = [key for key in keys if theirs.get(key) != here.get(key)]
    return ", ".join(f"{key} = {theirs.get(key)!r}, here {here.get(key)!r}" for key in differ)


def _check_images(lines: Iterable[Line], new: Iterable[Line]) -> None:
    """Raises a `UserError` where labelled images are not those of other rows of the seed."""
    known: dict[tuple[int, int], Line] = {}
    for line in lines:
        if line.get("subset_hash"):
            known.setdefault(key_of(line)[:2], line)
    for line in new:
        there = known.setdefault(key_of(line)[:2], line)
        if line.get("subset_hash") and line["subset_hash"] != there.get("subset_hash"):
            raise UserError(
                f"Row {line['row']!r}, seed {line['seed']} has other labelled images than row "
                f"{there['row']!r} of that seed, so that the two do not compare (subset_hash "
                f"{str(line['subset_hash'])[:12]}, there {str(there.get('subset_hash'))[:12]}). "
                "Was it another --data_dir? The table was not changed."
            )


# -------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds a folder of results, so that another process waits."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def writable(*folders: pathlib.Path) -> None:
    """Makes folders, and refuses one that cannot be written before anything is run."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder} cannot be written, and what is run would be lost.")


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file, none if it is missing; a half-written line is left out and said."""
    records = []
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if _is_record(found):
            records.append(found)
        else:
            print(f"Line {number} of {path.name} is no whole record and is left out.")
    return records


def _is_record(found: Any) -> bool:
    types = {"row": str, "labels_per_class": int, "seed": int, "changes": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(k), types[k]) for k in types):
        return False
    return _is_number(found.get("validation_accuracy"), 0, 1) and isinstance(
        found.get("commit"), str | None
    )


def _is_number(value: Any, least: float, most: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= most


def write_lines(path: pathlib.Path, lines: Iterable[Line]) -> None:
    """Replaces a file by these records, or leaves it whole."""
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def put_line(path: pathlib.Path, new: Line, key: Callable[[Line], Any]) -> None:
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
