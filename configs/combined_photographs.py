"""All three: latent perturbation, phantom embeddings and MGR.

Data: photographs with ImageNet's weights: `:cars`, `:aircraft`, `:cub`, `:dtd`, `:flowers`, `:pets` (where nothing
is said), each in its official layout in --config.data.dir=DIR; or `:folder`, pictures of your own. `:fraction=10`
keeps a tenth of the labels, `:small` is a size for two CPU cores. Needs the extra `pretrained`.
Source: arXiv:2108.07958, arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/combined_photographs.py:cars --config.data.dir=DIR --workdir=runs/combined_cars
    python -m genreg_jax.main --config=configs/combined_photographs.py:folder,small --config.data.dir=PATH --workdir=runs/combined_small
    python -m genreg_jax.main --config=configs/combined_photographs.py:folder,runlocal --config.data.dir=PATH --workdir=runs/smoke

Measured: not run at this size yet.
"""

from configs import common, latent_adversarial_photographs, mgr_photographs, phantom_photographs


def get_config(arg=None):
    config = common.new("combined")
    common.photographs(config)
    phantom_photographs.method(config)
    latent_adversarial_photographs.method(config)
    mgr_photographs.method(config)
    return common.with_options(config, arg)
