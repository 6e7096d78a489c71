"""MGR: pseudo consistency regularisation with meta pseudo sampling.

Data: CIFAR-10, all labels; where they lie elsewhere, add --config.data.dir=DIR.
Source: arXiv:2307.13899.

    python -m genreg_jax.main --config=configs/mgr_cifar10.py --workdir=runs/mgr_cifar10
    python -m genreg_jax.main --config=configs/mgr_cifar10.py:few --workdir=runs/mgr_cifar10_few
    python -m genreg_jax.main --config=configs/mgr_cifar10.py:runlocal --workdir=runs/smoke

Cost: classifier 11,173,962 parameters, 2.6e+16 FLOPs in 70,200 plain updates; flow 3,346,176
parameters, 1.3e+16 FLOPs in 70,000 updates. What the method adds to an update comes on top. XLA's
count, printed by benchmarks/config_costs.py.

Flow: the class-conditional Glow of common.cifar10, the same for gda, pcr, mgr and phantom_mgr.
Trained once, it serves the others of the same seed: --config.flow.workdir=runs/mgr_cifar10.

Measured: not run at this size yet, nor with 100 labels per class (`:few`). `:runlocal` (20 labels
per class, a small convnet, 40 updates) is a smoke run of the same path; its accuracy means
nothing.
"""

from configs import common


def method(config):
    """PCR, on samples that a finder learns to choose, within a radius so that none collapse."""
    config.synthetic.loss = "pcr"
    config.synthetic.weight = 1.0
    config.meta.enabled = True
    config.meta.outer = "holdout"
    config.meta.radius = 0.3  # keeps the spread at 0.96 with few labels, experiments/sources


def get_config(arg=None):
    config = common.new("mgr")
    common.cifar10(config)
    method(config)
    return common.with_options(config, arg)
