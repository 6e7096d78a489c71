"""What a run leaves behind while it runs: metrics, a progress display, and where it came from.

`metrics.jsonl` is the record; `metrics.csv` and the TensorBoard events are views of it. A run that
is stopped and continued ends with the same `metrics.jsonl` as one that was never stopped, because
`MetricWriter` drops what the stopped run wrote after the checkpoint it continues from.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from genreg_jax.errors import UserError

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "genreg-jax",
    "numpy",
)

# Trainings that run before the classifier's in the same workdir and count their own steps.
PHASES = ("flow",)

_LINE_INTERVAL = 5.0  # seconds between plain lines, so that a log file stays readable
_DRAW_INTERVAL = 0.2  # seconds between redraws; metrics are fetched from the device only then


# ----------------------------------------------------------------------------------------- metrics


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

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_csv(self) -> None:
        lines = read_metrics(self._workdir)
        # A dict keeps the order in which the columns first appeared.
        columns = list(dict.fromkeys(["step", *(name for line in lines for name in line)]))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
        write_atomically(self._workdir / "metrics.csv", text.getvalue())


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
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if texts[-1] == "":
        texts.pop()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            int(line["step"])
        except (ValueError, TypeError, KeyError):
            if number == len(texts):
                break
            raise UserError(
                f"{path} is damaged: line {number} is not a JSON object with a step: {text[:60]!r}."
                " Remove that line, or start again in another workdir."
            ) from None
        lines.append(line)
    return lines


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


# ---------------------------------------------------------------------------------------- progress


class Progress:
    """Shows how far a training is: a bar in a terminal, a plain line now and then elsewhere.

    Speed and remaining time count the steps that this process did, in the time that was not
    excluded, so neither compilation, evaluation nor the steps before a restart distort them.

    Args:
      total_steps: Steps of the whole training.
      start_step: Steps done before this process started.
      label: What is being trained, at the start of each line.
      enabled: False shows nothing and still measures.
      file: Where to show it; `sys.stderr` by default.
      clock: Seconds since any fixed moment; tests give their own.

    Example:
      >>> now = iter([0.0, 30.0, 40.0, 42.0, 42.0]).__next__
      >>> progress = Progress(100, enabled=False, clock=now)
      >>> with progress.excluded():             # from 30 s to 40 s: compilation
      ...     pass
      >>> progress.update(64, images=6400)
      >>> progress.images_per_second            # 6400 images in 42 - 10 seconds
      200.0
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        label: str = "train",
        enabled: bool = True,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._total = int(total_steps)
        self._step = int(start_step)
        self._label = label
        self._file = sys.stderr if file is None else file
        self._enabled = enabled
        self._clock = clock
        self._start = clock()
        self._excluded_seconds = 0.0
        self._excluded_since: float | None = None
        self._timed_steps = 0
        self._timed_images = 0
        self._last_shown = -math.inf
        self._metrics: Mapping[str, Any] = {}
        self._bar = _rich_bar(self._file) if enabled else None
        if self._bar is not None:
            self._task = self._bar.add_task(
                label, total=self._total, completed=self._step, stats=""
            )
            self._bar.start()

    @property
    def seconds(self) -> float:
        """Seconds spent since the start, without those excluded."""
        now = self._clock() if self._excluded_since is None else self._excluded_since
        return max(now - self._start - self._excluded_seconds, 0.0)

    @property
    def images_per_second(self) -> float:
        """Images a second over the time that counts; 0 before anything was measured."""
        seconds = self.seconds
        return self._timed_images / seconds if seconds > 0 else 0.0

    def update(self, step: int, *, images: int = 0, **metrics: Any) -> None:
        """Tells that `step` steps are done.

        Metrics are read, which waits for the device, only when something is shown: five times a
        second in a terminal, every five seconds elsewhere, and at the last step.

        Args:
          step: Steps done so far, those before a restart included.
          images: Images processed since the last call.
          **metrics: Scalars to show; names with a slash can be given as `**{"train/loss": loss}`.
            Those of the last call that had any are shown.
        """
        if self._excluded_since is None:
            # A step inside `excluded` has no time of its own, so it must not count as speed.
            self._timed_steps += step - self._step
            self._timed_images += images
        self._step = int(step)
        if metrics:
            self._metrics = metrics
        if self._enabled:
            self._show()

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            print(text, file=self._file, flush=True)

    def exclude(self, seconds: float) -> None:
        """Takes seconds that were measured elsewhere out of speed and remaining time."""
        self._excluded_seconds += seconds

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Takes the time of a `with` block out: compilation, evaluation, checkpoints.

        An `update` inside the block shows its step without counting it as speed, which is what the
        first step of a jitted function needs. Blocks may be nested.
        """
        if self._excluded_since is not None:
            yield
            return
        self._excluded_since = self._clock()
        try:
            yield
        finally:
            self._excluded_seconds += self._clock() - self._excluded_since
            self._excluded_since = None

    def close(self) -> None:
        """Leaves the display as it is and gives the terminal back; may be called twice."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _show(self) -> None:
        now = self._clock()
        interval = _LINE_INTERVAL if self._bar is None else _DRAW_INTERVAL
        if now - self._last_shown < interval and self._step < self._total:
            return
        self._last_shown = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, stats="  ".join(self._stats()))
            return
        done = 100 * self._step // max(self._total, 1)
        head = f"{self._label}  step {self._step}/{self._total} ({done} %)"
        print("  ".join([head, *self._stats()]), file=self._file, flush=True)

    def _stats(self) -> list[str]:
        stats = []
        if self._timed_steps > 0 and (seconds := self.seconds) > 0:
            left = (self._total - self._step) * seconds / self._timed_steps
            if self._step < self._total:
                stats.append(f"ETA {format_seconds(left)}")
            if self._timed_images:
                stats.append(f"{self.images_per_second:,.0f} images/s")
        values = jax.device_get(list(self._metrics.values()))
        return stats + [f"{name} {float(value):.4g}" for name, value in zip(self._metrics, values)]


