"""Phantom embeddings on the real batch and MGR on synthetic samples, together.

Data: digits, 20 labels per class.
Source: arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/phantom_mgr_digits.py --workdir=runs/phantom_mgr_digits
    python -m genreg_jax.main --config=configs/phantom_mgr_digits.py:runlocal --workdir=runs/smoke

Measured: 96.30 ± 0.36 % test accuracy (mean ± standard error, n = 10
seeds) with 10 labels per class in experiments/combined; median 21 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("phantom_mgr", "digits", arg)
