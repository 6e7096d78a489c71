"""The one training loop; `train_and_evaluate` is what the command line calls."""

import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genreg_jax import augment, data, models
from genreg_jax.batches import BatchPlan, EpochIndices
from genreg_jax.checkpoint import Checkpoints
from genreg_jax.data import Dataset
from genreg_jax.devices import (
    data_mesh,
    is_first,
    largest,
    on_one_device,
    own_folder,
    replicate,
    shared,
    splitter,
)
from genreg_jax.embeddings import class_similarity, principal_plane
from genreg_jax.errors import UserError
from genreg_jax.evaluate import make_evaluate
from genreg_jax.flow_run import train_flow
from genreg_jax.generator import trained_flow_generator
from genreg_jax.interrupt import Interrupted, Interruption
from genreg_jax.logs import MetricWriter, Progress, provenance, write_json
from genreg_jax.models.contract import Model
from genreg_jax.objective import (
    CHECKED,
    Augment,
    Batch,
    EmbeddingTerm,
    Generator,
    Latent,
    Meta,
    Synthetic,
    make_train_step,
    to_float,
)
from genreg_jax.optimizers import make_optimizer, make_schedule
from genreg_jax.regularizers import mixing
from genreg_jax.regularizers.latent import perturbation
from genreg_jax.regularizers.phantom import phantom_term
from genreg_jax.report import write_report
from genreg_jax.report.images import captioned, grid, save_png
from genreg_jax.settings import (
    Settings,
    config_hash,
    differences,
    from_config,
    identity,
    to_dict,
)
from genreg_jax.state import Best, TrainState


