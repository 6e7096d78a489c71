"""RealNVP on its own.

Data: digits, all training images.
Source: Dinh et al., "Density estimation using Real NVP" (2017).

    python -m genreg_jax.main --config=configs/realnvp_digits.py --workdir=runs/realnvp_digits
    python -m genreg_jax.main --config=configs/realnvp_digits.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("realnvp", "digits", arg)
