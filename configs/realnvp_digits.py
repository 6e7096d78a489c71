"""RealNVP on its own.

Data: digits, all training images.
Source: Dinh et al., "Density estimation using Real NVP" (2017).

    python -m genreg_jax.main --config=configs/realnvp_digits.py --workdir=runs/realnvp_digits
    python -m genreg_jax.main --config=configs/realnvp_digits.py:runlocal --workdir=runs/smoke

Measured: not yet.
"""

from configs import common


def flow(config):
    """Its size and training."""
    config.flow.kind = "realnvp"
    config.flow.levels, config.flow.steps, config.flow.width = 1, 3, 64
    config.flow.dropout = 0.2
    config.flow.augment = "none"
    config.flow.batch_size = 64
    config.flow.updates, config.flow.eval_every = 3000, 100
    config.flow.learning_rate = 3e-3


def get_config(arg=None):
    config = common.new("realnvp")
    common.digits(config)
    config.model.name = "none"
    config.data.per_class = 0  # all images
    config.data.validation_fraction = 0.1
    flow(config)
    return common.with_options(config, arg)
