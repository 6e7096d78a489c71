"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py --workdir=runs/mgr_fashion_mnist
    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.72 ± 0.30 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/fashion_mnist; median 81 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """PCR, on samples that a finder learns to choose."""
    config.synthetic.loss = "pcr"
    config.synthetic.weight = 0.5  # chosen on validation images, experiments/fashion_mnist
    config.meta.enabled = True
    config.meta.outer = "train"  # chosen on validation images, experiments/fashion_mnist


def get_config(arg=None):
    config = common.new("mgr")
    common.fashion_mnist(config)
    method(config)
    return common.with_options(config, arg)
