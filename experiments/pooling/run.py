"""Should the small convnet halve the resolution by strides or by max-pooling?

python -m experiments.pooling.run --study=digits                        # the table; resumes
python -m experiments.pooling.run --study=fashion_mnist --data_dir=DIR

Nothing is tuned here: both rows have the settings of the shipped `base` configs.
"""

import pathlib

from experiments.runner import main
from experiments.study import Study, shipped


def study(dataset, sizes):
    return Study(
        config=lambda: shipped("base", dataset),
        rows={pooling: {"model.pooling": pooling} for pooling in ("stride", "max")},
        candidates={},
        sizes=sizes,
        seeds=range(10),
        tuning_size=0,
        tuning_seeds=(),
    )


STUDIES = {"digits": study("digits", (10, 20)), "fashion_mnist": study("fashion_mnist", (50, 100))}

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
