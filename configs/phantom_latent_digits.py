"""Phantom embeddings of images perturbed against the classifier in latent space.

Data: digits, 20 labels per class.
Source: arXiv:2304.07262 and arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/phantom_latent_digits.py --workdir=runs/phantom_latent_digits
    python -m genreg_jax.main --config=configs/phantom_latent_digits.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("phantom_latent", "digits", arg)
