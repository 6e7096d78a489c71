"""RealNVP on its own at the papers' scale; it wants an accelerator.

Data: CIFAR-10, all training images; where they lie elsewhere, add --config.data.dir=DIR.
Source: Dinh et al., "Density estimation using Real NVP" (2017).

    python -m genreg_jax.main --config=configs/realnvp_cifar10.py --workdir=runs/realnvp_cifar10
    python -m genreg_jax.main --config=configs/realnvp_cifar10.py:middle --workdir=runs/realnvp_cifar10_middle
    python -m genreg_jax.main --config=configs/realnvp_cifar10.py:runlocal --workdir=runs/smoke

Cost: flow 19,608,192 parameters, 4.3e+17 FLOPs in 190,000 updates. XLA's count, printed by
benchmarks/config_costs.py.

Measured: not yet.
"""

from configs import common


def flow(config):
    """As long and as wide as the Glow of glow_cifar10."""
    config.flow.kind = "realnvp"
    config.flow.levels, config.flow.steps, config.flow.width = 3, 8, 512
    config.flow.conditional = False
    config.flow.dropout = 0.0
    config.flow.augment = "flip"
    config.flow.batch_size = 64
    config.flow.updates, config.flow.eval_every = 190_000, 1000  # 250 passes of all 49,000
    config.flow.optimizer = "adamax"
    config.flow.learning_rate, config.flow.weight_decay = 5e-4, 5e-5
    config.flow.warmup = 7800  # 500,000 images
    config.flow.ema_decay = 0.999
    config.flow.remat = True


def get_config(arg=None):
    config = common.new("realnvp")
    common.cifar10(config)
    config.model.name = "none"
    config.train.steps_per_epoch = 0  # there is no classifier to train
    config.data.per_class = 0  # all images
    config.data.validation_fraction = 0.02
    flow(config)
    return common.with_options(config, arg)
