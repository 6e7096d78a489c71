"""Runs a study: tune every row on validation images, then run paired seeds and read the test set.

A study is rows (methods), sizes (labels per class) and seeds. Every run has a folder named by its
content and is not repeated once it has finished, nor one whose line is in the table, so a study can
be stopped, continued on another machine, spread over processes with `--shard`, and grow; each line
is written when its run has finished. A line of the results counts only while the study has its row
and would still run it with the same settings. See `main` for the command line.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.stats

from genreg_jax import data, predict, train
from genreg_jax.augment import make as make_augment
from genreg_jax.batches import BatchPlan
from genreg_jax.config import config_hash, from_config, identity
from genreg_jax.flow_run import trained_flow_generator
from genreg_jax.settings import Settings

Changes = Mapping[str, Any]
MEMBER_SEED = 1000  # between the members of an ensemble


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      config: makes a fresh `ConfigDict`.
      rows: row name to the settings that make it; the first row is the reference.
      candidates: row name to the list of changes tried in tuning, equally many for each row; empty
        where nothing is tuned.
      inherits: row name to the tuned rows whose choices it takes, for rows that are not tuned.
      pairs: further comparisons, each a row and the row that it is compared with.
      sizes: labels per class.
      seeds: of the table.
      tuning_size: labels per class in tuning.
      tuning_seeds: seeds of tuning, apart from those of the table.
      tuned_as: the study of the same folder whose choices this one takes; empty for its own.
      on_first: whether the other rows take the first row's choice, in tuning and in the table.
      halving: shares of the epochs; the first row's candidates run for the first share, the better
        half of them for the second, and so on. Empty where all run for all epochs.
      best: name to rows; the one that is best in tuning is a choice by that name, for `inherits`.
      members: row name to the number of networks whose probabilities it averages, where not one.
    """

    config: Callable[[], Any]
    rows: Mapping[str, Changes]
    candidates: Mapping[str, Sequence[Changes]]
    sizes: Sequence[int]
    seeds: Sequence[int]
    tuning_size: int
    tuning_seeds: Sequence[int]
    inherits: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] = ()
    tuned_as: str = ""
    on_first: bool = False
    halving: Sequence[float] = ()
    best: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    members: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def first(self) -> str:
        """The reference."""
        return next(iter(self.rows))

    def sources(self, row: str) -> Sequence[str]:
        """The choices that a row takes, by the names of tuned rows; its own where it is tuned."""
        own = self.inherits.get(row, (row,) if self.candidates else ())
        return (self.first, *own) if self.on_first and self.first not in own else own

    def changes(self, tuned: Mapping[str, Changes]) -> dict[str, Changes]:
        """Row name to its settings with the choices of tuning, for the rows that have theirs."""
        found = {}
        for row, fixed in self.rows.items():
            if all(source in tuned for source in self.sources(row)):
                taken = [tuned[s] for s in self.sources(row) if s != row]
                own = tuned.get(row, {}) if row not in self.inherits else {}
                parts = [*taken, fixed, own]
                found[row] = {k: v for part in parts for k, v in part.items()}
        return found


def shipped(method: str, dataset: str) -> Any:
    """The shipped config of a method on a data set, a `ConfigDict`."""
    return importlib.import_module(f"configs.{method}_{dataset}").get_config()


def settings_of(study: Study, changes: Changes, size: int, seed: int, data_dir: str) -> Settings:
    """The settings of one run."""
    config = study.config()
    config.update_from_flattened_dict({"data.per_class": size, "seed": seed, **changes})
    config.data.dir = data_dir
    config.train.progress = False
    return from_config(config)


def with_flow(folder: pathlib.Path, settings: Settings) -> Settings:
    """The settings with the trained flow of their subset, which all runs on it share."""
    if settings.uses_flow and not settings.flow.workdir:
        flow_key = {
            "flow": dataclasses.asdict(settings.flow),
            "data": identity(settings)["data"],
            "folder": settings.data.dir if settings.data.name == "folder" else "",
            "seed": settings.seed,
        }
        digest = hashlib.sha256(json.dumps(flow_key, sort_keys=True).encode()).hexdigest()[:12]
        home = folder / f"flow-{digest}"
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be training it
            if not (home / "done").exists():
                dataset = load(settings)
                shape = settings.flow.shape_of(dataset.image_shape)
                view = make_augment(settings.flow.augment, image_shape=shape)
                with processor_time(home, begun=any(path.is_dir() for path in home.iterdir())):
                    _, flow = trained_flow_generator(settings, dataset, home, augment=view)
                (home / "done").write_text(json.dumps(flow))
        flow = dataclasses.replace(settings.flow, workdir=str(home))
        settings = dataclasses.replace(settings, flow=flow)
    return settings


