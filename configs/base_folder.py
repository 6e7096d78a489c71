"""Plain supervised training.

Data: pictures of your own, in a folder with a subfolder for each class. Sizes and numbers of updates
follow the rules of `common.folder`; `:at64` takes them at 64x64. No table has measured it; the values
are those of FashionMNIST.
Source: the reference of every comparison.

    python -m genreg_jax.main --config=configs/base_folder.py --config.data.dir=PATH --workdir=runs/base_folder
    python -m genreg_jax.main --config=configs/base_folder.py:runlocal --config.data.dir=PATH --workdir=runs/smoke
"""

from configs import common


def get_config(arg=None):
    config = common.new("base")
    common.folder(config)
    return common.with_options(config, arg)
