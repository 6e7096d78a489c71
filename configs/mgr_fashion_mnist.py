"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: FashionMNIST, 50 labels per class; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py --workdir=runs/mgr_fashion_mnist
    python -m genreg_jax.main --config=configs/mgr_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 80.86 ± 0.22 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/sources; median 187 s a run on one CPU core beside other programs, generator not counted,
when second derivatives of the pooling were 6 % off (CHANGELOG).
"""

from configs import common


def method(config):
    """PCR, on real images mixed in latent space within their class, that a finder moves on."""
    config.synthetic.loss = "pcr"
    config.synthetic.source = "interpolated"
    config.synthetic.weight = 0.5  # chosen on validation images, experiments/sources
    config.meta.enabled = True
    config.meta.outer = "train"  # chosen on validation images, experiments/fashion_mnist
    config.meta.radius = 0.3  # chosen on validation images; without a bound a class becomes one


def as_published(config):
    """PCR, on samples of the prior that a free finder chooses; its samples collapse."""
    method(config)
    config.synthetic.source = "prior"
    config.meta.radius = -1.0


def get_config(arg=None):
    config = common.new("mgr")
    common.fashion_mnist(config)
    method(config)
    return common.with_options(config, arg)
