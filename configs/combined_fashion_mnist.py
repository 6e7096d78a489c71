"""All three: latent perturbation, phantom embeddings and MGR.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958, arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/combined_fashion_mnist.py --workdir=runs/combined_fashion_mnist
    python -m genreg_jax.main --config=configs/combined_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: not at these settings. With samples of the prior and a finder without a bound, whose samples
collapse, 82.42 ± 0.44 % test accuracy (mean ± standard error, n = 4 seeds) in experiments/combined.
Second derivatives of the pooling were 6 % off then (CHANGELOG).
"""

from configs import (
    common,
    latent_adversarial_fashion_mnist,
    mgr_fashion_mnist,
    phantom_fashion_mnist,
)


def get_config(arg=None):
    config = common.new("combined")
    common.fashion_mnist(config)
    phantom_fashion_mnist.method(config)
    latent_adversarial_fashion_mnist.method(config)
    mgr_fashion_mnist.method(config)
    return common.with_options(config, arg)
