"""From settings to the parts of a run: one function a part, and `parts`, which calls them.

A new regulariser is one more function here, with its file in `regularizers/` and its group of
settings.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from genreg_jax import augment, flows, models
from genreg_jax.batches import BatchPlan, EpochIndices
from genreg_jax.contract import Augment, Batch, EmbeddingTerm, Generator, Model
from genreg_jax.data import Dataset
from genreg_jax.data.stored import channel_statistics
from genreg_jax.devices import data_mesh, replicate, splitter
from genreg_jax.errors import ConfigError
from genreg_jax.evaluate import make_evaluate
from genreg_jax.feed import Feed, encode_all, fetch, training_data
from genreg_jax.learned import learned, without_each
from genreg_jax.models.frozen import frozen_statistics, frozen_trunk
from genreg_jax.models.pretrained import ORIGINS
from genreg_jax.objective import make_train_step
from genreg_jax.optimizers import make_optimizer, make_schedule, weights_only
from genreg_jax.regularizers import mixing
from genreg_jax.regularizers.latent import perturbation
from genreg_jax.regularizers.latent_training import Latent
from genreg_jax.regularizers.mgr import Meta, Synthetic
from genreg_jax.regularizers.phantom import phantom_term
from genreg_jax.settings import FlowSettings, Settings
from genreg_jax.state import Best, TrainState
from genreg_jax.strengths import Tune


@dataclasses.dataclass(frozen=True)
class Parts:
    """Everything that the loop works with.

    Attributes:
      root: the run's key.
      total_steps: updates of the whole run.
      model: the classifier, for images in [0, 1].
      schedule: `step -> learning rate`.
      step: from `genreg_jax.objective.make_train_step`.
      evaluate: from `genreg_jax.evaluate.make_evaluate`.
      synthetic: the term on synthetic samples, or None.
      meta: meta pseudo sampling, or None.
      tune: the strengths that are learned, or None.
      generator: of the synthetic samples, or None.
      flow: the frozen flow that perturbs, or None.
      train_data: all images of the step's batches, on the mesh, or what they are read from.
      state: the first state, on the mesh.
      best: what validation chooses from, before the first evaluation, on the mesh.
      mesh: the devices.
    """

    root: jax.Array
    total_steps: int
    model: Model
    schedule: Callable[[Any], Any]
    step: Callable
    evaluate: Callable
    synthetic: Synthetic | None
    meta: Meta | None
    tune: Tune | None
    generator: Generator | None
    flow: Any
    train_data: Batch | Feed
    state: TrainState
    best: Best
    mesh: Mesh

    @property
    def frozen(self) -> tuple[Any, Any]:
        """What `step` takes after the batches: the generator's parameters, and the flow."""
        return (self.generator.params if self.generator else (), self.flow)

    def placed(self, indices: EpochIndices) -> EpochIndices:
        """The indices of an epoch where it needs them: on the mesh, to read batches on the host."""
        return indices if isinstance(self.train_data, Feed) else replicate(self.mesh, indices)

    def find(self, finder_params: Any, z: jax.Array, y: jax.Array) -> jax.Array:
        """The latents that the finder makes of draws; the draws where there is no finder."""
        return z if self.meta is None else self.meta.apply(finder_params, z, y)


