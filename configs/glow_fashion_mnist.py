"""Glow on its own.

Data: FashionMNIST, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).

    python -m genreg_jax.main --config=configs/glow_fashion_mnist.py --workdir=runs/glow_fashion_mnist
    python -m genreg_jax.main --config=configs/glow_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 3.091 ± 0.009 bits/dim on the 10,000 test images (mean ± standard error over images, one
seed) in experiments/flows; 86 min on one CPU core shared with other programs.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("glow", "fashion_mnist", arg)
