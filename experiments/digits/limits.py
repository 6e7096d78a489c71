"""What limits consistency on synthetic samples: the samples, or the term?

python -m experiments.digits.limits                  # validation images only, minutes on one core

Puts other sources in the generator's place: `real` draws from the labelled training images
themselves, `unlabelled` from the whole training split, which no generator trained on either can
surpass; `flow` is the study's own. Writes `results/limits.jsonl` and `results/limits.md`.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp

import genreg_jax as gr
from experiments.digits.run import STUDY
from experiments.lines import mean_and_error, record
from experiments.runs import load, run
from experiments.study import settings_of
from genreg_jax.checks import path_of
from genreg_jax.config import config_hash
from genreg_jax.door import leave, through

SEEDS = range(100, 106)


def of_images(images):
    """A generator whose latent, one normal number, picks an image."""

    def apply(images, z, y):
        rows = jax.scipy.stats.norm.cdf(z[:, 0]) * len(images)
        return images[jnp.clip(rows.astype(jnp.int32), 0, len(images) - 1)]

    return gr.Generator(apply, jnp.asarray(images / 255.0, jnp.float32), (1,))


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.digits.limits")
    parser.add_argument("--runs", type=path_of, default=pathlib.Path("runs/experiments"))
    args = parser.parse_args()
    folder = args.runs / "digits_limits"
    jax.config.update("jax_compilation_cache_dir", str((args.runs / "compiled").absolute()))
    rows = {"base": ("", {})}
    for weight in (1.0, 10.0):
        changes = {"synthetic.loss": "pcr", "synthetic.weight": weight}
        for source in ("real", "unlabelled", "flow"):
            rows[f"pcr, weight {weight:g}, {source}"] = (source, changes)
    records = []
    for row, (source, changes) in rows.items():
        for seed in SEEDS:
            changes = {**changes, "synthetic.temperature": 1.0, "train.evaluate_test": False}
            if source == "flow":
                del changes["synthetic.temperature"]  # of the drawn number above, not of a latent
            settings = settings_of(STUDY, changes, STUDY.tuning_size, seed, "")
            if source in ("", "flow"):
                summary = run(folder, settings)
            else:
                dataset = load(settings)
                images = dataset.train.images if source == "real" else dataset.unlabelled
                workdir = folder / f"{source}-{config_hash(settings)}"
                summary = gr.train_and_evaluate(
                    settings, workdir, dataset=dataset, generator=of_images(images)
                )
            records.append(record(row, STUDY.tuning_size, changes, summary, settings))
            print(row, seed, summary["validation_accuracy"], flush=True)
    lines = [
        "| row | n | validation accuracy, % | paired difference to base |",
        "|---|---|---|---|",
    ]
    of = {row: [100 * r["validation_accuracy"] for r in records if r["row"] == row] for row in rows}
    for row, values in of.items():
        mean, error = mean_and_error(values)
        gain, gain_error = mean_and_error([a - b for a, b in zip(values, of["base"])])
        difference = "" if row == "base" else f"{gain:+.2f} ± {gain_error:.2f}"
        lines.append(f"| {row} | {len(values)} | {mean:.2f} ± {error:.2f} | {difference} |")
    results = pathlib.Path(__file__).parent / "results"
    (results / "limits.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (results / "limits.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    leave(through(main))
