"""All three: latent perturbation, phantom embeddings and MGR.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2108.07958, arXiv:2304.07262 and arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/combined_cifar10.py --workdir=runs/combined_cifar10
    python -m genreg_jax.main --config=configs/combined_cifar10.py:few --workdir=runs/combined_cifar10_few
    python -m genreg_jax.main --config=configs/combined_cifar10.py:runlocal --workdir=runs/smoke

Cost: classifier 11,173,962 parameters, 2.6e+16 FLOPs in 70,200 plain updates; flow 44,054,016
parameters, 3.9e+17 FLOPs in 190,000 updates. What the method adds to an update comes on top. XLA's
count, printed by benchmarks/config_costs.py.

Flow: the latent-perturbation paper's unconditional Glow, which MGR draws from too, the same for
latent_random, latent_away, latent_adversarial, phantom_latent, latent_mgr and combined. Trained
once, it serves the others of the same seed: --config.flow.workdir=runs/combined_cifar10.

Measured: not run at this size yet, nor with 100 labels per class (`:few`). `:runlocal` (20 labels
per class, a small convnet, 40 updates) is a smoke run of the same path; its accuracy means
nothing.
"""

from configs import common, latent_adversarial_cifar10, mgr_cifar10, phantom_cifar10


def get_config(arg=None):
    config = common.new("combined")
    common.cifar10(config)
    phantom_cifar10.method(config)
    latent_adversarial_cifar10.method(config)
    mgr_cifar10.method(config)
    return common.with_options(config, arg)
