"""Phantom embeddings: each embedding is drawn to a random mixture of others of its class.

Data: digits, 20 labels per class.
Source: arXiv:2304.07262.

    python -m genreg_jax.main --config=configs/phantom_digits.py --workdir=runs/phantom_digits
    python -m genreg_jax.main --config=configs/phantom_digits.py:runlocal --workdir=runs/smoke

Measured: 97.48 ± 0.15 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/phantom; median 5 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("phantom", "digits", arg)
