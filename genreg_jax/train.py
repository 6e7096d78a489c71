"""The one training loop; `train_and_evaluate` is what the command line calls."""

import contextlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from genreg_jax import build, data, records
from genreg_jax import workdir as workdirs
from genreg_jax.batches import BatchPlan
from genreg_jax.build import Parts
from genreg_jax.checkpoint import Checkpoints
from genreg_jax.checks import path_of
from genreg_jax.config import config_hash, from_config
from genreg_jax.contract import EmbeddingTerm, Generator, Model
from genreg_jax.costs import size
from genreg_jax.data import Dataset
from genreg_jax.data.dataset import listed, names_hash
from genreg_jax.devices import (
    check_jax,
    is_first,
    largest,
    on_one_device,
    own_folder,
    replicate,
    shared,
)
from genreg_jax.epoch import better, check_finite, compile_epoch, means
from genreg_jax.errors import UserError, way_out
from genreg_jax.evaluate import class_similarity, finder_share, search_in_words, validate
from genreg_jax.feed import check_stored
from genreg_jax.flow_run import cost_in_words, train_flow, trained_flow_generator
from genreg_jax.interrupt import Interrupted, Interruption
from genreg_jax.learned import learned_in_words, learned_values
from genreg_jax.logs import (
    Clock,
    MetricWriter,
    Progress,
    Stages,
    Summary,
    format_seconds,
    read_metrics,
)
from genreg_jax.memorisation import memorisation_in_words
from genreg_jax.own import check_own, wants
from genreg_jax.report.pictures import write_perturbed, write_samples
from genreg_jax.restore import start_from
from genreg_jax.results import page_of_test
from genreg_jax.samples import Samples, about_samples, draw_samples
from genreg_jax.settings import Settings
from genreg_jax.state import Best