def train_and_evaluate(
    config: Any,
    workdir: str | Path,
    *,
    dataset: Dataset | None = None,
    model: Model | None = None,
    generator: Generator | None = None,
    flow: Any = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Trains the classifier (or the flow alone) that a config describes; reads the test set once.

    Calling it again with the same config and workdir continues where the run stopped, or returns
    the summary of the finished run. SIGTERM and SIGINT end the training after the update at hand
    (on accelerators, the epoch), which is saved.

    Args:
      config: a `ConfigDict` as a config file's `get_config()` returns it, a nested dict, or
        `Settings`.
      workdir: folder for everything that the run writes; made if missing.
      dataset: images of your own (`genreg_jax.data.from_arrays`) instead of `config.data`.
      model: a classifier of your own for images in [0, 1] instead of `config.model`.
      generator: a generator of your own instead of the flow of `config.flow`.
      flow: a frozen flow of your own to perturb latents with, instead of that of `config.flow`.
      command: what to type to get this run again, shown in the report.

    Returns:
      The summary, also written to `workdir/summary.json`: `test_accuracy`,
      `validation_accuracy`, `train_examples`, `steps`, `seconds`, `images_per_second`, `seed`,
      `device`, `versions`, `config_hash` and more.

    Raises:
      UserError: something about the config, the data or the workdir is wrong; nothing that lies in
        the workdir has been touched. Or a file could not be written, as on a full disk; what was
        saved before is whole.
      Interrupted: a signal stopped the training, and its state is saved.

    Example:
      >>> import tempfile
      >>> import genreg_jax as gr
      >>> config = {"data": {"name": "digits", "per_class": 10},
      ...           "model": {"widths": [8, 16]},
      ...           "train": {"epochs": 1, "steps_per_epoch": 2, "progress": False}}
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     summary = gr.train_and_evaluate(config, workdir)
      >>> summary["train_examples"], summary["steps"]
      (100, 2)
    """
    settings = from_config(config)
    finished = shared(lambda: _check_workdir(Path(workdir), settings))
    if finished is not None:
        return finished
    try:
        with own_folder(Path(workdir)) as folder:
            return _run(settings, folder, dataset, model, generator, flow, command)
    except OSError as error:
        raise UserError(
            f"A file could not be written or read ({error}). What was saved in {workdir} before is "
            "whole; make room, or make the folder writable, and run the same command again to "
            "continue."
        ) from error


def _run(
    settings: Settings,
    workdir: Path,
    dataset: Dataset | None,
    model: Model | None,
    generator: Generator | None,
    flow: Any,
    command: str | None,
) -> dict[str, Any]:
    """The run of `train_and_evaluate`, in a workdir that has been checked."""
    show = settings.train.progress and is_first()
    note = print if show else (lambda text: None)

    if dataset is None:
        dataset = data.from_settings(settings.data, settings.seed)
    views = _make_views(settings, dataset.image_shape)
    if settings.flow_only:
        _start_workdir(workdir, settings)
        return train_flow(settings, dataset, workdir, augment=views["flow"], command=command)
    plan = BatchPlan(settings, dataset.train.labels)
    _check_flow(flow, dataset)
    _start_workdir(workdir, settings)
    note(
        f"{settings.name} on {dataset.name}: {plan.train_examples} labelled training, "
        f"{len(dataset.validation.labels)} validation and {len(dataset.test.labels)} test images "
        f"of shape {dataset.image_shape}, {dataset.num_classes} classes"
    )

    flow_summary = None
    wants_generator = settings.uses_synthetic and generator is None
    wants_flow = settings.perturbs_latents and flow is None
    if wants_generator or wants_flow:
        trained, flow_summary = trained_flow_generator(
            settings, dataset, workdir, augment=views["flow"], note=note
        )
        generator = trained if wants_generator else generator
        flow = trained.params if wants_flow else flow
    mesh = data_mesh(settings.train.devices, settings.train.batch_size)
    train_data = Batch(jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels))
    generator = generator if settings.uses_synthetic else None
    if generator is not None:
        generator = generator._replace(params=replicate(mesh, generator.params))
    flow = flow if settings.perturbs_latents else None
    if flow is not None:
        if settings.latent.cache and settings.augment.train == "none":
            train_data = train_data._replace(latents=_encode(flow, train_data, settings))
        flow = replicate(mesh, flow)
    train_data = replicate(mesh, train_data)

    # Everything below is a pure function of settings, dataset, generator and flow.
    root = jax.random.key(settings.seed)
    total_steps = settings.train.epochs * plan.steps_per_epoch
    model = model or _make_model(settings, dataset)
    schedule = make_schedule(
        settings.optimizer, total_steps=total_steps, steps_per_epoch=plan.steps_per_epoch
    )
    tx = make_optimizer(settings.optimizer, schedule)
    synthetic = _make_synthetic(settings, views) if generator else None
    meta, finder_params = None, ()
    if generator is not None and settings.uses_meta:
        meta, finder_params = _make_meta(
            settings,
            views,
            dataset.num_classes,
            generator.latent_shape,
            jax.random.fold_in(root, 3),
        )
    step = make_train_step(
        model,
        tx,
        num_classes=dataset.num_classes,
        augment=views["train"],
        mix=_make_mix(settings),
        label_smoothing=settings.augment.label_smoothing,
        embedding_term=_make_embedding_term(settings, dataset.num_classes, total_steps),
        synthetic=synthetic,
        generator=generator,
        meta=meta,
        latent=_make_latent(settings, views),
        skip_nonfinite=settings.train.nonfinite == "skip",
        constrain=splitter(mesh),
    )
    params, model_state = model.init(
        jax.random.fold_in(root, 0), jnp.zeros((1, *dataset.image_shape))
    )
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        finder_params=finder_params,
        finder_opt_state=meta.tx.init(finder_params) if meta else (),
        key=jax.random.fold_in(root, 1),
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
    )
    frozen = (generator.params if generator else (), flow)
    clock = Clock()

    with Checkpoints(workdir / "checkpoints", note=note) as checkpoints:
        history: list[dict[str, float]] = []  # of the epoch that has begun, an entry an update
        skipped = 0  # updates of the epochs before
        restored = checkpoints.restore((state, best))
        if restored is not None:
            state, best = replicate(mesh, restored[1])
            extra = restored[2]
            _check_same_data(extra["subset_hash"], dataset, workdir)
            clock.add(extra["seconds"])
            history, skipped = extra["history"], extra["skipped"]
            note(f"continuing after update {int(state.step)} of {total_steps}")
        first_step, epoch = int(state.step), int(state.step) // plan.steps_per_epoch
        writer = MetricWriter(workdir, resume_step=first_step if restored else None)
        progress = Progress(total_steps, start_step=first_step, enabled=show)

        def save():
            extra = {
                "subset_hash": dataset.subset_hash,
                "seconds": clock.seconds,
                "history": history,
                "skipped": skipped,
            }
            checkpoints.save(int(state.step), (state, best), extra)

        with Interruption() as interruption, writer, progress:
            with progress.excluded():
                indices = replicate(mesh, plan.epoch(epoch))
                run_epoch = compile_epoch(step, state, train_data, indices, frozen)
            while not _done(settings, best, epoch):
                indices = replicate(mesh, plan.epoch(epoch))
                state, history = run_epoch(
                    state,
                    train_data,
                    indices,
                    frozen,
                    tick=lambda step: progress.update(step, images=settings.train.batch_size),
                    history=history,
                    # Several processes stop together, after an epoch.
                    stop=lambda: interruption.signum is not None and jax.process_count() == 1,
                )
                if settings.train.nonfinite == "stop":
                    _check_finite(history, state, best, workdir, settings)
                if len(history) == plan.steps_per_epoch:
                    epoch += 1
                    with progress.excluded():
                        metrics = _means(history)
                        if settings.train.nonfinite == "skip":
                            metrics["train/skipped_updates"] = sum(
                                m["train/nonfinite"] > 0 for m in history
                            )
                            skipped += metrics["train/skipped_updates"]
                        history = []
                        metrics["train/learning_rate"] = float(schedule(int(state.step) - 1))
                        metrics |= _validate(evaluate, state, dataset)
                        best = _better(best, state, metrics, epoch)
                        writer.write(int(state.step), metrics)
                        progress.update(int(state.step), **_shown(metrics))
                stopped = largest(interruption.signum or 0)
                if stopped:
                    save()
                    checkpoints.wait()
                    raise Interrupted(
                        f"Stopped by {signal.Signals(stopped).name} after update "
                        f"{int(state.step)} of {total_steps}, which is saved. The same command "
                        f"continues from there in {workdir}.",
                        stopped,
                    )
                if epoch % settings.train.checkpoint_every == 0 or _done(settings, best, epoch):
                    save()

    test: dict[str, Any] = {"accuracy": None, "loss": None, "predictions": None}
    similarity = {"intra_class_similarity": None, "inter_class_similarity": None}
    if settings.train.evaluate_test:
        test = evaluate(best.params, best.model_state, dataset.test.images, dataset.test.labels)
        similarity = class_similarity(test["embeddings"], dataset.test.labels)
    state, best, flow = on_one_device((state, best, flow))
    if generator is not None:
        generator = generator._replace(params=on_one_device(generator.params))
    summary = {
        "name": settings.name,
        "dataset": dataset.name,
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        **{f"test_{name}": value for name, value in similarity.items()},
        "validation_accuracy": float(best.accuracy) if len(dataset.validation.labels) else None,
        "best_step": int(best.epoch) * plan.steps_per_epoch,
        "epochs": epoch,
        "train_examples": plan.train_examples,
        "validation_examples": len(dataset.validation.labels),
        "test_examples": len(dataset.test.labels),
        "test_images_in_train": dataset.test_images_in_train,
        "steps": int(state.step),
        "skipped_updates": skipped,
        "seconds": round(clock.seconds, 2),
        "images_per_second": round(progress.images_per_second, 1),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(best.params)),
        "seed": settings.seed,
        "flow": flow_summary,
        "finder_spread": _finder_spread(meta, generator, dataset.num_classes, state),
        "subset_hash": dataset.subset_hash,
        "config_hash": config_hash(settings),
        **provenance(),
    }
    _write_samples(workdir, dataset, generator, synthetic, meta, state, jax.random.fold_in(root, 4))
    if settings.uses_latent:
        _write_perturbed(workdir, settings, dataset, flow, model, best, jax.random.fold_in(root, 5))
    _write_report(workdir, settings, summary, dataset, test, command)
    write_json(workdir / "summary.json", summary)  # last: its presence means that all is done
    return summary


class Clock:
    """Wall-clock seconds of a run, those before a restart included."""

    def __init__(self):
        self._start = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Adds seconds that an earlier process spent on the run."""
        self._start -= seconds

    @property
    def seconds(self) -> float:
        """Seconds since the run's start."""
        return time.perf_counter() - self._start


def compile_epoch(
    step: Callable,
    state: TrainState,
    train_data: Batch,
    indices: EpochIndices,
    frozen: tuple,
) -> Callable:
    """Compiles the training of one epoch, in the form that suits the backend.

    On accelerators an epoch is one `lax.scan`; on CPU, where XLA's convolutions are about twenty
    times slower inside a loop, it is a Python loop over a compiled step. This is the one place
    that decides. Being compiled here, neither form can recompile later.

    Args:
      step: from `make_train_step`.
      state: the first state, for its shapes; its buffers are donated at each call of the result.
      train_data: all training images.
      indices: of one epoch; images are gathered on the device.
      frozen: what `step` takes after the batches: the generator's parameters and maybe a flow.

    Returns:
      `run_epoch(state, train_data, indices, frozen, *, tick, history, stop) -> (state, history)`.
      `tick(step)` is called as updates are made. `history` has the metrics of each update of the
      epoch; one that has begun is continued from it, and left off where `stop()` is true.
    """
    steps = len(indices.inner)

    def indexed_step(state, train_data, indices, frozen):
        i = state.step % steps
        inner, outer = (
            None if rows is None else jax.tree.map(lambda array: array[rows[i]], train_data)  # noqa: B023
            for rows in indices
        )
        return step(state, inner, outer, *frozen)

    def scanned(state, train_data, indices, frozen):
        def body(state, _):
            return indexed_step(state, train_data, indices, frozen)

        return jax.lax.scan(body, state, length=steps)

    scan = jax.default_backend() != "cpu"
    program = (
        jax.jit(
            scanned if scan else indexed_step,
            donate_argnums=0,
            out_shardings=state.step.sharding,  # that of all of the state
        )
        .lower(state, train_data, indices, frozen)
        .compile()
    )

    def run_epoch(state, train_data, indices, frozen, *, tick, history, stop):
        done, fresh = int(state.step), []
        if scan:  # never left off, so never continued
            state, stacked = program(state, train_data, indices, frozen)
            stacked = jax.device_get(stacked)
            fresh = [jax.tree.map(lambda values: values[i], stacked) for i in range(steps)]  # noqa: B023
            tick(done + steps)
        while len(history) + len(fresh) < steps and not stop():
            state, metrics = program(state, train_data, indices, frozen)
            fresh.append(metrics)
            tick(done + len(fresh))
        fresh = [jax.tree.map(float, metrics) for metrics in jax.device_get(fresh)]
        return state, [*history, *fresh]

    return run_epoch


def _check_workdir(workdir: Path, settings: Settings) -> dict[str, Any] | None:
    """The summary of a finished run; refuses a workdir that another config has used."""
    path = workdir / "config.json"
    try:
        used = path.exists()
    except OSError as error:  # such as a name that is too long
        raise UserError(
            f"The workdir {str(workdir)[:100]!r} cannot be a folder ({error.strerror}); choose "
            "another one."
        ) from None
    if not used:
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise UserError(
                f"The workdir {workdir} exists and is not the workdir of a run: it has no "
                "config.json. Nothing in it was changed; choose a new or empty folder."
            )
        return None
    try:
        found = identity(from_config(json.loads(path.read_text())))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as the config of a run ({error}). Nothing was changed; choose "
            "a new workdir, or put the file back."
        ) from None
    lines = differences(found, identity(settings))
    if lines and all(other == path for other in workdir.iterdir()):
        return None  # a start that failed before anything was made
    if lines:
        raise UserError(
            f"The workdir {workdir} was used with another config, and a run continues only with "
            f"its own. What differs (there -> now): {'; '.join(lines)}. Nothing in it was changed; "
            "choose a new workdir, or undo these settings to continue."
        )
    summary = workdir / "summary.json"
    return json.loads(summary.read_text()) if summary.exists() else None


