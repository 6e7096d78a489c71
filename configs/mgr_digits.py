"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: digits, 20 labels per class.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_digits.py --workdir=runs/mgr_digits
    python -m genreg_jax.main --config=configs/mgr_digits.py:runlocal --workdir=runs/smoke

Measured: 97.14 ± 0.26 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/digits; median 23 s a run on one CPU core, generator not counted.
"""

from configs import common


def method(config):
    """PCR, on samples that a finder learns to choose."""
    config.synthetic.loss = "pcr"
    config.synthetic.weight = 1.0  # chosen on validation images, experiments/digits
    config.meta.enabled = True
    config.meta.outer = "train"


def get_config(arg=None):
    config = common.new("mgr")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
