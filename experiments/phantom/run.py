"""Which reading of phantom embeddings helps, on which images, with augmentation and without?

python -m experiments.phantom.run --study=digits --stage=tune       # validation images only
python -m experiments.phantom.run --study=digits                    # the table; resumes
"""

import itertools
import pathlib

from experiments.runner import main
from experiments.study import Study, shipped
from genreg_jax.regularizers.phantom import READINGS

# Tried in tuning, six of each row: for a reading, each of these at two weight decays.
DECAYS = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
TRIED = {
    "attraction": [{"phantom.weight": w} for w in (1.0, 3.0, 10.0)],
    "separation": [
        {"phantom.weight": w, "phantom.temperature": t}
        for w, t in ((0.1, 1.0), (0.3, 0.1), (1.0, 0.1))
    ],
    "classification": [{"phantom.weight": w} for w in (0.1, 0.3, 1.0)],
    "combination": [{"phantom.weight": w} for w in (0.1, 0.3, 1.0)],
    "separation, cosine": [
        {"phantom.weight": w, "phantom.temperature": t}
        for w, t in ((0.3, 0.1), (1.0, 0.1), (1.0, 0.3))
    ],
}  # fmt: skip
CHANGES = {
    **{reading: {"phantom.loss": reading} for reading in READINGS},
    "separation, cosine": {"phantom.loss": "separation", "phantom.distance": "cosine"},
}


def study(dataset, augment, readings=READINGS, **options):
    def config():
        config = shipped("base", dataset)
        if not augment:
            config.augment.train = "none"
        return config

    candidates = {"base": [{"optimizer.weight_decay": d} for d in DECAYS]}
    for reading in readings:
        candidates[reading] = [
            {"optimizer.weight_decay": d, **changes}
            for d, changes in itertools.product((5e-4, 5e-3), TRIED[reading])
        ]
    return Study(
        config=config,
        rows={"base": {}, **{reading: CHANGES[reading] for reading in readings}},
        candidates=candidates,
        seeds=range(10),
        **options,
    )


STUDIES = {
    name + suffix: study(name, augment, **options)
    for name, options in {
        "digits": {"sizes": (10, 20), "tuning_size": 10, "tuning_seeds": (100, 101, 102)},
        "fashion_mnist": {"sizes": (50, 100), "tuning_size": 50, "tuning_seeds": (100, 101)},
    }.items()
    for suffix, augment in (("", True), ("_plain", False))
}
STUDIES["fashion_mnist_cosine"] = study(
    "fashion_mnist",
    augment=True,
    readings=("separation, cosine",),
    sizes=(50,),
    tuning_size=50,
    tuning_seeds=(100, 101),
)

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
