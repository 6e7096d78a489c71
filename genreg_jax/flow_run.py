"""The flow's part of a run: training it, or finding it trained.

A run whose method needs a flow has it from `trained_flow`, as a generator from
`trained_flow_generator`. With `config.model.name = "none"` the flow is the whole run: `train_flow`.
"""

import contextlib
import dataclasses
import functools
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from genreg_jax import flows
from genreg_jax import workdir as workdirs
from genreg_jax.build import flow_of
from genreg_jax.checkpoint import CheckpointReader, Checkpoints
from genreg_jax.checks import path_of
from genreg_jax.config import config_hash, differences
from genreg_jax.contract import Augment, Generator, Model
from genreg_jax.costs import flow_cost, in_words
from genreg_jax.data import Dataset, Split, Stored
from genreg_jax.data.pictures import resized
from genreg_jax.devices import data_mesh, is_first, largest
from genreg_jax.errors import UserError
from genreg_jax.flows.measure import evaluate_flow, print_result, test_key
from genreg_jax.flows.training import fit
from genreg_jax.interrupt import Interrupted, Interruption
from genreg_jax.logs import MetricWriter, Progress, Stages, Summary, provenance
from genreg_jax.memorisation import memorisation_in_words
from genreg_jax.records import FLOW, FLOW_TRAINING
from genreg_jax.report.pictures import write_flow_samples
from genreg_jax.restore import flow_shapes
from genreg_jax.samples import about_prior
from genreg_jax.settings import FlowSettings, Settings


def train_flow(
    settings: Settings,
    dataset: Dataset,
    workdir: Path,
    *,
    augment: Augment,
    stages: Stages,
    command: str | None = None,
) -> Summary:
    """Trains the flow of `config.flow` on the training images, and reads the test set once.

    Args:
      settings: of the run.
      dataset: the flow learns from `train`; `validation` chooses its parameters.
      workdir: of the run.
      augment: of the training images.
      stages: the run's clock so far.
      command: what to type to get this run again, shown in the report.

    Returns:
      The summary, also written to `workdir/summary.json`: `test_bits_per_dim`,
      `validation_bits_per_dim`, `train_bits_per_dim` (of as many training images as there are test
      images), `reconstruction_error_max` and `reconstruction_error_median` over the test set,
      `seconds`, `compile_seconds`, `images_per_second` and more.
    """
    dataset = flow_data(settings, dataset)
    show = settings.train.progress and is_first()
    note: Callable[[str], None] = print if show else (lambda text: None)
    note(
        f"{settings.name} on {dataset.name}: {len(dataset.train)} training, "
        f"{len(dataset.validation)} validation and {len(dataset.test)} test images of shape "
        f"{dataset.image_shape}"
    )
    flow, params, trained = trained_flow(settings, dataset, workdir, augment=augment, note=note)
    made_by = trained.get("processes", [])
    processes = workdirs.continued(made_by, trained["updates"], workdir, settings)
    workdirs.extend(workdir, settings)
    stages.end("flow")
    stages.at_least("flow", trained["seconds"])  # over all of its processes
    key = test_key(settings.seed)

    def measure(split: Split, limit: int | None = None) -> dict[str, float]:
        labels = split.labels[:limit] if settings.flow.conditional else None
        return evaluate_flow(flow, params, split.images[:limit], labels, key=key)

    train = measure(dataset.train, len(dataset.test))
    validation = measure(dataset.validation) if len(dataset.validation) else None
    test = measure(dataset.test) if settings.train.evaluate_test else None
    if test is not None and show:
        print_result(len(dataset.test), test)
    shown = next(
        split
        for split, read in ((dataset.test, test), (dataset.validation, validation))
        + ((dataset.train, train),)
        if read is not None
    )
    stages.end("evaluation")
    write_flow_samples(jax.random.fold_in(key, 1), workdir, flow, params, dataset, shown)
    stages.end("pictures")
    about = None
    if test is not None or validation is not None:
        generator = flows.as_generator(flow, params)
        held_out = (dataset.validation if test is None else dataset.test).images
        about = about_prior(jax.random.fold_in(key, 2), generator, dataset, settings, held_out)
    stages.end("evaluation")
    summary = Summary(
        {
            "name": settings.name,
            "dataset": dataset.name,
            "test_bits_per_dim": test and test["bits_per_dim"],
            "test_bits_per_dim_error": test and test["bits_per_dim_error"],
            "validation_bits_per_dim": validation and validation["bits_per_dim"],
            "train_bits_per_dim": train["bits_per_dim"],
            **{k: v for k, v in (test or {}).items() if "reconstruction" in k},
            "generator": about,
            "best_step": trained["best_update"],
            "steps": trained["updates"],
            "train_examples": len(dataset.train),
            "validation_examples": len(dataset.validation),
            "test_examples": len(dataset.test),
            "seconds": trained["seconds"],
            "compile_seconds": trained["compile_seconds"],
            "stages": stages.to_dict(),
            "images_per_second": trained["images_per_second"],
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "seed": settings.seed,
            "subset_hash": dataset.subset_hash,
            "fingerprint": dataset.fingerprint,
            "config_hash": config_hash(settings),
            "processes": processes,
            **provenance(),
        }
    )
    notes = [] if about is None else [memorisation_in_words(about)]
    workdirs.finish(workdir, settings, summary, command=command, notes=notes)
    return summary


