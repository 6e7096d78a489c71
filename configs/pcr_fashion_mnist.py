"""Pseudo consistency regularisation on uniformly drawn synthetic samples, on FashionMNIST, 50 labels per class.

Source: MGR without its finder, arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/pcr_fashion_mnist.py --workdir=runs/pcr_fashion_mnist --config.data.dir=DIR
    python -m genreg_jax.main --config=configs/pcr_fashion_mnist.py:runlocal --workdir=runs/smoke --config.data.dir=DIR

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("pcr", "fashion_mnist", arg)
