"""Pseudo consistency regularisation on uniformly drawn synthetic samples.

Data: digits, 20 labels per class.
Source: MGR without its finder, arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/pcr_digits.py --workdir=runs/pcr_digits
    python -m genreg_jax.main --config=configs/pcr_digits.py:runlocal --workdir=runs/smoke

Measured: 96.74 ± 0.33 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/digits; median 8 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """Consistency of two views of synthetic samples."""
    config.synthetic.loss = "pcr"
    config.synthetic.weight = 1.0  # chosen on validation images, experiments/digits


def get_config(arg=None):
    config = common.new("pcr")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
