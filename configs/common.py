"""What the shipped configs share: a recipe a data set, methods that compose, and the options.

Every config file calls `get_config` of this module with a method and a data set and may then change
settings.
"""

from genreg_jax.config import default_config


def digits(config):
    """8x8 grey digits, few labels: minutes on two CPU cores."""
    config.data.name = "digits"
    config.data.per_class = 20
    config.data.validation_fraction = 0.25
    config.model.widths = (32, 64, 64)
    config.augment.train = "shift(1)"
    config.optimizer.weight_decay = 5e-3
    config.train.epochs = 12
    config.train.steps_per_epoch = 50
    config.synthetic.strong = "shift(1)+affine(0.5)"
    config.synthetic.temperature = 0.7
    config.synthetic.batch_size = 32
    config.flow.levels, config.flow.steps, config.flow.width = 1, 4, 48
    config.flow.dropout, config.flow.augment = 0.3, "shift(1)"
    config.flow.updates, config.flow.eval_every = 600, 50
    config.flow.learning_rate, config.flow.warmup = 5e-3, 50


def fashion_mnist(config):
    """28x28 grey clothes, 50 labels per class."""
    config.data.name = "fashion_mnist"
    config.data.per_class = 50
    config.data.validation_fraction = 0.02
    config.model.widths, config.model.pooling = (16, 32, 64), "max"
    config.augment.train = "flip+crop(2)"
    config.optimizer.weight_decay, config.optimizer.learning_rate = 5e-3, 0.1
    config.train.epochs = 5
    config.train.steps_per_epoch = 100
    config.synthetic.strong = "flip+crop(2)+randaugment(2,5)"
    config.synthetic.temperature = 0.7
    config.synthetic.batch_size = 32
    config.flow.levels, config.flow.steps, config.flow.width = 2, 4, 32
    config.flow.dropout, config.flow.augment = 0.2, "flip+shift(1)"
    config.flow.updates, config.flow.eval_every = 800, 100
    config.flow.learning_rate, config.flow.warmup = 3e-3, 50


def cifar10(config):
    """32x32 colour images at the scale of the papers: ResNet-18, 200 epochs."""
    config.data.name = "cifar10"
    config.model.name = "resnet18"
    config.augment.train = "flip+crop(4)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "step"
    config.train.epochs = 200
    config.train.batch_size = 128
    config.synthetic.strong = "flip+crop(4)+randaugment(2,9)"


def base(config):
    """Plain supervised training."""


def gda(config):
    """Naive generative data augmentation: cross-entropy on synthetic samples."""
    config.synthetic.loss = "cross_entropy"


def pcr(config):
    """Pseudo consistency regularisation on uniformly drawn samples."""
    config.synthetic.loss = "pcr"


def mgr(config):
    """PCR with meta pseudo sampling."""
    pcr(config)
    config.meta.enabled = True


def phantom(config):
    """Each embedding is drawn to a phantom of its class."""
    config.phantom.loss = "attraction"


def latent_random(config):
    """Random latent perturbation through the flow; the authors' radius on CIFAR-10."""
    config.latent.kind, config.latent.epsilon = "random", 20.0


def latent_away(config):
    """Latents moved away from the centre; the authors' size on CIFAR-10."""
    config.latent.kind, config.latent.norm, config.latent.epsilon = "away", "none", 0.15


def latent_adversarial(config):
    """Latents moved against the classifier as it trains; the authors' setting on CIFAR-10."""
    config.latent.kind, config.latent.epsilon = "adversarial", 1.0
    config.latent.step_size, config.latent.num_steps = 0.5, 3


def pgd(config):
    """The baseline: the same attack in image space, without a flow."""
    config.latent.kind, config.latent.epsilon = "pgd", 0.5
    config.latent.step_size, config.latent.num_steps = 0.25, 3


def flow_only(config):
    """A flow, trained on all images; no classifier."""
    config.model.name = "none"
    config.data.per_class = 0
    config.data.validation_fraction = 0.1 if config.data.name == "digits" else 0.02
    config.flow.dropout, config.flow.augment = 0.0, "none"
    config.flow.update(FLOWS[config.flow.kind, config.data.name])


def glow(config):
    """A Glow and no classifier."""
    config.flow.kind = "glow"
    flow_only(config)


def realnvp(config):
    """A RealNVP and no classifier."""
    config.flow.kind = "realnvp"
    flow_only(config)


def middle(config):
    """The flow of a paper's size, shrunk to what two CPU cores can train."""
    config.flow.update(MIDDLE[config.flow.kind])


def runlocal(config):
    """Shrinks everything to a smoke run that shows the whole path on two CPU cores."""
    config.data.per_class = 20
    if config.model.name != "none":
        config.model.name = "convnet"
    config.model.widths = (16, 32)
    config.flow.levels, config.flow.steps, config.flow.width = 2, 2, 16
    config.flow.updates, config.flow.eval_every, config.flow.warmup = 100, 50, 10
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 2, 20, 32


