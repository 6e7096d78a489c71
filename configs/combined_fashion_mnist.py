"""All three: latent perturbation, phantom embeddings and MGR.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958, arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/combined_fashion_mnist.py --workdir=runs/combined_fashion_mnist
    python -m genreg_jax.main --config=configs/combined_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("combined", "fashion_mnist", arg)
