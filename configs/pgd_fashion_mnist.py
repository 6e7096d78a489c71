"""The baseline of latent perturbation: the attack in image space.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:1706.06083.

    python -m genreg_jax.main --config=configs/pgd_fashion_mnist.py --workdir=runs/pgd_fashion_mnist
    python -m genreg_jax.main --config=configs/pgd_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.82 ± 0.36 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/latent; median 43 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("pgd", "fashion_mnist", arg)
