"""Does MGR beat plain training with 10, 20 and 50 labelled digits per class?

python -m experiments.digits.run --stage=tune        # validation images only
python -m experiments.digits.run                     # the table; continues where it stopped
"""

import pathlib

from configs import common
from experiments.runner import Study, main

STUDY = Study(
    name="digits",
    config=lambda: common.get_config("base", "digits"),
    rows={
        "base": {},
        "gda": {"synthetic.loss": "cross_entropy"},
        "pcr": {"synthetic.loss": "pcr"},
        "mgr": {"synthetic.loss": "pcr", "meta.enabled": True},
    },
    candidates={
        "base": [{"optimizer.weight_decay": w} for w in (5e-4, 2e-3, 5e-3)],
        "gda": [{"synthetic.weight": w} for w in (0.1, 0.3, 1.0)],
        "pcr": [{"synthetic.weight": w} for w in (1.0, 3.0, 10.0)],
        "mgr": [
            {"synthetic.weight": 1.0, "meta.outer": outer}
            for outer in ("holdout", "folds", "train")
        ],
    },
    sizes=(10, 20, 50),
    seeds=range(10),
    tuning_size=10,
    tuning_seeds=(100, 101, 102),
)

if __name__ == "__main__":
    main(STUDY, pathlib.Path(__file__).parent)
