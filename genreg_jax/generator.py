"""The generator stage: an exact flow, trained on the same training images."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from genreg_jax import flows
from genreg_jax.checkpoint import Checkpoints
from genreg_jax.data import Dataset
from genreg_jax.errors import UserError
from genreg_jax.flows.training import fit
from genreg_jax.logs import MetricWriter, Progress
from genreg_jax.objective import Augment, Generator
from genreg_jax.settings import FlowSettings, Settings, differences


def build_flow(settings: FlowSettings, image_shape: tuple[int, ...], num_classes: int):
    """The untrained flow that the settings describe."""
    make = {"glow": flows.glow, "realnvp": flows.realnvp}[settings.kind]
    return make(
        image_shape,
        levels=settings.levels,
        steps=settings.steps,
        width=settings.width,
        dropout=settings.dropout,
        num_classes=num_classes if settings.conditional else None,
        scan=settings.scan,
        remat=settings.remat,
    )


def flow_generator(
    flow: Any, params: Any, image_shape: tuple[int, ...], *, conditional: bool
) -> Generator:
    """A frozen flow, which is the generator's `params`, as a generator of images in [0, 1]."""
    frozen = flow.freeze(params)

    def apply(frozen, z, y):
        # The logit's bounds let a decoded pixel leave [0, 1] by a few per cent.
        return jnp.clip(frozen.decode(z, y if conditional else None), 0, 1)

    return Generator(apply=apply, params=frozen, latent_shape=tuple(image_shape))


def trained_flow_generator(
    settings: Settings,
    dataset: Dataset,
    workdir: Path,
    *,
    augment: Augment,
    note: Callable[[str], None] = print,
) -> tuple[Generator, dict[str, Any]]:
    """`trained_flow` as a generator.

    Returns:
      The generator, whose `params` are the `FrozenFlow` itself, and the record of the flow's
      training.
    """
    flow, params, extra = trained_flow(settings, dataset, workdir, augment=augment, note=note)
    conditional = settings.flow.conditional
    return flow_generator(flow, params, dataset.image_shape, conditional=conditional), extra


def trained_flow(
    settings: Settings,
    dataset: Dataset,
    workdir: Path,
    *,
    augment: Augment,
    note: Callable[[str], None] = print,
) -> tuple[flows.Flow, Any, dict[str, Any]]:
    """Restores the flow of this run, or of the run named in the config, or trains it.

    An interrupted training continues from its last evaluation.

    Args:
      settings: of the run.
      dataset: its `train` split is what the flow learns, its `validation` images choose the best
        parameter average.
      workdir: of the run; the flow's checkpoint goes to `workdir/flow`.
      augment: of the flow's training images.
      note: called with lines for people.

    Returns:
      The flow, its parameters, and `{"bits_per_dim": on validation, "seconds": of its training,
      ...}`.

    Raises:
      UserError: the run named in `config.flow.workdir` has no trained flow, or one for other
        settings or other training images.
    """
    s = settings.flow
    with _as_user_error():
        flow = build_flow(s, dataset.image_shape, dataset.num_classes)
    like = jax.eval_shape(
        flow.init, jax.random.key(0), *_example(dataset, s.batch_size, s.conditional)
    )
    wanted = {
        "settings": {**dataclasses.asdict(s), "workdir": ""},
        "subset_hash": dataset.subset_hash,
    }
    folder = Path(s.workdir or workdir) / "flow"
    with Checkpoints(folder, keep=1) as checkpoints:
        found, restored = checkpoints.extra(), None
        if found is not None:
            _same(found["trained_with"], wanted, folder)
            restored = checkpoints.restore(like)
        if restored is not None:
            _, params, extra = restored
            note(f"flow: restored, {extra['bits_per_dim']:.3f} bits/dim on validation")
        elif s.workdir:
            raise UserError(
                f"config.flow.workdir = {s.workdir!r} holds no trained flow: there is no "
                f"checkpoint in {folder}. Name the workdir of a finished run that trained one, or "
                "leave it empty to train one here."
            )
        else:
            unfinished = folder.with_name("flow_training")
            with Checkpoints(unfinished, keep=1) as training:
                result = _train(settings, flow, dataset, workdir, augment, note, training, wanted)
            params, extra = result
            extra["trained_with"] = wanted
            extra["images"] = {
                "image_shape": list(dataset.image_shape),
                "class_names": list(dataset.class_names),
            }
            checkpoints.save(extra["updates"], params, extra)
            checkpoints.wait()
            shutil.rmtree(unfinished, ignore_errors=True)  # five times the flow's own size
    return flow, params, {k: v for k, v in extra.items() if k not in ("trained_with", "images")}


