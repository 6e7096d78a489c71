"""What is in a workdir: claiming one, refusing one, continuing one, finishing one.

config.json              the settings, written first
metrics.jsonl, .csv      one line an epoch; TensorBoard events beside them
checkpoints/<step>/      the state, the best model so far, and what the run knows of itself
flow/<step>/             the trained flow; flow_training/ while it is being trained
samples/*.png, report.*  for people
summary.json             the result, written last: its presence means that all is done
.lock                    held by the program that writes here, and says which one
"""

import contextlib
import dataclasses
import datetime
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genreg_jax import data
from genreg_jax.checkpoint import CheckpointReader, check_path
from genreg_jax.checks import check_folder, path_of, short
from genreg_jax.config import config_hash, differences, from_config, identity, to_dict
from genreg_jax.data import Dataset
from genreg_jax.devices import is_first, shared, warn
from genreg_jax.errors import BusyError, UserError
from genreg_jax.logs import (
    Summary,
    changes,
    checksum,
    provenance,
    read_json,
    read_metrics,
    read_summary,
    remove_unfinished,
    write_json,
    write_result,
)
from genreg_jax.logs.files import FOLDERS
from genreg_jax.models.pretrained import weights_file
from genreg_jax.records import about_own, check_same_own
from genreg_jax.report import write_report
from genreg_jax.report.html import flatten
from genreg_jax.settings import Settings


def check_arguments(workdir: Any, dataset: Any, callbacks: Any) -> None:
    """Refuses arguments of a run that would otherwise be found out when they are used.

    Args:
      workdir: a path.
      dataset: a `Dataset`, or None.
      callbacks: functions.

    Raises:
      TypeError: one is of another type.
    """
    check_folder(workdir)
    if dataset is not None and not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset is {short(dataset)}; it must be a gr.data.Dataset, such as "
            "gr.data.from_arrays(images, labels) makes of arrays."
        )
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(
            f"callbacks is {short(callbacks)}; it must be a list of functions of a step and a dict "
            "of metrics, such as [print]."
        )


def claim(workdir: Path, settings: Settings) -> Summary | None:
    """The summary of a finished run; refuses a workdir that another config has used.

    One that differs by a larger `train.epochs` alone continues the run. Nothing is written.
    """
    inside = _run_around(workdir)
    if inside is not None:
        raise UserError(
            f"The workdir {workdir} lies among the files of the run in {inside}, which would take "
            "it for its own. Nothing was changed; choose a folder outside of that run."
        )
    path = workdir / "config.json"
    try:
        used = path.exists()
    except OSError as error:  # such as a name that is too long
        raise UserError(
            f"The workdir {str(workdir)[:100]!r} cannot be a folder ({error.strerror}); choose "
            "another one."
        ) from None
    if not used:
        if workdir.exists() and (not workdir.is_dir() or _files(workdir)):
            raise UserError(
                f"The workdir {workdir} exists and is not the workdir of a run: it has no "
                "config.json. Nothing in it was changed; choose a new or empty folder."
            )
        return None
    try:
        there = from_config(read_json(path))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as the config of a run ({error}). Nothing was changed; choose "
            "a new workdir, or put the file back."
        ) from None
    lines = differences(identity(there), identity(settings), defaults=to_dict(Settings()))
    if lines and (_files(workdir) == [path] or _more_epochs(there, settings)):
        return None  # a start that failed before anything was made, or a run to be continued
    if lines:
        raise UserError(
            f"The workdir {workdir} was used with another config, and a run continues only with "
            f"its own. What differs (there -> now): {'; '.join(lines)}. Nothing in it was changed; "
            "choose a new workdir, or undo these settings to continue."
        )
    summary = workdir / "summary.json"
    if not summary.exists():
        return None
    number = (int, float, type(None))
    if settings.flow_only:
        return read_summary(workdir, subset_hash=str, test_bits_per_dim=number)
    return read_summary(workdir, subset_hash=str, test_accuracy=number, flow=(dict, type(None)))


