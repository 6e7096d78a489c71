"""MGR: pseudo consistency regularisation on encodings of real images, moved by a finder.

Data: photographs with ImageNet's weights: `:cars`, `:aircraft`, `:cub`, `:dtd`, `:flowers`, `:pets` (where nothing
is said), each in its official layout in --config.data.dir=DIR; or `:folder`, pictures of your own. `:fraction=10`
keeps a tenth of the labels, `:small` is a size for two CPU cores. Needs the extra `pretrained`.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_photographs.py:cars --config.data.dir=DIR --workdir=runs/mgr_cars
    python -m genreg_jax.main --config=configs/mgr_photographs.py:folder,small --config.data.dir=PATH --workdir=runs/mgr_small
    python -m genreg_jax.main --config=configs/mgr_photographs.py:folder,runlocal --config.data.dir=PATH --workdir=runs/smoke

Measured: not run at this size yet.
"""

from configs import common


def method(config):
    """PCR on mixtures of same-class encodings, which a finder moves."""
    config.synthetic.loss = "pcr"
    config.synthetic.source = "interpolated"
    config.synthetic.weight = 1.0
    config.meta.enabled = True
    config.meta.radius = 0.3  # as in mgr_digits: the finder cannot collapse
    config.meta.outer = "train"


def get_config(arg=None):
    config = common.new("mgr")
    common.photographs(config)
    method(config)
    return common.with_options(config, arg)
