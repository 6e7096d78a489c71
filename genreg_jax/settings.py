"""The settings of a run: frozen dataclasses that name, type, explain and bound every setting.

`genreg_jax.config` turns them into the `ml_collections.ConfigDict` that configs and command-line
overrides edit, and turns an edited one back and checks it. A range stands at its field; only what
holds between two settings is checked there. The groups of the regularisers lie beside them, in
`genreg_jax/regularizers/settings.py`.
"""

import dataclasses
from typing import Literal

from genreg_jax.checks import setting
from genreg_jax.regularizers.settings import (
    LatentSettings,
    MetaSettings,
    PhantomSettings,
    SyntheticSettings,
    TuneSettings,
)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images, and how many of their labels.

    Attributes:
      name: `digits`, `synthetic`, `cifar10`, `cifar100`, `fashion_mnist` or another TFDS data set;
        `cars`, `aircraft`, `cub`, `dtd`, `flowers` or `pets`; or `folder`, pictures of one's own.
      dir: TFDS data directory; empty for TFDS's own default. For `folder` where the pictures are: a
        folder with a subfolder for each class, a `.csv` or an `.npz`; see `data.from_folder`. For
        the six sets of photographs the folder of the official layout as well.
      per_class: labelled training images per class; 0 for all.
      fraction: fraction of the training images to keep, stratified; 1 for all.
      validation_fraction: fraction of the training split held out, before the labelled subset is
        drawn, to choose the best epoch and settings. Nothing is trained on it.
      download: prepare cifar10, cifar100 or fashion_mnist by download where it is missing.
      unreadable: `refuse` a data set with an image that cannot be decoded, or `skip` such images.
      image_size: side of the square that images are brought to; 0 for their own. The six sets of
        photographs have many sizes and want one.
      resize: how: `crop` (short side scaled, centre cut out) or `pad` (long side scaled, on black).
      test_fraction: of `folder`: share of every class held out where there is no test split.
      stream: leave the images of a `folder` or of TFDS where they lie and read each batch as it is
        needed, each process its share; for data that memory does not hold. The batches are those of
        the same run in memory. Needs the extra `stream`; see docs/devices.md.
    """

    name: str = "digits"
    dir: str = ""
    per_class: int = setting(0, at_least=0, limit=10**7)
    fraction: float = setting(1.0, above=0, at_most=1)
    validation_fraction: float = setting(0.1, at_least=0, below=1)
    download: bool = True
    unreadable: Literal["refuse", "skip"] = "refuse"
    image_size: int = setting(0, at_least=0, limit=4096, added=True)
    resize: Literal["crop", "pad"] = setting("crop", added=True)
    test_fraction: float = setting(0.2, above=0, below=1, added=True)
    stream: bool = False


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The classifier.

    Attributes:
      name: of a row in `genreg_jax.models.MODELS`: `convnet`, `resnet18`, `wide_resnet`, or one
        that ImageNet's weights are for: `efficientnet_lite0`, `resnet18_imagenet`,
        `resnet50_imagenet`; or `none` to train the flow alone.
      widths: channels of the convnet's layers.
      pooling: how the convnet halves the resolution, by strides or by max-pooling.
      depth: of the WideResNet, 6n + 4.
      width: channels of the ResNet's first stage.
      widening: the WideResNet's widening factor.
      dtype: computation dtype.
      init_from: workdir of a run whose best classifier this one starts from, its running statistics
        and those of the standardisation included; a head for other classes starts afresh.
      pretrained: weights that the classifier starts from, with a fresh head: `efficientnet_lite0`,
        from an installed package, or the path of a file of torchvision or timm. Images are put on
        the scale that the weights were trained with.
      freeze: what training leaves alone: `none`; `statistics`, BatchNorm's running ones, by which
        it then normalises in training too; or `trunk`, them and all parameters but the head's.
    """

    name: str = "convnet"
    widths: tuple[int, ...] = setting((32, 64, 128), at_least=1, limit=2**20)
    pooling: Literal["stride", "max"] = "stride"
    depth: int = setting(28, at_least=1, limit=1000)
    width: int = setting(64, at_least=1, limit=2**20)
    widening: int = setting(10, at_least=1, limit=100, added=True)
    dtype: Literal["float32", "bfloat16"] = "float32"
    init_from: str = setting("", added=True)
    pretrained: str = setting("", added=True)
    freeze: Literal["none", "statistics", "trunk"] = setting("none", added=True)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The classifier's optimiser.

    Attributes:
      name: `sgd` (with momentum), `adam` or `adamw`.
      learning_rate: peak learning rate.
      momentum: of sgd.
      nesterov: Nesterov's form of it.
      weight_decay: added to the gradient for sgd and adam, decoupled for adamw; BatchNorm's scales
        and all biases are not decayed.
      schedule: `cosine` to zero, `constant`, or `step`.
      warmup_epochs: linear warm-up.
      step_epochs: epochs at which the `step` schedule multiplies the rate by `step_factor`.
      step_factor: see `step_epochs`.
      grad_clip: global norm at which the gradient is clipped; 0 for never.
      head_factor: the head's learning rate is this times that of the other parameters.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = setting(0.05, at_least=0, limit=1e6)
    momentum: float = setting(0.9, at_least=0, below=1)
    nesterov: bool = True
    weight_decay: float = setting(5e-4, at_least=0, limit=1e6)
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    warmup_epochs: float = setting(0.0, at_least=0, limit=10**9)
    step_epochs: tuple[int, ...] = setting((60, 120, 160), at_least=0, limit=10**9)
    step_factor: float = setting(0.2, above=0, limit=1e6)
    grad_clip: float = setting(0.0, at_least=0, limit=1e9)
    head_factor: float = setting(1.0, at_least=0, limit=1e6, added=True)


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """Augmentation of the real batch.

    Attributes:
      train: `+`-separated names, such as `flip+crop+randaugment(2,9)`; `none` for none. See
        `genreg_jax.augment.make`.
      mix: `none`, `mixup` or `cutmix`.
      mix_alpha: parameter of their Beta distribution.
      label_smoothing: mass spread uniformly over the classes.
    """

    train: str = "none"
    mix: Literal["none", "mixup", "cutmix"] = "none"
    mix_alpha: float = setting(1.0, at_least=0, limit=1e6)
    label_smoothing: float = setting(0.0, at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class FlowSettings:
    """The generator: an exact flow trained on the same training images.

    Attributes:
      kind: `glow` or `realnvp`.
      images: `labelled`, the training images, those held out for MGR's outer loss too; or `all`
        images of the training split but those for validation, for an unconditional flow. No label
        of the others is used.
      workdir: take the trained flow of this run instead of training one; empty to train.
      image_size: side of the flow's own images, where it is to be smaller than the classifier's;
        what is decoded is then resized. 0 for the size of the data.
      levels: number of squeezes.
      steps: flow steps a level.
      width: hidden channels of the couplings.
      scale: bound on the absolute log scale of a coupling. A flow of many steps on images of which
        some are far from the others, such as photographs, trains with less.
      dropout: in the couplings, during the flow's training.
      conditional: condition on the class.
      updates: training updates.
      batch_size: images an update.
      optimizer: `adam` or `adamax`.
      learning_rate: its peak; it falls to 2 % along a cosine.
      weight_decay: decoupled.
      warmup: updates of linear warm-up.
      grad_clip: global norm at which gradients are clipped.
      ema_decay: of the parameter average that is evaluated and kept.
      eval_every: updates between evaluations on the validation images; the best average is kept.
      augment: augmentation of the flow's training images.
      scan: run the steps of a level as one loop, which keeps the time to compile short.
      remat: recompute a step's activations in the backward pass instead of storing them.
    """

    kind: Literal["glow", "realnvp"] = "glow"
    images: Literal["labelled", "all"] = "labelled"
    workdir: str = ""
    image_size: int = setting(0, at_least=0, limit=1024, added=True)
    levels: int = setting(2, at_least=1, limit=8)
    steps: int = setting(4, at_least=1, limit=256)
    width: int = setting(32, at_least=1, limit=2**20)
    scale: float = setting(2.0, above=0, limit=10, added=True)
    dropout: float = setting(0.0, at_least=0, below=1)
    conditional: bool = True
    updates: int = setting(1000, at_least=1, limit=10**9)
    batch_size: int = setting(64, at_least=1, limit=2**20)
    optimizer: Literal["adam", "adamax"] = "adam"
    learning_rate: float = setting(1e-3, above=0, limit=1e6)
    weight_decay: float = setting(1e-4, at_least=0, limit=1e6)
    warmup: int = setting(100, at_least=0, limit=10**9)
    grad_clip: float = setting(1.0, above=0, limit=1e9)
    ema_decay: float = setting(0.99, at_least=0, below=1)
    eval_every: int = setting(100, at_least=1, limit=10**9)
    augment: str = "none"
    scan: bool = True
    remat: bool = False

    def shape_of(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape `(H, W, C)` of the flow's images, of that of the data."""
        return (
            (self.image_size, self.image_size, image_shape[-1]) if self.image_size else image_shape
        )


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The loop.

    Attributes:
      epochs: an epoch ends with an evaluation on the validation images and a checkpoint.
      steps_per_epoch: updates an epoch; 0 for one pass over the training images. With few labels a
        pass is a handful of updates, so a fixed number keeps runs of different sizes comparable.
      least_steps: updates of such a pass at least, more than one pass where the images are fewer.
      batch_size: real images an update.
      balanced: every batch holds each class equally often, to within one image.
      eval_batch_size: images a forward pass at evaluation.
      patience: stop after this many epochs without a better validation accuracy; 0 for never.
      checkpoint_every: epochs between checkpoints.
      devices: number of devices that share each batch; 0 for all accelerators, or as many of them
        as divide the batches evenly. It does not change what is computed.
      nonfinite: `stop` ends the run at the first update whose loss, gradient or new parameters are
        not finite, and saves the state before it; `skip` leaves such updates out and counts them.
      environment: `same` refuses to continue a run with other versions of JAX and its neighbours,
        on another platform or with other numerical settings of JAX than it was begun with; `any`
        goes on, and the summary says from which update on.
      evaluate_test: read the test set at the end; False for tuning runs.
      progress: show progress.
    """

    epochs: int = setting(30, at_least=1, limit=10**9)
    steps_per_epoch: int = setting(0, at_least=0, limit=10**9)
    least_steps: int = setting(0, at_least=0, limit=10**9, added=True)
    batch_size: int = setting(64, at_least=1, limit=2**20)
    balanced: bool = False
    eval_batch_size: int = setting(256, at_least=1, limit=2**20)
    patience: int = setting(0, at_least=0, limit=10**9)
    checkpoint_every: int = setting(1, at_least=1, limit=10**9)
    devices: int = setting(0, at_least=0, limit=2**20)
    nonfinite: Literal["stop", "skip"] = "stop"
    environment: Literal["same", "any"] = "same"
    evaluate_test: bool = True
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run.

    Attributes:
      name: shown in reports.
      seed: of the labelled subset, the initial parameters and every draw.
    """

    name: str = "base"
    seed: int = setting(0, at_least=0, below=2**31)
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    augment: AugmentSettings = AugmentSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    meta: MetaSettings = MetaSettings()
    phantom: PhantomSettings = PhantomSettings()
    latent: LatentSettings = LatentSettings()
    flow: FlowSettings = FlowSettings()
    tune: TuneSettings = TuneSettings()
    train: TrainSettings = TrainSettings()

    @property
    def uses_synthetic(self) -> bool:
        """Whether there is a term on synthetic samples; with weight 0 there is none."""
        return self.synthetic.loss != "none" and self.synthetic.weight > 0

    @property
    def flow_only(self) -> bool:
        """Whether the run trains a flow and no classifier."""
        return self.model.name == "none"

    @property
    def uses_search(self) -> bool:
        """Whether latents are moved from where their source put them."""
        return self.uses_synthetic and self.meta.enabled

    @property
    def uses_meta(self) -> bool:
        """Whether that is done by a finder, which needs an outer batch."""
        return self.uses_search and self.meta.search == "finder"

    @property
    def outer(self) -> str:
        """Where the outer batch comes from; empty where nothing needs one."""
        if self.tune.learn:
            return self.tune.outer
        return self.meta.outer if self.uses_meta else ""

    @property
    def uses_phantom(self) -> bool:
        """Whether there is a term on phantom embeddings; with weight 0 there is none."""
        return self.phantom.loss != "none" and self.phantom.weight > 0

    @property
    def uses_latent(self) -> bool:
        """Whether the real batch is perturbed; with ratio 0 it is not."""
        return self.latent.kind != "none" and self.latent.ratio > 0

    @property
    def perturbs_latents(self) -> bool:
        """Whether that happens in the latent space of a flow; pgd stays in image space."""
        return self.uses_latent and self.latent.kind != "pgd"

    @property
    def uses_flow(self) -> bool:
        """Whether a flow is needed."""
        return self.uses_synthetic or self.perturbs_latents
