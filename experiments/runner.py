"""Runs a study: tune every row on validation images, then run paired seeds and read the test set.

A study is rows (methods), sizes (labels per class) and seeds. Every run has a folder named by its
content and is not repeated once it has finished, nor one whose line is in the table, so a study can
be stopped, continued on another machine, spread over processes with `--shard`, and grow; each line
is written when its run has finished. A line of the results counts only while the study has its row
and would still run it with the same settings. See `main` for the command line.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax

from experiments import runs
from experiments.lines import record, table
from experiments.store import add_lines, current_lines, key_of, merge, writable
from experiments.study import Changes, Study, settings_of
from experiments.tuning import chosen, tune
from genreg_jax.batches import BatchPlan
from genreg_jax.checks import path_of
from genreg_jax.door import leave, through
from genreg_jax.errors import BusyError


def main(study: Study | Mapping[str, Study], here: pathlib.Path) -> None:
    """The command line of a study, or of several, chosen by `--study`.

    `--stage=tune` chooses each row's settings on validation images and writes
    `results/tuned.json`; without it the table is run with those settings. `--stage=plan` makes a
    few updates of each row and prints the hours that the rest of the table will take. Several
    studies have their results in folders of their names.
    """
    status = through(lambda: _command(study, here))
    if status:
        leave(status)


def _command(study: Study | Mapping[str, Study], here: pathlib.Path) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{here.name}.run")
    if not isinstance(study, Study):
        parser.add_argument("--study", choices=study, required=True)
    parser.add_argument("--stage", choices=["tune", "plan", "table"], default="table")
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    parser.add_argument("--runs", type=path_of, default=pathlib.Path("runs/experiments"))
    parser.add_argument(
        "--shard", type=shard, default="0/1", help="i/n: this process's part of the runs"
    )
    parser.add_argument("--seeds", type=int, help="only the first so many seeds")
    parser.add_argument("--sizes", type=int, nargs="+", help="only these labels per class")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument(
        "--again",
        action="store_true",
        help="runs whose lines are there, too; what has finished in --runs is not repeated",
    )
    parser.add_argument(
        "--merge", type=path_of, nargs="+", help="run nothing; add the lines of these files"
    )
    args = parser.parse_args()
    results = here / "results"
    if not isinstance(study, Study):
        study, results = study[args.study], results / args.study
    only(parser, args, study)
    # Seeds share their compiled programs, and studies the runs that they have in common.
    folder = args.runs
    jax.config.update("jax_compilation_cache_dir", str((args.runs / "compiled").absolute()))
    writable(results, *([] if args.merge else [folder]))
    if args.stage == "tune":
        _tune(parser, args, study, results)
        return
    sizes, rows = args.sizes or study.sizes, args.rows or list(study.rows)
    home = results.parent / study.tuned_as if study.tuned_as else results
    changes = study.changes(chosen(study, home / "tuned.json", rows, parser.error))
    path = results / "table.jsonl"
    if args.merge:
        print(table(study, merge(study, changes, path, args.merge)))
        return
    lines, left_out = current_lines(study, changes, path)
    if left_out:
        print(
            f"{len(left_out)} lines do not count: the study no longer has their row, or its "
            "settings have changed. They are kept."
        )
    there = {key_of(line) for line in lines}
    part, parts = args.shard
    jobs = [
        (size, seed, row)
        for seed in study.seeds[: args.seeds]
        for size in sizes
        for row in rows
        if seed % parts == part and (args.again or (size, seed, row) not in there)
    ]
    if args.stage == "plan":
        plan(study, changes, jobs, folder / "plan", args.data_dir)
        return
    busy = []
    for size, seed, row in jobs:
        settings = settings_of(study, changes[row], size, seed, args.data_dir)
        members = study.members.get(row, 1)
        try:
            if members == 1:
                found = runs.run(folder, settings)
            else:
                found = runs.ensemble(folder, settings, members)
        except BusyError:
            busy.append(f"{row!r} with {size} labels per class, seed {seed}")
            continue
        line = record(row, size, changes[row], found, settings)
        if members > 1:
            line["members"] = members
        add_lines(study, changes, path, [line])
        print(json.dumps(line), flush=True)
    print(table(study, add_lines(study, changes, path, [])))
    if busy:
        print(f"Left to another program, which was making them: {'; '.join(busy)}.")


def only(parser: argparse.ArgumentParser, args: argparse.Namespace, study: Study) -> None:
    """Refuses parts that a study has not, and makes each asked for once."""
    for row in args.rows or ():
        if row not in study.rows:
            parser.error(f"the study has no row {row!r}; it has {', '.join(map(repr, study.rows))}")
    for size in args.sizes or ():
        if size not in study.sizes:
            known = ", ".join(map(str, study.sizes))
            parser.error(f"the study has no cell of {size} labels per class; it has {known}")
    if args.seeds is not None and not 0 < args.seeds <= len(study.seeds):
        parser.error(f"--seeds is {args.seeds}; allowed: 1 to {len(study.seeds)}")
    if args.merge and (args.stage != "table" or args.rows or args.sizes or args.seeds):
        parser.error("--merge adds all lines of its files to the table; leave out the other flags")
    args.rows, args.sizes = (v and list(dict.fromkeys(v)) for v in (args.rows, args.sizes))


def _tune(parser, args, study, results):
    part, parts = args.shard
    if not study.candidates:
        parser.error("nothing is tuned in this study")
    if study.tuned_as:
        parser.error(f"this study takes the choices of {study.tuned_as}; tune that one")
    if args.seeds is not None or args.sizes:
        parser.error("--seeds and --sizes are of the table; tuning runs as a whole")
    rows = [row for row in study.candidates if row in (args.rows or study.rows)]
    if args.rows and not rows:
        parser.error(
            f"nothing is tuned for {', '.join(args.rows)}, only {', '.join(study.candidates)}"
        )
    if study.on_first and study.first not in rows:
        chosen(study, results / "tuned.json", [study.first], parser.error)
    if study.halving and study.first in rows and parts > 1:
        parser.error(f"{study.first} is tuned by halving, in one process; leave out --shard")
    tune(study, rows, args.runs, results, args.data_dir, part, parts, args.again)


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
    """Prints what jobs, each a size, a seed and a row, will take, from eight updates of each row.

    Compilation counts once a row, since seeds share their programs, and the training of a flow once
    for each subset of images. The compilation of the validation is counted at every fourth one,
    which makes short runs look longer; the reading of the test set is not in it.
    """
    print("| labels per class | row | seconds a run | runs | hours |\n|---|---|---|---|---|")
    hours, flows = 0.0, {}
    left: dict[tuple[int, str], list[int]] = {}
    for size, seed, row in jobs:
        left.setdefault((size, row), []).append(seed)
    for size, row in [(s, row) for s in study.sizes for row in study.rows if (s, row) in left]:
        seeds = left[size, row]
        settings = settings_of(study, changes[row], size, seeds[0], data_dir)
        found = runs.run(
            folder, settings_of(study, {**changes[row], **FEW}, size, seeds[0], data_dir)
        )
        stages, labels = found["stages"], runs.load(settings).train.labels
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


def shard(text: str) -> tuple[int, int]:
    """`i/n` as two numbers."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 0 to n - 1")
    return int(part), int(parts)
