"""Training images moved away from the centre of the latent space of an exact flow.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_away_cifar10.py --workdir=runs/latent_away_cifar10
    python -m genreg_jax.main --config=configs/latent_away_cifar10.py:runlocal --workdir=runs/smoke

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40
updates) is a smoke run of the same path; its accuracy means nothing.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("latent_away", "cifar10", arg)
