"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: digits, 20 labels per class.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_digits.py --workdir=runs/mgr_digits
    python -m genreg_jax.main --config=configs/mgr_digits.py:runlocal --workdir=runs/smoke

Measured: 97.26 ± 0.20 % test accuracy (mean ± standard error, n = 10
seeds) in experiments/digits; median 42 s a run on one CPU core that it shared, generator not counted.
"""

from configs import common


def method(config):
    """PCR, on real images mixed in latent space within their class, that a finder moves on."""
    config.synthetic.loss = "pcr"
    config.synthetic.source = "interpolated"
    config.synthetic.weight = 0.3  # chosen on validation images, experiments/digits
    config.meta.enabled = True
    config.meta.outer = "train"
    config.meta.radius = 0.3  # without a bound all samples of a class become one


def as_published(config):
    """PCR, on samples of the prior that a free finder chooses; its samples collapse."""
    method(config)
    config.synthetic.source = "prior"
    config.synthetic.weight = 1.0
    config.meta.radius = -1.0


def get_config(arg=None):
    config = common.new("mgr")
    common.digits(config)
    method(config)
    return common.with_options(config, arg)
