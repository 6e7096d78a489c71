"""The baseline of latent perturbation: the attack in image space.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:1706.06083.

    python -m genreg_jax.main --config=configs/pgd_cifar10.py --workdir=runs/pgd_cifar10
    python -m genreg_jax.main --config=configs/pgd_cifar10.py:few --workdir=runs/pgd_cifar10_few
    python -m genreg_jax.main --config=configs/pgd_cifar10.py:runlocal --workdir=runs/smoke

Cost: classifier 11,173,962 parameters, 2.6e+16 FLOPs in 70,200 plain updates. What the method adds
to an update comes on top. XLA's count, printed by benchmarks/config_costs.py.

Measured: not run at this size yet, nor with 100 labels per class (`:few`). `:runlocal` (20 labels
per class, a small convnet, 40 updates) is a smoke run of the same path; its accuracy means
nothing.
"""

from configs import common


def method(config):
    """The attack of latent_adversarial in image space, without a flow."""
    config.latent.kind = "pgd"
    config.latent.epsilon = 0.5
    config.latent.step_size, config.latent.num_steps = 0.25, 3


def get_config(arg=None):
    config = common.new("pgd")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