def _run_around(workdir: Path) -> Path | None:
    """The run in one of whose own folders a workdir lies."""
    whole = workdir.absolute()
    for above in whole.parents:
        own = whole.relative_to(above).parts[0]
        with contextlib.suppress(OSError):
            if own.removesuffix("_damaged") in FOLDERS and (above / "config.json").is_file():
                return above
    return None


def _more_epochs(there: Settings, settings: Settings) -> bool:
    """Whether a run would have more epochs than that of a workdir and is otherwise the same."""
    longer = dataclasses.replace(there.train, epochs=settings.train.epochs)
    return (
        settings.train.epochs > there.train.epochs
        and not settings.flow_only
        and identity(dataclasses.replace(there, train=longer)) == identity(settings)
    )


def _files(workdir: Path) -> list[Path]:
    """What is in a workdir, but for hidden files: the lock, and what a killed write has left."""
    return [path for path in workdir.iterdir() if not path.name.startswith(".")]


def check_finished(
    summary: dict[str, Any],
    workdir: Path,
    settings: Settings,
    dataset: Dataset | None = None,
    own: dict[str, Any] | None = None,
) -> None:
    """Refuses the summary of a finished run for images or parts that it was not trained with.

    Otherwise says that it is finished.

    Args:
      summary: of the finished run.
      workdir: of that run.
      settings: which may name another run's flow or classifier.
      dataset: images of the caller's own.
      own: parts of the caller's own.
    """
    check_summary_of(settings, summary, workdir)
    check_same_own(summary, own or {}, workdir)
    of_arrays = summary.get("dataset") not in (None, settings.data.name)
    if dataset is None and of_arrays:
        raise UserError(
            f"The run in {workdir} was given its images, {summary['dataset']!r}, and is finished; "
            f"config.data names {settings.data.name}. Give the same images with dataset=, or read "
            "the result with gr.load(workdir)."
        )
    if dataset is None and _names_another_folder(workdir, settings):
        dataset = data.from_settings(settings.data, settings.seed)
    if dataset is not None:
        check_same_data(summary["subset_hash"], dataset, workdir, summary.get("fingerprint"))
    if settings.flow.workdir and settings.uses_flow:
        with CheckpointReader(path_of(settings.flow.workdir) / "flow") as checkpoints:
            used = (summary.get("flow") or {}).get("hash")
            check_same_part("flow", "flow.workdir", used, checkpoints.digest(), workdir)
    if settings.model.init_from:
        with CheckpointReader(path_of(settings.model.init_from) / "checkpoints") as checkpoints:
            now = checkpoints.digest()
        check_same_part("classifier", "model.init_from", summary.get("init_hash"), now, workdir)
    if settings.model.pretrained:
        _, now = weights_file(settings.model.pretrained)
        check_same_part("classifier", "model.pretrained", summary.get("init_hash"), now, workdir)
    if settings.train.progress and is_first():
        print(f"the run in {workdir} is finished: this is its result, nothing was trained")


def check_summary_of(settings: Settings, summary: dict[str, Any], workdir: Path) -> None:
    """Refuses the summary of a run with other settings than those of its config.json."""
    used = (summary.get("flow") or {}).get("hash") if settings.flow.workdir else ""
    here = config_hash(settings, flow_hash=used or "", init_hash=summary.get("init_hash") or "")
    if summary.get("config_hash") not in (None, here):
        raise UserError(
            f"{workdir / 'config.json'} is not the config that the result in summary.json is of. "
            "Put the file back."
        )


def _names_another_folder(workdir: Path, settings: Settings) -> bool:
    """Whether `config.data.dir` is not where a run's pictures of one's own were."""
    if settings.data.name != "folder":
        return False  # the name says what the images are
    there = from_config(read_json(workdir / "config.json")).data.dir
    here, then = (os.path.realpath(path_of(p)) for p in (settings.data.dir, there))
    return here != then


