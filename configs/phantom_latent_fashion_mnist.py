"""Phantom embeddings of images perturbed against the classifier in latent space.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2304.07262 and arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/phantom_latent_fashion_mnist.py --workdir=runs/phantom_latent_fashion_mnist
    python -m genreg_jax.main --config=configs/phantom_latent_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 82.34 ± 0.50 % test accuracy (mean ± standard error, n = 4
seeds) in experiments/combined; median 120 s a run on a shared CPU core, generator not counted.
"""

from configs import common, latent_adversarial_fashion_mnist, phantom_fashion_mnist


def get_config(arg=None):
    config = common.new("phantom_latent")
    common.fashion_mnist(config)
    phantom_fashion_mnist.method(config)
    latent_adversarial_fashion_mnist.method(config)
    return common.with_options(config, arg)
