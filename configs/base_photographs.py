"""Plain fine-tuning.

Data: photographs with ImageNet's weights: `:cars`, `:aircraft`, `:cub`, `:dtd`, `:flowers`, `:pets` (where nothing
is said), each in its official layout in --config.data.dir=DIR; or `:folder`, pictures of your own. `:fraction=10`
keeps a tenth of the labels, `:small` is a size for two CPU cores. Needs the extra `pretrained`.
Source: the reference of every comparison; recipe of `yshinya6/adarand`.

    python -m genreg_jax.main --config=configs/base_photographs.py:cars --config.data.dir=DIR --workdir=runs/base_cars
    python -m genreg_jax.main --config=configs/base_photographs.py:folder,small --config.data.dir=PATH --workdir=runs/base_small
    python -m genreg_jax.main --config=configs/base_photographs.py:folder,runlocal --config.data.dir=PATH --workdir=runs/smoke

Measured: not run at this size yet.
"""

from configs import common


def get_config(arg=None):
    config = common.new("base")
    common.photographs(config)
    return common.with_options(config, arg)
