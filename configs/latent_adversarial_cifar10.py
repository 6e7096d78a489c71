"""Training images perturbed against the classifier in the latent space of an exact flow.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_adversarial_cifar10.py --workdir=runs/latent_adversarial_cifar10
    python -m genreg_jax.main --config=configs/latent_adversarial_cifar10.py:runlocal --workdir=runs/smoke

Measured: not run at this size yet. `:runlocal` (20 labels per class, a small convnet, 40
updates) is a smoke run of the same path; its accuracy means nothing.
"""

from configs import common, glow_cifar10


def method(config):
    """Latents move against the classifier as it trains."""
    config.latent.kind = "adversarial"
    config.latent.epsilon = 1.0  # the authors' setting
    config.latent.step_size, config.latent.num_steps = 0.5, 3
    glow_cifar10.flow(config)  # the authors' flow


def get_config(arg=None):
    config = common.new("latent_adversarial")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
