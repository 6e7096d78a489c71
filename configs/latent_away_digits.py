"""Training images moved away from the centre of the latent space of an exact flow.

Data: digits, 20 labels per class.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_away_digits.py --workdir=runs/latent_away_digits
    python -m genreg_jax.main --config=configs/latent_away_digits.py:runlocal --workdir=runs/smoke

Measured: 97.10 ± 0.35 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/latent; median 13 s a run on a shared CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("latent_away", "digits", arg)
