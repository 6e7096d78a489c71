"""Training images moved away from the centre of the latent space of an exact flow.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_away_fashion_mnist.py --workdir=runs/latent_away_fashion_mnist
    python -m genreg_jax.main --config=configs/latent_away_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.59 ± 0.30 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/latent; median 23 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """Latents move away from the centre."""
    config.latent.kind = "away"
    config.latent.norm = "none"
    config.latent.epsilon = 0.05  # chosen on validation images, experiments/latent


def get_config(arg=None):
    config = common.new("latent_away")
    common.fashion_mnist(config)
    method(config)
    return common.with_options(config, arg)
