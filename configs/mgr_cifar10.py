"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_cifar10.py --workdir=runs/mgr_cifar10
    python -m genreg_jax.main --config=configs/mgr_cifar10.py:runlocal --workdir=runs/smoke

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40
updates) is a smoke run of the same path; its accuracy means nothing.
"""

from configs import common


def method(config):
    """PCR, on samples that a finder learns to choose."""
    config.synthetic.loss = "pcr"
    config.synthetic.weight = 1.0
    config.meta.enabled = True
    config.meta.outer = "holdout"


def get_config(arg=None):
    config = common.new("mgr")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
