"""Chooses each row's settings on validation images."""

import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments import runs
from experiments.lines import record, with_error
from experiments.store import as_read, locked, put_line, read_lines
from experiments.study import Changes, Study, settings_of
from genreg_jax.config import config_hash
from genreg_jax.errors import BusyError, UserError
from genreg_jax.logs import read_json, write_json
from genreg_jax.settings import Settings


def read_choices(path: pathlib.Path) -> dict[str, Any]:
    """What tuning chose; empty where there is nothing yet.

    Raises:
      UserError: the file is damaged.
    """
    if not path.exists():
        return {}
    way_out = (
        "Or remove it and run --stage=tune: runs whose lines are in the tuning files beside it are "
        "not repeated."
    )
    try:
        found = read_json(path)
    except UserError as error:
        raise UserError(f"{error} {way_out}") from None
    if odd := [row for row, choice in found.items() if not isinstance(choice, dict)]:
        raise UserError(
            f"{path} is damaged: its {odd[0]!r} is no object. Put the file back. {way_out}"
        )
    return found


def best_rows(study: Study, tuned: Mapping[str, Any]) -> dict[str, str]:
    """The row behind each name of `study.best`, unless its choice is none of its rows' now."""
    return {
        name: row
        for name, group in study.best.items()
        for row in group
        if name in tuned and as_read({**study.rows[row], **tuned.get(row, {})}) == tuned[name]
    }


def chosen(
    study: Study, path: pathlib.Path, rows: Iterable[str], error: Callable[[str], Any]
) -> dict[str, Changes]:
    """The settings that tuning chose, of the rows that have one that still counts.

    `error` is called where one of `rows` has none.
    """
    tuned = _valid(study, read_choices(path))
    missing = {source: row for row in rows for source in study.sources(row) if source not in tuned}
    if missing:
        error(
            f"{path.name} has no candidate of the study for {', '.join(missing)}; run --stage=tune"
        )
    return tuned


def _valid(study: Study, tuned: Mapping[str, Changes]) -> dict[str, Changes]:
    """The choices that are candidates of the study, and the names that one of them is behind."""
    best = best_rows(study, tuned)
    return {
        row: choice
        for row, choice in tuned.items()
        if row in best or choice in as_read(list(study.candidates.get(row, ())))
    }


def tune(
    study: Study,
    rows: Sequence[str],
    folder: pathlib.Path,
    results: pathlib.Path,
    data_dir: str,
    part: int,
    parts: int,
    again: bool = False,
) -> None:
    """Tries every candidate of these rows on the tuning seeds and keeps the best on validation.

    Runs whose lines are there are not repeated. The other rows keep what was chosen for them, and
    their lines; not where they were tuned on another choice of the first row than it has now.

    Job `k` belongs to shard `k % parts`, and only that shard's file is read for it: what another
    sharding left does not count twice. The shard whose file completes the jobs chooses.
    """
    path = results / "tuned.json"
    if study.halving and study.first in rows:
        choice = halve(study, folder, results, data_dir, again)
        with locked(results):
            tuned = read_choices(path)
            if as_read(choice) != tuned.get(study.first):
                tuned = {study.first: choice}  # what was tuned on another one does not count
            write_json(path, tuned)
        rows = [row for row in rows if row != study.first]
    tuned = read_choices(path)
    basis = tuned[study.first] if study.on_first and rows and rows != [study.first] else {}

    jobs = [
        (row, candidate, seed, settings)
        for row in rows
        for candidate in study.candidates[row]
        for seed, settings in zip(
            study.tuning_seeds, in_tuning(study, basis, row, candidate, data_dir)
        )
    ]
    files = [results / f"tuning-{i}.jsonl" for i in range(parts)]

    def found(shard):
        """Job number to line, of a shard's file."""
        lines = {_run_of(line): line for line in read_lines(files[shard])}
        keys = {k: (jobs[k][0], config_hash(jobs[k][3])) for k in range(shard, len(jobs), parts)}
        return {k: lines[key] for k, key in keys.items() if key in lines}

    own = found(part)
    for k in range(part, len(jobs), parts):
        if k in own and not again:
            continue
        row, candidate, seed, settings = jobs[k]
        try:
            summary = runs.run(folder / "tuning", settings)
        except BusyError as error:
            print(f"{row} {candidate} {seed} is left to another program. {error}")
            continue
        put_line(
            files[part],
            record(row, study.tuning_size, candidate, summary, settings),
            _run_of,
        )
        print(row, candidate, seed, summary["validation_accuracy"], flush=True)
    lines = {k: line for i in range(parts) for k, line in found(i).items()}
    for other in sorted(set(results.glob("tuning-*.jsonl")) - set(files)):
        print(f"{other.name} is of another sharding and chooses nothing here.")
    commits = {line["commit"] for line in lines.values()}
    if len(commits) > 1:
        print(f"The runs are of {len(commits)} commits: {', '.join(sorted(map(str, commits)))}.")
    if len(lines) < len(jobs):
        print(f"{len(lines)} of {len(jobs)} runs are there; the last shard to finish chooses.")
        return
    choices = {}
    print("| row | candidate | n | validation accuracy, % |\n|---|---|---|---|")
    for row in rows:
        means = []
        for candidate in study.candidates[row]:
            values = [
                100 * lines[k]["validation_accuracy"]
                for k, job in enumerate(jobs)
                if job[:2] == (row, candidate)
            ]
            means.append(statistics.fmean(values))
            print(f"| {row} | {candidate} | {len(values)} | {with_error(values)} |")
        choices[row] = study.candidates[row][means.index(max(means))]
    with locked(results):
        # Another process may have chosen for other rows meanwhile.
        tuned = read_choices(path)
        if basis and tuned.get(study.first) != as_read(basis):
            raise UserError(
                f"{study.first} has another choice in {path} than when these rows' tuning began, "
                "so that they were tuned on the old one. Run the same command again."
            )
        tuned = as_read(_valid(study, tuned) | choices)
        scores = tuning_scores(study, results, tuned)
        best = best_rows(study, tuned)
        for name, group in study.best.items():
            if absent := [row for row in group if row not in scores]:
                kept = f"stays {best[name]}" if name in best else "is not chosen yet"
                print(f"{name} {kept}: no tuning lines of {', '.join(absent)}.")
            else:
                best[name] = max(group, key=lambda row: scores[row])
                print(f"{name}: {best[name]}")
        tuned = {row: choice for row, choice in tuned.items() if row not in study.best}
        tuned |= {name: {**study.rows[row], **tuned[row]} for name, row in best.items()}
        write_json(path, tuned)


