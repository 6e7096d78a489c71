"""MGR: pseudo consistency regularisation on encodings of real images, moved by a finder.

Data: pictures of your own, in a folder with a subfolder for each class. Sizes and numbers of updates
follow the rules of `common.folder`; `:at64` takes them at 64x64. No table has measured it; the values of
the method are those of FashionMNIST and digits.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_folder.py --config.data.dir=PATH --workdir=runs/mgr_folder
    python -m genreg_jax.main --config=configs/mgr_folder.py:runlocal --config.data.dir=PATH --workdir=runs/smoke
"""

from configs import common


def method(config):
    """PCR on mixtures of same-class encodings, which a finder moves."""
    config.synthetic.loss = "pcr"
    config.synthetic.weight = 0.5
    config.synthetic.source = "interpolated"
    config.meta.enabled = True
    config.meta.radius = 0.3  # as in mgr_digits: the finder cannot collapse
    config.meta.outer = "train"


def get_config(arg=None):
    config = common.new("mgr")
    common.folder(config)
    method(config)
    return common.with_options(config, arg)
