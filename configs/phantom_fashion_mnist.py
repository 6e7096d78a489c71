"""Phantom embeddings: each embedding is drawn to a random mixture of others of its class.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2304.07262.

    python -m genreg_jax.main --config=configs/phantom_fashion_mnist.py --workdir=runs/phantom_fashion_mnist
    python -m genreg_jax.main --config=configs/phantom_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 81.37 ± 0.23 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/phantom; median 13 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("phantom", "fashion_mnist", arg)
