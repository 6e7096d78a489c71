"""With few labels and a tuned baseline, what should one turn on, and what does it cost?

python -m experiments.low_data.run --study=fashion_mnist --data_dir=DIR --stage=tune  # validation
python -m experiments.low_data.run --study=fashion_mnist --data_dir=DIR --stage=plan  # the hours
python -m experiments.low_data.run --study=fashion_mnist --data_dir=DIR               # the table
python -m experiments.low_data.report --study=fashion_mnist                           # the page

Of plain training the rate, the decay and the batch are searched at random, with as many images for
each, and halved on validation images. All rows have that choice and the same number of updates, and
each has four candidates of its own strengths; combinations have those of their parts, and what is
best in tuning, of the augmentations and of the regularisers, goes on top. Base, augmentations and
some methods have four times the updates, too. `--study`: fashion_mnist, cifar10,
cifar10_wide_resnet, cifar10_resnet18, digits, textures.
"""

import math
import pathlib

import numpy as np

from experiments.runner import main
from experiments.study import Study, shipped

SEARCH_SEED, DRAWS = 8_128_496, 16
BATCH = 32  # whose updates a study's config counts


def draws(count, batches, updates):
    """Random rates, decays and batches, as GEM's search has them (doi:10.1109/ACCESS.2022.3172939).

    All see as many images, those of `updates` of `BATCH` images an epoch: with as many updates the
    largest batch would win by its work.
    """
    rng = np.random.default_rng(SEARCH_SEED)
    log = lambda low, high: float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")
    found = [
        {
            "optimizer.learning_rate": log(3e-3, 0.3),
            "optimizer.weight_decay": log(1e-4, 3e-2),
            "train.batch_size": int(rng.choice(batches)),
        }
        for _ in range(count)
    ]
    for draw in found:
        draw["train.steps_per_epoch"] = updates * BATCH // draw["train.batch_size"]
    return found


def values(name, *choices):
    return [{name: value} for value in choices]


def attack(*radii):
    """Three steps of half the radius."""
    return [{"latent.epsilon": r, "latent.step_size": r / 2} for r in radii]


def sampled(*weights):
    return [
        {"synthetic.source": source, "synthetic.weight": weight}
        for source in ("renoised", "interpolated")
        for weight in weights
    ]


SAMPLES = {"synthetic.batch_size": 16}  # as many as real ones where base's choice is 16
PCR = {"synthetic.loss": "pcr", **SAMPLES}
META = {"meta.enabled": True, "meta.outer": "train", "meta.radius": 0.3}
PARTS = ("best phantom", "latent adversarial", "mgr")
AUGMENTATIONS = (
    "randaugment", "trivialaugment", "cutout", "mixup", "cutmix", "label smoothing",
)  # fmt: skip
REGULARISERS = (
    "gda", "pcr", "mgr", "phantom attraction", "phantom separation",
    "latent random", "latent adversarial", "latent interpolation",
)  # fmt: skip
ENSEMBLE = "base, ensemble of 2"
LEARNED = "phantom.weight,synthetic.weight,latent.epsilon"
TIMES = (2, 4, 8, 16)  # base's updates
LONG = (*AUGMENTATIONS, "gda", "latent adversarial", "all three")  # those of four times, too


def times(row, n):
    """The row of a longer training."""
    return f"{row}, {n} times the updates"


def robust(config):
    """With updates that are not finite left out and counted, so that one ends no study."""
    config.train.nonfinite = "skip"
    return config


