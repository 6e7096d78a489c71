"""PCR: consistency of two views of mixtures of encodings of real images.

Data: photographs with ImageNet's weights: `:cars`, `:aircraft`, `:cub`, `:dtd`, `:flowers`, `:pets` (where nothing
is said), each in its official layout in --config.data.dir=DIR; or `:folder`, pictures of your own. `:fraction=10`
keeps a tenth of the labels, `:small` is a size for two CPU cores. Needs the extra `pretrained`.
Source: arXiv:2307.13899, without the finder.

    python -m genreg_jax.main --config=configs/pcr_photographs.py:cars --config.data.dir=DIR --workdir=runs/pcr_cars
    python -m genreg_jax.main --config=configs/pcr_photographs.py:folder,small --config.data.dir=PATH --workdir=runs/pcr_small
    python -m genreg_jax.main --config=configs/pcr_photographs.py:folder,runlocal --config.data.dir=PATH --workdir=runs/smoke

Measured: not run at this size yet.
"""

from configs import common


def method(config):
    """Consistency on mixtures of same-class encodings."""
    config.synthetic.loss = "pcr"
    config.synthetic.source = "interpolated"
    config.synthetic.weight = 1.0


def get_config(arg=None):
    config = common.new("pcr")
    common.photographs(config)
    method(config)
    return common.with_options(config, arg)