def _start_workdir(workdir: Path, settings: Settings) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", to_dict(settings))
    except OSError as error:
        raise UserError(
            f"The workdir {workdir} cannot be written ({error.strerror}); choose another one."
        ) from None


def _check_same_data(stored_hash: str, dataset: Dataset, workdir: Path) -> None:
    if stored_hash != dataset.subset_hash:
        raise UserError(
            f"The data have changed since the checkpoint in {workdir} was written: its training "
            f"and validation images have the hash {stored_hash[:12]}, those loaded now "
            f"{dataset.subset_hash[:12]}. Restore the data it was trained on, or start in a new "
            "workdir."
        )


def _check_flow(flow: Any, dataset: Dataset) -> None:
    if flow is None:
        return
    if tuple(flow.image_shape) != dataset.image_shape:
        raise UserError(
            f"The flow is for images of shape {tuple(flow.image_shape)}, but those of "
            f"{dataset.name} have {dataset.image_shape}; give a flow for these images."
        )
    if flow.num_classes not in (None, dataset.num_classes):
        raise UserError(
            f"The flow is conditioned on {flow.num_classes} classes, but {dataset.name} has "
            f"{dataset.num_classes}; give a flow for as many, or an unconditional one."
        )


def make_classifier(settings: Settings, num_classes: int, mean: Any, std: Any) -> Model:
    """The configured classifier behind standardisation by the given statistics `[C]`."""
    s = settings.model
    options: dict[str, Any] = {
        "convnet": {"widths": s.widths, "pooling": s.pooling},
        "resnet18": {"width": s.width},
        "wide_resnet": {"depth": s.depth, "width": s.width},
    }[s.name]
    model = models.make(s.name, num_classes=num_classes, dtype=s.dtype, **options)
    return models.standardized(model, mean, std)


