"""What limits MGR: the samples, the finder's outer loss, or the finder?

python -m experiments.sources.limits --data_dir=DIR     # validation images only; resumes

FashionMNIST, 50 labels per class, at the weight that tuning chose for `pcr interpolated`. One part
after another is replaced by a perfect one, which nobody has in practice: `real` draws the samples
from the whole training split; `labelled real` gives them their true labels, for `gda`; `outer of
4,500 other images` lets the finder's outer loss see labelled images that neither the classifier nor
the flow has seen. Writes `results/limits.jsonl` and `results/limits.md`.
"""

import argparse
import dataclasses
import json
import pathlib
from unittest import mock

import jax
import numpy as np

import genreg_jax as gr
from experiments.digits.limits import of_images
from experiments.lines import paired, record, signed, with_error
from experiments.runs import load, with_flow
from experiments.sources.run import FASHION_MNIST
from experiments.store import locked, put_line, read_lines, writable
from experiments.study import settings_of
from genreg_jax import build, data
from genreg_jax.batches import BatchPlan
from genreg_jax.checks import path_of
from genreg_jax.config import config_hash
from genreg_jax.door import leave, through
from genreg_jax.errors import BusyError
from genreg_jax.logs.files import write_atomically

SEEDS = range(102, 106)
PCR = {"synthetic.loss": "pcr", "synthetic.source": "interpolated", "synthetic.weight": 2.0}
MGR = {**PCR, "meta.enabled": True, "meta.radius": 0.3}
DRAWN = {"synthetic.source": "prior", "synthetic.temperature": 1.0}
ROWS = {
    "base": ("", {"optimizer.weight_decay": 2e-3}),
    "pcr": ("", PCR),
    "pcr, real": ("real", {**PCR, **DRAWN}),
    "mgr, outer of the training images": ("", {**MGR, "meta.outer": "train"}),
    "mgr, outer of 4,500 other images": ("outer", {**MGR, "meta.outer": "holdout"}),
    "gda, labelled real": (
        "labelled",
        {"synthetic.loss": "cross_entropy", "synthetic.weight": 1.0, **DRAWN},
    ),
}


def others(settings):
    """Labelled images of the training split, those of 500 a class that the run does not have."""
    more = dataclasses.replace(settings.data, per_class=500)
    train, own = data.from_settings(more, settings.seed).train, load(settings).train
    known = {image.tobytes() for image in own.images}
    keep = np.array([image.tobytes() not in known for image in train.images])
    assert keep.sum() >= len(train) - len(own) - 10, "a larger subset holds the smaller one"
    return data.Split(train.images[keep], train.labels[keep])


def of_classes(split):
    """A generator whose latent, one normal number, picks an image of the class asked for."""
    order = np.argsort(split.labels, kind="stable")
    images = split.images[order] / 255.0
    counts = np.bincount(split.labels)
    starts = np.cumsum(counts) - counts

    def apply(params, z, y):
        images, counts, starts = params
        rows = jax.scipy.stats.norm.cdf(z[:, 0]) * counts[y]
        return images[starts[y] + rows.astype(int).clip(0, counts[y] - 1)]

    params = (images.astype(np.float32), counts, starts)
    return gr.Generator(apply, jax.tree.map(jax.numpy.asarray, params), (1,))


def one(folder, settings, substitute):
    """The summary of a run with one part replaced."""
    dataset = load(settings)
    workdir = folder / f"{substitute or 'none'}-{config_hash(settings)}"
    if substitute == "real":
        generator = of_images(dataset.unlabelled)
        return gr.train_and_evaluate(settings, workdir, dataset=dataset, generator=generator)
    if substitute == "labelled":
        generator = of_classes(others(settings))
        return gr.train_and_evaluate(settings, workdir, dataset=dataset, generator=generator)
    settings = with_flow(folder, settings)
    if not substitute:
        return gr.train_and_evaluate(settings, workdir, dataset=dataset)
    extra, count = others(settings), len(dataset.train)
    train = data.Split(
        np.concatenate([dataset.train.images, extra.images]),
        np.concatenate([dataset.train.labels, extra.labels]),
    )
    # The classifier and its standardisation are the other rows'; pretrained ones have their own.
    model = None if settings.model.pretrained else build.model_of(settings, dataset)
    outer = lambda plan, labels: (np.arange(len(labels)) < count).astype(np.int64)
    with mock.patch.object(BatchPlan, "_holdout", outer):
        return gr.train_and_evaluate(
            settings, workdir, dataset=dataclasses.replace(dataset, train=train), model=model
        )


