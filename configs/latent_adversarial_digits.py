"""Training images perturbed against the classifier in the latent space of an exact flow.

Data: digits, 20 labels per class.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_adversarial_digits.py --workdir=runs/latent_adversarial_digits
    python -m genreg_jax.main --config=configs/latent_adversarial_digits.py:runlocal --workdir=runs/smoke

Measured: 98.06 ± 0.19 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/latent; median 43 s a run on a shared CPU core, generator not counted.
"""

from configs import common


def method(config):
    """Latents move against the classifier as it trains."""
    config.latent.kind = "adversarial"
    config.latent.epsilon = 0.5  # chosen on validation images, experiments/latent
    config.latent.step_size, config.latent.num_steps = 0.25, 3


def get_config(arg=None):
    config = common.new("latent_adversarial")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