def restore_classifier(
    workdir: str | Path, num_classes: int
) -> Callable[[jax.Array], jax.Array] | None:
    """The best classifier of a run: images [B, H, W, C] in [0, 1] to logits [B, num_classes].

    Args:
      workdir: of a run that trained a classifier; None is returned if it holds none.
      num_classes: of the data it was trained on.
    """
    workdir, restored = Path(workdir), None
    if (workdir / "config.json").exists():
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            restored = checkpoints.restore(None)
    if restored is None:
        return None
    best = restored[1][1]
    settings = from_config(json.loads((workdir / "config.json").read_text()))
    model = make_classifier(settings, num_classes, [0.0], [1.0])  # restored with the state

    def logits(x):
        outputs, _ = model.apply(best["params"], best["model_state"], x, rng=None, train=False)
        return outputs.logits

    return logits


def _make_model(settings: Settings, dataset: Dataset) -> Model:
    """The configured classifier, standardised by the training images' own statistics."""
    images = dataset.train.images.astype(np.float32) / 255.0
    std = np.maximum(images.std(axis=(0, 1, 2)), 1e-3)
    return make_classifier(settings, dataset.num_classes, images.mean(axis=(0, 1, 2)), std)


def _make_mix(settings: Settings) -> Callable | None:
    s = settings.augment
    if s.mix == "none" or s.mix_alpha == 0:
        return None
    mix = {"mixup": mixing.mixup, "cutmix": mixing.cutmix}[s.mix]
    return lambda key, x, y: mix(key, x, y, alpha=s.mix_alpha)