def parts(
    settings: Settings,
    dataset: Dataset,
    *,
    plan: BatchPlan,
    views: dict[str, Augment],
    model: Model | None = None,
    generator: Generator | None = None,
    flow: Any = None,
    embedding_term: EmbeddingTerm | None = None,
    warm: Callable[[Any], Any] = lambda fresh: fresh,
) -> Parts:
    """The parts of a run, a pure function of its arguments.

    Args:
      settings: of the run.
      dataset: its images.
      plan: which images each update sees.
      views: from `views_of`.
      model: a classifier of the caller's own instead of `config.model`.
      generator: of the synthetic samples; not used where `config.synthetic` is off.
      flow: frozen, to perturb with; not used where `config.latent` needs none.
      embedding_term: a term of the caller's own, added to that of `config.phantom`.
      warm: what the classifier starts from, of its fresh `(params, model_state)`.
    """
    root = jax.random.key(settings.seed)
    mesh = data_mesh(settings.train.devices, settings.train.batch_size)
    splits = [dataset.train, *[dataset.validation] * (settings.outer == "validation")]
    train_data: Any = training_data(splits, mesh)
    streamed = isinstance(train_data, Feed)
    generator = generator if settings.uses_synthetic else None
    if generator is not None:
        if settings.synthetic.source != "prior":
            encodings = encode_all(generator.encode, generator.params, train_data, settings)
            train_data = train_data._replace(encodings=encodings)
        generator = generator._replace(params=replicate(mesh, generator.params))
    flow = flow if settings.perturbs_latents else None
    if flow is not None:
        if settings.latent.cache and settings.augment.train == "none" and not streamed:
            encode = lambda flow, x, y: flow.encode(x, None if flow.num_classes is None else y)
            train_data = train_data._replace(latents=encode_all(encode, flow, train_data, settings))
        flow = replicate(mesh, flow)
    train_data = train_data if streamed else replicate(mesh, train_data)

    total_steps = settings.train.epochs * plan.steps_per_epoch
    model = model or model_of(settings, dataset)
    schedule = make_schedule(
        settings.optimizer, total_steps=total_steps, steps_per_epoch=plan.steps_per_epoch
    )
    params, model_state = warm(
        model.init(jax.random.fold_in(root, 0), jnp.zeros((1, *dataset.image_shape)))
    )
    tx, layers = optimizer_of(settings, schedule), sum(jax.tree.leaves(weights_only(params)))
    tune = tune_of(settings, dataset, views, total_steps, schedule, layers, embedding_term)
    meta, finder_params = None, ()
    if generator is not None and settings.uses_meta:
        key = jax.random.fold_in(root, 3)
        shape = generator.latent_shape
        meta, finder_params = meta_of(settings, views, dataset.num_classes, shape, key)
    synthetic = synthetic_of(settings, views) if generator else None
    step = make_train_step(
        model,
        tx,
        num_classes=dataset.num_classes,
        augment=views["train"],
        mix=mix_of(settings),
        label_smoothing=settings.augment.label_smoothing,
        embedding_term=_both(
            embedding_term_of(settings, dataset.num_classes, total_steps), embedding_term
        ),
        synthetic=synthetic,
        generator=generator,
        meta=meta,
        latent=latent_of(settings, views),
        tune=tune,
        skip_nonfinite=settings.train.nonfinite == "skip",
        constrain=splitter(mesh),
    )
    state = TrainState.create(
        params,
        model_state,
        tx,
        jax.random.fold_in(root, 1),
        finder_params=finder_params,
        finder_tx=meta.tx if meta else None,
        tune=tune,
    )
    # A copy: the training step donates its state's buffers.
    params, model_state = jax.tree.map(jnp.copy, (params, model_state))
    best = Best(params, model_state, jnp.float32(-1), jnp.float32(np.inf), jnp.int32(0))
    state, best = replicate(mesh, (state, best))
    largest_split = max(len(dataset.validation.labels), len(dataset.test.labels))
    evaluate = make_evaluate(
        model,
        batch_size=min(settings.train.eval_batch_size, largest_split),
        constrain=splitter(mesh),
        fetch=functools.partial(fetch, mesh),
    )
    return Parts(
        root=root,
        total_steps=total_steps,
        model=model,
        schedule=schedule,
        step=step,
        evaluate=evaluate,
        synthetic=synthetic,
        meta=meta,
        tune=tune,
        generator=generator,
        flow=flow,
        train_data=train_data,
        state=state,
        best=best,
        mesh=mesh,
    )


def classifier(settings: Settings, num_classes: int, mean: Any, std: Any) -> Model:
    """The configured classifier behind standardisation by the given statistics `[C]`."""
    s = settings.model
    options = {
        argument: getattr(s, name) for argument, name in models.MODELS[s.name].options.items()
    }
    model = models.make(s.name, num_classes=num_classes, dtype=s.dtype, **options)
    freeze = {"none": lambda m: m, "statistics": frozen_statistics, "trunk": frozen_trunk}[s.freeze]
    return models.standardized(freeze(model), mean, std)


