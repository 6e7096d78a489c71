"""Do latent perturbations beat plain training and RandAugment with few labels?

python -m experiments.latent.run --study=digits --stage=tune        # validation images only
python -m experiments.latent.run --study=digits                     # the table; resumes
python -m experiments.latent.run --study=fashion_mnist --data_dir=DIR --stage=tune
python -m experiments.latent.run --study=fashion_mnist --data_dir=DIR
python -m experiments.latent.run --study=cifar10 --data_dir=DIR     # the paper's settings; a GPU
"""

import pathlib

from experiments.runner import main
from experiments.study import Study, shipped


def attack(radii):
    """Three steps, each half of the radius, as the authors have them."""
    return [{"latent.epsilon": r, "latent.step_size": r / 2} for r in radii]


def radii(values):
    return [{"latent.epsilon": r} for r in values]


ROWS = {
    "pgd": {"latent.kind": "pgd"},
    "random": {"latent.kind": "random"},
    "away": {"latent.kind": "away", "latent.norm": "none"},
    "adversarial": {"latent.kind": "adversarial"},
}

DIGITS = Study(
    config=lambda: shipped("base", "digits"),
    rows={"base": {}, "base + RandAugment": {}, **ROWS},
    candidates={
        "base": [{"optimizer.weight_decay": w} for w in (5e-4, 2e-3, 5e-3, 2e-2)],
        "base + RandAugment": [
            {"augment.train": f"shift(1)+randaugment({n},{m})"}
            for n, m in ((1, 3), (1, 9), (2, 5), (2, 9))
        ],
        "pgd": attack((0.12, 0.25, 0.5, 1.0)),
        "random": radii((0.5, 1.0, 2.0, 4.0)),
        "away": radii((0.05, 0.1, 0.25, 0.5)),
        "adversarial": attack((0.25, 0.5, 1.0, 2.0)),
    },
    sizes=(10, 20, 50),
    seeds=range(10),
    tuning_size=10,
    tuning_seeds=(100, 101, 102),
)

# The second flow sees the training images of all labels and no label.
ON_ALL = {"flow.images": "all", "flow.conditional": False, "flow.updates": 4000}

FASHION_MNIST = Study(
    config=lambda: shipped("base", "fashion_mnist"),
    rows={
        "base": {},
        "base + RandAugment": {},
        **ROWS,
        "adversarial, flow on all unlabelled images": {**ROWS["adversarial"], **ON_ALL},
    },
    candidates={
        "base": [{"optimizer.weight_decay": w} for w in (5e-4, 1e-3, 2e-3, 5e-3)],
        "base + RandAugment": [
            {"augment.train": f"flip+crop(2)+randaugment({n},{m})"}
            for n, m in ((1, 5), (1, 9), (2, 5), (2, 9))
        ],
        "pgd": attack((0.12, 0.25, 0.5, 1.0)),
        "random": radii((1.5, 3.0, 7.0, 14.0)),
        "away": radii((0.05, 0.1, 0.25, 0.5)),
        "adversarial": attack((0.5, 1.0, 2.5, 5.0)),
        "adversarial, flow on all unlabelled images": attack((0.5, 1.0, 2.5, 5.0)),
    },
    sizes=(50,),
    seeds=range(4),
    tuning_size=50,
    tuning_seeds=(100,),
)


def paper():
    """ResNet-18, 200 passes of a twentieth of CIFAR-10's training images; nothing is tuned.

    The flow is the authors', which has 250 passes of all images and a warm-up of ten.
    """
    config = shipped("latent_adversarial", "cifar10")
    config.data.validation_fraction = 0.02  # 1,000 images
    config.train.steps_per_epoch = 0  # a pass
    return config


# As many passes of the labelled images.
LABELLED = {"flow.updates": 9766, "flow.eval_every": 200, "flow.warmup": 391}

CIFAR10 = Study(
    config=paper,
    rows={
        "base": {"latent.kind": "none"},
        "adversarial": LABELLED,
        "adversarial, flow on all unlabelled images": {"flow.images": "all"},
    },
    candidates={},
    sizes=(250,),
    seeds=range(5),
    tuning_size=250,
    tuning_seeds=(),
)

if __name__ == "__main__":
    studies = {"digits": DIGITS, "fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10}
    main(studies, pathlib.Path(__file__).parent)
