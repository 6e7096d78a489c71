"""Naive generative data augmentation: cross-entropy on synthetic samples.

Data: digits, 20 labels per class.
Source: MGR's baseline, arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/gda_digits.py --workdir=runs/gda_digits
    python -m genreg_jax.main --config=configs/gda_digits.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("gda", "digits", arg)