def model_of(settings: Settings, dataset: Dataset) -> Model:
    """The configured classifier, standardised by the training images' own statistics.

    A pretrained one by those that its weights were trained with.
    """
    if settings.model.pretrained:
        origin = ORIGINS[settings.model.name]
        return classifier(settings, dataset.num_classes, origin.mean, origin.std)
    mean, std = channel_statistics(dataset.train.images)
    return classifier(settings, dataset.num_classes, mean, np.maximum(std, 1e-3))


def flow_of(settings: FlowSettings, image_shape: tuple[int, ...], num_classes: int):
    """The untrained flow that the settings describe, for images of the data or of its own size."""
    make = {"glow": flows.glow, "realnvp": flows.realnvp}[settings.kind]
    names = ("levels", "steps", "width", "scale", "dropout", "scan", "remat")
    return make(
        settings.shape_of(image_shape),
        num_classes=num_classes if settings.conditional else None,
        **{name: getattr(settings, name) for name in names},
    )


def views_of(settings: Settings, image_shape: tuple[int, ...]) -> dict[str, Augment]:
    """All augmentations that the run uses, built at once so that a wrong one is found at once."""
    uses_flow = settings.uses_flow or settings.flow_only
    specs = {
        "train": (True, "augment.train"),
        "weak": (settings.uses_synthetic, "synthetic.weak"),
        "strong": (settings.uses_synthetic, "synthetic.strong"),
        "after": (settings.uses_latent, "latent.augment_after"),
        "flow": (uses_flow, "flow.augment"),
    }
    views = {}
    for name, (used, setting) in specs.items():
        group, key = setting.split(".")
        spec = getattr(getattr(settings, group), key) if used else "none"
        try:
            shape = settings.flow.shape_of(image_shape) if name == "flow" else image_shape
            views[name] = augment.make(spec, image_shape=shape)
        except ValueError as error:
            raise ConfigError(f"config.{setting}: {error}", f"config.{setting}") from None
    return views


def mix_of(settings: Settings) -> Callable | None:
    """Mixup or CutMix, None where neither is on."""
    s = settings.augment
    if s.mix == "none" or s.mix_alpha == 0:
        return None
    mix = {"mixup": mixing.mixup, "cutmix": mixing.cutmix}[s.mix]
    return lambda key, x, y: mix(key, x, y, alpha=s.mix_alpha)


def embedding_term_of(
    settings: Settings, num_classes: int, total_steps: int, strength: Any = None
) -> EmbeddingTerm | None:
    """The phantom term with its weight or a learned one, or None where it is off."""
    s = settings.phantom
    strength = s.weight if strength is None else strength
    if not settings.uses_phantom:
        return None
    losses = phantom_term(
        s.loss,
        num_classes=num_classes,
        subset_size=s.subset_size or None,
        weighting=s.weighting,
        distance=s.distance,
        temperature=s.temperature,
        ratio=s.ratio,
        stop_gradient=s.stop_gradient,
    )
    warmup = max(round(s.warmup * total_steps), 1)
    warm = lambda step: jnp.minimum((step + 1) / warmup, 1.0)
    of = lambda labels: strength[labels] if jnp.ndim(strength) else strength
    return lambda key, outputs, labels, step: of(labels) * warm(step) * losses(key, outputs, labels)


def _both(first: EmbeddingTerm | None, second: EmbeddingTerm | None) -> EmbeddingTerm | None:
    """The sum of two terms, each of which may be missing."""
    if first is None or second is None:
        return first or second
    return lambda *arguments: first(*arguments) + second(*arguments)


def synthetic_of(settings: Settings, views: dict[str, Augment], weight: Any = None) -> Synthetic:
    """The term on synthetic samples, with its weight or a learned one."""
    s, meta = settings.synthetic, settings.meta
    return Synthetic(
        loss=s.loss,
        weight=s.weight if weight is None else weight,
        distance=s.distance,
        weak=views["weak"],
        strong=views["strong"],
        batch_size=s.batch_size or settings.train.batch_size,
        temperature=s.temperature,
        source=s.source,
        low=s.low,
        high=s.high,
        strength=s.strength,
        factor=s.factor,
        search="none" if settings.uses_meta or not meta.enabled else meta.search,
        radius=meta.radius,
        keep_norm=meta.keep_norm,
    )


