"""What limits the methods on CIFAR-10: the flow, the samples, or the term?

python -m experiments.low_data.limits --data_dir=DIR   # validation images only; resumes

50 labels per class, each row with what tuning chose for it. One part after another is replaced by a
perfect one, which nobody has in practice: `flow of all images` is a flow of the 49,000 training
images without their labels, 1,600 updates, for latent perturbations of three radii; in `pcr, real`
the samples are 4,500 real images that the run does not have, and `gda, labelled real` has their
labels too. Writes `results/limits.jsonl` and `results/limits.md`.
"""

import pathlib

from experiments.low_data.run import STUDIES, attack
from experiments.sources.limits import DRAWN, main
from experiments.tuning import chosen
from genreg_jax.errors import UserError

STUDY = STUDIES["cifar10"]
HERE = pathlib.Path(__file__).parent
ON_ALL = {
    "flow.images": "all", "flow.conditional": False, "flow.updates": 1600, "flow.dropout": 0.0,
}  # fmt: skip


def rows():
    """Row to what is replaced and its settings."""

    def missing(message):
        raise UserError(f"{message} of python -m experiments.low_data.run --study=cifar10.")

    path, names = HERE / "results" / "cifar10" / "tuned.json", ("base", "latent adversarial")
    of = STUDY.changes(chosen(STUDY, path, (*names, "pcr", "gda"), missing))
    own = {row: ("", of[row]) for row in names}
    on_all = {
        f"latent adversarial, flow of all images, radius {changes['latent.epsilon']:g}": (
            "",
            {**of["latent adversarial"], **ON_ALL, **changes},
        )
        for changes in attack(0.5, 1.5, 4.0)
    }
    return {
        **own,
        **on_all,
        "pcr": ("", of["pcr"]),
        "pcr, real": ("labelled", {**of["pcr"], **DRAWN}),
        "gda": ("", of["gda"]),
        "gda, labelled real": ("labelled", {**of["gda"], **DRAWN}),
    }


if __name__ == "__main__":
    main(STUDY, rows, range(102, 106), HERE, compared=("base", "latent adversarial"))
