"""Phantom embeddings: each embedding is drawn to a random mixture of others of its class.

Data: digits, 20 labels per class.
Source: arXiv:2304.07262.

    python -m genreg_jax.main --config=configs/phantom_digits.py --workdir=runs/phantom_digits
    python -m genreg_jax.main --config=configs/phantom_digits.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("phantom", "digits", arg)
