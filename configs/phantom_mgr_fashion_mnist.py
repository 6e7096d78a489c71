"""Phantom embeddings on the real batch and MGR on synthetic samples, together.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/phantom_mgr_fashion_mnist.py --workdir=runs/phantom_mgr_fashion_mnist
    python -m genreg_jax.main --config=configs/phantom_mgr_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: not at these settings. With samples of the prior and a finder without a bound, whose samples
collapse, 81.37 ± 0.49 % test accuracy (mean ± standard error, n = 4 seeds) in experiments/combined.
Second derivatives of the pooling were 6 % off then (CHANGELOG).
"""

from configs import common, mgr_fashion_mnist, phantom_fashion_mnist


def get_config(arg=None):
    config = common.new("phantom_mgr")
    common.fashion_mnist(config)
    phantom_fashion_mnist.method(config)
    mgr_fashion_mnist.method(config)
    return common.with_options(config, arg)
