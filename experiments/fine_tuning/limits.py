"""What limits MGR in fine-tuning: the samples, the finder's outer loss, or the term?

python -m experiments.fine_tuning.limits --data_dir=DIR   # validation images only; resumes

CIFAR-10, 10 labels per class, EfficientNet-Lite0 at 64x64. One part after another is replaced by a
perfect one, which nobody has in practice. `pcr, tuned` and `mgr` have what tuning chose for `pcr`;
`pcr` and its rows of real images have boxes in the strong view where they do not say otherwise. In
`pcr, real` the samples are 4,900 real images that the run does not have; `gda, labelled real` has
their labels too; other weights, distances and views as they say; `outer of 4,900 other images` lets
the finder's outer loss see them. Writes `results/limits.jsonl` and `results/limits.md`. Uses
ImageNet's labels.
"""

import pathlib

from experiments.fine_tuning.run import CIFAR10
from experiments.sources.limits import main

PCR = {"synthetic.loss": "pcr", "synthetic.source": "interpolated", "synthetic.weight": 1.0}
NO_BOXES = {"synthetic.strong": "flip+randaugment(2,5)"}
TUNED = {**PCR, **NO_BOXES, "synthetic.source": "renoised"}
MGR = {**TUNED, "meta.enabled": True, "meta.radius": 0.3}
DRAWN = {"synthetic.source": "prior", "synthetic.temperature": 1.0}
ROWS = {
    "base": ("", {}),
    "pcr": ("", PCR),
    "pcr, real": ("labelled", {**PCR, **DRAWN}),
    **{
        f"pcr, real, weight {weight}": ("labelled", {**PCR, **DRAWN, "synthetic.weight": weight})
        for weight in (0.1, 0.3)
    },
    "pcr, real, l2": ("labelled", {**PCR, **DRAWN, "synthetic.distance": "l2"}),
    "pcr, real, no boxes": ("labelled", {**PCR, **DRAWN, **NO_BOXES}),
    "gda, labelled real": (
        "labelled",
        {"synthetic.loss": "cross_entropy", "synthetic.weight": 1.0, **DRAWN},
    ),
    "pcr, tuned": ("", TUNED),
    "mgr, outer of the training images": ("", {**MGR, "meta.outer": "train"}),
    "mgr, outer of 4,900 other images": ("outer", {**MGR, "meta.outer": "holdout"}),
}

if __name__ == "__main__":
    main(CIFAR10, lambda: ROWS, range(102, 106), pathlib.Path(__file__).parent)