def _make_embedding_term(
    settings: Settings, num_classes: int, total_steps: int
) -> EmbeddingTerm | None:
    """The phantom term with its weight, or None where it is off."""
    s = settings.phantom
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
    weight = lambda step: s.weight * jnp.minimum((step + 1) / warmup, 1.0)
    return lambda key, outputs, labels, step: weight(step) * losses(key, outputs, labels)


def _make_views(settings: Settings, image_shape: tuple[int, ...]) -> dict[str, Augment]:
    """All augmentations of the run, built at once so that a wrong one is found at once."""
    specs = {
        "train": settings.augment.train,
        "weak": settings.synthetic.weak,
        "strong": settings.synthetic.strong,
        "after": settings.latent.augment_after,
        "flow": settings.flow.augment,
    }
    return {name: augment.make(spec, image_shape=image_shape) for name, spec in specs.items()}


def _make_synthetic(settings: Settings, views: dict[str, Augment]) -> Synthetic:
    s = settings.synthetic
    return Synthetic(
        loss=s.loss,
        weight=s.weight,
        distance=s.distance,
        weak=views["weak"],
        strong=views["strong"],
        batch_size=s.batch_size or settings.train.batch_size,
        temperature=s.temperature,
    )


def _make_latent(settings: Settings, views: dict[str, Augment]) -> Latent | None:
    s = settings.latent
    if not settings.uses_latent:
        return None
    return Latent(
        perturb=make_perturbation(settings),
        labels=s.labels if s.kind in ("adversarial", "pgd") else "true",
        mix=s.mix,
        augment=views["after"],
    )