def start(workdir: Path, settings: Settings) -> contextlib.ExitStack:
    """Makes the workdir, takes its lock, writes a new run's config; to be left when the run ends.

    Every process of a run calls it with the folder of its own; the first one's is locked.

    Raises:
      UserError: the workdir cannot be written, another program writes to it, or one has used or
        finished it since it was claimed.
    """
    with contextlib.ExitStack() as stack:

        def prepare():
            check_path(workdir, written=True)
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(workdir))
                if claim(workdir, settings) is not None:
                    raise BusyError(
                        f"Another program has just finished the run in {workdir}; the same command "
                        "shows its result."
                    )
                remove_unfinished(workdir)
                path = workdir / "config.json"
                if not path.exists() or _files(workdir) == [path]:  # a run goes on: see `extend`
                    write_json(path, to_dict(settings))
            except OSError as error:
                raise UserError(
                    f"The workdir {workdir} cannot be written: {error.filename or workdir}: "
                    f"{error.strerror or error}. Make room or mend that, or choose another one."
                ) from None

        shared(prepare)
        return stack.pop_all()


def extend(workdir: Path, settings: Settings) -> None:
    """Gives a run that goes on its settings of now, once nothing can refuse that any more.

    Its images may lie elsewhere, and it may have more epochs, a finished one too.
    """

    def replace() -> None:
        if (workdir / "summary.json").exists():
            steps = read_summary(workdir, steps=int)["steps"]
            (workdir / "summary.json").rename(workdir / f"summary-{steps}.json")
        path = workdir / "config.json"
        if not path.exists() or read_json(path) != to_dict(settings):
            write_json(path, to_dict(settings))

    shared(replace)


