"""All three: latent perturbation, phantom embeddings and MGR.

Data: digits, 20 labels per class.
Source: arXiv:2108.07958, arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/combined_digits.py --workdir=runs/combined_digits
    python -m genreg_jax.main --config=configs/combined_digits.py:runlocal --workdir=runs/smoke

Measured: not at these settings. With samples of the prior and a finder without a bound, whose samples
collapse, 96.66 ± 0.29 % test accuracy (mean ± standard error, n = 10 seeds) with 10 labels per class in
experiments/combined.
"""

from configs import common, latent_adversarial_digits, mgr_digits, phantom_digits


def get_config(arg=None):
    config = common.new("combined")
    common.digits(config)
    phantom_digits.method(config)
    latent_adversarial_digits.method(config)
    mgr_digits.method(config)
    return common.with_options(config, arg)
