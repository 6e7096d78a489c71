"""Do the three regularisers add up?

python -m experiments.combined.run --study=digits                    # the table; resumes
python -m experiments.combined.run --study=fashion_mnist --data_dir=DIR

Nothing is tuned here: every part has the settings of its own study, those of the shipped configs;
MGR those of the prior and a free finder.
"""

import pathlib

from flax.traverse_util import flatten_dict

from configs import mgr_digits, mgr_fashion_mnist
from experiments.runner import Study, main, shipped

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


def study(dataset, **options):
    def settings(method):
        config = shipped(method, dataset)
        if method == "mgr":
            {"digits": mgr_digits, "fashion_mnist": mgr_fashion_mnist}[dataset].as_published(config)
        return flatten_dict(config.to_dict(), sep=".")

    base = settings("base")

    def changes(method):
        return {k: v for k, v in settings(method).items() if k != "name" and v != base[k]}

    return Study(
        config=lambda: shipped("base", dataset),
        rows={row: changes(method) for row, method in ROWS.items()},
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