def study(config, view, *, side, radii, attacks, batches=(16, 32, 64), **options):
    """The rows of one data set.

    Args:
      config: makes the config of plain training.
      view: its augmentation.
      side: of the images.
      radii: of latent perturbations at random.
      attacks: radii of adversarial ones.
      batches: among which base's is drawn; the smallest subset has as many images.
      **options: of the study.
    """
    epochs, updates = config().train.epochs, config().train.steps_per_epoch
    rows = {
        "base": {},
        "randaugment": {},
        "trivialaugment": {"augment.train": f"{view}+trivialaugment"},
        "cutout": {},
        "mixup": {"augment.mix": "mixup"},
        "cutmix": {"augment.mix": "cutmix"},
        "label smoothing": {},
        "small batches, strong decay": {
            "train.batch_size": 10,
            "train.steps_per_epoch": updates * BATCH // 10,
        },
        "gda": {"synthetic.loss": "cross_entropy", **SAMPLES},
        "pcr": PCR,
        "mgr": {**PCR, **META},
        "phantom attraction": {"phantom.loss": "attraction"},
        "phantom separation": {"phantom.loss": "separation"},
        "latent random": {"latent.kind": "random"},
        "latent adversarial": {"latent.kind": "adversarial", "latent.num_steps": 3},
        "latent interpolation": {"latent.kind": "interpolation"},
        "pgd": {"latent.kind": "pgd", "latent.num_steps": 3},
    }
    candidates = {
        "base": draws(DRAWS, batches, updates),
        "randaugment": [
            {"augment.train": f"{view}+randaugment({n},{m})"} for n in (1, 2) for m in (5, 9)
        ],
        # No strength of its own, so more or less decay.
        "trivialaugment": [{}, *values("optimizer.weight_decay", 1e-3, 5e-3, 2e-2)],
        "cutout": [{"augment.train": f"{view}+cutout({side * k // 8})"} for k in (1, 2, 3, 4)],
        "mixup": values("augment.mix_alpha", 0.1, 0.2, 0.5, 1.0),
        "cutmix": values("augment.mix_alpha", 0.1, 0.2, 0.5, 1.0),
        "label smoothing": values("augment.label_smoothing", 0.05, 0.1, 0.2, 0.4),
        "small batches, strong decay": [
            {"optimizer.learning_rate": rate, "optimizer.weight_decay": decay}
            for rate in (4.6e-3, 1.5e-2)
            for decay in (5.3e-3, 2e-2)
        ],
        "gda": sampled(0.3, 1.0),
        "pcr": sampled(1.0, 5.0),
        "mgr": sampled(0.5, 2.0),
        "phantom attraction": values("phantom.weight", 0.03, 0.3, 3.0, 30.0),
        "phantom separation": [
            {"phantom.weight": weight, "phantom.temperature": temperature}
            for weight, temperature in ((0.1, 1.0), (0.5, 1.0), (0.3, 0.1), (1.0, 0.1))
        ],
        "latent random": values("latent.epsilon", *radii),
        "latent adversarial": attack(*attacks),
        "latent interpolation": values("latent.epsilon", 0.1, 0.25, 0.5, 1.0),
        "pgd": attack(0.12, 0.25, 0.5, 1.0),
    }
    # Taken from a choice as a whole, where a row's own settings would be lost.
    whole = {row: rows[row] for row in ("mgr", "latent adversarial")}
    of = lambda *parts: {k: v for part in parts for k, v in whole.get(part, {}).items()}
    combined = {
        "phantom + latent": PARTS[:2],
        "phantom + mgr": (PARTS[0], PARTS[2]),
        "latent + mgr": PARTS[1:],
        "all three": PARTS,
    }
    for row, parts in combined.items():
        rows[row] = of(*parts)
    long = {times(row, 4): row for row in LONG}
    inherits = {
        **combined,
        **{name: combined.get(row, (row,)) for name, row in long.items()},
        "best single + best augmentation": ("best augmentation", "best single"),
        "all three + best augmentation": ("best augmentation", *PARTS),
        "all three, self-tuned": PARTS,
        **{times("base", n): ("base",) for n in TIMES},
        ENSEMBLE: ("base",),
    }
    rows |= {
        "best single + best augmentation": {},
        "all three + best augmentation": of(*PARTS),
        "all three, self-tuned": {**of(*PARTS), "tune.learn": LEARNED},
        **{times("base", n): {"train.epochs": n * epochs} for n in TIMES},
        ENSEMBLE: {},
        **{name: {**rows[row], "train.epochs": 4 * epochs} for name, row in long.items()},
    }
    best = {
        "best augmentation": AUGMENTATIONS,
        "best phantom": ("phantom attraction", "phantom separation"),
        "best single": REGULARISERS,
    }
    return Study(
        config=lambda: robust(config()),
        rows=rows,
        candidates=candidates,
        inherits=inherits,
        best=best,
        members={ENSEMBLE: 2},
        on_first=True,
        halving=(0.25, 0.5, 1.0),
        pairs=[
            *(("all three", row) for row in ("phantom + latent", "phantom + mgr", "latent + mgr")),
            *(("all three", part) for part in ("mgr", "latent adversarial")),
            ("mgr", "pcr"),
            ("all three, self-tuned", "all three"),
            ("all three + best augmentation", "best single + best augmentation"),
            *(
                (f"{row} + best augmentation", a)
                for row in ("best single", "all three")
                for a in AUGMENTATIONS
            ),
            *((name, times("base", 4)) for name in long),
        ],
        tuning_seeds=(100, 101),
        **options,
    )


