"""The baseline of latent perturbation: the attack in image space.

Data: digits, 20 labels per class.
Source: arXiv:1706.06083.

    python -m genreg_jax.main --config=configs/pgd_digits.py --workdir=runs/pgd_digits
    python -m genreg_jax.main --config=configs/pgd_digits.py:runlocal --workdir=runs/smoke

Measured: 97.78 ± 0.24 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/latent; median 38 s a run on a shared CPU core, generator not counted.
"""

from configs import common


def method(config):
    """The attack of latent_adversarial in image space, without a flow."""
    config.latent.kind = "pgd"
    config.latent.epsilon = 0.5  # chosen on validation images, experiments/latent
    config.latent.step_size, config.latent.num_steps = 0.25, 3


def get_config(arg=None):
    config = common.new("pgd")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
