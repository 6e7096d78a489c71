"""Which synthetic samples does MGR want, and does its finder beat cheap rivals on them?

python -m experiments.sources.run --study=cifar10 --data_dir=DIR --stage=tune  # validation images
python -m experiments.sources.run --study=cifar10 --data_dir=DIR               # the table; resumes

FashionMNIST or CIFAR-10 with few labels. A row is a method and a source of samples, with four
candidates of its own. Rows on top of RandAugment, and the controls of the finder, are not tuned:
they take what was chosen for their parts.
"""

import dataclasses
import pathlib

from experiments.runner import main
from experiments.study import Study, shipped

SOURCES = ("prior", "renoised", "interpolated")
# The source that the rivals of the finder and its controls are run on.
BEST = "interpolated"


def on(source, **changes):
    """The changes, on a source of samples."""
    return {"synthetic.source": source, **{k.replace("__", "."): v for k, v in changes.items()}}


METHODS = {
    **{f"gda {s}": on(s, synthetic__loss="cross_entropy") for s in SOURCES},
    **{f"pcr {s}": on(s, synthetic__loss="pcr") for s in SOURCES},
    **{
        f"mgr {s}": on(s, synthetic__loss="pcr", meta__enabled=True, meta__outer="train")
        for s in SOURCES
    },
    **{
        f"{search} {BEST}": on(BEST, synthetic__loss="pcr", meta__enabled=True, meta__search=search)
        for search in ("hard", "random")
    },
}
LEARNED = METHODS[f"mgr {BEST}"]
CONTROLS = {
    f"mgr {BEST}, frozen": {**LEARNED, "meta.learning_rate": 0.0},
    f"mgr {BEST}, shuffled": {**LEARNED, "meta.outer_labels": "shuffled"},
}


def searches(*radii):
    return [{"synthetic.weight": w, "meta.radius": r} for w in (0.5, 2.0) for r in radii]


FASHION_MNIST = Study(
    config=lambda: shipped("base", "fashion_mnist"),
    rows={
        "base": {},
        "randaugment": {},
        "trivialaugment": {"augment.train": "flip+crop(2)+trivialaugment"},
        **METHODS,
        **CONTROLS,
        **{f"{row} + randaugment": changes for row, changes in METHODS.items()},
    },
    candidates={
        "base": [
            *({"optimizer.learning_rate": r} for r in (0.05, 0.1)),
            *({"optimizer.weight_decay": w} for w in (2e-3, 1e-2)),
        ],
        "randaugment": [
            {"augment.train": f"flip+crop(2)+randaugment({n},{m})"} for n in (1, 2) for m in (5, 9)
        ],
        "trivialaugment": [
            *({"optimizer.learning_rate": r} for r in (0.05, 0.1)),
            *({"optimizer.weight_decay": w} for w in (2e-3, 1e-2)),
        ],
        # On real images cross-entropy wants a larger weight, and harms at it on draws of the prior.
        "gda prior": [{"synthetic.weight": w} for w in (0.03, 0.1, 0.3, 1.0)],
        "gda renoised": [{"synthetic.weight": w} for w in (0.1, 0.3, 1.0, 3.0)],
        "gda interpolated": [{"synthetic.weight": w} for w in (0.1, 0.3, 1.0, 3.0)],
        **{f"pcr {s}": [{"synthetic.weight": w} for w in (0.5, 1.0, 2.0, 5.0)] for s in SOURCES},
        "mgr prior": searches(0.3, -1.0),
        "mgr renoised": searches(0.1, 0.3),
        "mgr interpolated": searches(0.1, 0.3),
        **{f"{search} {BEST}": searches(0.1, 0.3) for search in ("hard", "random")},
    },
    inherits={
        **{row: (f"mgr {BEST}",) for row in CONTROLS},
        **{f"{row} + randaugment": ("randaugment", row) for row in METHODS},
    },
    pairs=[
        *((f"mgr {s}", f"pcr {s}") for s in SOURCES),
        *((f"mgr {s}", f"gda {s}") for s in SOURCES),
        *((f"gda {s}", "gda prior") for s in SOURCES[1:]),
        *((f"pcr {s}", "pcr prior") for s in SOURCES[1:]),
        *((f"mgr {BEST}", f"{other} {BEST}") for other in ("hard", "random")),
        *((f"mgr {BEST}", control) for control in CONTROLS),
        *((f"{row} + randaugment", "randaugment") for row in METHODS),
        *((f"mgr {s} + randaugment", f"pcr {s} + randaugment") for s in SOURCES),
    ],
    sizes=(20, 50),
    seeds=range(10),
    tuning_size=50,
    tuning_seeds=(100, 101),
)


def cifar10():
    """CIFAR-10 with few labels: 0.4 million parameters, 1,500 updates, and a flow of 1,600."""
    config = shipped("base", "cifar10")
    config.data.validation_fraction = 0.02  # 1,000 images
    config.model.name = "convnet"
    config.model.widths, config.model.pooling = (64, 128, 256), "max"
    config.optimizer.weight_decay = 5e-3
    config.optimizer.schedule = "cosine"
    config.train.batch_size = 64
    config.train.epochs, config.train.steps_per_epoch = 10, 150
    config.synthetic.strong = "flip+crop(4)+randaugment(2,5)"
    config.synthetic.temperature = 0.7
    config.synthetic.batch_size = 64
    config.flow.levels, config.flow.steps, config.flow.width = 3, 6, 48
    config.flow.dropout = 0.2
    config.flow.augment = "flip+shift(2)"
    config.flow.batch_size = 64
    config.flow.updates, config.flow.eval_every, config.flow.warmup = 1600, 100, 100
    config.flow.learning_rate, config.flow.weight_decay = 2e-3, 1e-4
    config.flow.ema_decay = 0.99
    return config


# Nothing was tuned on CIFAR-10: every row has what FashionMNIST's validation images chose, with the
# crop of larger images. Lines of its table are of one H100.
CHOSEN = {
    "base": {"optimizer.weight_decay": 2e-3},
    "randaugment": {"augment.train": "flip+crop(4)+randaugment(1,9)"},
    "trivialaugment": {
        "augment.train": "flip+crop(4)+trivialaugment",
        "optimizer.weight_decay": 0.01,
    },
    "gda prior": {"synthetic.weight": 0.03},
    "gda renoised": {"synthetic.weight": 1.0},
    "gda interpolated": {"synthetic.weight": 1.0},
    "pcr interpolated": {"synthetic.weight": 2.0},
    "mgr interpolated": {"synthetic.weight": 0.5, "meta.radius": 0.3},
}
CHOSEN["mgr interpolated, frozen"] = CHOSEN["mgr interpolated"]
ON_TOP = ("gda renoised", "pcr interpolated", "mgr interpolated")
CIFAR10 = dataclasses.replace(
    FASHION_MNIST,
    config=cifar10,
    rows={
        **{row: {**FASHION_MNIST.rows[row], **chosen} for row, chosen in CHOSEN.items()},
        **{
            f"{row} + randaugment": {**CHOSEN["randaugment"], **CHOSEN[row], **METHODS[row]}
            for row in ON_TOP
        },
    },
    candidates={},
    inherits={},
    pairs=[
        (a, b)
        for a, b in FASHION_MNIST.pairs
        if {a, b} <= {*CHOSEN, *(f"{r} + randaugment" for r in ON_TOP)}
    ],
    sizes=(50, 100),
    seeds=range(4),
)

if __name__ == "__main__":
    main({"fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10}, pathlib.Path(__file__).parent)
