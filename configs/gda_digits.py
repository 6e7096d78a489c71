"""Naive generative data augmentation: cross-entropy on synthetic samples.

Data: digits, 20 labels per class.
Source: MGR's baseline, arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/gda_digits.py --workdir=runs/gda_digits
    python -m genreg_jax.main --config=configs/gda_digits.py:runlocal --workdir=runs/smoke

Measured: 97.56 ± 0.20 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/digits; median 7 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """Cross-entropy on synthetic samples."""
    config.synthetic.loss = "cross_entropy"
    config.synthetic.weight = 0.03  # chosen on validation images, experiments/digits


def get_config(arg=None):
    config = common.new("gda")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
