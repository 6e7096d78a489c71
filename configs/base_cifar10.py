"""Plain supervised training.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: the reference of every comparison.

    python -m genreg_jax.main --config=configs/base_cifar10.py --workdir=runs/base_cifar10
    python -m genreg_jax.main --config=configs/base_cifar10.py:few --workdir=runs/base_cifar10_few
    python -m genreg_jax.main --config=configs/base_cifar10.py:runlocal --workdir=runs/smoke

Cost: classifier 11,173,962 parameters, 2.6e+16 FLOPs in 70,200 plain updates. XLA's count, printed
by benchmarks/config_costs.py.

Measured: not run at this size yet, nor with 100 labels per class (`:few`). `:runlocal` (20 labels
per class, a small convnet, 40 updates) is a smoke run of the same path; its accuracy means
nothing.
"""

from configs import common


def get_config(arg=None):
    config = common.new("base")
    common.cifar10(config)
    return common.with_options(config, arg)
