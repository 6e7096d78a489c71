"""What do the regularisers add to fine-tuning with few labels? Uses ImageNet's labels.

python -m experiments.fine_tuning.run --study=cifar10 --data_dir=DIR --stage=tune
python -m experiments.fine_tuning.run --study=cifar10 --data_dir=DIR      # the table; resumes
python -m experiments.fine_tuning.run --study=textures --data_dir=DIR

EfficientNet-Lite0 at 64x64, the shipped configs `METHOD_photographs:small` with 300 updates of 32
images, flows of 32x32 trained on the labelled images alone. All rows have the rate that was chosen
for `base`, and each its own choice of four candidates, on CIFAR-10 with 10 labels per class.
Nothing is tuned on textures: every row has there what CIFAR-10's validation images chose.
"""

import dataclasses
import importlib
import json
import pathlib

from flax.traverse_util import flatten_dict

from experiments.runner import Study, main

METHODS = ("phantom", "gda", "pcr", "mgr", "latent_adversarial", "combined")
RATE = {"optimizer.learning_rate": 0.0003, "optimizer.head_factor": 30.0}


def shipped(method, name):
    return importlib.import_module(f"configs.{method}_photographs").get_config(f"{name},small")


def config(name):
    """Plain fine-tuning, 300 updates."""
    base = shipped("base", name)
    base.train.epochs = 12
    base.update_from_flattened_dict(RATE)
    if name == "cifar10":
        base.data.validation_fraction = 0.02  # 1,000 images
    return base


def changes(method):
    """What a shipped config has and `base` has not."""
    base = flatten_dict(shipped("base", "folder").to_dict(), sep=".")
    found = flatten_dict(shipped(method, "folder").to_dict(), sep=".")
    return {k: v for k, v in found.items() if k != "name" and v != base[k]}


def rates(*pairs):
    return [dict(zip(RATE, pair)) for pair in pairs]


def radii(*values):
    return [{"latent.epsilon": e, "latent.step_size": e / 2} for e in values]


def samples(*weights):
    return [
        {"synthetic.source": source, "synthetic.weight": weight}
        for source in ("renoised", "interpolated")
        for weight in weights
    ]


CIFAR10 = Study(
    config=lambda: config("cifar10"),
    rows={
        "base": {},
        "randaugment": {},
        **{method.replace("_", " "): changes(method) for method in METHODS},
    },
    candidates={
        "base": rates((0.0003, 30.0), (0.0003, 100.0), (0.001, 10.0), (0.001, 30.0)),
        "randaugment": [
            {"augment.train": f"flip+random_resized_crop(0.25)+randaugment({n},{m})"}
            for n in (1, 2)
            for m in (5, 9)
        ],
        "phantom": [{"phantom.weight": w} for w in (0.03, 0.1, 0.3, 1.0)],
        "gda": samples(0.3, 1.0),
        "pcr": samples(1.0, 5.0),
        "mgr": samples(1.0, 5.0),
        "latent adversarial": radii(0.1, 0.25, 0.5, 1.0),
        "combined": [{"phantom.weight": w, **r} for w in (0.03, 0.3) for r in radii(0.1, 0.5)],
    },
    pairs=[("mgr", "pcr"), ("mgr", "gda"), ("mgr", "randaugment"), ("combined", "mgr")],
    sizes=(10, 50),
    seeds=range(10),
    tuning_size=10,
    tuning_seeds=(100, 101),
)
TUNED = pathlib.Path(__file__).parent / "results" / "cifar10" / "tuned.json"
CHOSEN = json.loads(TUNED.read_text()) if TUNED.exists() else {}
TEXTURES = dataclasses.replace(
    CIFAR10,
    config=lambda: config("folder"),
    rows={row: {**fixed, **CHOSEN.get(row, {})} for row, fixed in CIFAR10.rows.items()},
    candidates={},
    sizes=(10,),
)
STUDIES = {"textures": TEXTURES, "cifar10": CIFAR10}

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