# Flows on their own, which see all images. CIFAR-10 is at the papers' scale. On CPU the activations of
# small batches stay in the cache, and recomputing them is faster than reading them from memory.
_DIGITS = dict(
    levels=1, updates=3000, batch_size=64, eval_every=100, learning_rate=3e-3, dropout=0.2
)
_FASHION_MNIST = dict(
    levels=2,
    batch_size=32,
    eval_every=1000,
    learning_rate=2e-3,
    warmup=500,
    ema_decay=0.999,
    remat=True,
)
_CIFAR10 = dict(
    levels=3,
    conditional=False,
    augment="flip",
    batch_size=64,
    updates=190_000,  # 250 passes
    eval_every=1000,
    optimizer="adamax",
    learning_rate=5e-4,
    weight_decay=5e-5,
    warmup=7800,  # 500,000 images
    ema_decay=0.999,
    remat=True,
)
FLOWS = {
    ("glow", "digits"): dict(steps=8, width=64, **_DIGITS),
    ("realnvp", "digits"): dict(steps=3, width=64, **_DIGITS),
    ("glow", "fashion_mnist"): dict(steps=8, width=64, updates=36_000, **_FASHION_MNIST),
    ("realnvp", "fashion_mnist"): dict(steps=3, width=48, updates=12_000, **_FASHION_MNIST),
    ("glow", "cifar10"): dict(steps=32, width=512, **_CIFAR10),
    ("realnvp", "cifar10"): dict(steps=8, width=512, **_CIFAR10),
}
_MIDDLE = dict(
    levels=3,
    width=48,
    batch_size=32,
    updates=14_000,
    optimizer="adam",
    learning_rate=2e-3,
    warmup=500,
)
MIDDLE = {"glow": dict(steps=6, **_MIDDLE), "realnvp": dict(steps=2, **_MIDDLE)}

# The authors' flow of latent perturbation on CIFAR-10.
PAPER_GLOW = {f"flow.{name}": value for name, value in FLOWS["glow", "cifar10"].items()}

# What tuning on validation images chose; see the tuned.json files below experiments/.
CHOSEN = {
    ("gda", "digits"): {"synthetic.weight": 0.03},
    ("pcr", "digits"): {"synthetic.weight": 1.0},
    ("mgr", "digits"): {"synthetic.weight": 1.0, "meta.outer": "train"},
    ("gda", "fashion_mnist"): {"synthetic.weight": 0.03},
    ("pcr", "fashion_mnist"): {"synthetic.weight": 2.0},
    ("mgr", "fashion_mnist"): {"synthetic.weight": 0.5, "meta.outer": "train"},
    ("phantom", "digits"): {"phantom.weight": 3.0},
    ("phantom", "fashion_mnist"): {"phantom.weight": 3.0},
    ("latent_random", "digits"): {"latent.epsilon": 2.0},
    ("latent_away", "digits"): {"latent.epsilon": 0.1},
    ("latent_adversarial", "digits"): {"latent.epsilon": 0.5, "latent.step_size": 0.25},
    ("pgd", "digits"): {"latent.epsilon": 0.5, "latent.step_size": 0.25},
    ("latent_random", "fashion_mnist"): {"latent.epsilon": 3.0},
    ("latent_away", "fashion_mnist"): {"latent.epsilon": 0.05},
    ("latent_adversarial", "fashion_mnist"): {"latent.epsilon": 0.5, "latent.step_size": 0.25},
    ("pgd", "fashion_mnist"): {"latent.epsilon": 0.25, "latent.step_size": 0.125},
    ("latent_random", "cifar10"): PAPER_GLOW,
    ("latent_away", "cifar10"): PAPER_GLOW,
    ("latent_adversarial", "cifar10"): PAPER_GLOW,
}

DATASETS = {f.__name__: f for f in (digits, fashion_mnist, cifar10)}
# A method is one part or several, which act in different places and are applied in order.
PARTS = (
    base, gda, pcr, mgr, phantom, latent_random, latent_away, latent_adversarial, pgd, glow, realnvp
)  # fmt: skip
METHODS = {
    **{part.__name__: (part,) for part in PARTS},
    "phantom_mgr": (phantom, mgr),
    "phantom_latent": (phantom, latent_adversarial),
    "latent_mgr": (latent_adversarial, mgr),
    "combined": (phantom, latent_adversarial, mgr),
}
OPTIONS = {f.__name__: f for f in (runlocal, middle)}


def get_config(method, dataset, arg=None):
    """The config of a method on a data set, with the comma-separated options of `arg` applied."""
    config = default_config()
    with config.unlocked():
        config.name = method
    DATASETS[dataset](config)
    for part in METHODS[method]:
        part(config)
        config.update_from_flattened_dict(CHOSEN.get((part.__name__, dataset), {}))
    for option in filter(None, (arg or "").split(",")):
        if option not in OPTIONS:
            raise ValueError(f"unknown config option {option!r}; there is {', '.join(OPTIONS)}.")
        OPTIONS[option](config)
    return config
