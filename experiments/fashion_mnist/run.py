"""Does MGR beat plain training with 50 labelled images per class of FashionMNIST?

python -m experiments.fashion_mnist.run --data_dir=DIR --stage=tune    # validation images only
python -m experiments.fashion_mnist.run --data_dir=DIR                 # the table; resumes
"""

import pathlib

from experiments.runner import main
from experiments.study import Study, shipped

STUDY = Study(
    config=lambda: shipped("base", "fashion_mnist"),
    rows={
        "base": {},
        "gda": {"synthetic.loss": "cross_entropy"},
        "pcr": {"synthetic.loss": "pcr"},
        "mgr": {"synthetic.loss": "pcr", "meta.enabled": True},
    },
    candidates={
        "base": [
            *({"optimizer.learning_rate": r} for r in (0.05, 0.1)),
            *({"optimizer.weight_decay": w} for w in (2e-3, 1e-2)),
        ],
        "gda": [{"synthetic.weight": w} for w in (0.03, 0.1, 0.3, 1.0)],
        "pcr": [{"synthetic.weight": w} for w in (0.2, 0.5, 2.0, 5.0)],
        "mgr": [
            {"synthetic.weight": w, "meta.outer": outer}
            for w in (0.5, 2.0)
            for outer in ("folds", "train")
        ],
    },
    sizes=(50,),
    seeds=range(4),
    tuning_size=50,
    tuning_seeds=(100, 101),
)

if __name__ == "__main__":
    main(STUDY, pathlib.Path(__file__).parent)
