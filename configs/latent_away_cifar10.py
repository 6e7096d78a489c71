"""Training images moved away from the centre of the latent space of an exact flow.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_away_cifar10.py --workdir=runs/latent_away_cifar10
    python -m genreg_jax.main --config=configs/latent_away_cifar10.py:runlocal --workdir=runs/smoke

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40
updates) is a smoke run of the same path; its accuracy means nothing.
"""

from configs import common, glow_cifar10


def method(config):
    """Latents move away from the centre."""
    config.latent.kind = "away"
    config.latent.norm = "none"
    config.latent.epsilon = 0.15  # the authors' size
    glow_cifar10.flow(config)  # the authors' flow


def get_config(arg=None):
    config = common.new("latent_away")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
