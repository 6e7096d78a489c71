"""What limits latent perturbations: do perturbed images still show what their labels say?

python -m experiments.latent.limits --data_dir=DIR       # after the study, minutes on one core

For every candidate of the FashionMNIST study, validation images are perturbed as in training, by
the flow of the labelled images and against that seed's `base` classifier. Two classifiers are then
asked: that one, and a judge that was trained on all labels of the training split. Where the first
is wrong and the second right, an image is harder and still what its label says; where both are
wrong, it may not be. Writes `results/fashion_mnist/limits.jsonl` and `limits.md`.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import optax

from experiments.latent.run import FASHION_MNIST as STUDY
from experiments.lines import mean_and_error
from experiments.runs import load, run, with_flow
from experiments.study import settings_of
from genreg_jax.build import perturbation_of
from genreg_jax.checks import path_of
from genreg_jax.config import config_hash
from genreg_jax.door import leave, through
from genreg_jax.logs import provenance
from genreg_jax.restore import restore_classifier, restore_flow
from genreg_jax.settings import LatentSettings

ROWS = ("pgd", "random", "away", "adversarial")
JUDGE = {"train.steps_per_epoch": 0, "train.epochs": 4, "train.evaluate_test": False}
RESULTS = pathlib.Path(__file__).parent / "results" / "fashion_mnist"


def classifier(folder, settings):
    """The trained classifier of settings."""
    run(folder, settings)
    return restore_classifier(folder / config_hash(settings)).logits


def perturbed(key, student, flow, perturb, x, y):
    """Images moved against what the student takes them for."""
    target = jnp.argmax(student(x), -1)

    def loss_fn(moved):
        return optax.losses.softmax_cross_entropy_with_integer_labels(student(moved), target)

    return jax.jit(lambda key, x, y: perturb(key, flow, loss_fn, x, y, None))(key, x, y)


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.latent.limits")
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    parser.add_argument("--runs", type=path_of, default=pathlib.Path("runs/experiments"))
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str((args.runs / "compiled").absolute()))
    tuned = json.loads((RESULTS / "tuned.json").read_text())
    judge_settings = settings_of(STUDY, JUDGE, 0, 1000, args.data_dir)
    judge = classifier(args.runs, judge_settings)
    records = []
    for seed in STUDY.seeds:
        base = settings_of(STUDY, tuned["base"], STUDY.sizes[0], seed, args.data_dir)
        student = classifier(args.runs, base)
        images = load(base).validation
        x, y = jnp.asarray(images.images / 255.0, jnp.float32), jnp.asarray(images.labels)
        flow_settings = dataclasses.replace(base, latent=LatentSettings(kind="random"))
        trained = restore_flow(with_flow(args.runs, flow_settings).flow.workdir)
        flow = trained.flow.freeze(trained.params)
        for row in ROWS:
            for changes in [{"latent.epsilon": 0.0}, *STUDY.candidates[row]]:
                settings = settings_of(
                    STUDY, {**STUDY.rows[row], **changes}, STUDY.sizes[0], seed, args.data_dir
                )
                perturb = perturbation_of(settings)
                moved = perturbed(jax.random.key(seed), student, flow, perturb, x, y)
                right = [float(jnp.mean(jnp.argmax(f(moved), -1) == y)) for f in (student, judge)]
                length = jnp.sqrt(jnp.sum((moved - x) ** 2, axis=(1, 2, 3)))
                records.append(
                    {
                        "row": row,
                        "epsilon": settings.latent.epsilon,
                        "seed": seed,
                        "base_accuracy": right[0],
                        "judge_accuracy": right[1],
                        "median_image_change": float(jnp.median(length)),
                        **provenance(),
                    }
                )
                print(json.dumps(records[-1]), flush=True)
    lines = [
        "| row | radius | median change of an image, l2 | base, % | judge, % |",
        "|---|---|---|---|---|",
    ]
    for row, epsilon in dict.fromkeys((r["row"], r["epsilon"]) for r in records):
        of = [r for r in records if (r["row"], r["epsilon"]) == (row, epsilon)]
        change, _ = mean_and_error([r["median_image_change"] for r in of])
        right = [
            "{:.1f} ± {:.1f}".format(*mean_and_error([100 * r[f"{who}_accuracy"] for r in of]))
            for who in ("base", "judge")
        ]
        lines.append(f"| {row} | {epsilon:g} | {change:.2f} | {right[0]} | {right[1]} |")
    (RESULTS / "limits.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (RESULTS / "limits.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    leave(through(main))
