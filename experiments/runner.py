"""Runs a study: tune every row on validation images, then run paired seeds and read the test set.

A study is rows (methods), sizes (labels per class) and seeds. Every run has a folder named by its
content and is not repeated once it has finished, so a study can be stopped, continued,
spread over processes with `--shard`, and grow. See `main` for the command line.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import scipy.stats

from genreg_jax import data, train
from genreg_jax.augment import make as make_augment
from genreg_jax.generator import trained_flow_generator
from genreg_jax.settings import Settings, config_hash, from_config

Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      config: makes a fresh `ConfigDict`.
      rows: row name to the settings that make it; the first row is the reference.
      candidates: row name to the list of changes tried in tuning, equally many for each row; empty
        where nothing is tuned.
      sizes: labels per class.
      seeds: of the table.
      tuning_size: labels per class in tuning.
      tuning_seeds: seeds of tuning, apart from those of the table.
    """

    config: Callable[[], Any]
    rows: Mapping[str, Changes]
    candidates: Mapping[str, Sequence[Changes]]
    sizes: Sequence[int]
    seeds: Sequence[int]
    tuning_size: int
    tuning_seeds: Sequence[int]


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
    if settings.uses_flow:
        flow_key = {
            "flow": dataclasses.asdict(settings.flow),
            "data": [settings.data.name, settings.data.per_class, settings.seed],
        }
        digest = hashlib.sha256(json.dumps(flow_key, sort_keys=True).encode()).hexdigest()[:12]
        home = folder / f"flow-{digest}"
        if not (home / "done").exists():
            dataset = load(settings)
            view = make_augment(settings.flow.augment, image_shape=dataset.image_shape)
            home.mkdir(parents=True, exist_ok=True)
            _, flow = trained_flow_generator(settings, dataset, home, augment=view)
            (home / "done").write_text(json.dumps(flow))
        flow = dataclasses.replace(settings.flow, workdir=str(home))
        settings = dataclasses.replace(settings, flow=flow)
    return settings


