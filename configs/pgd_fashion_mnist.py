"""The baseline of latent perturbation: the attack in image space.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:1706.06083.

    python -m genreg_jax.main --config=configs/pgd_fashion_mnist.py --workdir=runs/pgd_fashion_mnist
    python -m genreg_jax.main --config=configs/pgd_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.82 ± 0.36 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/latent; median 43 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """The attack of latent_adversarial in image space, without a flow."""
    config.latent.kind = "pgd"
    config.latent.epsilon = 0.25  # chosen on validation images, experiments/latent
    config.latent.step_size, config.latent.num_steps = 0.125, 3


def get_config(arg=None):
    config = common.new("pgd")
    common.fashion_mnist(config)
    method(config)
    return common.with_options(config, arg)
