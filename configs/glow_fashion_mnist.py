"""Glow on its own.

Data: FashionMNIST, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).

    python -m genreg_jax.main --config=configs/glow_fashion_mnist.py --workdir=runs/glow_fashion_mnist
    python -m genreg_jax.main --config=configs/glow_fashion_mnist.py:runlocal --workdir=runs/smoke

Measured: 3.091 ± 0.009 bits/dim on the 10,000 test images (mean ± standard error over images, one
seed) in experiments/flows; 86 min on one CPU core shared with other programs.
"""

from configs import common


def flow(config):
    """Its size and training."""
    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 2, 8, 64
    config.flow.dropout = 0.0
    config.flow.augment = "none"
    config.flow.updates, config.flow.eval_every = 36_000, 1000
    config.flow.learning_rate, config.flow.warmup = 2e-3, 500
    config.flow.ema_decay = 0.999
    # On CPU the activations of small batches stay in the cache, and recomputing them is faster than
    # reading them from memory.
    config.flow.batch_size, config.flow.remat = 32, True


def get_config(arg=None):
    config = common.new("glow")
    common.fashion_mnist(config)
    config.model.name = "none"
    config.data.per_class = 0  # all images
    config.data.validation_fraction = 0.02
    flow(config)
    return common.with_options(config, arg)