@contextlib.contextmanager
def _lock(workdir: Path) -> Iterator[None]:
    """Holds the lock of a workdir, which the operating system lets go of when its process ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where a file that is open cannot be replaced anyway
        yield
        return
    path = workdir / ".lock"
    with contextlib.ExitStack() as stack:
        # The folder too, for the file may be removed meanwhile; some file systems lock files only.
        for name, flags in ((workdir, os.O_RDONLY), (path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)):
            try:
                opened = os.open(name, flags, 0o666)
            except IsADirectoryError:
                raise UserError(
                    f"{path} is a folder, where this program keeps the file by which two of them "
                    "keep out of one workdir. Remove or rename it, or choose another workdir."
                ) from None
            stack.callback(os.close, opened)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = path.read_text("utf-8", "replace") if path.is_file() else ""
                raise BusyError(
                    f"Another program writes to the workdir {workdir}: {holder or 'unknown'}. "
                    "Nothing was changed. Wait until it has ended, or stop it (Ctrl-C there saves "
                    "the update at hand) and run this command again; or choose another workdir."
                ) from None
            except OSError:
                pass  # a file system without locks
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        who = f"process {os.getpid()} on {socket.gethostname()}, since {now}"
        try:
            os.truncate(opened, 0)
            os.write(opened, who.encode("utf-8", "replace"))
        except OSError as error:  # of a file that is open, which names none
            raise OSError(error.errno, error.strerror, str(path)) from None
        try:
            yield
        finally:
            # The lock is what is let go of; whose it was is for people, and no reason to fail.
            with contextlib.suppress(OSError):
                os.truncate(opened, 0)


def finish(
    workdir: Path, settings: Settings, summary: dict[str, Any], *, command: str | None, **page: Any
) -> None:
    """Writes the report, TensorBoard's table and, last, the summary, to which a checksum is added.

    `page` is more for `report.write_report`.
    """
    summary["checksum"] = checksum(summary)
    write_report(
        workdir,
        title=f"{settings.name} on {summary['dataset']}",
        summary=summary,
        config=to_dict(settings),
        defaults=to_dict(Settings()),
        command=command,
        **page,
    )
    write_result(
        workdir,
        summary["steps"],
        {n: v for n, v in summary.items() if n.startswith("test_") and isinstance(v, float)},
        {n: v for n, v in flatten(to_dict(settings)).items() if isinstance(v, (str, int, float))},
        sorted((workdir / "samples").glob("*.png")),
    )
    write_json(workdir / "summary.json", summary)


def about(settings: Settings, dataset: Dataset, steps_per_epoch: int, **own: Any) -> dict[str, Any]:
    """What a run stores of itself in its checkpoints, so that it can be read back alone.

    Args:
      settings: of the run.
      dataset: that it was trained on.
      steps_per_epoch: updates of an epoch.
      **own: `model`, `generator`, `flow`, `embedding_term`: the caller's own, or None.
    """
    return {
        "config_hash": config_hash(settings),
        "epochs": settings.train.epochs,
        "steps_per_epoch": steps_per_epoch,
        "dataset": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "preprocessing": "none" if own.get("model") else "standardised by model_state",
        **about_own(own),
    }


def check_same_data(
    subset_hash: str, dataset: Dataset, workdir: Path, fingerprint: Any = None
) -> None:
    """Refuses other images than those of a run.

    Args:
      subset_hash: of the run's training and validation images.
      dataset: what is there now.
      workdir: of the run.
      fingerprint: of all of the run's images, those of the test set among them, where it is known.
    """
    for what, then, now in (
        ("training and validation images have", subset_hash, dataset.subset_hash),
        ("images, those of the test set among them, have", fingerprint, dataset.fingerprint),
    ):
        if then and then != now:
            raise UserError(
                f"The run in {workdir} is of other images: its {what} the hash {str(then)[:12]}, "
                f"and those of now have {now[:12]}. Nothing was changed; restore the data it was "
                "trained on, or choose a new workdir for these."
            )


def check_same_part(
    part: str, setting: str, stored_hash: str | None, now: str | None, workdir: Path
) -> None:
    """Refuses to go on with another flow, or another classifier to start from, than a run has used.

    One of the two hashes that is not known is not compared.
    """
    if stored_hash and now and stored_hash != now:
        raise UserError(
            f"The run in {workdir} used a {part} with the hash {stored_hash}, and that of "
            f"config.{setting} has {now}. Nothing was changed; name the workdir of the run it "
            "used, or start in a new workdir."
        )


def continued(
    processes: list[dict[str, Any]], step: int, workdir: Path, settings: Settings
) -> list[dict[str, Any]]:
    """The record of the processes that a run was made by, with this one's.

    Args:
      processes: the record so far: `provenance` of each process that differs from the one before
        it, and the `step` that it began at; empty at the start of a run.
      step: updates that have been made.
      workdir: of the run.
      settings: of the run.

    Returns:
      The record; what differs from the process before is said.

    Raises:
      UserError: something does, and `config.train.environment` is `same`.
    """
    now = provenance()
    if not processes:
        return [{"step": step, **now}]
    lines = changes(processes[-1], now)
    if lines and settings.train.environment == "same":
        raise UserError(
            f"The run in {workdir} was begun in another environment, where the same updates give "
            f"other numbers. What differs (there -> now): {'; '.join(lines)}. Nothing was changed; "
            "restore it to continue, or repeat the command with --config.train.environment=any to "
            "go on in this one, which the summary then says."
        )
    if {**processes[-1], "step": step} == {"step": step, **now}:
        return processes
    if lines:
        warn(f"The run goes on in another environment: {'; '.join(lines)}.")
    return [*processes, {"step": step, **now}]


def lost_metrics(workdir: Path, epochs: int) -> int:
    """How many of the lines that a classifier's epochs have written are not there, with a word."""
    there = sum(any(n.startswith("train/") for n in line) for line in read_metrics(workdir))
    lost = max(epochs - there, 0)
    if lost:
        warn(
            f"{workdir / 'metrics.jsonl'} has lost {lost} of the lines of {epochs} epochs. The "
            "result does not depend on them; the curves of the report have gaps, and the summary "
            "has their number."
        )
    return lost
