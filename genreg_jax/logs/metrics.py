"""Metrics on disk: `metrics.jsonl` is the record, a CSV and TensorBoard's events are views of it.

A run that is stopped and continued ends with the same `metrics.jsonl` as one that was never
stopped, because `MetricWriter` drops what the stopped run wrote after the checkpoint it continues
from.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genreg_jax.errors import UserError
from genreg_jax.logs.files import parse_json, read_bytes, to_json, write_atomically

# Trainings that run before the classifier's in the same workdir and count their own steps.
PHASES = ("flow",)


class MetricWriter:
    """Writes scalar metrics to `metrics.jsonl`, `metrics.csv` and TensorBoard events.

    Every `write` appends one line `{"step": 100, "train/loss": 0.31, ...}` that is on disk when the
    call returns; a non-finite value becomes `null`, so that every line is valid JSON. The CSV (one
    row a line, the union of all names as columns) is made from the JSONL by `flush` and `close`.
    Events go to `tensorboard/` and do not need TensorFlow.

    A workdir may hold the record of a flow's own training, whose steps count from zero too. With
    `phase="flow"` the names are written as `flow/<name>`, and starting or continuing one phase
    leaves the lines of the other alone.

    Args:
      workdir: Directory of the run; made if missing.
      resume_step: The step of the checkpoint that the run continues from; lines after it are
        dropped. None starts over: all lines of this phase are dropped.
      phase: "" for the classifier, "flow" for the flow that is trained before it.

    Raises:
      ValueError: `phase` is unknown.
      UserError: an existing `metrics.jsonl` is damaged other than by an interrupted last write.

    Example:
      >>> import tempfile
      >>> workdir = tempfile.mkdtemp()
      >>> with MetricWriter(workdir) as writer:
      ...     writer.write(1, {"train/loss": 2.3})
      ...     writer.write(2, {"train/loss": float("nan"), "validation/accuracy": 0.5})
      >>> read_metrics(workdir)[1]
      {'step': 2, 'train/loss': None, 'validation/accuracy': 0.5}
    """

    def __init__(
        self, workdir: str | os.PathLike, *, resume_step: int | None = None, phase: str = ""
    ):
        if phase and phase not in PHASES:
            raise ValueError(f"phase must be '' or one of {PHASES}, got {phase!r}")
        self._workdir = Path(workdir)
        self._prefix = f"{phase}/" if phase else ""
        self._workdir.mkdir(parents=True, exist_ok=True)
        last_step = -1 if resume_step is None else int(resume_step)
        kept = [
            line
            for line in read_metrics(self._workdir)
            if _phase_of(line) != phase or line["step"] <= last_step
        ]
        path = self._workdir / "metrics.jsonl"
        write_atomically(path, "".join(_json_line(line) for line in kept))
        self._write_csv()
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._events = _event_writer(self._workdir / "tensorboard" / phase, last_step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line of metrics.

        Args:
          step: Training steps done so far.
          metrics: Name to scalar: Python, NumPy or JAX numbers. JAX values are fetched here, so
            the call waits for the step that computes them.

        Raises:
          ValueError: a value is not a scalar, or a metric is called "step".
        """
        line: dict[str, Any] = {"step": int(step)}
        # A list, because device_get would sort the names of a dict.
        for name, value in zip(metrics, jax.device_get(list(metrics.values()))):
            if name == "step":
                raise ValueError("a metric cannot be called 'step'; that is the line's own key")
            line[self._prefix + name] = _as_float(name, value)
        self._file.write(_json_line(line))
        self._file.flush()
        for name, value in line.items():
            if name != "step" and math.isfinite(value):
                self._events.write_event(_event(line["step"], summary=_scalar(name, value)))
        self._events.flush()

    def flush(self) -> None:
        """Brings `metrics.csv` up to date with `metrics.jsonl`; TensorBoard's events always are."""
        self._write_csv()

    def close(self) -> None:
        """Flushes and closes all files; calling it again does nothing."""
        if not self._file.closed:
            self._file.close()
            self._write_csv()
            self._events.close()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # else what has happened first is said, such as a folder that is gone
                raise

    def _write_csv(self) -> None:
        lines = read_metrics(self._workdir)
        # A dict keeps the order in which the columns first appeared.
        columns = list(dict.fromkeys(["step", *(name for line in lines for name in line)]))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
        write_atomically(self._workdir / "metrics.csv", text.getvalue())


