"""What the config files share: a recipe a data set, and the options behind a config's colon.

A config file sets what it is about from top to bottom: a recipe of this module, then the values of
its method. Values that differ between methods of one data set are in the files of the methods.
"""

from genreg_jax.config import default_config


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


def folder(config):
    """Pictures of one's own, `--config.data.dir=PATH`: 32x32, whatever their number and classes.

    Rules: a pass over the images an epoch, and at least 25 updates, so that few images are seen
    more often; a flow that sees 800 batches of 64. The sizes are those of FashionMNIST's recipe with
    half its batch; `at64` doubles the side of the images and adds a layer to the classifier and a
    level to the flow.
    """
    config.data.name = "folder"
    config.data.image_size = 32
    config.data.resize = "crop"
    config.data.test_fraction = 0.2  # where there is no test folder
    config.data.validation_fraction = 0.1

    config.model.name = "convnet"
    config.model.widths = (16, 32, 64)
    config.model.pooling = "max"
    config.augment.train = "flip+crop(4)"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-3
    config.train.epochs = 20
    config.train.least_steps = 25
    config.train.batch_size = 32

    # The samples of methods that draw any.
    config.synthetic.strong = "flip+crop(4)+randaugment(2,5)"
    config.synthetic.temperature = 0.7
    config.synthetic.batch_size = 16

    # The flow of methods that need one, trained on the labelled images.
    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 2, 4, 32
    config.flow.dropout = 0.2
    config.flow.augment = "flip+shift(2)"
    config.flow.updates, config.flow.eval_every = 800, 100
    config.flow.learning_rate, config.flow.warmup = 3e-3, 50


SETS = ("cars", "aircraft", "cub", "dtd", "flowers", "pets")


def photographs(config):
    """Photographs of few and similar kinds, with ImageNet's weights: the regime of MGR's paper.

    The recipe is that of a public framework of its author for six such sets (`yshinya6/adarand`): boxes
    of random size at 224x224, SGD without weight decay, a tenth of the rate at 30, 60 and 80 % of 200
    passes. The network is EfficientNet-Lite0, whose weights are in a package. Its BatchNorm keeps
    ImageNet's statistics, and with them the recipe's rate of 0.01 ruins the features within ten updates:
    the trunk has 0.0003 and the fresh head 30 times that (experiments/fine_tuning). The flow works at
    64x64.
    """
    config.data.name = "pets"
    config.data.image_size = 224
    config.data.validation_fraction = 0.1  # where a set has no split for it

    config.model.name = "efficientnet_lite0"
    config.model.pretrained = "efficientnet_lite0"
    config.model.freeze = "statistics"
    config.augment.train = "flip+random_resized_crop"
    config.optimizer.learning_rate = 0.0003
    config.optimizer.head_factor = 30.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "step"
    config.optimizer.step_epochs, config.optimizer.step_factor = (60, 120, 160), 0.1
    config.train.epochs = 200
    config.train.batch_size = 64

    # The samples of methods that draw any.
    config.synthetic.strong = "flip+random_resized_crop+randaugment(2,9)"
    config.synthetic.temperature = 0.7
    config.synthetic.batch_size = 64

    # The flow of methods that need one, trained on the labelled images.
    config.flow.image_size = 64
    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 4, 12, 96
    # With 2, a picture in strong colours among grey ones grows from step to step until it overflows.
    config.flow.scale = 0.5
    config.flow.dropout = 0.2
    config.flow.augment = "flip+shift(4)"
    config.flow.batch_size = 64
    config.flow.updates, config.flow.eval_every = 8000, 400
    config.flow.learning_rate, config.flow.warmup = 1e-3, 500
    config.flow.ema_decay = 0.999


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
    # A pass over 45,000 images; as many updates for MGR, which holds a tenth of them out.
    config.train.steps_per_epoch = 351
    config.train.batch_size = 128

    # The samples of methods that draw any.
    config.synthetic.strong = "flip+crop(4)+randaugment(2,9)"
    config.synthetic.temperature = 1.0

    # The generator of gda, pcr, mgr and phantom_mgr: a class-conditional Glow that sees as many
    # images as the classifier and takes half of its FLOPs.
    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 3, 16, 128
    config.flow.conditional = True
    config.flow.augment = "flip"
    config.flow.batch_size = 128
    config.flow.updates, config.flow.eval_every = 70_000, 1000  # 199 passes
    config.flow.optimizer = "adam"
    config.flow.learning_rate, config.flow.warmup = 1e-3, 2000
    config.flow.ema_decay = 0.999


# -------------------------------------------------------------------------------------- options


def runlocal(config):
    """Shrinks everything to a smoke run that shows the whole path on two CPU cores."""
    if config.data.image_size == 0:  # sets of small images, which have many of each class
        config.data.per_class = 20
    elif config.data.image_size > 64:
        config.data.image_size, config.flow.image_size = 64, 32
    if config.model.name != "none":
        config.model.name = "convnet"
        config.model.pretrained, config.model.freeze = "", "none"
    config.model.widths = (16, 32)
    config.flow.levels, config.flow.steps, config.flow.width = 2, 2, 16
    config.flow.updates, config.flow.eval_every, config.flow.warmup = 100, 50, 10
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 2, 20, 32


def at64(config):
    """Own pictures at 64x64, for which the classifier has a layer more and the flow a level."""
    config.data.image_size = 64
    config.model.widths = (16, 32, 64, 128)
    config.augment.train = "flip+crop(8)"
    config.synthetic.strong = "flip+crop(8)+randaugment(2,5)"
    config.flow.levels = 3
    config.flow.augment = "flip+shift(4)"


