"""The settings of a run: frozen dataclasses, checked before any device work.

The dataclasses below are the one place where a setting is named, typed, given its default and
explained. `default_config()` turns them into the `ml_collections.ConfigDict` that configs and
command-line overrides edit; `from_config` turns an edited one back and checks it.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from genreg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images, and how many of their labels.

    Attributes:
      name: `digits`, `synthetic`, `cifar10`, `cifar100`, `fashion_mnist` or another TFDS data set.
      dir: TFDS data directory; empty for TFDS's own default.
      per_class: labelled training images per class; 0 for all.
      fraction: fraction of the training images to keep, stratified; 1 for all.
      validation_fraction: fraction of the training split held out, before the labelled subset is
        drawn, to choose the best epoch and settings. Nothing is trained on it.
      download: prepare cifar10, cifar100 or fashion_mnist by download where it is missing.
      unreadable: `refuse` a data set with an image that cannot be decoded, or `skip` such images.
    """

    name: str = "digits"
    dir: str = ""
    per_class: int = 0
    fraction: float = 1.0
    validation_fraction: float = 0.1
    download: bool = True
    unreadable: Literal["refuse", "skip"] = "refuse"


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The classifier.

    Attributes:
      name: `convnet`, `resnet18`, `wide_resnet`, or `none` to train the flow alone.
      widths: channels of the convnet's layers.
      pooling: how the convnet halves the resolution, by strides or by max-pooling.
      depth: of the WideResNet, 6n + 4.
      width: first stage of the ResNet (64 in ResNet-18), or widening factor of the WideResNet.
      dtype: computation dtype.
    """

    name: Literal["none", "convnet", "resnet18", "wide_resnet"] = "convnet"
    widths: tuple[int, ...] = (32, 64, 128)
    pooling: Literal["stride", "max"] = "stride"
    depth: int = 28
    width: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"


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
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: tuple[int, ...] = (60, 120, 160)
    step_factor: float = 0.2
    grad_clip: float = 0.0


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
    mix_alpha: float = 1.0
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """The term on synthetic samples.

    Attributes:
      loss: `none`, `pcr`, or `cross_entropy` (naive generative data augmentation).
      weight: lambda; 0 turns the term off.
      distance: `cosine` or `l2`, for pcr.
      weak: augmentation of the first view, `none` for the sample itself.
      strong: augmentation of the second view.
      temperature: standard deviation of the latents.
      batch_size: synthetic samples a step; 0 for the real batch's size.
    """

    loss: Literal["none", "pcr", "cross_entropy"] = "none"
    weight: float = 1.0
    distance: Literal["cosine", "l2"] = "cosine"
    weak: str = "none"
    strong: str = "randaugment(2,9)"
    temperature: float = 1.0
    batch_size: int = 0


@dataclasses.dataclass(frozen=True)
class MetaSettings:
    """Meta pseudo sampling.

    Attributes:
      enabled: learn which latents to draw, by differentiating the outer loss through the step.
      mode: how the hypergradient is computed; see `genreg_jax.hypergradient`.
      outer: where the outer batch comes from. `holdout`: a fixed stratified part of the labelled
        images, which the classifier then never trains on. `folds`: in turn, for one epoch each, one
        of `folds` parts, which the classifier skips for that epoch. `train`: the training images
        under fresh augmentation, half a pass away from the inner batch; the finder is then rewarded
        for making the regulariser vanish, since that is what lowers a training loss.
      outer_fraction: size of that part for `holdout`.
      folds: number of parts for `folds`.
      outer_batch_size: 0 for the real batch's size.
      learning_rate: of the finder's Adam.
      hidden: widths of the finder's hidden layers.
      conditional: feed the finder the requested class.
      residual: the finder learns an offset from the latent and starts at zero.
      keep_norm: scale each found latent to the norm of its draw.
    """

    enabled: bool = False
    mode: Literal[
        "forward_over_reverse", "reverse_over_forward", "reverse", "finite_difference"
    ] = "forward_over_reverse"
    outer: Literal["holdout", "folds", "train"] = "holdout"
    outer_fraction: float = 0.1
    folds: int = 5
    outer_batch_size: int = 0
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (256, 256)
    conditional: bool = True
    residual: bool = True
    keep_norm: bool = True


@dataclasses.dataclass(frozen=True)
class PhantomSettings:
    """The term on phantom embeddings; see `genreg_jax.regularizers.phantom`.

    Attributes:
      loss: `none`, or the reading: `attraction`, `separation`, `classification`, `combination`.
      weight: of the term; 0 turns it off.
      warmup: fraction of all updates over which the weight rises linearly from 0.
      subset_size: partners a phantom is mixed from; 0 for all in the batch.
      weighting: `dirichlet` (random) or `uniform` (the mean).
      distance: `l2` or `cosine`, for attraction and separation.
      temperature: of separation's softmax.
      ratio: the anchor's part in combination.
      stop_gradient: no gradient to the phantoms of attraction and combination.
    """

    loss: Literal["none", "attraction", "separation", "classification", "combination"] = "none"
    weight: float = 1.0
    warmup: float = 0.0
    subset_size: int = 0
    weighting: Literal["dirichlet", "uniform"] = "dirichlet"
    distance: Literal["l2", "cosine"] = "l2"
    temperature: float = 1.0
    ratio: float = 0.5
    stop_gradient: bool = False


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """Perturbation of the real batch, between augmentation and the classifier.

    Attributes:
      kind: `none`; `random`, `away`, `adversarial` or `interpolation` in the latent space of the
        flow; or `pgd`, adversarial in image space, without a flow.
      epsilon: radius. For `away` without a ball the standard deviation per dimension; for
        `interpolation` the largest share of the way, in [0, 1].
      norm: of the ball; `none` is no ball, for random and away.
      relative: measure l2 radii and steps per dimension, in units of `sqrt(H W C)`.
      step_size: length of an attack's step.
      num_steps: steps of an attack.
      random_start: start an attack from noise.
      labels: what an attack increases the loss of: the classifier's own predictions on the clean
        batch, so that no label leaks, or the true labels.
      ratio: share of the images that are perturbed; 0 turns the stage off.
      mix: weight of the clean batch in the loss; 0 trains on perturbed images alone. With a clean
        share it is the clean pass that updates the classifier's running statistics.
      clip: largest change in image space; 0 for no bound.
      clip_norm: norm of that change.
      cache: encode each training image once, before the loop, where `augment.train` is `none`.
      augment_after: augmentation after decoding, which leaves the encodings as they are.
    """

    kind: Literal["none", "random", "away", "adversarial", "pgd", "interpolation"] = "none"
    epsilon: float = 1.0
    norm: Literal["l2", "linf", "none"] = "l2"
    relative: bool = False
    step_size: float = 0.5
    num_steps: int = 3
    random_start: bool = True
    labels: Literal["predicted", "true"] = "predicted"
    ratio: float = 1.0
    mix: float = 0.0
    clip: float = 0.0
    clip_norm: Literal["linf", "l2"] = "linf"
    cache: bool = True
    augment_after: str = "none"


@dataclasses.dataclass(frozen=True)
class FlowSettings:
    """The generator: an exact flow trained on the same training images.

    Attributes:
      kind: `glow` or `realnvp`.
      images: `labelled`, the images that the classifier trains on; or `all` images of the training
        split but those for validation, for an unconditional flow. No label of the others is used.
      workdir: take the trained flow of this run instead of training one; empty to train.
      levels: number of squeezes.
      steps: flow steps a level.
      width: hidden channels of the couplings.
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
    levels: int = 2
    steps: int = 4
    width: int = 32
    dropout: float = 0.0
    conditional: bool = True
    updates: int = 1000
    batch_size: int = 64
    optimizer: Literal["adam", "adamax"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    grad_clip: float = 1.0
    ema_decay: float = 0.99
    eval_every: int = 100
    augment: str = "none"
    scan: bool = True
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The loop.

    Attributes:
      epochs: an epoch ends with an evaluation on the validation images and a checkpoint.
      steps_per_epoch: updates an epoch; 0 for one pass over the training images. With few labels a
        pass is a handful of updates, so a fixed number keeps runs of different sizes comparable.
      batch_size: real images an update.
      balanced: every batch holds each class equally often, to within one image.
      eval_batch_size: images a forward pass at evaluation.
      patience: stop after this many epochs without a better validation accuracy; 0 for never.
      checkpoint_every: epochs between checkpoints.
      devices: number of devices that share each batch; 0 for all accelerators, or as many of them
        as divide the batches evenly. It does not change what is computed.
      nonfinite: `stop` ends the run at the first update whose loss, gradient or new parameters are
        not finite, and saves the state before it; `skip` leaves such updates out and counts them.
      evaluate_test: read the test set at the end; False for tuning runs.
      progress: show progress.
    """

    epochs: int = 30
    steps_per_epoch: int = 0
    batch_size: int = 64
    balanced: bool = False
    eval_batch_size: int = 256
    patience: int = 0
    checkpoint_every: int = 1
    devices: int = 0
    nonfinite: Literal["stop", "skip"] = "stop"
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
    seed: int = 0
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    augment: AugmentSettings = AugmentSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    meta: MetaSettings = MetaSettings()
    phantom: PhantomSettings = PhantomSettings()
    latent: LatentSettings = LatentSettings()
    flow: FlowSettings = FlowSettings()
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
    def uses_meta(self) -> bool:
        """Whether there is a finder."""
        return self.uses_synthetic and self.meta.enabled

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


# Where the data lie and what is shown do not change what is computed, nor does `nonfinite` until it
# is needed: a run that stopped there can go on.
_NOT_IDENTITY = (
    ("data", "dir"),
    ("data", "download"),
    ("train", "progress"),
    ("train", "devices"),
    ("train", "nonfinite"),
)


def default_config() -> Any:
    """The defaults of every setting as an `ml_collections.ConfigDict`, locked against new keys.

    Example:
      >>> from genreg_jax.settings import default_config, from_config
      >>> config = default_config()
      >>> config.data.per_class = 10
      >>> from_config(config).data.per_class
      10
    """
    import ml_collections

    return ml_collections.ConfigDict(dataclasses.asdict(Settings())).lock()


def from_config(config: Any) -> Settings:
    """Builds and checks the settings of a run.

    Args:
      config: a `ConfigDict`, a nested mapping (missing keys take their defaults), or `Settings`.

    Returns:
      The checked `Settings`.

    Raises:
      UserError: an unknown key, a value of the wrong type, or one outside what is allowed.

    Example:
      >>> from_config({"train": {"epochs": 0}})
      Traceback (most recent call last):
        ...
      genreg_jax.errors.UserError: config.train.epochs must be at least 1, got 0.
    """
    if isinstance(config, Settings):
        settings = config
    else:
        config = config.to_dict() if hasattr(config, "to_dict") else config
        settings = _build(Settings, config, "config")
    _check(settings)
    return settings


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a group of settings, got {values!r}.")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"{path} has no setting {key!r}; it has {', '.join(sorted(hints))}.{hint}"
            )
    return cls(
        **{key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()}
    )


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Checks one value against its annotation; only int -> float and list -> tuple convert."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise UserError(f"{path} must be one of {', '.join(allowed)}, got {value!r}.")
        return value
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{path} must be a list of integers, got {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], v, path) for v in value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be of type {hint.__name__}, got {value!r}.")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{path} must be a finite number, got {value!r}.")
    return value


def _check(s: Settings) -> None:
    """Checks the ranges of all values, and the few relations between them."""

    def need(ok: bool, path: str, rule: str) -> None:
        if not ok:
            value: Any = s
            for name in path.split("."):
                value = getattr(value, name)
            raise UserError(f"config.{path} must be {rule}, got {value!r}.")

    at_least = {
        0: "seed data.per_class optimizer.momentum optimizer.weight_decay optimizer.warmup_epochs "
        "optimizer.grad_clip augment.mix_alpha synthetic.weight synthetic.batch_size "
        "phantom.weight phantom.subset_size meta.outer_batch_size latent.epsilon latent.step_size "
        "latent.clip flow.weight_decay flow.warmup train.steps_per_epoch train.patience "
        "train.devices",
        1: "model.depth model.width latent.num_steps "
        "flow.levels flow.steps flow.width flow.updates flow.batch_size "
        "flow.eval_every train.epochs train.batch_size train.eval_batch_size "
        "train.checkpoint_every",
        2: "meta.folds",
    }
    for minimum, paths in at_least.items():
        for path in paths.split():
            group, _, name = path.rpartition(".")
            value = getattr(getattr(s, group) if group else s, name)
            need(value >= minimum, path, f"at least {minimum}")
    if s.model.name == "wide_resnet":
        fits = s.model.depth >= 10 and (s.model.depth - 4) % 6 == 0
        need(fits, "model.depth", "6n + 4 for a wide_resnet (10, 16, 22, 28, ...)")
    need(s.seed < 2**31, "seed", "below 2**31")
    need(0 < s.data.fraction <= 1, "data.fraction", "above 0 and at most 1")
    need(0 <= s.data.validation_fraction < 1, "data.validation_fraction", "at least 0 and below 1")
    need(s.optimizer.learning_rate >= 0, "optimizer.learning_rate", "at least 0")
    need(s.meta.learning_rate >= 0, "meta.learning_rate", "at least 0")
    need(s.flow.learning_rate > 0, "flow.learning_rate", "positive")
    need(s.flow.grad_clip > 0, "flow.grad_clip", "positive")
    need(s.optimizer.momentum < 1, "optimizer.momentum", "at least 0 and below 1")
    need(s.optimizer.step_factor > 0, "optimizer.step_factor", "positive")
    need(0 <= s.augment.label_smoothing < 1, "augment.label_smoothing", "at least 0 and below 1")
    need(0 <= s.flow.ema_decay < 1, "flow.ema_decay", "at least 0 and below 1")
    need(0 <= s.flow.dropout < 1, "flow.dropout", "at least 0 and below 1")
    need(s.synthetic.temperature > 0, "synthetic.temperature", "positive")
    need(0 <= s.phantom.warmup <= 1, "phantom.warmup", "at least 0 and at most 1")
    need(0 <= s.phantom.ratio <= 1, "phantom.ratio", "at least 0 and at most 1")
    need(s.phantom.temperature > 0, "phantom.temperature", "positive")
    need(0 < s.meta.outer_fraction < 1, "meta.outer_fraction", "above 0 and below 1")
    need(0 <= s.latent.ratio <= 1, "latent.ratio", "from 0 to 1")
    need(0 <= s.latent.mix <= 1, "latent.mix", "from 0 to 1")
    if s.latent.kind in ("adversarial", "pgd"):
        need(s.latent.norm != "none", "latent.norm", "l2 or linf for an attack")
    if s.latent.kind == "interpolation":
        need(s.latent.epsilon <= 1, "latent.epsilon", "a share of the way, at most 1")
    need(bool(s.model.widths) and min(s.model.widths) > 0, "model.widths", "positive integers")
    need(all(h > 0 for h in s.meta.hidden), "meta.hidden", "positive integers")
    if s.flow.images == "all" and s.flow.conditional:
        raise UserError(
            "config.flow.images = 'all' trains the flow on images without labels, but "
            "config.flow.conditional is True; set it to False, or images to 'labelled'."
        )
    if s.data.per_class and s.data.fraction < 1:
        raise UserError(
            f"config.data.per_class = {s.data.per_class} and config.data.fraction = "
            f"{s.data.fraction} both choose the labelled subset; leave one at its default (0 or 1)."
        )
    if s.flow_only and s.uses_synthetic:
        raise UserError(
            f"config.model.name = 'none' trains a flow and no classifier, but "
            f"config.synthetic.loss = {s.synthetic.loss!r} regularises one; name a classifier or "
            "set config.synthetic.loss to 'none'."
        )
    if s.meta.enabled and s.synthetic.loss == "none":
        raise UserError(
            "config.meta.enabled = True needs synthetic samples to choose, but "
            "config.synthetic.loss is 'none'; set it to 'pcr' (that is MGR) or turn meta off."
        )


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings as a JSON-ready nested dict."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def identity(settings: Settings) -> dict[str, Any]:
    """What decides the outcome: the settings without where data lie and what is shown."""
    values = to_dict(settings)
    for group, key in _NOT_IDENTITY:
        del values[group][key]
    return values


def config_hash(settings: Settings) -> str:
    """First 12 hexadecimal digits of the SHA-256 of `identity(settings)`."""
    text = json.dumps(identity(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "config") -> list[str]:
    """Lines `config.a.b: old -> new` for every leaf in which two nested dicts differ."""
    lines = []
    for key in sorted({*old, *new}):
        a, b, where = old.get(key, "absent"), new.get(key, "absent"), f"{path}.{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, where)
        elif a != b:
            lines.append(f"{where}: {a!r} -> {b!r}")
    return lines