def write_result(
    workdir: str | os.PathLike,
    step: int,
    results: Mapping[str, float],
    settings: Mapping[str, Any],
    pictures: Iterable[Path] = (),
) -> None:
    """Adds the end of a run to its TensorBoard events.

    Args:
      workdir: Directory of the run.
      step: Updates made.
      results: Name to number, scalars and the metrics of TensorBoard's table of hyper-parameters.
      settings: Name to text, number or truth value, the hyper-parameters of that table.
      pictures: PNG files, shown under their names.
    """
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
    from tensorboardX.summary import hparams

    events = _event_writer(Path(workdir) / "tensorboard", step)
    for name, value in results.items():
        events.write_event(_event(step, summary=_scalar(name, value)))
    for path in pictures:
        content = path.read_bytes()
        width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))  # of a PNG
        image = Summary.Image(
            encoded_image_string=content, width=width, height=height, colorspace=3
        )
        value = Summary.Value(tag=path.stem, image=image)
        events.write_event(_event(step, summary=Summary(value=[value])))
    for summary in hparams(dict(settings), dict(results)):
        events.write_event(_event(step, summary=summary))
    events.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the lines of `metrics.jsonl`, in the order in which they were written.

    A last line that was cut off by a kill in the middle of its write is left out.

    Args:
      workdir: Directory of the run.

    Returns:
      One dict a line: `step`, and a float for each metric, or None where it was not finite. Empty
      if the file does not exist.

    Raises:
      UserError: a line other than the last is not a JSON object with a `step`.

    Example:
      >>> read_metrics("no/such/directory")
      []
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    texts = read_bytes(path, most=2**31).decode(errors="replace").split("\n")
    if texts[-1] == "":
        texts.pop()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = parse_json(text)
            right = isinstance(line, dict) and _is_line(line)
        except ValueError:
            right = False
        if not right:
            if number == len(texts):
                break
            raise UserError(
                f"{path} is damaged: line {number} is not a JSON object of numbers with a step: "
                f"{text[:60]!r}. Remove that line, or start again in another workdir."
            )
        lines.append(line)
    return lines


def _is_line(line: dict[str, Any]) -> bool:
    values = [value for name, value in line.items() if name != "step" and value is not None]
    return type(line.get("step")) is int and all(type(v) in (int, float) for v in values)


def _phase_of(line: Mapping[str, Any]) -> str:
    names = [name for name in line if name != "step"]
    for phase in PHASES:
        if names and all(name.startswith(f"{phase}/") for name in names):
            return phase
    return ""


def _as_float(name: str, value: Any) -> float:
    if np.ndim(value) != 0:
        raise ValueError(f"metric {name!r} must be a scalar, got an array of shape {value.shape}")
    return float(value)


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(to_json(line), allow_nan=False) + "\n"


def _event_writer(directory: Path, first_step: int) -> Any:
    """TensorBoard's events, written here and now: the library's usual writer is a thread, whose
    failure to write, as on a full disk, nobody would see."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore

    # The library names a file by the second it was made in and would overwrite an earlier one.
    earlier = len(list(directory.glob("events.*")))
    directory.mkdir(parents=True, exist_ok=True)
    events = EventsWriter(str(directory / "events"), f".{earlier}")
    if earlier:  # tells TensorBoard to forget what an interrupted run wrote from this step on
        start = SessionLog(status=SessionLog.START)
        events.write_event(_event(first_step, session_log=start))
    return events


def _event(step: int, **content: Any) -> Any:
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

    return Event(wall_time=time.time(), step=step, **content)


def _scalar(name: str, value: float) -> Any:
    from tensorboardX.summary import scalar

    return scalar(name, value)