def run(folder: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """One run, or the summary of the finished one."""
    settings = with_flow(folder, settings)
    workdir = folder / config_hash(settings)
    summary = _run(workdir, settings, settings)
    return summary | {"processor_seconds": processor_seconds(settings, [workdir])}


def _run(workdir: pathlib.Path, settings: Settings, data_of: Settings) -> dict[str, Any]:
    if (workdir / "summary.json").exists():
        return train.train_and_evaluate(settings, workdir)
    dataset = load(data_of)
    with processor_time(workdir, begun=workdir.exists()):
        return train.train_and_evaluate(settings, workdir, dataset=dataset)


@contextlib.contextmanager
def processor_time(folder: pathlib.Path, *, begun: bool) -> Iterator[None]:
    """Adds to a file beside a folder the seconds that this process computes meanwhile.

    On one core they are those of the clock on a core that does nothing else. Of what was `begun`
    without such a file, or by a process that was killed, they are unknown, and there is none.
    """
    path, start = _times(folder), time.process_time()
    if begun and not path.exists():
        yield
        return
    before = float(path.read_text()) if path.exists() else 0.0
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.write_text(str(before + time.process_time() - start))


def processor_seconds(settings: Settings, workdirs: Sequence[pathlib.Path]) -> float | None:
    """Of runs and of the flow that they share; None where some are unknown, and beside a GPU."""
    if jax.default_backend() != "cpu":
        return None
    folders = [*workdirs, *[pathlib.Path(settings.flow.workdir)] * settings.uses_flow]
    files = [_times(folder) for folder in folders]
    if not all(file.exists() for file in files):
        return None
    return round(sum(float(file.read_text()) for file in files), 2)


def _times(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(folder.name + ".processor_seconds")


def ensemble(folder: pathlib.Path, settings: Settings, members: int) -> dict[str, Any]:
    """The summary of a run, with the accuracies of several networks' mean probabilities.

    The others differ in the seed of all but the data. Both kinds of seconds are of all of them.
    """
    settings = with_flow(folder, settings)
    key, dataset = config_hash(settings), load(settings)
    others = [
        dataclasses.replace(settings, seed=settings.seed + MEMBER_SEED * k)
        for k in range(1, members)
    ]
    workdirs = [folder / key, *(folder / f"{key}-member-{k}" for k in range(1, members))]
    summaries = [_run(w, s, settings) for w, s in zip(workdirs, [settings, *others])]
    summary = dict(summaries[0]) | {
        "seconds": sum(s["seconds"] for s in summaries),
        "processor_seconds": processor_seconds(settings, workdirs),
    }
    runs = [predict.load(workdir) for workdir in workdirs]
    for name in ("validation", "test"):
        split = getattr(dataset, name)
        mean = np.mean([run.predict(split.images).probabilities for run in runs], axis=0)
        summary[f"{name}_accuracy"] = float((mean.argmax(1) == split.labels).mean())
    return summary


_read = functools.lru_cache(maxsize=2)(data.from_settings)


def load(settings: Settings) -> data.Dataset:
    """The data of a run; the last two are kept, since runs take turns on the seeds of tuning."""
    return _read(settings.data, settings.seed)


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
        of = {
            row: {
                r["seed"]: r for r in records if r["row"] == row and r["labels_per_class"] == size
            }
            for row in study.rows
        }
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


def main(study: Study | Mapping[str, Study], here: pathlib.Path) -> None:
    """The command line of a study, or of several, chosen by `--study`.

    `--stage=tune` chooses each row's settings on validation images and writes
    `results/tuned.json`; without it the table is run with those settings. `--stage=plan` makes a
    few updates of each row and prints the hours that the rest of the table will take. Several
    studies have their results in folders of their names.
    """
    results = here / "results"
    prog = f"python -m experiments.{here.name}.run"
    if not isinstance(study, Study):
        chooser = argparse.ArgumentParser(prog=prog, add_help=False)
        chooser.add_argument("--study", choices=study, required=True)
        name = chooser.parse_known_args()[0].study
        study, results = study[name], results / name
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--study", help="which one, where there are several")
    parser.add_argument("--stage", choices=["tune", "plan", "table"], default="table")
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/experiments"))
    parser.add_argument(
        "--shard", type=shard, default="0/1", help="i/n: this process's part of the runs"
    )
    parser.add_argument("--seeds", type=int, help="only the first so many seeds")
    parser.add_argument("--sizes", type=int, nargs="+", help="only these labels per class")
    parser.add_argument("--rows", nargs="+", choices=study.rows, help="only these rows")
    parser.add_argument("--again", action="store_true", help="repeat runs whose lines are there")
    parser.add_argument(
        "--merge", type=pathlib.Path, nargs="+", help="run nothing; add the lines of these files"
    )
    args = parser.parse_args()
    part, parts = args.shard
    # Seeds share their compiled programs, and studies the runs that they have in common.
    folder = args.runs
    jax.config.update("jax_compilation_cache_dir", str((args.runs / "compiled").absolute()))
    results.mkdir(parents=True, exist_ok=True)
    if args.stage == "tune":
        if not study.candidates:
            parser.error("nothing is tuned in this study")
        if study.tuned_as:
            parser.error(f"this study takes the choices of {study.tuned_as}; tune that one")
        if args.seeds is not None or args.sizes:
            parser.error("--seeds and --sizes are of the table; tuning runs as a whole")
        rows = [row for row in study.candidates if row in (args.rows or study.rows)]
        tuned = results / "tuned.json"
        if study.on_first and study.first not in rows:
            chosen(study, tuned, [study.first], parser.error)
        if study.halving and study.first in rows and parts > 1:
            parser.error(f"{study.first} is tuned by halving, in one process; leave out --shard")
        tune(study, rows, folder, results, args.data_dir, part, parts, args.again)
        return
    sizes, rows = args.sizes or study.sizes, args.rows or list(study.rows)
    home = results.parent / study.tuned_as if study.tuned_as else results
    changes = study.changes(chosen(study, home / "tuned.json", rows, parser.error))
    path = results / "table.jsonl"
    lines = add_lines(study, changes, path, [])
    if args.merge:
        try:
            found = [line for other in args.merge for line in merged(study, changes, lines, other)]
        except ValueError as error:
            parser.error(str(error))
        print(table(study, add_lines(study, changes, path, found)))
        return
    there = {(line["labels_per_class"], line["seed"], line["row"]) for line in lines}
    jobs = [
        (seed, size, row)
        for seed in study.seeds[: args.seeds]
        for size in sizes
        for row in rows
        if seed % parts == part and (args.again or (size, seed, row) not in there)
    ]
    if args.stage == "plan":
        plan(study, changes, jobs, folder / "plan", args.data_dir)
        return
    for seed, size, row in jobs:
        settings = settings_of(study, changes[row], size, seed, args.data_dir)
        members = study.members.get(row, 1)
        found = run(folder, settings) if members == 1 else ensemble(folder, settings, members)
        line = record(row, size, changes[row], found, settings)
        if members > 1:
            line["members"] = members
        print(json.dumps(line), flush=True)
        lines = add_lines(study, changes, path, [line])
    print(table(study, lines))


FEW = {
    "train.epochs": 4, "train.steps_per_epoch": 2, "train.evaluate_test": False,
    "flow.updates": 6, "flow.eval_every": 3,
}  # fmt: skip


def plan(
    study: Study,
    changes: Mapping[str, Changes],
    jobs: Sequence[tuple[int, int, str]],
    folder: pathlib.Path,
    data_dir: str,
) -> None:
    """Prints what jobs, each a seed, a size and a row, will take, from eight updates of each row.

    Compilation counts once a row, since seeds share their programs, and the training of a flow once
    for each subset of images. The compilation of the validation is counted at every fourth one,
    which makes short runs look longer; the reading of the test set is not in it.
    """
    print("| labels per class | row | seconds a run | runs | hours |\n|---|---|---|---|---|")
    hours, flows = 0.0, {}
    left = {job[1:] for job in jobs}
    for size, row in [(s, row) for s in study.sizes for row in study.rows if (s, row) in left]:
        seeds = [job[0] for job in jobs if job[1:] == (size, row)]
        settings = settings_of(study, changes[row], size, seeds[0], data_dir)
        found = run(folder, settings_of(study, {**changes[row], **FEW}, size, seeds[0], data_dir))
        stages, labels = found["stages"], load(settings).train.labels
        updates = settings.train.epochs * BatchPlan(settings, labels).steps_per_epoch
        a_run = (
            stages.get("training", 0) / found["steps"] * updates
            + stages.get("validation", 0) / FEW["train.epochs"] * settings.train.epochs
            + sum(stages.get(name, 0) for name in ("data", "checkpoints", "pictures"))
        )
        a_run *= max(study.members.get(row, 1) - 1, 1)  # the first member is another row's run
        spent = (a_run * len(seeds) + stages.get("compilation", 0)) / 3600
        hours += spent
        print(f"| {size} | {row} | {a_run:.0f} | {len(seeds)} | {spent:.1f} |", flush=True)
        if found["flow"]:
            images = settings.flow.updates * min(settings.flow.batch_size, len(labels))
            seconds = images / found["flow"]["images_per_second"]
            for seed in seeds:
                flows[size, seed] = max(seconds, flows.get((size, seed), 0))
    hours += sum(flows.values()) / 3600
    print(f"{hours:.1f} hours on one process, of them {sum(flows.values()) / 3600:.1f} for flows.")


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


def shard(text: str) -> tuple[int, int]:
    """`i/n` as two numbers."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 0 to n - 1")
    return int(part), int(parts)


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


def chosen(
    study: Study, path: pathlib.Path, rows: Iterable[str], error: Callable[[str], Any]
) -> dict[str, Changes]:
    """The settings that tuning chose, of the rows that have one that still counts.

    `error` is called where one of `rows` has none.
    """
    tuned = json.loads(path.read_text()) if path.exists() else {}
    tuned = {
        row: choice
        for row, choice in tuned.items()
        if row in study.best or choice in as_read(list(study.candidates.get(row, ())))
    }
    missing = {source: row for row in rows for source in study.sources(row) if source not in tuned}
    if missing:
        error(
            f"{path.name} has no candidate of the study for {', '.join(missing)}; run --stage=tune"
        )
    return tuned


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
    tuned = json.loads(path.read_text()) if path.exists() else {}
    if study.halving and study.first in rows:
        choice = halve(study, folder, results, data_dir)
        if as_read(choice) != tuned.get(study.first):
            tuned = {study.first: choice}
        path.write_text(json.dumps(tuned, indent=2) + "\n")
        rows = [row for row in rows if row != study.first]
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
        lines = {
            (line["row"], line.get("settings_hash")): line for line in read_lines(files[shard])
        }
        keys = {k: (jobs[k][0], config_hash(jobs[k][3])) for k in range(shard, len(jobs), parts)}
        return {k: lines[key] for k, key in keys.items() if key in lines}

    own = found(part)
    others = [
        line
        for line in read_lines(files[part])
        if line["row"] in study.candidates and line["row"] not in rows
    ]
    for k in range(part, len(jobs), parts):
        if k in own and not again:
            continue
        row, candidate, seed, settings = jobs[k]
        summary = run(folder / "tuning", settings)
        own[k] = record(row, study.tuning_size, candidate, summary, settings)
        write_lines(files[part], [*others, *(own[k] for k in sorted(own))])
        print(row, candidate, seed, summary["validation_accuracy"], flush=True)
    lines = {k: line for i in range(parts) for k, line in found(i).items()}
    for other in sorted(set(results.glob("tuning-*.jsonl")) - set(files)):
        print(f"{other.name} is of another sharding and is not read.")
    commits = {line["commit"] for line in lines.values()}
    if len(commits) > 1:
        print(f"The runs are of {len(commits)} commits: {', '.join(sorted(map(str, commits)))}.")
    if len(lines) < len(jobs):
        print(f"{len(lines)} of {len(jobs)} runs are there; the last shard to finish chooses.")
        return
    tuned = {row: choice for row, choice in tuned.items() if row in study.candidates}
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
        tuned[row] = study.candidates[row][means.index(max(means))]
    scores = tuning_scores(study, results, tuned)
    for name, group in study.best.items():
        if all(row in scores for row in group):
            row = max(group, key=lambda row: scores[row])
            tuned[name] = {**study.rows[row], **tuned[row]}
            print(f"{name}: {row}")
    path.write_text(json.dumps(tuned, indent=2) + "\n")


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
        (line["row"], line.get("settings_hash")): 100 * line["validation_accuracy"]
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
    study: Study, folder: pathlib.Path, results: pathlib.Path, data_dir: str
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
                line = next((r for r in records if r["settings_hash"] == key), None)
                if line is None:
                    summary = run(folder / "tuning", settings)
                    line = record(row, study.tuning_size, candidate, summary, settings)
                    line["share"] = share
                    records.append(line)
                    write_lines(path, records)
                found.append(line["validation_accuracy"])
            scores.append(statistics.fmean(found))
            print(row, share, candidate, scores[-1], flush=True)
        order = sorted(range(len(left)), key=lambda i: -scores[i])
        left = [left[i] for i in order[: max(len(left) // 2, 1)]]
    return dict(left[0])
