"""Naive generative data augmentation: cross-entropy on synthetic samples.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: MGR's baseline, arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/gda_cifar10.py --workdir=runs/gda_cifar10
    python -m genreg_jax.main --config=configs/gda_cifar10.py:runlocal --workdir=runs/smoke

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40
updates) is a smoke run of the same path; its accuracy means nothing.
"""

from configs import common


def method(config):
    """Cross-entropy on synthetic samples."""
    config.synthetic.loss = "cross_entropy"
    config.synthetic.weight = 1.0


def get_config(arg=None):
    config = common.new("gda")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