def restore_flow(workdir: str | Path) -> tuple[flows.FrozenFlow, tuple[str, ...]]:
    """The frozen flow of a finished run, and the names of the classes it was trained on.

    Args:
      workdir: of a run whose method needs a flow.

    Raises:
      UserError: there is no trained flow.
    """
    folder = Path(workdir) / "flow"
    with Checkpoints(folder, keep=1) as checkpoints:
        extra = checkpoints.extra()
        if extra is None or "images" not in extra:
            raise UserError(
                f"{str(workdir)!r} holds no trained flow: there is no checkpoint of one in "
                f"{folder}. Name the workdir of a run that trained one, such as `python -m "
                "genreg_jax.main --config=configs/latent_random_digits.py --workdir=DIR`."
            )
        settings = FlowSettings(**extra["trained_with"]["settings"])
        image_shape, class_names = extra["images"]["image_shape"], extra["images"]["class_names"]
        flow = build_flow(settings, tuple(image_shape), len(class_names))
        x = jnp.zeros((1, *image_shape))
        y = jnp.zeros(1, jnp.int32) if settings.conditional else None
        restored = checkpoints.restore(jax.eval_shape(flow.init, jax.random.key(0), x, y))
        assert restored is not None
    return flow.freeze(restored[1]), tuple(class_names)


def _example(dataset: Dataset, batch_size: int, conditional: bool):
    x = dataset.train.images[:batch_size].astype("float32") / 255.0
    return (x, dataset.train.labels[:batch_size]) if conditional else (x,)


def _same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    lines = differences(found, wanted, "flow")
    if lines:
        raise UserError(
            f"The trained flow in {folder} was made with other settings or other training images "
            f"({'; '.join(lines)}). Use the settings it was made with, or leave "
            "config.flow.workdir empty and train one in a new workdir."
        )


@contextlib.contextmanager
def _as_user_error():
    """What the flow finds wrong with its settings or its training, as a paragraph for the user."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"The flow of config.flow cannot be trained on these images: {error}"
        ) from None


def _train(
    settings: Settings,
    flow: flows.Flow,
    dataset: Dataset,
    workdir: Path,
    augment: Augment,
    note: Callable[[str], None],
    checkpoints: Checkpoints,
    wanted: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The flow's parameters and the record of its training."""
    s = settings.flow
    found, first = checkpoints.extra(), None
    if found is not None:
        _same(found["trained_with"], wanted, workdir / "flow_training")
        first = found["history"][-1]["step"]
        note(f"flow: continuing after update {first} of {s.updates}")
    writer = MetricWriter(workdir, phase="flow", resume_step=first)
    progress = Progress(
        s.updates, start_step=first or 0, label="flow", enabled=settings.train.progress
    )

    def on_progress(step: int, metrics: dict[str, Any]) -> None:
        curves = {k: v for k, v in metrics.items() if "bits_per_dim" in k}
        writer.write(step, curves)
        progress.update(step, images=s.eval_every * s.batch_size, **curves)

    def save(step: int, tree: Any, extra: dict[str, Any]) -> None:
        checkpoints.save(step, tree, extra | {"trained_with": wanted})

    images = dataset.unlabelled if s.images == "all" else dataset.train.images
    labels = dataset.train.labels if s.conditional else None
    validation = None
    if len(dataset.validation.labels):
        split = dataset.validation
        validation = (split.images, split.labels if s.conditional else None)
    with writer, progress, _as_user_error():
        result = fit(
            jax.random.fold_in(jax.random.key(settings.seed), 2),
            flow,
            images,
            labels,
            steps=s.updates,
            batch_size=min(s.batch_size, len(images)),
            optimizer=s.optimizer,
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            warmup=s.warmup,
            grad_clip=s.grad_clip,
            ema_decay=s.ema_decay,
            validation=validation,
            eval_every=min(s.eval_every, s.updates),
            augment=augment,
            on_progress=on_progress,
            save=save,
            restore=checkpoints.restore,
        )
    note(
        f"flow: {result.bits_per_dim:.3f} bits/dim on validation after {result.best_step} of "
        f"{s.updates} updates, {result.seconds:.0f} s"
    )
    return result.params, {
        "bits_per_dim": float(result.bits_per_dim),
        "best_update": int(result.best_step),
        "updates": s.updates,
        "train_images": len(images),
        "seconds": round(result.seconds, 2),
        "compile_seconds": round(result.compile_seconds, 2),
        "images_per_second": round(result.images_per_second, 1),
    }
