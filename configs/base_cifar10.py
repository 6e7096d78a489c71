"""Plain supervised training, on CIFAR-10, all labels.

Source: the reference of every comparison.

    python -m genreg_jax.main --config=configs/base_cifar10.py --workdir=runs/base_cifar10 --config.data.dir=DIR
    python -m genreg_jax.main --config=configs/base_cifar10.py:runlocal --workdir=runs/smoke --config.data.dir=DIR

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40 updates) is
a smoke run of the same path; its accuracy means nothing.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("base", "cifar10", arg)
