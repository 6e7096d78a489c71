"""Plain supervised training.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: the reference of every comparison.

    python -m genreg_jax.main --config=configs/base_cifar10.py --workdir=runs/base_cifar10
    python -m genreg_jax.main --config=configs/base_cifar10.py:runlocal --workdir=runs/smoke

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40
updates) is a smoke run of the same path; its accuracy means nothing.
"""

from configs import common


def get_config(arg=None):
    config = common.new("base")
    common.cifar10(config)
    return common.with_options(config, arg)
