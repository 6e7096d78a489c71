"""Do strengths that a run learns find what a grid found, and at which price?

python -m experiments.self_tuned.run --study=digits                        # the table; resumes
python -m experiments.self_tuned.run --study=fashion_mnist --data_dir=DIR

Strengths start at a tenth, once and ten times what the grids of `experiments/phantom`, `latent` and
`sources` chose, and are learned or left there. All are learned from the validation images, as those
grids were. The control learns from the same images with their labels shuffled.
"""

import pathlib

from flax.traverse_util import flatten_dict

from experiments.runner import main
from experiments.study import Study, shipped

FACTORS = {"0.1x": 0.1, "1x": 1.0, "10x": 10.0}
# Of each part the shipped config that has it as tuned, and the strengths of it that are learned.
PARTS = {
    "phantom": ("phantom", ["phantom.weight"]),
    "latent": ("latent_random", ["latent.epsilon"]),
    "all": (
        "combined",
        ["phantom.weight", "synthetic.weight", "latent.epsilon", "optimizer.weight_decay"],
    ),
}


def study(dataset, **options):
    def settings(method):
        return flatten_dict(shipped(method, dataset).to_dict(), sep=".")

    base = settings("base")
    rows, pairs = {"base": {}}, []
    for part, (method, strengths) in PARTS.items():
        tuned = {k: v for k, v in settings(method).items() if k != "name" and v != base[k]}
        for factor, times in FACTORS.items():
            at = {name: float(f"{times * {**base, **tuned}[name]:.6g}") for name in strengths}
            fixed, learned = f"{part}, {factor}", f"{part}, {factor}, learned"
            rows[fixed] = {**tuned, **at}
            rows[learned] = {**tuned, **at, "tune.learn": ",".join(strengths)}
            pairs += [(learned, f"{part}, 1x"), (learned, fixed)]
        rows[f"{part}, 0.1x, learned, shuffled"] = {
            **rows[f"{part}, 0.1x, learned"],
            "tune.outer_labels": "shuffled",
        }
        pairs += [(f"{part}, 0.1x, learned", f"{part}, 0.1x, learned, shuffled")]
    return Study(
        config=lambda: shipped("base", dataset),
        rows=rows,
        pairs=list(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1])),
        candidates={},
        tuning_size=0,
        tuning_seeds=(),
        **options,
    )


STUDIES = {
    "digits": study("digits", sizes=(10,), seeds=range(10)),
    "fashion_mnist": study("fashion_mnist", sizes=(50,), seeds=range(5)),
}

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
