"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py --workdir=runs/mgr_fashion_mnist
    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.72 ± 0.30 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/fashion_mnist; median 81 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("mgr", "fashion_mnist", arg)
