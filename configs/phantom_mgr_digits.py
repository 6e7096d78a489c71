"""Phantom embeddings on the real batch and MGR on synthetic samples, together.

Data: digits, 20 labels per class.
Source: arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/phantom_mgr_digits.py --workdir=runs/phantom_mgr_digits
    python -m genreg_jax.main --config=configs/phantom_mgr_digits.py:runlocal --workdir=runs/smoke

Measured: not at these settings. With samples of the prior and a finder without a bound, whose samples
collapse, 96.30 ± 0.36 % test accuracy (mean ± standard error, n = 10 seeds) with 10 labels per class in
experiments/combined.
"""

from configs import common, mgr_digits, phantom_digits


def get_config(arg=None):
    config = common.new("phantom_mgr")
    common.digits(config)
    phantom_digits.method(config)
    mgr_digits.method(config)
    return common.with_options(config, arg)
