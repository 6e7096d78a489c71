"""The baseline of latent perturbation: the attack in image space.

Data: digits, 20 labels per class.
Source: arXiv:1706.06083.

    python -m genreg_jax.main --config=configs/pgd_digits.py --workdir=runs/pgd_digits
    python -m genreg_jax.main --config=configs/pgd_digits.py:runlocal --workdir=runs/smoke

Measured: 97.78 ± 0.24 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/latent; median 38 s a run on a shared CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("pgd", "digits", arg)
