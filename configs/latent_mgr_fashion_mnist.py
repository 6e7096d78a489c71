"""Real images perturbed in latent space, and MGR on synthetic samples.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/latent_mgr_fashion_mnist.py --workdir=runs/latent_mgr_fashion_mnist
    python -m genreg_jax.main --config=configs/latent_mgr_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: not at these settings. With samples of the prior and a finder without a bound, whose samples
collapse, 82.11 ± 0.48 % test accuracy (mean ± standard error, n = 4 seeds) in experiments/combined.
Second derivatives of the pooling were 6 % off then (CHANGELOG).
"""

from configs import common, latent_adversarial_fashion_mnist, mgr_fashion_mnist


def get_config(arg=None):
    config = common.new("latent_mgr")
    common.fashion_mnist(config)
    latent_adversarial_fashion_mnist.method(config)
    mgr_fashion_mnist.method(config)
    return common.with_options(config, arg)