def small(config):
    """Photographs at 64x64 with a flow of 32x32 and few updates, for two CPU cores.

    The rate rises over the first quarter of the updates: without it a second loss throws the fresh head
    over (experiments/fine_tuning).
    """
    config.data.image_size = 64
    config.augment.train = "flip+random_resized_crop(0.25)"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.train.epochs, config.train.steps_per_epoch = 4, 25
    config.train.batch_size = 32
    config.synthetic.strong = "flip+random_resized_crop(0.25)+randaugment(2,5)"
    config.synthetic.batch_size = 16
    config.flow.image_size = 32
    config.flow.levels, config.flow.steps, config.flow.width = 2, 4, 32
    config.flow.scale = 2.0
    config.flow.augment = "flip+shift(2)"
    config.flow.updates, config.flow.eval_every = 800, 100
    config.flow.learning_rate, config.flow.warmup = 3e-3, 50
    config.flow.ema_decay = 0.99


def _named(name):
    def of(config):
        config.data.name = name

    return of


def fraction(config, percent):
    """A share of the labelled images, in per cent."""
    try:
        config.data.fraction = float(percent) / 100
    except ValueError:
        raise ValueError(f"config option fraction={percent}: give per cent, fraction=10.") from None


def middle(config):
    """CIFAR-10: the flow shrunk to what two CPU cores can train in about an hour."""
    config.flow.levels, config.flow.width = 3, 48
    config.flow.steps = {"glow": 6, "realnvp": 2}[config.flow.kind]
    config.flow.batch_size, config.flow.updates = 32, 14_000
    config.flow.optimizer = "adam"
    config.flow.learning_rate, config.flow.warmup = 2e-3, 500


def few(config):
    """CIFAR-10 with 100 labels per class; no run of this size has been made yet.

    The classifier's rate and weight decay are what the search of GEM (`lorenzobrigato/gem`) found for
    500 labels of ciFAIR-10 and a WRN-16-8: 4.6e-3 and 5.3e-3 at batch 10, with a cosine schedule. The
    batch is 50, the largest it searched, since phantom embeddings and MGR need several images of a
    class in it; the rate follows the batch, so that rate times decay per pass is the same. 1,000
    passes and augmentation beyond shift and flip are those of the best public rows with 1,000
    labels (71.4 %, WRN-16-8 with AutoAugment); here it is RandAugment.

    The flow is the one that `middle` has, which reached 3.793 bits/dim on all images, with the
    dropout and the 100 passes of FashionMNIST's recipe, which has half as many images; one for all
    methods. MGR's outer batch comes from the training images, as validation chose on digits and
    FashionMNIST: a tenth held out would cost 100 labels. Synthetic samples are encodings of real images
    mixed within their class, which with 50 labels per class were worth more than draws of the prior
    (experiments/sources, a smaller network). Other values of methods stay; the authors' latent radii
    were chosen for their flow, and are to be tuned with this one.
    """
    config.data.per_class = 100
    config.data.validation_fraction = 0.02  # 1,000 images

    config.augment.train = "flip+crop(4)+randaugment(2,9)"
    config.optimizer.learning_rate = 0.023
    config.optimizer.weight_decay = 5.3e-3
    config.optimizer.schedule = "cosine"
    config.train.batch_size, config.train.balanced = 50, True
    config.train.epochs, config.train.steps_per_epoch = 200, 100  # 1,000 passes
    config.synthetic.source = "interpolated"
    config.meta.outer = "train"

    config.flow.kind = "glow"
    config.flow.levels, config.flow.steps, config.flow.width = 3, 6, 48
    config.flow.conditional = True
    config.flow.dropout = 0.2
    config.flow.augment = "flip+shift(2)"
    config.flow.batch_size = 64
    config.flow.updates, config.flow.eval_every = 1600, 100  # 102 passes
    config.flow.optimizer, config.flow.weight_decay = "adam", 1e-4
    config.flow.learning_rate, config.flow.warmup = 2e-3, 100
    config.flow.ema_decay = 0.99
    config.flow.remat = False


def options_of(config):
    """The options that a config has, by name."""
    options = [runlocal]
    if config.data.name == "folder":
        options += [at64]
    if config.data.name == "cifar10":
        options += [middle] if config.model.name == "none" else [middle, few]
    if config.data.name in SETS:
        sets = {name: _named(name) for name in (*SETS, "folder", "cifar10")}
        return {"runlocal": runlocal, "small": small, "fraction": fraction, **sets}
    return {option.__name__: option for option in options}


def with_options(config, arg):
    """The config with the options of `arg` applied, comma-separated and in their order.

    `NAME=VALUE` gives an option its value.
    """
    options = options_of(config)
    for option in filter(None, (arg or "").split(",")):
        name, _, value = option.partition("=")
        if name not in options:
            reason = ""
            if name == "few":
                reason = (
                    " A flow on its own is trained on all images."
                    if config.model.name == "none"
                    else f" The recipe of {config.data.name} has few labels as it is: "
                    f"{config.data.per_class} per class."
                )
            raise ValueError(
                f"unknown config option {name!r}; {config.name} on {config.data.name} has "
                f"{', '.join(options)}.{reason}"
            )
        if bool(value) != (name == "fraction"):
            wants = "a value, such as fraction=10" if name == "fraction" else "no value"
            raise ValueError(f"config option {option!r}: {name} takes {wants}.")
        options[name](config, *([value] if value else []))
    return config
