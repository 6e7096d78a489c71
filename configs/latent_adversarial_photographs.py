"""Training images perturbed against the classifier in the latent space of an exact flow.

Data: photographs with ImageNet's weights: `:cars`, `:aircraft`, `:cub`, `:dtd`, `:flowers`, `:pets` (where nothing
is said), each in its official layout in --config.data.dir=DIR; or `:folder`, pictures of your own. `:fraction=10`
keeps a tenth of the labels, `:small` is a size for two CPU cores. Needs the extra `pretrained`.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_adversarial_photographs.py:cars --config.data.dir=DIR --workdir=runs/latent_adversarial_cars
    python -m genreg_jax.main --config=configs/latent_adversarial_photographs.py:folder,small --config.data.dir=PATH --workdir=runs/latent_adversarial_small
    python -m genreg_jax.main --config=configs/latent_adversarial_photographs.py:folder,runlocal --config.data.dir=PATH --workdir=runs/smoke

Measured: not run at this size yet.
"""

from configs import common


def method(config):
    """Latents move against the classifier, and the image by what that changes."""
    config.latent.kind = "adversarial"
    config.latent.difference = True  # the flow is smaller than the image
    config.latent.epsilon = 0.25  # chosen at 64x64, experiments/fine_tuning
    config.latent.step_size, config.latent.num_steps = 0.125, 3


def get_config(arg=None):
    config = common.new("latent_adversarial")
    common.photographs(config)
    method(config)
    return common.with_options(config, arg)
