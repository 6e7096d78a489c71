"""Training images moved away from the centre of the latent space of an exact flow.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958.

    python -m genreg_jax.main --config=configs/latent_away_cifar10.py --workdir=runs/latent_away_cifar10
    python -m genreg_jax.main --config=configs/latent_away_cifar10.py:few --workdir=runs/latent_away_cifar10_few
    python -m genreg_jax.main --config=configs/latent_away_cifar10.py:runlocal --workdir=runs/smoke

Cost: classifier 11,173,962 parameters, 2.6e+16 FLOPs in 70,200 plain updates; flow 44,054,016
parameters, 3.9e+17 FLOPs in 190,000 updates. What the method adds to an update comes on top. XLA's
count, printed by benchmarks/config_costs.py.

Flow: the latent-perturbation paper's unconditional Glow, the same for latent_random, latent_away,
latent_adversarial, phantom_latent, latent_mgr and combined. Trained once, it serves the others of
the same seed: --config.flow.workdir=runs/latent_away_cifar10.

Measured: not run at this size yet, nor with 100 labels per class (`:few`). `:runlocal` (20 labels
per class, a small convnet, 40 updates) is a smoke run of the same path; its accuracy means
nothing.
"""

from configs import common, glow_cifar10


def method(config):
    """Latents move away from the centre."""
    config.latent.kind = "away"
    config.latent.norm = "none"
    config.latent.epsilon = 0.15  # the authors' size
    glow_cifar10.flow(config)  # the authors' flow


def get_config(arg=None):
    config = common.new("latent_away")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
