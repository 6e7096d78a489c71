"""What limits the methods on CIFAR-10: the flow, the samples, or the term?

python -m experiments.low_data.limits --data_dir=DIR   # validation images only; resumes

50 labels per class, each row with what tuning chose for it. One part after another is replaced by a
perfect one, which nobody has in practice: `flow of all images` is a flow of the 49,000 training
images without their labels, 1,600 updates, for latent perturbations of three radii; in `pcr, real`
the samples are 4,500 real images that the run does not have, and `gda, labelled real` has their
labels too. Writes `results/limits.jsonl` and `results/limits.md`.
"""

import json
import pathlib

from experiments.low_data.run import STUDIES, attack
from experiments.sources.limits import DRAWN, main

STUDY = STUDIES["cifar10"]
HERE = pathlib.Path(__file__).parent
CHOSEN = STUDY.changes(json.loads((HERE / "results" / "cifar10" / "tuned.json").read_text()))
ON_ALL = {
    "flow.images": "all", "flow.conditional": False, "flow.updates": 1600, "flow.dropout": 0.0,
}  # fmt: skip
ADVERSARIAL = CHOSEN["latent adversarial"]
ROWS = {
    "base": ("", CHOSEN["base"]),
    "latent adversarial": ("", ADVERSARIAL),
    **{
        f"latent adversarial, flow of all images, radius {radius:g}": (
            "",
            {**ADVERSARIAL, **ON_ALL, **changes},
        )
        for radius, changes in zip((0.5, 1.5, 4.0), attack(0.5, 1.5, 4.0))
    },
    "pcr": ("", CHOSEN["pcr"]),
    "pcr, real": ("labelled", {**CHOSEN["pcr"], **DRAWN}),
    "gda": ("", CHOSEN["gda"]),
    "gda, labelled real": ("labelled", {**CHOSEN["gda"], **DRAWN}),
}

if __name__ == "__main__":
    main(STUDY, ROWS, range(102, 106), HERE, compared=("base", "latent adversarial"))
