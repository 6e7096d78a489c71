"""Training images perturbed at random in the latent space of an exact flow.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_random_cifar10.py --workdir=runs/latent_random_cifar10
    python -m genreg_jax.main --config=configs/latent_random_cifar10.py:runlocal --workdir=runs/smoke

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40
updates) is a smoke run of the same path; its accuracy means nothing.
"""

from configs import common, glow_cifar10


def method(config):
    """A random step of fixed length in latent space."""
    config.latent.kind = "random"
    config.latent.epsilon = 20.0  # the authors' radius
    glow_cifar10.flow(config)  # the authors' flow


def get_config(arg=None):
    config = common.new("latent_random")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