def table(records, rows, compared=("base", "pcr")):
    """Markdown: validation accuracy and paired differences to the rows of `compared`."""
    of = {
        row: {r["seed"]: 100 * r["validation_accuracy"] for r in records if r["row"] == row}
        for row in rows
    }
    differences = " | ".join(f"difference to {other}" for other in compared)
    lines = [
        f"| row | n | validation accuracy, % | {differences} | finder's share |",
        "|---" * (4 + len(compared)) + "|",
    ]
    for row, runs in of.items():
        if not runs:
            continue
        cells = [with_error(list(runs.values()))]
        for other in compared:
            mean, error, _, _ = paired(runs, of[other])
            cells.append(signed(mean, error) if row != other else "")
        shares = [r["finder_share"] for r in records if r["row"] == row and r.get("finder_share")]
        cells.append(f"{100 * np.median(shares):.0f} %" if shares else "")
        lines.append(f"| {row} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(study, rows, seeds, here, **options):
    """The command line of a study of limits: rows that need no finder first, as they are cheap.

    `rows` makes a dict; `options` are those of `table`.
    """
    if status := through(lambda: _command(study, rows(), seeds, here, options)):
        leave(status)


def _command(study, rows, seeds, here, options):
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{here.name}.limits")
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    parser.add_argument("--runs", type=path_of, default=pathlib.Path("runs/experiments"))
    parser.add_argument("--rows", nargs="+", choices=rows, help="only these rows")
    parser.add_argument("--seeds", type=int, help="only the first so many seeds")
    args = parser.parse_args()
    if args.seeds is not None and not 0 < args.seeds <= len(seeds):
        parser.error(f"--seeds is {args.seeds}; allowed: 1 to {len(seeds)}")
    folder = args.runs / f"{here.name}_limits"
    jax.config.update("jax_compilation_cache_dir", str((args.runs / "compiled").absolute()))
    path, size = here / "results" / "limits.jsonl", study.tuning_size
    writable(path.parent, folder)
    key = lambda line: (line["row"], line["seed"], line.get("settings_hash"))
    jobs = {}
    for seed in seeds:
        for row, (substitute, changes) in rows.items():
            changes = {**changes, "train.evaluate_test": False}
            settings = settings_of(study, changes, size, seed, args.data_dir)
            jobs[row, seed, config_hash(settings)] = substitute, changes, settings
    current = lambda: [line for line in read_lines(path) if key(line) in jobs]
    there = {key(line) for line in current()}
    asked = [
        job
        for job in jobs
        if job not in there
        and job[0] in (args.rows or rows)
        and job[1] in list(seeds)[: args.seeds]
    ]
    for row, seed, digest in sorted(asked, key=lambda job: "meta.enabled" in rows[job[0]][1]):
        substitute, changes, settings = jobs[row, seed, digest]
        try:
            found = one(folder, settings, substitute)
        except BusyError as error:
            print(f"{row}, seed {seed} is left to another program. {error}")
            continue
        line = record(row, size, changes, found, settings)
        put_line(path, line, key)
        print(json.dumps(line), flush=True)
    with locked(path.parent):
        text = table(current(), rows, **options)
        write_atomically(path.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main(FASHION_MNIST, lambda: ROWS, SEEDS, pathlib.Path(__file__).parent)
