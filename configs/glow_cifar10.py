"""Glow on its own at the papers' scale; it wants an accelerator.

Data: CIFAR-10, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).

    python -m genreg_jax.main --config=configs/glow_cifar10.py --workdir=runs/glow_cifar10
    python -m genreg_jax.main --config=configs/glow_cifar10.py:middle --workdir=runs/glow_cifar10_middle
    python -m genreg_jax.main --config=configs/glow_cifar10.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("glow", "cifar10", arg)
