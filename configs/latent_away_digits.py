"""Training images moved away from the centre of the latent space of an exact flow.

Data: digits, 20 labels per class.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_away_digits.py --workdir=runs/latent_away_digits
    python -m genreg_jax.main --config=configs/latent_away_digits.py:runlocal --workdir=runs/smoke

Measured: 97.10 ± 0.35 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/latent; median 13 s a run on a shared CPU core, generator not counted.
"""

from configs import common


def method(config):
    """Latents move away from the centre."""
    config.latent.kind = "away"
    config.latent.norm = "none"
    config.latent.epsilon = 0.1  # chosen on validation images, experiments/latent


def get_config(arg=None):
    config = common.new("latent_away")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
