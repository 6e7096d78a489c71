"""What do the regularisers add to fine-tuning with few labels? Uses ImageNet's labels.

python -m experiments.fine_tuning.run --study=textures --data_dir=DIR     # the table; resumes
python -m experiments.fine_tuning.run --study=cifar10 --data_dir=DIR

EfficientNet-Lite0 at 64x64, the shipped configs `METHOD_photographs:small`: 100 updates of 32
images, flows of 32x32 trained on the labelled images alone. Nothing is tuned here: the rates are
those of the configs, and each method has the strength of its config, which other studies chose for
networks from scratch.
"""

import importlib
import pathlib

from flax.traverse_util import flatten_dict

from experiments.runner import Study, main

METHODS = ("phantom", "gda", "pcr", "mgr", "latent_adversarial", "combined")


def shipped(method, name):
    return importlib.import_module(f"configs.{method}_photographs").get_config(f"{name},small")


def study(name, **options):
    base = flatten_dict(shipped("base", name).to_dict(), sep=".")

    def changes(method):
        found = flatten_dict(shipped(method, name).to_dict(), sep=".")
        return {k: v for k, v in found.items() if k != "name" and v != base[k]}

    rows = {
        "base": {},
        "randaugment": {"augment.train": f"{base['augment.train']}+randaugment(2,5)"},
        **{method.replace("_", " "): changes(method) for method in METHODS},
    }
    return Study(
        config=lambda: shipped("base", name),
        rows=rows,
        candidates={},
        pairs=[("mgr", "pcr"), ("mgr", "gda"), ("mgr", "randaugment"), ("combined", "mgr")],
        tuning_size=0,
        tuning_seeds=(),
        seeds=range(10),
        **options,
    )


STUDIES = {"textures": study("folder", sizes=(10,)), "cifar10": study("cifar10", sizes=(10, 50))}

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
