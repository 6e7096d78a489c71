"""Training images perturbed against the classifier in the latent space of an exact flow.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_adversarial_fashion_mnist.py --workdir=runs/latent_adversarial_fashion_mnist
    python -m genreg_jax.main --config=configs/latent_adversarial_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 81.74 ± 0.26 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/latent; median 90 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """Latents move against the classifier as it trains."""
    config.latent.kind = "adversarial"
    config.latent.epsilon = 0.5  # chosen on validation images, experiments/latent
    config.latent.step_size, config.latent.num_steps = 0.25, 3


def get_config(arg=None):
    config = common.new("latent_adversarial")
    common.fashion_mnist(config)
    method(config)
    return common.with_options(config, arg)
