"""Naive generative data augmentation: cross-entropy on mixtures of encodings of real images.

Data: pictures of your own, in a folder with a subfolder for each class. Sizes and numbers of updates
follow the rules of `common.folder`; `:at64` takes them at 64x64. No table has measured it; the values of
the method are those of FashionMNIST.
Source: arXiv:2307.13899, the baseline that it improves on.

    python -m genreg_jax.main --config=configs/gda_folder.py --config.data.dir=PATH --workdir=runs/gda_folder
    python -m genreg_jax.main --config=configs/gda_folder.py:runlocal --config.data.dir=PATH --workdir=runs/smoke
"""

from configs import common


def method(config):
    """Cross-entropy on mixtures of same-class encodings."""
    config.synthetic.loss = "cross_entropy"
    config.synthetic.source = "interpolated"
    config.synthetic.weight = 1.0  # FashionMNIST's, experiments/sources


def get_config(arg=None):
    config = common.new("gda")
    common.folder(config)
    method(config)
    return common.with_options(config, arg)