def latent_of(settings: Settings, views: dict[str, Augment], **changes: Any) -> Latent | None:
    """The perturbation of the real batch, some of its options changed; None where it is off."""
    s = settings.latent
    if not settings.uses_latent:
        return None
    return Latent(
        perturb=perturbation_of(settings, **changes),
        labels=s.labels if s.kind in ("adversarial", "pgd") else "true",
        mix=s.mix,
        augment=views["after"],
    )


def perturbation_of(settings: Settings, **changes: Any) -> Callable[..., jax.Array]:
    """The configured perturbation (`regularizers.latent.perturbation`), some options changed."""
    s = settings.latent
    options = {
        "epsilon": s.epsilon,
        "norm": s.norm,
        "relative": s.relative,
        "step_size": s.step_size,
        "num_steps": s.num_steps,
        "random_start": s.random_start,
        "ratio": s.ratio,
        "clip": s.clip or None,
        "clip_norm": s.clip_norm,
        "difference": s.difference,
    }
    return perturbation(s.kind, **{**options, **changes})


def meta_of(
    settings: Settings,
    views: dict[str, Augment],
    num_classes: int,
    latent_shape: tuple[int, ...],
    key: jax.Array,
) -> tuple[Meta, Any]:
    """Meta pseudo sampling and the finder's first parameters."""
    s = settings.meta
    finder = models.Finder(
        hidden=s.hidden,
        num_classes=num_classes if s.conditional else None,
        residual=s.residual,
        keep_norm=s.keep_norm,
        radius=math.inf if s.radius < 0 else s.radius,
    )
    params = finder.init(key, jnp.zeros((1, *latent_shape)), jnp.zeros(1, jnp.int32))["params"]

    def find(params, z, y) -> Any:
        return finder.apply({"params": params}, z, y)

    meta = Meta(
        apply=find,
        tx=optax.adam(s.learning_rate),
        mode=s.mode,
        augment=views["train"],
        shuffle=s.outer_labels == "shuffled",
    )
    return meta, params


def optimizer_of(
    settings: Settings, schedule: Callable[[Any], Any], **changes: Any
) -> optax.GradientTransformation:
    """The classifier's optimiser, some of its options changed."""
    head_alone = settings.model.freeze == "trunk"
    return make_optimizer(settings.optimizer, schedule, head_alone=head_alone, **changes)


def tune_of(
    settings: Settings,
    dataset: Dataset,
    views: dict[str, Augment],
    total_steps: int,
    schedule: Callable[[Any], Any],
    num_layers: int,
    embedding_term: EmbeddingTerm | None = None,
) -> Tune | None:
    """The strengths that are learned, and the parts of the step that depend on them."""
    s, num_classes = settings.tune, dataset.num_classes
    strengths = learned(settings, num_classes, num_layers)
    if not strengths:
        return None

    def parts(values: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `make_train_step` at these strengths, of those that are learned."""
        values = {without_each(name): value for name, value in values.items()}
        of = {
            "phantom.weight": lambda weight: {
                "embedding_term": _both(
                    embedding_term_of(settings, num_classes, total_steps, weight), embedding_term
                )
            },
            "synthetic.weight": lambda weight: {"synthetic": synthetic_of(settings, views, weight)},
            "latent.epsilon": lambda radius: {"latent": latent_of(settings, views, epsilon=radius)},
            "augment.magnitude": lambda magnitude: {
                "augment": augment.make(
                    settings.augment.train, image_shape=dataset.image_shape, magnitude=magnitude
                )
            },
            "augment.label_smoothing": lambda share: {"label_smoothing": share},
            "optimizer.weight_decay": lambda decay: {
                "tx": optimizer_of(settings, schedule, weight_decay=decay)
            },
        }
        return {key: part for name in values for key, part in of[name](values[name]).items()}

    return Tune(
        strengths=strengths,
        parts=parts,
        tx=optax.adam(s.learning_rate),
        calibrated=s.outer_loss == "calibrated",
        mode=settings.meta.mode,
        shuffle=s.outer_labels == "shuffled",
    )
