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
from experiments.tuning import read_choices
from genreg_jax.errors import UserError

STUDY = STUDIES["cifar10"]
HERE = pathlib.Path(__file__).parent
ON_ALL = {
    "flow.images": "all", "flow.conditional": False, "flow.updates": 1600, "flow.dropout": 0.0,
}  # fmt: skip


def rows():
    """Row to what is replaced and its settings."""
    path = HERE / "results" / "cifar10" / "tuned.json"
    chosen = STUDY.changes(read_choices(path))
    if missing := {"base", "latent adversarial", "pcr", "gda"} - chosen.keys():
        raise UserError(
            f"{path} has no choice for {', '.join(sorted(missing))}; put it back, or run "
            "python -m experiments.low_data.run --study=cifar10 --stage=tune."
        )
    own = {row: ("", chosen[row]) for row in ("base", "latent adversarial")}
    on_all = {
        f"latent adversarial, flow of all images, radius {changes['latent.epsilon']:g}": (
            "",
            {**chosen["latent adversarial"], **ON_ALL, **changes},
        )
        for changes in attack(0.5, 1.5, 4.0)
    }
    return {
        **own,
        **on_all,
        "pcr": ("", chosen["pcr"]),
        "pcr, real": ("labelled", {**chosen["pcr"], **DRAWN}),
        "gda": ("", chosen["gda"]),
        "gda, labelled real": ("labelled", {**chosen["gda"], **DRAWN}),
    }


if __name__ == "__main__":
    main(STUDY, rows, range(102, 106), HERE, compared=("base", "latent adversarial"))