def train_and_evaluate(
    config: Any,
    workdir: str | Path,
    *,
    dataset: Dataset | None = None,
    model: Model | None = None,
    generator: Generator | None = None,
    flow: Any = None,
    embedding_term: EmbeddingTerm | None = None,
    callbacks: Sequence[Callable[[int, dict[str, float]], Any]] = (),
    command: str | None = None,
) -> Summary:
    """Trains the classifier (or the flow alone) that a config describes; reads the test set once.

    Calling it again with the same config and workdir continues where the run stopped, or returns
    the summary of the finished run. With a larger `train.epochs` a finished run goes on, and the
    learning rate follows its schedule for the new number from there. SIGTERM and SIGINT end the
    training after the update at hand (on accelerators, the epoch), which is saved.

    Args:
      config: a `ConfigDict` as a config file's `get_config()` returns it, a nested dict, or
        `Settings`.
      workdir: folder for everything that the run writes; made if missing.
      dataset: images of your own (`genreg_jax.data.from_arrays`) instead of `config.data`.
      model: a classifier of your own for images in [0, 1] instead of `config.model`.
      generator: a generator of your own instead of the flow of `config.flow`.
      flow: a frozen flow of your own to perturb latents with, instead of that of `config.flow`.
      embedding_term: a regulariser of your own on the embeddings of the real batch, its weight
        included, in addition to that of `config.phantom`.
      callbacks: each is called as `callback(step, metrics)` after every epoch of a classifier, with
        the updates made so far and a dict of the epoch's metrics, those of `metrics.jsonl`; of
        several processes only in the first. What one raises ends the run, which then continues
        from its last checkpoint.
      command: what to type to get this run again, shown in the report.

    Returns:
      The summary, also written to `workdir/summary.json`: `test_accuracy`,
      `validation_accuracy`, `train_examples`, `steps`, `seconds`, `images_per_second`, `seed`,
      `device`, `versions`, `config_hash` and more.

    Raises:
      TypeError: `workdir`, `dataset` or `callbacks` is of another type.
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
    workdirs.check_arguments(workdir, dataset, callbacks)
    workdir = path_of(workdir)
    check_jax()
    own = {"model": model, "generator": generator, "flow": flow, "embedding_term": embedding_term}
    finished = shared(lambda: workdirs.claim(workdir, settings))
    if finished is not None:
        workdirs.check_finished(finished, workdir, settings, dataset, own)
        return finished
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(own_folder(workdir.absolute()))
            start = lambda: stack.enter_context(workdirs.start(folder, settings))
            return _run(settings, folder, dataset, own, callbacks, command, start)
    except OSError as error:
        if not (way := way_out(error, workdir)):
            raise
        raise UserError(
            f"A file could not be written or read ({error}). What was saved in {workdir} before is "
            f"whole; {way}, and run the same command again to continue."
        ) from error


def _run(
    settings: Settings,
    workdir: Path,
    dataset: Dataset | None,
    own: dict[str, Any],
    callbacks: Sequence[Callable[[int, dict[str, float]], Any]],
    command: str | None,
    start: Callable[[], Any],
) -> Summary:
    """The run of `train_and_evaluate`: `own` are the caller's parts, `start` opens the workdir."""
    show = settings.train.progress and is_first()
    note = print if show else (lambda text: None)
    stages = Stages()

    # Load the data, and find out what is wrong before anything is written.
    if dataset is None:
        dataset = data.from_settings(settings.data, settings.seed)
    views = build.views_of(settings, dataset.image_shape)
    check_stored(settings, dataset, own)
    check_own(settings, own, dataset)
    if settings.flow_only:
        start()
        stages.end("data")
        return train_flow(
            settings, dataset, workdir, augment=views["flow"], stages=stages, command=command
        )
    plan = BatchPlan(settings, dataset.train.labels, dataset.validation.labels)
    warm, init_hash = start_from(settings, dataset, note)
    start()
    note(
        f"{settings.name} on {dataset.name}: {plan.train_examples} labelled training, "
        f"{len(dataset.validation.labels)} validation and {len(dataset.test.labels)} test images "
        f"of shape {dataset.image_shape}, {dataset.num_classes} classes "
        f"({listed(dataset.class_names)})"
    )
    stages.end("data")

    # Train the flow, or find it trained; build the parts.
    generator, flow, flow_record = own["generator"], own["flow"], None
    wants_generator, wants_flow = wants(settings, own)
    if wants_generator or wants_flow:
        if show and not settings.flow.workdir and not (workdir / "flow").exists():
            model = own["model"] or build.model_of(settings, dataset)
            images = settings.train.epochs * plan.steps_per_epoch * settings.train.batch_size
            note(cost_in_words(settings, dataset, model, images))
        trained, flow_record = trained_flow_generator(
            settings, dataset, workdir, augment=views["flow"], note=note
        )
        generator = trained if wants_generator else generator
        flow = trained.params if wants_flow else flow
        stages.end("flow")
    parts = build.parts(
        settings,
        dataset,
        plan=plan,
        views=views,
        model=own["model"],
        generator=generator,
        flow=flow,
        embedding_term=own["embedding_term"],
        warm=warm,
    )
    flow_hash = flow_record["hash"] if flow_record and settings.flow.workdir else ""
    state, best, mesh, total_steps = parts.state, parts.best, parts.mesh, parts.total_steps
    clock, held_out = Clock(), names_hash(dataset.test)

    with Checkpoints(workdir / "checkpoints", shape=records.CLASSIFIER) as checkpoints:
        history: list[dict[str, float]] = []  # of the epoch that has begun, an entry an update
        skipped = 0  # updates of the epochs before
        processes: list[dict[str, Any]] = []
        extended: list[dict[str, int]] = []  # where the run was given more epochs
        restored = checkpoints.restore((state, best))
        if restored is not None:
            state, best = replicate(mesh, restored[1])
            extra = restored[2]
            records.check_same_run(extra.get("run"), settings, own, workdir)
            fingerprint = extra.get("fingerprint")
            workdirs.check_same_data(extra["subset_hash"], dataset, workdir, fingerprint)
            origin = "model.pretrained" if settings.model.pretrained else "model.init_from"
            for part, setting, key, now in (
                ("flow", "flow.workdir", "flow_hash", flow_hash),
                ("classifier", origin, "init_hash", init_hash),
            ):
                workdirs.check_same_part(part, setting, extra.get(key), now, workdir)
            clock.add(extra["seconds"])
            # An earlier version did not tell the stages of its processes apart.
            stages.add(extra.get("stages", {"earlier processes": extra["seconds"]}))
            history, skipped = extra["history"], extra["skipped"]
            processes = extra.get("processes", [])
            extended = extra.get("extended", [])
            before = extra["run"].get("epochs", settings.train.epochs)
            if before != settings.train.epochs:
                extended = [*extended, {"step": int(state.step), "epochs_before": before}]
            note(f"continuing after update {int(state.step)} of {total_steps}")
        elif flow_record and not settings.flow.workdir:  # compared with the processes that made it
            workdirs.continued(flow_record.get("processes", []), 0, workdir, settings)
        first_step, epoch = int(state.step), int(state.step) // plan.steps_per_epoch
        processes = workdirs.continued(processes, first_step, workdir, settings)
        writer = MetricWriter(workdir, resume_step=first_step if restored else None)
        workdirs.extend(workdir, settings)
        progress = Progress(total_steps, start_step=first_step, enabled=show)

        def tick(step: int, metrics: Any) -> None:
            images = (step - progress.step) * settings.train.batch_size
            # An epoch's last update is shown with the epoch's metrics.
            progress.update(step, images=images, show=step % plan.steps_per_epoch > 0, wait=metrics)

        def save():
            extra = {
                "subset_hash": dataset.subset_hash,
                "fingerprint": dataset.fingerprint,
                "test_names_hash": held_out,
                "flow_hash": flow_hash,
                "init_hash": init_hash,
                "seconds": clock.seconds,
                "stages": stages.to_dict(),
                "history": history,
                "skipped": skipped,
                "processes": processes,
                "extended": extended,
                "run": workdirs.about(settings, dataset, plan.steps_per_epoch, **own),
            }
            checkpoints.save(int(state.step), (state, best), extra)
            stages.end("checkpoints")

        with Interruption() as interruption, writer, progress:
            with progress.excluded():
                note(
                    f"compiling the step of a classifier with {size(state.params):,} parameters, "
                    f"{total_steps:,} updates of {settings.train.batch_size} images"
                )
                compiling = Clock()
                indices = parts.placed(plan.epoch(epoch))
                run_epoch = compile_epoch(
                    parts.step, state, parts.train_data, indices, parts.frozen
                )
                note(f"compiled in {format_seconds(compiling.seconds)}")
                stages.end("compilation")
            while not _done(settings, best, epoch):
                indices = parts.placed(plan.epoch(epoch))
                state, history = run_epoch(
                    state,
                    parts.train_data,
                    indices,
                    parts.frozen,
                    tick=tick,
                    history=history,
                    # Several processes stop together, after an epoch.
                    stop=lambda: interruption.signum is not None and jax.process_count() == 1,
                )
                stages.end("training")
                if settings.train.nonfinite == "stop":
                    check_finite(history, state, best, workdir, settings)
                if len(history) == plan.steps_per_epoch:
                    epoch += 1
                    with progress.excluded():
                        metrics = means(history)
                        if settings.train.nonfinite == "skip":
                            metrics["train/skipped_updates"] = sum(
                                m["train/nonfinite"] > 0 for m in history
                            )
                            skipped += metrics["train/skipped_updates"]
                        history = []
                        metrics["train/learning_rate"] = float(parts.schedule(int(state.step) - 1))
                        metrics |= validate(parts.evaluate, state, dataset.validation)
                        best = better(best, state, metrics, epoch)
                        writer.write(int(state.step), metrics)
                        for callback in callbacks if is_first() else ():
                            callback(int(state.step), dict(metrics))
                        progress.update(int(state.step), **_shown(metrics))
                        stages.end("validation")
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

    stages.end("checkpoints")
    # Read the test set, once; write the pictures, the report and the summary.
    names = ("accuracy", "loss", "calibration_error", "predictions")
    test: dict[str, Any] = dict.fromkeys(names)
    similarity = {"intra_class_similarity": None, "inter_class_similarity": None}
    if settings.train.evaluate_test:
        split = dataset.test
        test = parts.evaluate(best.params, best.model_state, split.images, split.labels)
        similarity = class_similarity(test["embeddings"], split.labels)
    samples, about = None, None
    if parts.generator is not None:
        key, finder_params = jax.random.fold_in(parts.root, 4), on_one_device(state.finder_params)
        samples = draw_samples(key, parts, dataset, finder_params)
        about = about_samples(samples, parts, best, dataset, settings)
    stages.end("evaluation")
    state, best = on_one_device((state, best))
    summary = Summary(
        {
            "name": settings.name,
            "dataset": dataset.name,
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "test_calibration_error": test["calibration_error"],
            **{f"test_{name}": value for name, value in similarity.items()},
            "validation_accuracy": float(best.accuracy) if len(dataset.validation.labels) else None,
            "best_step": int(best.epoch) * plan.steps_per_epoch,
            "epochs": epoch,
            "extended": extended,
            **records.about_own(own),
            "train_examples": plan.train_examples,
            "validation_examples": len(dataset.validation.labels),
            "test_examples": len(dataset.test.labels),
            "test_images_in_train": dataset.test_images_in_train,
            "steps": int(state.step),
            "skipped_updates": skipped,
            "seconds": round(clock.seconds, 2),
            "images_per_second": round(progress.images_per_second, 1),
            "parameters": size(best.params),
            "seed": settings.seed,
            "flow": flow_record,
            **_finder(samples, workdir),
            "strengths": learned_values(parts.tune, state.strengths),
            "generator": about,
            "subset_hash": dataset.subset_hash,
            "fingerprint": dataset.fingerprint,
            "config_hash": config_hash(settings, flow_hash=flow_hash, init_hash=init_hash),
            "init_hash": init_hash,
            "metrics_lost": workdirs.lost_metrics(workdir, epoch),
            "processes": processes,
            **{name: value for name, value in processes[-1].items() if name != "step"},
        }
    )
    _write_pictures(workdir, settings, dataset, parts, best, samples)
    page = page_of_test(dataset, test)
    stages.end("pictures")
    if flow_record and not settings.flow.workdir:
        stages.at_least("flow", flow_record["seconds"])  # over all of its processes
    summary["stages"] = stages.to_dict()
    if extended:
        page["notes"] += [
            "The run was given more epochs: "
            + ", ".join(f"{e['epochs_before']} until update {e['step']}" for e in extended)
            + f", then {settings.train.epochs}. The learning rate followed its schedule for the "
            "number of the time, so this is not the run that had them all from the start."
        ]
    if summary["finder_spread"] is not None:
        finder = [summary[f"finder_{name}"] for name in ("spread", "distance", "share")]
        page["notes"] += [search_in_words(*finder)]
    if about is not None:
        page["notes"] += [memorisation_in_words(about)]
    page["notes"] += learned_in_words(settings, summary["strengths"], command)
    workdirs.finish(workdir, settings, summary, command=command, **page)
    return summary


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