def _rich_bar(file: TextIO) -> Any:
    """Returns a bar for a terminal, None for anything else."""
    # Not rich's own `is_terminal`: FORCE_COLOR would make it draw bars into log files.
    if not file.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=file)
    if console.is_dumb_terminal:
        return None
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[stats]}", markup=False),
        console=console,
        # A print while the bar is shown goes above it, except where stdout is a pipe or a file.
        redirect_stdout=sys.stdout.isatty(),
    )


def format_seconds(seconds: float) -> str:
    """Formats a duration for people.

    Args:
      seconds: The duration.

    Returns:
      Two units at most.

    Example:
      >>> [format_seconds(s) for s in (0.42, 9.5, 75, 3700, 180000)]
      ['0.4 s', '9.5 s', '1 min 15 s', '1 h 01 min', '2 d 02 h']
    """
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 59.95:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


# -------------------------------------------------------------------------------------- provenance


def provenance() -> dict[str, Any]:
    """Returns what is needed to know which code and device made a result.

    Returns:
      `versions` (package name to version, None where one is not installed), `device` (`platform`,
      `kind`, `count`) and `commit`: of the checkout that the package lies in, with `-dirty` behind
      it if tracked Python files were changed, None for an installed wheel or without git. Nothing
      that identifies the machine or its user.

    Example:
      >>> sorted(provenance())
      ['commit', 'device', 'versions']
    """
    devices = jax.devices()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "commit": _commit(Path(__file__).resolve().parent),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(directory: Path) -> str | None:
    # A wheel in a virtual environment may lie inside some other project's checkout; only a
    # checkout that tracks the package itself says which code this is.
    if _git(directory, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(directory, "rev-parse", "HEAD")
    # Results and notes may change while a study runs; what matters is the code.
    changed = _git(directory, "diff", "--name-only", "HEAD", "--", ":/*.py")
    return f"{commit}-dirty" if commit and changed else commit


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            # `git diff` would otherwise rewrite the index of a checkout others work in.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# ------------------------------------------------------------------------------------------- files


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes valid JSON in one piece: a reader sees the old file or the new one, never half.

    Keys keep their order. Non-finite numbers become `null`; NumPy and JAX arrays become lists,
    paths become strings, and objects with `to_dict` (ml_collections configs) become objects.

    Args:
      path: The file; its directory must exist.
      obj: What to write.

    Raises:
      TypeError: `obj` holds something that has no JSON form.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "summary.json")
      >>> write_json(path, {"test_accuracy": np.float32(0.5), "loss": float("inf")})
      >>> print(path.read_text(), end="")
      {
        "test_accuracy": 0.5,
        "loss": null
      }
    """
    write_atomically(Path(path), json.dumps(to_json(obj), indent=2, allow_nan=False) + "\n")


def to_json(obj: Any) -> Any:
    """Returns `obj` as plain dicts, lists, strings and numbers, with None for non-finite numbers.

    Args:
      obj: Anything `write_json` takes.

    Returns:
      The same content in what `json.dumps(..., allow_nan=False)` accepts.

    Raises:
      TypeError: `obj` holds something that has no JSON form.

    Example:
      >>> to_json({"a": (1, float("nan")), "b": np.arange(2)})
      {'a': [1, None], 'b': [0, 1]}
    """
    if hasattr(obj, "to_dict"):
        obj = obj.to_dict()
    if obj is None or isinstance(obj, str | bool | int):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): to_json(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_json(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, np.ndarray | np.generic | jax.Array):
        return to_json(np.asarray(obj).tolist())
    raise TypeError(f"{type(obj).__name__} has no JSON form: {obj!r}")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file in one piece: a reader sees the old content or the new, never half.

    Args:
      path: The file; its directory must exist.
      content: Text, written as UTF-8 with its newlines as they are, or bytes.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "note.txt"
      >>> write_atomically(path, "done")
      >>> path.read_text()
      'done'
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
