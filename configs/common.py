"""What the config files share: a recipe a data set, and the options behind a config's colon.

A config file sets what it is about from top to bottom: a recipe of this module, then the values of
its method. Values that differ between methods of one data set are in the files of the methods.
"""

from genreg_jax.settings import default_config


def new(name):
    """The defaults of every setting, under a name for reports."""
    config = default_config()
    with config.unlocked():
        config.name = name
    return config


# ------------------------------------------------------------------------------------ data sets


def digits(config):
    """8x8 grey digits, few labels: minutes on two CPU cores."""
    config.data.name = "digits"
    config.data.per_class = 20
    config.data.validation_fraction = 0.25

    config.model.name = "convnet"
    config.model.widths = (32, 64, 64)
    config.augment.train = "shift(1)"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-3
    config.train.epochs = 12
    config.train.steps_per_epoch = 50
    config.train.batch_size = 64

    # The samples of methods that draw any.
    config.synthetic.strong = "shift(1)+affine(0.5)"
    config.synthetic.temperature = 0.7
    config.synthetic.batch_size = 32

    # The flow of methods that need one, trained on the labelled images.
    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 1, 4, 48
    config.flow.dropout = 0.3
    config.flow.augment = "shift(1)"
    config.flow.updates, config.flow.eval_every = 600, 50
    config.flow.learning_rate, config.flow.warmup = 5e-3, 50


def fashion_mnist(config):
    """28x28 grey clothes, 50 labels per class."""
    config.data.name = "fashion_mnist"
    config.data.per_class = 50
    config.data.validation_fraction = 0.02

    config.model.name = "convnet"
    config.model.widths = (16, 32, 64)
    config.model.pooling = "max"
    config.augment.train = "flip+crop(2)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-3
    config.train.epochs = 5
    config.train.steps_per_epoch = 100
    config.train.batch_size = 64

    # The samples of methods that draw any.
    config.synthetic.strong = "flip+crop(2)+randaugment(2,5)"
    config.synthetic.temperature = 0.7
    config.synthetic.batch_size = 32

    # The flow of methods that need one, trained on the labelled images.
    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 2, 4, 32
    config.flow.dropout = 0.2
    config.flow.augment = "flip+shift(1)"
    config.flow.updates, config.flow.eval_every = 800, 100
    config.flow.learning_rate, config.flow.warmup = 3e-3, 50


def cifar10(config):
    """32x32 colour images at the scale of the papers: ResNet-18, 200 epochs."""
    config.data.name = "cifar10"
    config.data.per_class = 0  # all labels
    config.data.validation_fraction = 0.1

    config.model.name = "resnet18"
    config.augment.train = "flip+crop(4)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "step"
    config.optimizer.step_epochs, config.optimizer.step_factor = (60, 120, 160), 0.2
    config.train.epochs = 200
    config.train.batch_size = 128

    # The samples of methods that draw any.
    config.synthetic.strong = "flip+crop(4)+randaugment(2,9)"
    config.synthetic.temperature = 1.0


# -------------------------------------------------------------------------------------- options


def runlocal(config):
    """Shrinks everything to a smoke run that shows the whole path on two CPU cores."""
    config.data.per_class = 20
    if config.model.name != "none":
        config.model.name = "convnet"
    config.model.widths = (16, 32)
    config.flow.levels, config.flow.steps, config.flow.width = 2, 2, 16
    config.flow.updates, config.flow.eval_every, config.flow.warmup = 100, 50, 10
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 2, 20, 32


def middle(config):
    """CIFAR-10: the flow shrunk to what two CPU cores can train in about an hour."""
    config.flow.levels, config.flow.width = 3, 48
    config.flow.steps = {"glow": 6, "realnvp": 2}[config.flow.kind]
    config.flow.batch_size, config.flow.updates = 32, 14_000
    config.flow.optimizer = "adam"
    config.flow.learning_rate, config.flow.warmup = 2e-3, 500


OPTIONS = {f.__name__: f for f in (runlocal, middle)}


def with_options(config, arg):
    """The config with the options of `arg` applied, comma-separated and in their order."""
    for name in filter(None, (arg or "").split(",")):
        if name not in OPTIONS:
            raise ValueError(f"unknown config option {name!r}; there is {', '.join(OPTIONS)}.")
        OPTIONS[name](config)
    return config
