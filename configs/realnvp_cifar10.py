"""RealNVP on its own at the papers' scale; it wants an accelerator.

Data: CIFAR-10, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Dinh et al., "Density estimation using Real NVP" (2017).

    python -m genreg_jax.main --config=configs/realnvp_cifar10.py --workdir=runs/realnvp_cifar10
    python -m genreg_jax.main --config=configs/realnvp_cifar10.py:middle --workdir=runs/realnvp_cifar10_middle
    python -m genreg_jax.main --config=configs/realnvp_cifar10.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("realnvp", "cifar10", arg)
