"""Does MGR beat plain training with 10, 20 and 50 labelled digits per class?

python -m experiments.digits.run --stage=tune        # validation images only
python -m experiments.digits.run                     # the table; continues where it stopped
"""

import pathlib

from experiments.runner import main
from experiments.study import Study, shipped

INTERPOLATED = {"synthetic.loss": "pcr", "synthetic.source": "interpolated"}

STUDY = Study(
    config=lambda: shipped("base", "digits"),
    rows={
        "base": {},
        "gda": {"synthetic.loss": "cross_entropy"},
        "pcr": {"synthetic.loss": "pcr"},
        "mgr": {"synthetic.loss": "pcr", "meta.enabled": True, "meta.outer": "train"},
        "pcr, interpolated": INTERPOLATED,
        "mgr, interpolated, bounded": {
            **INTERPOLATED,
            "meta.enabled": True,
            "meta.outer": "train",
            "meta.radius": 0.3,
        },
    },
    candidates={
        "base": [{"optimizer.learning_rate": r} for r in (0.02, 0.05, 0.1)],
        "gda": [{"synthetic.weight": w} for w in (0.03, 0.1, 0.3)],
        "pcr": [{"synthetic.weight": w} for w in (0.3, 1.0, 3.0)],
        "mgr": [{"synthetic.weight": w} for w in (0.3, 1.0, 3.0)],
        "pcr, interpolated": [{"synthetic.weight": w} for w in (0.3, 1.0, 3.0)],
        "mgr, interpolated, bounded": [{"synthetic.weight": w} for w in (0.3, 1.0, 3.0)],
    },
    pairs=[
        ("mgr, interpolated, bounded", "mgr"),
        ("mgr, interpolated, bounded", "pcr, interpolated"),
        ("pcr, interpolated", "pcr"),
    ],
    sizes=(10, 20, 50),
    seeds=range(10),
    tuning_size=10,
    tuning_seeds=(100, 101, 102),
)

if __name__ == "__main__":
    main(STUDY, pathlib.Path(__file__).parent)
