"""A Glow alone, on photographs at 64x64.

Data: photographs: `:cars`, `:aircraft`, `:cub`, `:dtd`, `:flowers`, `:pets` (where nothing
is said), each in its official layout in --config.data.dir=DIR; or `:folder`, pictures of your own. `:fraction=10`
keeps a tenth of the labels, `:small` is a size for two CPU cores.
Source: arXiv:1807.03039.

    python -m genreg_jax.main --config=configs/glow_photographs.py:cars --config.data.dir=DIR --workdir=runs/glow_cars
    python -m genreg_jax.main --config=configs/glow_photographs.py:folder,small --config.data.dir=PATH --workdir=runs/glow_small
    python -m genreg_jax.main --config=configs/glow_photographs.py:folder,runlocal --config.data.dir=PATH --workdir=runs/smoke

Measured: not run to its end. On 720 photographs of ten classes of textures, 800 updates of 16 (`:folder`, --config.flow.updates=800,
batch_size 16, warmup 200; code at c9352ca, one seed, CPU): 4.16 bits/dim on 400 test images, 4.07 on 80 for validation; largest reconstruction error 2.1e-05;
its samples have the colours and grain of photographs and nothing of the classes.
"""

from configs import common


def get_config(arg=None):
    config = common.new("glow")
    common.photographs(config)
    config.model.name = "none"
    config.model.pretrained, config.model.freeze = "", "none"
    return common.with_options(config, arg)
