"""RealNVP on its own.

Data: FashionMNIST, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Dinh et al., "Density estimation using Real NVP" (2017).

    python -m genreg_jax.main --config=configs/realnvp_fashion_mnist.py --workdir=runs/realnvp_fashion_mnist
    python -m genreg_jax.main --config=configs/realnvp_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("realnvp", "fashion_mnist", arg)