def _write_pictures(
    workdir: Path,
    settings: Settings,
    dataset: Dataset,
    parts: Parts,
    best: Best,
    samples: Samples | None,
) -> None:
    """The PNGs of the run; `best` lies on one device."""
    synthetic = parts.synthetic
    write_samples(
        jax.random.fold_in(parts.root, 6),
        workdir,
        dataset,
        samples=samples,
        source=settings.synthetic.source,
        views=(synthetic.weak, synthetic.strong) if synthetic and synthetic.loss == "pcr" else None,
    )
    if settings.uses_latent:
        write_perturbed(
            jax.random.fold_in(parts.root, 5),
            workdir,
            dataset,
            parts.model,
            best.params,
            best.model_state,
            build.perturbation_of(settings, ratio=1.0),
            kind=settings.latent.kind,
            flow=on_one_device(parts.flow),
            predicted_labels=settings.latent.labels == "predicted",
        )


def _finder(samples: Samples | None, workdir: Path) -> dict[str, float | None]:
    """What has become of the run's finder, None without one."""
    names = ("finder_spread", "finder_distance", "finder_share")
    if samples is None or samples.search is None:
        return dict.fromkeys(names)
    search, share = samples.search, finder_share(read_metrics(workdir))
    return dict(zip(names, (round(search["spread"], 4), round(search["distance"], 4), share)))