def run(folder: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """One run, or the summary of the finished one."""
    settings = with_flow(folder, settings)
    workdir = folder / config_hash(settings)
    if (workdir / "summary.json").exists():
        return train.train_and_evaluate(settings, workdir)
    return train.train_and_evaluate(settings, workdir, dataset=load(settings))


_DATASETS: dict[Any, data.Dataset] = {}


def load(settings: Settings) -> data.Dataset:
    """The data of a run; the last one is kept, since the rows of one seed follow each other."""
    s = settings.data
    key = (s, settings.seed)
    if key not in _DATASETS:
        _DATASETS.clear()
        _DATASETS[key] = data.from_settings(s, settings.seed)
    return _DATASETS[key]


KEPT = (
    "test_accuracy validation_accuracy best_step steps train_examples seconds images_per_second "
    "test_intra_class_similarity test_inter_class_similarity parameters seed flow finder_spread "
    "subset_hash config_hash versions device commit"
).split()


def record(row: str, size: int, changes: Changes, summary: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the results."""
    return {
        "row": row,
        "labels_per_class": size,
        "changes": dict(changes),
        **{name: summary.get(name) for name in KEPT},
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error, the latter NaN for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def table(study: Study, records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: accuracy, paired difference to the first row with its p-value, seconds."""
    reference = next(iter(study.rows))
    lines = [
        f"| labels per class | row | n | test accuracy, % | paired difference to {reference} | "
        "p (paired t) | median seconds |",
        "|---|---|---|---|---|---|---|",
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
            mean, error = mean_and_error([100 * r["test_accuracy"] for r in runs.values()])
            paired = sorted(set(runs) & set(of[reference]))
            gain, p = "", ""
            if row != reference and len(paired) > 1:
                a, b = ([100 * of[k][s]["test_accuracy"] for s in paired] for k in (row, reference))
                gain_mean, gain_error = mean_and_error([x - y for x, y in zip(a, b)])
                gain = f"{gain_mean:+.2f} ± {gain_error:.2f}"
                p = f"{scipy.stats.ttest_rel(a, b).pvalue:.3f}"
            seconds = statistics.median(r["seconds"] for r in runs.values())
            lines.append(
                f"| {size} | {row} | {len(runs)} | {mean:.2f} ± {error:.2f} | {gain} | {p} | "
                f"{seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main(study: Study | Mapping[str, Study], here: pathlib.Path) -> None:
    """The command line of a study, or of several, chosen by `--study`.

    `--stage=tune` chooses each row's settings on validation images and writes
    `results/tuned.json`; without it the table is run with those settings. Several studies have
    their results in folders of their names.
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
    parser.add_argument("--stage", choices=["tune", "table"], default="table")
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/experiments"))
    parser.add_argument("--shard", default="0/1", help="i/n: this process's part of the seeds")
    parser.add_argument("--seeds", type=int, help="only the first so many seeds")
    parser.add_argument("--sizes", type=int, nargs="+", help="only these labels per class")
    parser.add_argument("--rows", nargs="+", choices=study.rows, help="only these rows")
    args = parser.parse_args()
    part, parts = map(int, args.shard.split("/"))
    # Seeds share their compiled programs, and studies the runs that they have in common.
    folder = args.runs
    jax.config.update("jax_compilation_cache_dir", str((args.runs / "compiled").absolute()))
    results.mkdir(parents=True, exist_ok=True)
    if args.stage == "tune":
        tune(study, folder, results, args, part, parts)
        return
    tuned = json.loads((results / "tuned.json").read_text()) if study.candidates else {}
    records = []
    sizes, rows = args.sizes or study.sizes, args.rows or study.rows
    for seed in study.seeds[: args.seeds]:
        for size in sizes:
            for row in rows:
                changes = {**study.rows[row], **tuned.get(row, {})}
                settings = settings_of(study, changes, size, seed, args.data_dir)
                if seed % parts == part:
                    summary = run(folder, settings)
                    records.append(record(row, size, changes, summary))
                    print(json.dumps(records[-1]), flush=True)
    # Lines of other shards and of earlier calls stay; a line of this call replaces its own.
    path = results / "table.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    key = lambda r: (r["labels_per_class"], r["seed"], list(study.rows).index(r["row"]))
    merged = {key(r): r for r in [*old, *records]}
    path.write_text("".join(json.dumps(merged[k]) + "\n" for k in sorted(merged)))
    text = table(study, list(merged.values()))
    (results / "table.md").write_text(text)
    print(text)


def tune(study, folder, results, args, part, parts) -> None:
    """Tries every candidate of every row on the tuning seeds and keeps the best on validation."""
    jobs = [
        (row, candidate, seed)
        for row in study.rows
        for candidate in study.candidates[row]
        for seed in study.tuning_seeds
    ]
    scores: dict[str, list] = {}
    with (results / f"tuning-{part}.jsonl").open("w") as log:
        for i, (row, candidate, seed) in enumerate(jobs):
            if i % parts != part:
                continue
            changes = {**study.rows[row], **candidate, "train.evaluate_test": False}
            settings = settings_of(study, changes, study.tuning_size, seed, args.data_dir)
            summary = run(folder / "tuning", settings)
            line = record(row, study.tuning_size, candidate, summary)
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(row, candidate, seed, summary["validation_accuracy"], flush=True)
    lines = [
        json.loads(line)
        for path in sorted(results.glob("tuning-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    if len(lines) < len(jobs):
        print(f"{len(lines)} of {len(jobs)} runs are there; the last shard to finish chooses.")
        return
    for line in lines:
        scores.setdefault(line["row"], []).append(line)
    tuned = {}
    print("| row | candidate | n | validation accuracy, % |\n|---|---|---|---|")
    for row in study.rows:
        means = []
        for candidate in study.candidates[row]:
            values = [
                100 * line["validation_accuracy"]
                for line in scores[row]
                if line["changes"] == json.loads(json.dumps(candidate))
            ]
            means.append(statistics.fmean(values))
            mean, error = mean_and_error(values)
            print(f"| {row} | {candidate} | {len(values)} | {mean:.2f} ± {error:.2f} |")
        tuned[row] = study.candidates[row][means.index(max(means))]
    (results / "tuned.json").write_text(json.dumps(tuned, indent=2) + "\n")
