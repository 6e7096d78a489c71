"""Glow on its own.

Data: digits, all training images.
Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).

    python -m genreg_jax.main --config=configs/glow_digits.py --workdir=runs/glow_digits
    python -m genreg_jax.main --config=configs/glow_digits.py:runlocal --workdir=runs/smoke

Measured: 4.563 ± 0.026 bits/dim on the 500 test images (mean ± standard error over images, one seed)
in experiments/flows; 3 min on one CPU core shared with other programs.
"""

from configs import common


def flow(config):
    """Its size and training."""
    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 1, 8, 64
    config.flow.dropout = 0.2
    config.flow.augment = "none"
    config.flow.batch_size = 64
    config.flow.updates, config.flow.eval_every = 3000, 100
    config.flow.learning_rate = 3e-3


def get_config(arg=None):
    config = common.new("glow")
    common.digits(config)
    config.model.name = "none"
    config.data.per_class = 0  # all images
    config.data.validation_fraction = 0.1
    flow(config)
    return common.with_options(config, arg)
