"""Training images moved away from the centre of the latent space of an exact flow.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_away_fashion_mnist.py --workdir=runs/latent_away_fashion_mnist
    python -m genreg_jax.main --config=configs/latent_away_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.59 ± 0.30 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/latent; median 23 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("latent_away", "fashion_mnist", arg)
