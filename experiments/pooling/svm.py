"""What a support vector machine makes of the pixels of the same labelled subsets.

python -m experiments.pooling.svm --study=fashion_mnist --data_dir=DIR

A reference that knows nothing of images: scikit-learn's `SVC` with an RBF kernel, C chosen on
validation images for each seed, no augmentation. Writes `results/<study>/svm.jsonl` and `svm.md`.
"""

import argparse
import json
import pathlib

from sklearn.svm import SVC

from experiments.lines import mean_and_error
from experiments.pooling.run import STUDIES
from experiments.runs import load
from experiments.study import settings_of
from genreg_jax.door import leave, through
from genreg_jax.logs import provenance

CS = (1.0, 3.0, 10.0, 30.0)


def flat(part):
    return part.images.reshape(len(part.images), -1) / 255


def score(fit, part):
    return fit.score(flat(part), part.labels)


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.pooling.svm")
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    args = parser.parse_args()
    study, records, lines = STUDIES[args.study], [], []
    for size in study.sizes:
        for seed in study.seeds:
            dataset = load(settings_of(study, {}, size, seed, args.data_dir))
            fits = [SVC(C=c).fit(flat(dataset.train), dataset.train.labels) for c in CS]
            scored = [(score(fit, dataset.validation), fit) for fit in fits]
            accuracy, best = max(scored, key=lambda pair: pair[0])
            records.append(
                {
                    "labels_per_class": size,
                    "seed": seed,
                    "C": best.C,
                    "validation_accuracy": accuracy,
                    "test_accuracy": score(best, dataset.test),
                    "subset_hash": dataset.subset_hash,
                    **provenance(),
                }
            )
            print(json.dumps(records[-1]), flush=True)
        values = [100 * r["test_accuracy"] for r in records if r["labels_per_class"] == size]
        mean, error = mean_and_error(values)
        lines.append(f"| {size} | RBF SVM on pixels | {len(values)} | {mean:.2f} ± {error:.2f} |")
    head = ["| labels per class | row | n | test accuracy, % |", "|---|---|---|---|"]
    results = pathlib.Path(__file__).parent / "results" / args.study
    results.mkdir(parents=True, exist_ok=True)
    (results / "svm.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (results / "svm.md").write_text("\n".join([*head, *lines]) + "\n")
    print("\n".join([*head, *lines]))


if __name__ == "__main__":
    leave(through(main))