def cost_in_words(settings: Settings, dataset: Dataset, model: Model, images: int) -> str:
    """What the flow of a run will cost, as lines for people; arguments as of `costs.flow_cost`."""
    with _as_user_error():
        cost = flow_cost(settings.flow, dataset, model, images)
    return "\n".join(in_words(settings.flow, dataset, *cost))


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
      The generator, whose `params` are the frozen flow itself, for images of the data set's size,
      and the record of the flow's training.
    """
    flow, params, extra = trained_flow(settings, dataset, workdir, augment=augment, note=note)
    generator = flows.as_generator(flow, params)
    frozen = flows.resized(generator.params, dataset.image_shape)
    return generator._replace(params=frozen), extra


def trained_flow(
    settings: Settings,
    dataset: Dataset,
    workdir: Path,
    *,
    augment: Augment,
    note: Callable[[str], None] = print,
) -> tuple[flows.Flow, Any, dict[str, Any]]:
    """Restores the flow of this run, or of the run named in the config, or trains it.

    SIGTERM and SIGINT end the training after the update at hand, which is saved; it continues from
    there.

    Args:
      settings: of the run.
      dataset: its `train` split is what the flow learns, its `validation` images choose the best
        parameter average.
      workdir: of the run; the flow's checkpoint goes to `workdir/flow`.
      augment: of the flow's training images.
      note: called with lines for people.

    Returns:
      The flow, its parameters, and `{"bits_per_dim": on validation, "seconds": of its training,
      "hash": of its parameters, ...}`.

    Raises:
      Interrupted: a signal stopped the training, which is saved as it was.
      UserError: the run named in `config.flow.workdir` has no trained flow, or one for other
        settings or other training images.
    """
    s = settings.flow
    flow = flow_for(settings, dataset)
    like = flow_shapes(flow)
    wanted = {
        "settings": {**dataclasses.asdict(s), "workdir": ""},
        "subset_hash": dataset.subset_hash,
    }
    folder, unfinished = path_of(s.workdir or workdir) / "flow", workdir / "flow_training"
    # The flow of another run is only read.
    open_folder = CheckpointReader if s.workdir else functools.partial(Checkpoints, keep=1)
    with open_folder(folder, shape=FLOW) as checkpoints:
        found, restored = checkpoints.extra(), None
        if found is not None:
            made = found["trained_with"]
            if s.workdir and isinstance(dataset.train.images, Stored):
                # Trained in memory, so on a part of these images.
                made = made | {"subset_hash": dataset.subset_hash}
            _same(made, wanted, folder)
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
            with Checkpoints(unfinished, keep=1, shape=FLOW_TRAINING) as training:
                images = flow_data(settings, dataset)
                result = _train(settings, flow, images, workdir, augment, note, training, wanted)
            params, extra = result
            extra["trained_with"] = wanted
            extra["images"] = {
                "image_shape": list(dataset.image_shape),
                "class_names": list(dataset.class_names),
            }
            assert isinstance(checkpoints, Checkpoints)
            checkpoints.save(extra["updates"], params, extra)
            checkpoints.wait()
        if not s.workdir:  # five times the flow's own size
            shutil.rmtree(unfinished, ignore_errors=True)
        record = {k: v for k, v in extra.items() if k not in ("trained_with", "images")}
        return flow, params, {**record, "hash": checkpoints.digest()}


def flow_for(settings: Settings, dataset: Dataset) -> flows.Flow:
    """The untrained flow of a run, or what these images do not allow of it, such as its levels."""
    with _as_user_error():
        return flow_of(settings.flow, dataset.image_shape, dataset.num_classes)


def flow_data(settings: Settings, dataset: Dataset) -> Dataset:
    """The images that the flow of a run works on: those of the data, at the flow's size."""
    size = settings.flow.image_size
    return resized(dataset, size, settings.data.resize) if size else dataset


