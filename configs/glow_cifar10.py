"""Glow on its own at the papers' scale; it wants an accelerator.

Data: CIFAR-10, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).

    python -m genreg_jax.main --config=configs/glow_cifar10.py --workdir=runs/glow_cifar10
    python -m genreg_jax.main --config=configs/glow_cifar10.py:middle --workdir=runs/glow_cifar10_middle
    python -m genreg_jax.main --config=configs/glow_cifar10.py:runlocal --workdir=runs/smoke

Measured: the papers' scale not yet. `:middle`: 3.793 ± 0.006 bits/dim on the test images (mean ±
standard error over images, one seed), 77 minutes on a shared CPU core; see experiments/flows.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("glow", "cifar10", arg)
