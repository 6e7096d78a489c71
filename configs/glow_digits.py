"""Glow on its own.

Data: digits, all training images.
Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).

    python -m genreg_jax.main --config=configs/glow_digits.py --workdir=runs/glow_digits
    python -m genreg_jax.main --config=configs/glow_digits.py:runlocal --workdir=runs/smoke

Measured: 4.563 ± 0.026 bits/dim on the 500 test images (mean ± standard error over images, one seed)
in experiments/flows; 3 min on one CPU core shared with other programs.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("glow", "digits", arg)
