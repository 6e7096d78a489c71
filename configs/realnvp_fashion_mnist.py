"""RealNVP on its own.

Data: FashionMNIST, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Dinh et al., "Density estimation using Real NVP" (2017).

    python -m genreg_jax.main --config=configs/realnvp_fashion_mnist.py --workdir=runs/realnvp_fashion_mnist
    python -m genreg_jax.main --config=configs/realnvp_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def flow(config):
    """Its size and training."""
    config.flow.kind = "realnvp"
    config.flow.levels, config.flow.steps, config.flow.width = 2, 3, 48
    config.flow.dropout = 0.0
    config.flow.augment = "none"
    config.flow.updates, config.flow.eval_every = 12_000, 1000
    config.flow.learning_rate, config.flow.warmup = 2e-3, 500
    config.flow.ema_decay = 0.999
    # On CPU the activations of small batches stay in the cache, and recomputing them is faster than
    # reading them from memory.
    config.flow.batch_size, config.flow.remat = 32, True


def get_config(arg=None):
    config = common.new("realnvp")
    common.fashion_mnist(config)
    config.model.name = "none"
    config.data.per_class = 0  # all images
    config.data.validation_fraction = 0.02
    flow(config)
    return common.with_options(config, arg)
