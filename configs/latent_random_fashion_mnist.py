"""Training images perturbed at random in the latent space of an exact flow.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_random_fashion_mnist.py --workdir=runs/latent_random_fashion_mnist
    python -m genreg_jax.main --config=configs/latent_random_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.91 ± 0.34 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/latent; median 26 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """A random step of fixed length in latent space."""
    config.latent.kind = "random"
    config.latent.epsilon = 3.0  # chosen on validation images, experiments/latent


def get_config(arg=None):
    config = common.new("latent_random")
    common.fashion_mnist(config)
    method(config)
    return common.with_options(config, arg)
