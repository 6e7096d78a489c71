"""Training images perturbed against the classifier in the latent space of an exact flow.

Data: digits, 20 labels per class.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_adversarial_digits.py --workdir=runs/latent_adversarial_digits
    python -m genreg_jax.main --config=configs/latent_adversarial_digits.py:runlocal --workdir=runs/smoke

Measured: 96.26 ± 0.26 % test accuracy (mean ± standard error, n = 10
seeds) with 10 labels per class in experiments/latent; median 19 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("latent_adversarial", "digits", arg)
