"""The runs of a study, each in a folder named by its content and never repeated; their times."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.store import locked
from genreg_jax import data, predict, train
from genreg_jax.augment import make as make_augment
from genreg_jax.checks import path_of
from genreg_jax.config import config_hash, identity
from genreg_jax.errors import BusyError
from genreg_jax.flow_run import trained_flow_generator
from genreg_jax.logs.files import write_atomically
from genreg_jax.settings import Settings

MEMBER_SEED = 1000  # between the members of an ensemble


def with_flow(folder: pathlib.Path, settings: Settings) -> Settings:
    """The settings with the trained flow of their subset, which all runs on it share."""
    if settings.uses_flow and not settings.flow.workdir:
        flow_key = {
            "flow": dataclasses.asdict(settings.flow),
            "data": identity(settings)["data"],
            "folder": settings.data.dir if settings.data.name == "folder" else "",
            "seed": settings.seed,
        }
        digest = hashlib.sha256(json.dumps(flow_key, sort_keys=True).encode()).hexdigest()[:12]
        home = folder / f"flow-{digest}"
        home.mkdir(parents=True, exist_ok=True)
        with locked(home):  # another process may be training it
            if not (home / "done").exists():
                dataset = load(settings)
                shape = settings.flow.shape_of(dataset.image_shape)
                view = make_augment(settings.flow.augment, image_shape=shape)
                with processor_time(home, begun=any(path.is_dir() for path in home.iterdir())):
                    _, flow = trained_flow_generator(settings, dataset, home, augment=view)
                (home / "done").write_text(json.dumps(flow))
        flow = dataclasses.replace(settings.flow, workdir=str(home))
        settings = dataclasses.replace(settings, flow=flow)
    return settings


def run(folder: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """One run, or the summary of the finished one."""
    settings = with_flow(folder, settings)
    workdir = folder / config_hash(settings)
    summary = _run(workdir, settings, settings)
    return summary | {"processor_seconds": processor_seconds(settings, [workdir])}


def _run(workdir: pathlib.Path, settings: Settings, data_of: Settings) -> dict[str, Any]:
    if (workdir / "summary.json").exists():
        return train.train_and_evaluate(settings, workdir)
    dataset = load(data_of)
    with processor_time(workdir, begun=workdir.exists()):
        return train.train_and_evaluate(settings, workdir, dataset=dataset)


@contextlib.contextmanager
def processor_time(folder: pathlib.Path, *, begun: bool) -> Iterator[None]:
    """Adds to a file beside a folder the seconds that this process computes meanwhile.

    On one core they are those of the clock on a core that does nothing else. Of what was `begun`
    without such a file, or by a process that was killed, they are unknown, and there is none.
    """
    path, start = _times(folder), time.process_time()
    if begun and not path.exists():
        yield
        return
    before = _seconds(folder) if path.exists() else 0.0
    path.unlink(missing_ok=True)
    try:
        yield
    except BusyError:  # the seconds are the other process's to tell
        before = None
        raise
    finally:
        if before is not None:
            write_atomically(path, str(before + time.process_time() - start))


def processor_seconds(settings: Settings, workdirs: Sequence[pathlib.Path]) -> float | None:
    """Of runs and of the flow that they share; None where some are unknown, and beside a GPU."""
    if jax.default_backend() != "cpu":
        return None
    folders = [*workdirs, *[path_of(settings.flow.workdir)] * settings.uses_flow]
    known = [seconds for folder in folders if (seconds := _seconds(folder)) is not None]
    return round(sum(known), 2) if len(known) == len(folders) else None


def _seconds(folder: pathlib.Path) -> float | None:
    try:
        seconds = float(_times(folder).read_text())
    except (FileNotFoundError, ValueError):  # never measured, or a damaged file
        return None
    return seconds if math.isfinite(seconds) else None


def _times(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(folder.name + ".processor_seconds")


def ensemble(folder: pathlib.Path, settings: Settings, members: int) -> dict[str, Any]:
    """The summary of a run, with the accuracies of several networks' mean probabilities.

    The others differ in the seed of all but the data. Both kinds of seconds are of all of them.
    """
    settings = with_flow(folder, settings)
    key, dataset = config_hash(settings), load(settings)
    others = [
        dataclasses.replace(settings, seed=settings.seed + MEMBER_SEED * k)
        for k in range(1, members)
    ]
    workdirs = [folder / key, *(folder / f"{key}-member-{k}" for k in range(1, members))]
    summaries = [_run(w, s, settings) for w, s in zip(workdirs, [settings, *others])]
    summary = dict(summaries[0]) | {
        "seconds": sum(s["seconds"] for s in summaries),
        "processor_seconds": processor_seconds(settings, workdirs),
    }
    runs = [predict.load(workdir) for workdir in workdirs]
    for name in ("validation", "test"):
        split = getattr(dataset, name)
        mean = np.mean([run.predict(split.images).probabilities for run in runs], axis=0)
        summary[f"{name}_accuracy"] = float((mean.argmax(1) == split.labels).mean())
    return summary


_read = functools.lru_cache(maxsize=2)(data.from_settings)


def load(settings: Settings) -> data.Dataset:
    """The data of a run; the last two are kept, since runs take turns on the seeds of tuning."""
    return _read(settings.data, settings.seed)
