"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: digits, 20 labels per class.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_digits.py --workdir=runs/mgr_digits
    python -m genreg_jax.main --config=configs/mgr_digits.py:runlocal --workdir=runs/smoke

Measured: 97.14 ± 0.26 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/digits; median 23 s a run on one CPU core, generator not counted.
"""

from configs import common


def get_config(arg=None):
    return common.get_config("mgr", "digits", arg)
