"""Which synthetic samples does MGR want, and does its finder beat cheap rivals on them?

python -m experiments.sources.run --data_dir=DIR --stage=tune    # validation images only
python -m experiments.sources.run --data_dir=DIR                 # the table; resumes

FashionMNIST with few labels. A row is a method and a source of samples, with four candidates of its
own. Rows on top of RandAugment, and the controls of the finder, are not tuned: they take what was
chosen for their parts.
"""

import pathlib

from experiments.runner import Study, main, shipped

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


STUDY = Study(
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

if __name__ == "__main__":
    main(STUDY, pathlib.Path(__file__).parent)
