"""Phantom embeddings: each embedding is drawn to a random mixture of others of its class.

Data: photographs with ImageNet's weights: `:cars`, `:aircraft`, `:cub`, `:dtd`, `:flowers`, `:pets` (where nothing
is said), each in its official layout in --config.data.dir=DIR; or `:folder`, pictures of your own. `:fraction=10`
keeps a tenth of the labels, `:small` is a size for two CPU cores. Needs the extra `pretrained`.
Source: arXiv:2304.07262.

    python -m genreg_jax.main --config=configs/phantom_photographs.py:cars --config.data.dir=DIR --workdir=runs/phantom_cars
    python -m genreg_jax.main --config=configs/phantom_photographs.py:folder,small --config.data.dir=PATH --workdir=runs/phantom_small
    python -m genreg_jax.main --config=configs/phantom_photographs.py:folder,runlocal --config.data.dir=PATH --workdir=runs/smoke

Measured: not run at this size yet.
"""

from configs import common


def method(config):
    """Each embedding is drawn to a phantom of its class."""
    config.phantom.loss = "attraction"
    config.phantom.distance = "cosine"  # whatever the scale of the features
    config.phantom.weight = 0.3  # chosen at 64x64, experiments/fine_tuning


def get_config(arg=None):
    config = common.new("phantom")
    common.photographs(config)
    method(config)
    return common.with_options(config, arg)
