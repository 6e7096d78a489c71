"""Phantom embeddings: each embedding is drawn to a random mixture of others of its class.

Data: digits, 20 labels per class.
Source: arXiv:2304.07262.

    python -m genreg_jax.main --config=configs/phantom_digits.py --workdir=runs/phantom_digits
    python -m genreg_jax.main --config=configs/phantom_digits.py:runlocal --workdir=runs/smoke

Measured: 97.48 ± 0.15 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/phantom; median 5 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """Each embedding is drawn to a phantom of its class."""
    config.phantom.loss = "attraction"
    config.phantom.weight = 3.0  # chosen on validation images, experiments/phantom


def get_config(arg=None):
    config = common.new("phantom")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
