"""Naive generative data augmentation: cross-entropy on synthetic samples, on CIFAR-10, all labels.

Source: MGR's baseline, arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/gda_cifar10.py --workdir=runs/gda_cifar10 --config.data.dir=DIR
    python -m genreg_jax.main --config=configs/gda_cifar10.py:runlocal --workdir=runs/smoke --config.data.dir=DIR

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40 updates) is
a smoke run of the same path; its accuracy means nothing.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("gda", "cifar10", arg)