def make_perturbation(settings: Settings, **changes: Any) -> Callable[..., jax.Array]:
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
    }
    return perturbation(s.kind, **{**options, **changes})


def _encode(flow: Any, data: Batch, settings: Settings) -> jax.Array:
    """The latents of all training images."""
    size = settings.train.eval_batch_size
    labels = data.labels if flow.num_classes is not None else None
    rows = [slice(start, start + size) for start in range(0, len(data.labels), size)]
    encode = jax.jit(lambda flow, x, y: flow.encode(to_float(x), y))
    latents = [encode(flow, data.images[r], None if labels is None else labels[r]) for r in rows]
    return jnp.concatenate(latents)


def _make_meta(
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
    )
    params = finder.init(key, jnp.zeros((1, *latent_shape)), jnp.zeros(1, jnp.int32))["params"]

    def find(params, z, y) -> Any:
        return finder.apply({"params": params}, z, y)

    meta = Meta(
        apply=find,
        tx=optax.adam(s.learning_rate),
        mode=s.mode,
        augment=views["train"],
    )
    return meta, params


def _validate(evaluate: Callable, state: TrainState, dataset: Dataset) -> dict[str, float]:
    split = dataset.validation
    if not len(split.labels):
        return {}
    result = evaluate(state.params, state.model_state, split.images, split.labels)
    return {
        "validation/accuracy": result["accuracy"],
        "validation/cross_entropy": result["loss"],
        **{
            f"validation/{name}": value
            for name, value in class_similarity(result["embeddings"], split.labels).items()
        },
    }


def _better(best: Best, state: TrainState, metrics: dict[str, float], epoch: int) -> Best:
    """The better of two models on validation; the latest one where there is no validation."""
    # In float32, as they are kept: otherwise rounding would decide between equal accuracies.
    accuracy = float(np.float32(metrics.get("validation/accuracy", -1.0)))
    loss = float(np.float32(metrics.get("validation/cross_entropy", np.inf)))
    loss = math.inf if math.isnan(loss) else loss
    better = (accuracy, -loss) > (float(best.accuracy), -float(best.loss))
    if "validation/accuracy" in metrics and not better:
        return best
    # A copy, since the state's buffers are donated to the next step.
    params, model_state = jax.tree.map(jnp.copy, (state.params, state.model_state))
    return Best(params, model_state, jnp.float32(accuracy), jnp.float32(loss), jnp.int32(epoch))


