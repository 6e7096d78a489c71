"""Training images perturbed against the classifier in the latent space of an exact flow.

Data: pictures of your own, in a folder with a subfolder for each class. Sizes and numbers of updates
follow the rules of `common.folder`; `:at64` takes them at 64x64. No table has measured it; the values of
the method are those of FashionMNIST and digits.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_adversarial_folder.py --config.data.dir=PATH --workdir=runs/latent_adversarial_folder
    python -m genreg_jax.main --config=configs/latent_adversarial_folder.py:runlocal --config.data.dir=PATH --workdir=runs/smoke
"""

from configs import common


def method(config):
    """Latents move against the classifier as it trains."""
    config.latent.kind = "adversarial"
    config.latent.epsilon = 0.5  # FashionMNIST's, experiments/latent
    config.latent.step_size, config.latent.num_steps = 0.25, 3


def get_config(arg=None):
    config = common.new("latent_adversarial")
    common.folder(config)
    method(config)
    return common.with_options(config, arg)