def _run_of(line: Mapping[str, Any]) -> tuple[str, str | None]:
    """What tells one run of tuning from another."""
    return line["row"], line.get("settings_hash")


def in_tuning(
    study: Study, basis: Changes, row: str, candidate: Changes, data_dir: str
) -> list[Settings]:
    """The settings of a candidate of each seed, on top of the first row's choice, `basis`."""
    changes = {**study.rows[row], **candidate, "train.evaluate_test": False}
    changes = {**basis, **changes} if row != study.first else changes
    return [
        settings_of(study, changes, study.tuning_size, seed, data_dir)
        for seed in study.tuning_seeds
    ]


def tuning_scores(
    study: Study, results: pathlib.Path, tuned: Mapping[str, Changes]
) -> dict[str, float]:
    """Row to the mean validation accuracy of its choice in tuning, in per cent, where it is known.

    What was tuned on another choice of the first row than `tuned` has does not count.
    """
    every = {
        _run_of(line): 100 * line["validation_accuracy"]
        for file in sorted(results.glob("tuning-*.jsonl"))
        for line in read_lines(file)
    }
    basis = tuned.get(study.first, {}) if study.on_first else {}
    scores = {}
    for row in study.candidates:
        if row in tuned:
            keys = [
                (row, config_hash(settings))
                for settings in in_tuning(study, basis, row, tuned[row], "")
            ]
            if all(key in every for key in keys):
                scores[row] = statistics.fmean(every[key] for key in keys)
    return scores


def halve(
    study: Study, folder: pathlib.Path, results: pathlib.Path, data_dir: str, again: bool = False
) -> dict[str, Any]:
    """The choice of the first row by successive halving on validation; resumes.

    Jamieson and Talwalkar, 2016, arXiv:1502.07943: all candidates with few epochs, the better half
    with more. The lines go to `halving.jsonl`, each with its share of the epochs.
    """
    row, path = study.first, results / "halving.jsonl"
    records = read_lines(path)
    left, epochs = list(study.candidates[row]), study.config().train.epochs
    for share in study.halving:
        scores = []
        for candidate in left:
            found = []
            for seed in study.tuning_seeds:
                changes = {**study.rows[row], **candidate, "train.evaluate_test": False}
                changes["train.epochs"] = max(1, round(share * epochs))
                settings = settings_of(study, changes, study.tuning_size, seed, data_dir)
                key = config_hash(settings)
                line = next((r for r in records if r.get("settings_hash") == key), None)
                if line is None or again:
                    summary = runs.run(folder / "tuning", settings)
                    line = record(row, study.tuning_size, candidate, summary, settings)
                    line["share"] = share
                    put_line(path, line, lambda line: line.get("settings_hash"))
                found.append(line["validation_accuracy"])
            scores.append(statistics.fmean(found))
            print(row, share, candidate, scores[-1], flush=True)
        order = sorted(range(len(left)), key=lambda i: -scores[i])
        left = [left[i] for i in order[: max(len(left) // 2, 1)]]
    return dict(left[0])
