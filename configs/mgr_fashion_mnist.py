"""MGR: pseudo consistency regularisation with meta pseudo sampling, on FashionMNIST, 50 labels per class.

Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py --workdir=runs/mgr_fashion_mnist --config.data.dir=DIR
    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py:runlocal --workdir=runs/smoke --config.data.dir=DIR

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("mgr", "fashion_mnist", arg)
