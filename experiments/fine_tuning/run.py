"""What do the regularisers add to fine-tuning with few labels? Uses ImageNet's labels.

python -m experiments.fine_tuning.run --study=cifar10 --data_dir=DIR --stage=tune
python -m experiments.fine_tuning.run --study=cifar10 --data_dir=DIR      # the table; resumes
python -m experiments.fine_tuning.run --study=textures --data_dir=DIR

EfficientNet-Lite0 at 64x64, the shipped configs `METHOD_photographs:small`: 100 updates of 32
images, flows of 32x32 trained on the labelled images alone. Each row has its own choice of four
candidates, on CIFAR-10 with 10 labels per class: of rates for `base`, whose choice is the rate of
all, of strengths for the others; `mgr` takes that of `pcr`, and `combined` those of its parts.
Nothing is tuned on textures: every row has there what CIFAR-10's validation images chose.
"""

import dataclasses
import importlib
import pathlib

from flax.traverse_util import flatten_dict

from experiments.runner import main
from experiments.study import Study

METHODS = ("phantom", "gda", "pcr", "mgr", "latent_adversarial", "combined")


def shipped(method, name):
    return importlib.import_module(f"configs.{method}_photographs").get_config(f"{name},small")


def config(name):
    """Plain fine-tuning."""
    base = shipped("base", name)
    if name == "cifar10":
        base.data.validation_fraction = 0.02  # 1,000 images
    return base


def changes(method):
    """What a shipped config has and `base` has not."""
    base = flatten_dict(shipped("base", "folder").to_dict(), sep=".")
    found = flatten_dict(shipped(method, "folder").to_dict(), sep=".")
    return {k: v for k, v in found.items() if k != "name" and v != base[k]}


def rates(*pairs):
    return [{"optimizer.learning_rate": r, "optimizer.head_factor": f} for r, f in pairs]


def radii(*values):
    return [{"latent.epsilon": e, "latent.step_size": e / 2} for e in values]


def samples(*weights):
    return [
        {"synthetic.source": source, "synthetic.weight": weight}
        for source in ("renoised", "interpolated")
        for weight in weights
    ]


def consistency(*choices):
    """Sources, weights, and whether the strong view has a box of the image, as it is shipped."""
    boxes = shipped("base", "folder").synthetic.strong
    return [
        {
            "synthetic.source": source,
            "synthetic.weight": weight,
            "synthetic.strong": boxes if box else "flip+randaugment(2,5)",
        }
        for source, weight, box in choices
    ]


CANDIDATES = {
    "base": rates((0.0003, 30.0), (0.0003, 100.0), (0.001, 10.0), (0.001, 30.0)),
    "randaugment": [
        {"augment.train": f"{shipped('base', 'folder').augment.train}+randaugment({n},{m})"}
        for n in (1, 2)
        for m in (5, 9)
    ],
    "phantom": [{"phantom.weight": w} for w in (0.03, 0.1, 0.3, 1.0)],
    "gda": samples(0.3, 1.0),
    "pcr": consistency(
        ("interpolated", 1.0, True),
        ("interpolated", 1.0, False),
        ("interpolated", 3.0, False),
        ("renoised", 1.0, False),
    ),
    "latent adversarial": radii(0.1, 0.25, 0.5, 1.0),
}
TUNED = {key for choices in CANDIDATES.values() for choice in choices for key in choice}
CIFAR10 = Study(
    config=lambda: config("cifar10"),
    rows={
        "base": {},
        "randaugment": {},
        **{
            method.replace("_", " "): {k: v for k, v in changes(method).items() if k not in TUNED}
            for method in METHODS
        },
    },
    candidates=CANDIDATES,
    inherits={"mgr": ("pcr",), "combined": ("phantom", "latent adversarial", "pcr")},
    pairs=[("mgr", "pcr"), ("mgr", "gda"), ("mgr", "randaugment"), ("combined", "mgr")],
    sizes=(10, 50),
    seeds=range(10),
    tuning_size=10,
    tuning_seeds=(100, 101),
)
TEXTURES = dataclasses.replace(
    CIFAR10, config=lambda: config("folder"), sizes=(10,), tuned_as="cifar10"
)
STUDIES = {"textures": TEXTURES, "cifar10": CIFAR10}

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
