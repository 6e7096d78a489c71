"""Naive generative data augmentation: cross-entropy on synthetic samples.

Data: digits, 20 labels per class.
Source: MGR's baseline, arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/gda_digits.py --workdir=runs/gda_digits
    python -m genreg_jax.main --config=configs/gda_digits.py:runlocal --workdir=runs/smoke

Measured: 97.56 ± 0.20 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/digits; median 7 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("gda", "digits", arg)