def fashion_mnist():
    """0.2 million parameters, 500 updates of 32 images."""
    config = shipped("base", "fashion_mnist")
    config.model.widths = (48, 96, 160)
    return config


def cifar10():
    """0.2 million parameters, 500 updates of 32 images."""
    config = shipped("base", "cifar10")
    config.data.validation_fraction = 0.02  # 1,000 images
    config.model.name, config.model.widths = "convnet", (48, 96, 160)
    config.model.pooling = "max"
    config.augment.train = "flip+crop(4)"
    config.optimizer.schedule = "cosine"
    config.train.epochs, config.train.steps_per_epoch = 5, 100
    config.synthetic.strong = "flip+crop(4)+randaugment(2,5)"
    config.synthetic.temperature, config.synthetic.batch_size = 0.7, 32
    config.flow.levels, config.flow.steps, config.flow.width = 3, 6, 48
    config.flow.dropout, config.flow.augment = 0.2, "flip+shift(2)"
    config.flow.batch_size = 64
    config.flow.updates, config.flow.eval_every, config.flow.warmup = 800, 100, 50
    config.flow.learning_rate, config.flow.weight_decay = 2e-3, 1e-4
    config.flow.ema_decay = 0.99
    return config


def cifar10_wide_resnet():
    """WideResNet-16-8, 11 million parameters, 5,000 updates of 32 images; wants a GPU."""
    config = cifar10()
    config.model.name, config.model.depth, config.model.widening = "wide_resnet", 16, 8
    config.train.epochs, config.train.steps_per_epoch = 20, 250
    return config


def cifar10_resnet18():
    """ResNet-18, 11 million parameters, as many updates."""
    config = cifar10_wide_resnet()
    config.model = shipped("base", "cifar10").model
    return config


def digits():
    """0.06 million parameters, 600 updates of 32 images."""
    return shipped("base", "digits")


def textures():
    """A folder of photographs at 32 x 32; 0.2 million parameters, 500 updates of 32 images."""
    config = shipped("base", "folder")
    config.model.widths = (48, 96, 160)
    config.train.epochs, config.train.steps_per_epoch = 5, 100
    return config


# Radii for the flow of 32 x 32 images in colour, whose latents have 3,072 numbers.
COLOUR = dict(side=32, radii=(3.0, 6.0, 12.0, 24.0), attacks=(0.5, 1.5, 4.0, 10.0))
CIFAR10 = dict(**COLOUR, sizes=(50, 10, 100, 500), seeds=range(10), tuning_size=50)
STUDIES = {
    "fashion_mnist": study(
        fashion_mnist, "flip+crop(2)", side=28,
        radii=(1.5, 3.0, 7.0, 14.0), attacks=(0.15, 0.5, 1.5, 4.0),
        sizes=(50, 10, 100, 500), seeds=range(10), tuning_size=50,
    ),
    "cifar10": study(cifar10, "flip+crop(4)", **CIFAR10),
    "cifar10_wide_resnet": study(cifar10_wide_resnet, "flip+crop(4)", **CIFAR10),
    "cifar10_resnet18": study(cifar10_resnet18, "flip+crop(4)", **CIFAR10),
    "digits": study(
        digits, "shift(1)", side=8,
        radii=(0.5, 1.0, 2.0, 4.0), attacks=(0.25, 0.5, 1.0, 2.0), batches=(16, 32),
        sizes=(10, 5, 20), seeds=range(10), tuning_size=10,
    ),
    "textures": study(
        textures, "flip+crop(4)", **COLOUR,
        sizes=(40, 10), seeds=range(10), tuning_size=40,
    ),
}  # fmt: skip

if __name__ == "__main__":
    main(STUDIES, pathlib.Path(__file__).parent)
