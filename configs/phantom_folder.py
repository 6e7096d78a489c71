"""Phantom embeddings: each embedding is drawn to a random mixture of others of its class.

Data: pictures of your own, in a folder with a subfolder for each class. Sizes and numbers of updates
follow the rules of `common.folder`; `:at64` takes them at 64x64. No table has measured it; the values of
the method are those of FashionMNIST and digits.
Source: arXiv:2304.07262.

    python -m genreg_jax.main --config=configs/phantom_folder.py --config.data.dir=PATH --workdir=runs/phantom_folder
    python -m genreg_jax.main --config=configs/phantom_folder.py:runlocal --config.data.dir=PATH --workdir=runs/smoke
"""

from configs import common


def method(config):
    """Each embedding is drawn to a phantom of its class."""
    config.phantom.loss = "attraction"
    config.phantom.weight = 3.0  # FashionMNIST's, experiments/phantom


def get_config(arg=None):
    config = common.new("phantom")
    common.folder(config)
    method(config)
    return common.with_options(config, arg)
