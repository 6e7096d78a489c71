"""Plain supervised training, on FashionMNIST, 50 labels per class.

Source: the reference of every comparison.

    python -m genreg_jax.main --config=configs/base_fashion_mnist.py --workdir=runs/base_fashion_mnist --config.data.dir=DIR
    python -m genreg_jax.main --config=configs/base_fashion_mnist.py:runlocal --workdir=runs/smoke --config.data.dir=DIR

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("base", "fashion_mnist", arg)
