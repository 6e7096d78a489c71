"""The baseline of latent perturbation: the attack in image space.

Data: digits, 20 labels per class.
Source: arXiv:1706.06083.

    python -m genreg_jax.main --config=configs/pgd_digits.py --workdir=runs/pgd_digits
    python -m genreg_jax.main --config=configs/pgd_digits.py:runlocal --workdir=runs/smoke

Measured: 96.50 ± 0.21 % test accuracy (mean ± standard error, n = 10
seeds) with 10 labels per class in experiments/latent; median 13 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("pgd", "digits", arg)