def _means(history: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of an epoch from those of its updates, float32; not of skipped ones."""
    made = [m for m in history if not m["train/nonfinite"]]
    return {
        name: float(np.mean([np.float32(m[name]) for m in made])) if made else math.nan
        for name in history[0]
        if name != "train/nonfinite"
    }


def _check_finite(
    history: list[dict[str, float]],
    state: TrainState,
    best: Best,
    workdir: Path,
    settings: Settings,
) -> None:
    """Stops at an update that was not finite; `state` is then still that before it."""
    failed = [int(m["train/nonfinite"]) for m in history if m["train/nonfinite"]]
    if not failed:
        return
    made, folder = int(state.step), workdir / "postmortem"
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(made, (state, best), {"failed": CHECKED[failed[0] - 1]})
    raise UserError(
        f"Update {made + 1} was not made: {CHECKED[failed[0] - 1]} is not finite. The state before "
        f"it is saved in {folder}. Start in a new workdir with a lower "
        f"config.optimizer.learning_rate ({settings.optimizer.learning_rate:g}) or a "
        f"config.optimizer.grad_clip ({settings.optimizer.grad_clip:g}; 0 is none), or repeat the "
        "command with --config.train.nonfinite=skip to go on from the last checkpoint without such "
        "updates."
    )


def _done(settings: Settings, best: Best, epoch: int) -> bool:
    s = settings.train
    return epoch >= s.epochs or bool(s.patience and epoch - int(best.epoch) >= s.patience)


def _shown(metrics: dict[str, float]) -> dict[str, Any]:
    names = {
        "loss": "train/loss",
        "train": "train/accuracy",
        "validation": "validation/accuracy",
    }
    return {short: metrics[name] for short, name in names.items() if name in metrics}


def _finder_spread(
    meta: Meta | None, generator: Generator | None, num_classes: int, state: TrainState
) -> float | None:
    """How different the found latents of one class are: 1 as the draws, 0 all the same.

    The ratio of standard deviations, found over drawn. A finder is a deterministic network, and
    nothing but the length of training keeps it from mapping all draws to the one latent it likes.
    """
    if meta is None or generator is None:
        return None
    z = jax.random.normal(jax.random.key(0), (num_classes * 16, *generator.latent_shape))
    found = meta.apply(state.finder_params, z, jnp.repeat(jnp.arange(num_classes), 16))
    spread = [
        jnp.sqrt(jnp.mean(jnp.var(a.reshape(num_classes, 16, -1), axis=1))) for a in (found, z)
    ]
    return round(float(spread[0] / spread[1]), 4)


def _write_samples(
    workdir: Path,
    dataset: Dataset,
    generator: Generator | None,
    synthetic: Synthetic | None,
    meta: Meta | None,
    state: TrainState,
    key: jax.Array,
) -> None:
    """Pictures: real images and, where there is a generator, what it makes; one class a row."""
    columns, classes = 8, min(dataset.num_classes, 10)
    names = list(dataset.class_names[:classes])
    folder = workdir / "samples"

    def save(name: str, images: Any, caption: str, **labels: Any) -> None:
        picture = grid(np.clip(np.asarray(images), 0, 1), columns=columns, **labels)
        save_png(folder / f"{name}.png", picture, caption=caption)

    real = [np.flatnonzero(dataset.train.labels == c)[:columns] for c in range(classes)]
    if min(len(rows) for rows in real) == columns:
        images = dataset.train.images[np.concatenate(real)] / 255.0
        save("1_real", images, "Real training images, one class a row.", row_labels=names)
    if generator is None or synthetic is None:
        return
    key_z, key_weak, key_strong = jax.random.split(key, 3)
    y = jnp.repeat(jnp.arange(classes), columns)
    z = synthetic.temperature * jax.random.normal(key_z, (len(y), *generator.latent_shape))
    images = generator.apply(generator.params, z, y)
    save("2_generated", images, "Generated from uniformly drawn latents.", row_labels=names)
    if meta is not None:
        images = generator.apply(generator.params, meta.apply(state.finder_params, z, y), y)
        caption = "Generated from the latents that the finder makes of the same draws."
        save("3_found", images, caption, row_labels=names)
    if synthetic.loss == "pcr":
        weak, strong = synthetic.weak(key_weak, images), synthetic.strong(key_strong, images)
        pairs = np.stack([weak, strong], axis=1)[: 4 * columns].reshape(-1, *images.shape[1:])
        save("4_views", pairs, "The two views of synthetic samples, side by side.")


def _write_perturbed(
    workdir: Path,
    settings: Settings,
    dataset: Dataset,
    flow: Any,
    model: Model,
    best: Best,
    key: jax.Array,
) -> None:
    """Picture: original, decoded, perturbed, difference, each with the classifier's prediction."""
    classes = np.unique(dataset.train.labels)[:10]
    rows = np.array([np.flatnonzero(dataset.train.labels == c)[0] for c in classes])
    x, y = (
        to_float(jnp.asarray(dataset.train.images[rows])),
        jnp.asarray(dataset.train.labels[rows]),
    )
    perturb = make_perturbation(settings, ratio=1.0)

    @jax.jit
    def make(params, model_state, flow, x, y):
        logits = lambda x: model.apply(params, model_state, x, rng=None, train=False)[0].logits
        target = jnp.argmax(logits(x), -1) if settings.latent.labels == "predicted" else y
        loss_fn = lambda x: optax.losses.softmax_cross_entropy_with_integer_labels(
            logits(x), target
        )
        decoded = x
        if flow is not None:
            labels = None if flow.num_classes is None else y
            decoded = jnp.clip(flow.decode(flow.encode(x, labels), labels), 0, 1)
        views = (x, decoded, perturb(key, flow, loss_fn, x, y, None))
        return views, [jax.nn.softmax(logits(view).astype(jnp.float32)) for view in views]

    views, chances = jax.device_get(make(best.params, best.model_state, flow, x, y))
    change = views[2] - views[0]
    largest = max(float(np.abs(change).max()), 1e-6)
    captions = [[f"{dataset.class_names[p.argmax()]}: {p.max():.0%}" for p in c] for c in chances]
    captions.append([f"{np.sqrt(np.sum(d**2)):.2f}" for d in change])
    pictures = np.stack([*views, 0.5 + 0.5 * change / largest], axis=1)
    texts = [text for row in zip(*captions) for text in row]
    picture = grid(
        captioned(pictures.reshape(-1, *x.shape[1:]), texts),
        columns=4,
        scale=1,
        pad=4,
        row_labels=[dataset.class_names[c] for c in classes],
    )
    save_png(
        workdir / "samples" / "5_perturbed.png",
        picture,
        caption=f"From left to right: training image, decoded without perturbation, perturbed "
        f"({settings.latent.kind}), and the difference, grey for none and full range "
        f"{largest:.2f}. Below: what the classifier takes it for and how surely; below the "
        "difference: its length.",
    )


def _write_report(
    workdir: Path,
    settings: Settings,
    summary: dict[str, Any],
    dataset: Dataset,
    test: dict[str, Any],
    command: str | None,
) -> None:
    confusion, embeddings = None, None
    if test["predictions"] is not None:
        confusion = np.zeros((dataset.num_classes, dataset.num_classes), np.int64)
        np.add.at(confusion, (dataset.test.labels, test["predictions"]), 1)
        points, explained = principal_plane(test["embeddings"][:1000])
        embeddings = {
            "points": points.round(4),
            "explained": explained.round(4),
            "labels": dataset.test.labels[:1000],
        }
    write_report(
        workdir,
        title=f"{settings.name} on {dataset.name}",
        summary=summary,
        config=to_dict(settings),
        defaults=to_dict(Settings()),
        confusion=confusion,
        embeddings=embeddings,
        class_names=dataset.class_names,
        command=command,
    )
