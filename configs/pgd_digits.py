"""The baseline of latent perturbation: the attack in image space.

Data: digits, 20 labels per class.
Source: arXiv:1706.06083.

    python -m genreg_jax.main --config=configs/pgd_digits.py --workdir=runs/pgd_digits
    python -m genreg_jax.main --config=configs/pgd_digits.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("pgd", "digits", arg)
