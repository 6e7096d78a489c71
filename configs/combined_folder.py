"""All three: latent perturbation, phantom embeddings and MGR.

Data: pictures of your own, in a folder with a subfolder for each class. Sizes and numbers of updates
follow the rules of `common.folder`; `:at64` takes them at 64x64. No table has measured it; the values of
the method are those of FashionMNIST and digits.
Source: arXiv:2108.07958, arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/combined_folder.py --config.data.dir=PATH --workdir=runs/combined_folder
    python -m genreg_jax.main --config=configs/combined_folder.py:runlocal --config.data.dir=PATH --workdir=runs/smoke
"""

from configs import common, latent_adversarial_folder, mgr_folder, phantom_folder


def get_config(arg=None):
    config = common.new("combined")
    common.folder(config)
    phantom_folder.method(config)
    latent_adversarial_folder.method(config)
    mgr_folder.method(config)
    return common.with_options(config, arg)
