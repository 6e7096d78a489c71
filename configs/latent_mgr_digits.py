"""Real images perturbed in latent space, and MGR on synthetic samples.

Data: digits, 20 labels per class.
Source: arXiv:2108.07958 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/latent_mgr_digits.py --workdir=runs/latent_mgr_digits
    python -m genreg_jax.main --config=configs/latent_mgr_digits.py:runlocal --workdir=runs/smoke

Measured: not at these settings. With samples of the prior and a finder without a bound, whose samples
collapse, 96.40 ± 0.23 % test accuracy (mean ± standard error, n = 10 seeds) with 10 labels per class in
experiments/combined.
"""

from configs import common, latent_adversarial_digits, mgr_digits


def get_config(arg=None):
    config = common.new("latent_mgr")
    common.digits(config)
    latent_adversarial_digits.method(config)
    mgr_digits.method(config)
    return common.with_options(config, arg)
