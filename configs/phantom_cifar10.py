"""Phantom embeddings: each embedding is drawn to a random mixture of others of its class.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2304.07262.

    python -m genreg_jax.main --config=configs/phantom_cifar10.py --workdir=runs/phantom_cifar10
    python -m genreg_jax.main --config=configs/phantom_cifar10.py:few --workdir=runs/phantom_cifar10_few
    python -m genreg_jax.main --config=configs/phantom_cifar10.py:runlocal --workdir=runs/smoke

Cost: classifier 11,173,962 parameters, 2.6e+16 FLOPs in 70,200 plain updates. What the method adds
to an update comes on top. XLA's count, printed by benchmarks/config_costs.py.

Measured: not run at this size yet, nor with 100 labels per class (`:few`). `:runlocal` (20 labels
per class, a small convnet, 40 updates) is a smoke run of the same path; its accuracy means
nothing.
"""

from configs import common


def method(config):
    """Each embedding is drawn to a phantom of its class."""
    config.phantom.loss = "attraction"
    config.phantom.weight = 1.0


def get_config(arg=None):
    config = common.new("phantom")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
