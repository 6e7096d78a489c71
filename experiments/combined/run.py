"""Do the three regularisers add up?

python -m experiments.combined.run --study=digits                    # the table; resumes
python -m experiments.combined.run --study=fashion_mnist --data_dir=DIR

Nothing is tuned here: every part has the settings of its own study, those of the shipped configs.
MGR has the published ones, samples of the prior and a free finder, and in the rows called `bounded`
those that the configs have: real images mixed in latent space, and a finder with a radius.
"""

import pathlib

from flax.traverse_util import flatten_dict

from configs import mgr_digits, mgr_fashion_mnist
from experiments.runner import main
from experiments.study import Study, shipped

PUBLISHED = {
    "digits": mgr_digits.as_published,
    "fashion_mnist": mgr_fashion_mnist.as_published,
}
MGR = ("mgr", "phantom_mgr", "latent_mgr", "combined")
ROWS = {
    "base": "base",
    "phantom": "phantom",
    "latent": "latent_adversarial",
    "mgr": "mgr",
    "phantom + latent": "phantom_latent",
    "phantom + mgr": "phantom_mgr",
    "latent + mgr": "latent_mgr",
    "all three": "combined",
}
BOUNDED = {f"{row}, bounded": method for row, method in ROWS.items() if method in MGR}


def study(dataset, **options):
    def settings(method, bounded):
        config = shipped(method, dataset)
        if method in MGR and not bounded:
            PUBLISHED[dataset](config)
        return flatten_dict(config.to_dict(), sep=".")

    base = settings("base", bounded=True)

    def changes(method, bounded):
        found = settings(method, bounded)
        return {k: v for k, v in found.items() if k != "name" and v != base[k]}

    return Study(
        config=lambda: shipped("base", dataset),
        rows={
            **{row: changes(method, bounded=False) for row, method in ROWS.items()},
            **{row: changes(method, bounded=True) for row, method in BOUNDED.items()},
        },
        pairs=[(row, row.removesuffix(", bounded")) for row in BOUNDED],
        candidates={},
        tuning_size=0,
        tuning_seeds=(),
        **options,
    )


STUDIES = {
    "digits": study("digits", sizes=(10, 20), seeds=range(10)),
    "fashion_mnist": study("fashion_mnist", sizes=(50,), seeds=range(4)),
}

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