def _same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    # What did not exist yet had the value that is the default now.
    settings = dataclasses.asdict(FlowSettings()) | found["settings"]
    lines = differences(found | {"settings": settings}, wanted, "flow")
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
    mesh = data_mesh(settings.train.devices, s.batch_size, "flow")
    found, first, evaluated, processes = checkpoints.extra(), 0, None, []
    if found is not None:
        _same(found["trained_with"], wanted, workdir / "flow_training")
        evaluated = found["history"][-1]["step"] if found["history"] else 0
        first = found.get("step", evaluated)
        processes = found.get("processes", [])
        note(f"flow: continuing after update {first} of {s.updates}")
    processes = workdirs.continued(processes, first, workdir, settings)
    writer = MetricWriter(workdir, phase="flow", resume_step=evaluated)
    show = settings.train.progress and is_first()
    progress = Progress(s.updates, start_step=first, label="flow", enabled=show)
    eval_every = min(s.eval_every, s.updates)

    def on_progress(step: int, metrics: dict[str, Any]) -> None:
        curves = {k: v for k, v in metrics.items() if "bits_per_dim" in k}
        writer.write(step, curves)
        progress.update(step, images=s.eval_every * s.batch_size, **curves)

    def save(step: int, tree: Any, extra: dict[str, Any]) -> None:
        own = {"step": step, "trained_with": wanted, "processes": processes}
        checkpoints.save(step, tree, extra | own)

    images = dataset.unlabelled if s.images == "all" else dataset.train.images
    labels = dataset.train.labels if s.conditional else None
    validation = None
    if len(dataset.validation.labels):
        split = dataset.validation
        validation = (split.images, split.labels if s.conditional else None)
    with Interruption() as interruption, writer, progress, _as_user_error():

        def stop(step: int) -> bool:
            if jax.process_count() == 1:
                return interruption.signum is not None
            # Several processes stop together, at an evaluation.
            return step % eval_every == 0 and bool(largest(interruption.signum or 0))

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
            eval_every=eval_every,
            augment=augment,
            on_progress=on_progress,
            save=save,
            restore=checkpoints.restore,
            stop=stop,
            mesh=mesh,
        )
        signum = largest(interruption.signum or 0)
        if signum:
            checkpoints.wait()
            raise Interrupted(
                f"Stopped by {signal.Signals(signum).name} after update {result.steps} of "
                f"{s.updates} of the flow, which is saved. The same command continues from there "
                f"in {workdir}.",
                signum,
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
        "processes": processes,
    }
