"""How far a training is and how long it took: a bar or lines, and the clock of a run."""

from __future__ import annotations

import contextlib
import html
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax

_LINE_INTERVAL = 5.0  # seconds between plain lines, so that a log file stays readable
_DRAW_INTERVAL = 0.2  # seconds between redraws; metrics are fetched from the device only then
_RATE_SECONDS = 1.0  # of steps, before their speed is shown
_ETA_STEPS = 3  # that are timed before the rest is estimated


class Progress:
    """Shows how far a training is: a bar in a terminal and in a notebook, elsewhere plain lines.

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
        self._bar = _bar(self._file) if enabled else None
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

    @property
    def step(self) -> int:
        """Steps done so far."""
        return self._step

    def update(
        self, step: int, *, images: int = 0, show: bool = True, wait: Any = None, **metrics: Any
    ) -> None:
        """Tells that `step` steps are done.

        Metrics are read, which waits for the device, only when something is shown: five times a
        second in a terminal, every five seconds elsewhere, and at the last step.

        Args:
          step: Steps done so far, those before a restart included.
          images: Images processed since the last call.
          show: False counts the step and leaves it to the next call, which has its metrics.
          wait: Arrays that are there once the step is done. What is shown waits for them, so that
            steps that are only on their way to the device do not count as speed.
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
        if self._enabled and show:
            self._show(wait)

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            print(text, file=self._file, flush=True)

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

    def _show(self, wait: Any) -> None:
        now = self._clock()
        interval = _LINE_INTERVAL if self._bar is None else _DRAW_INTERVAL
        if now - self._last_shown < interval and self._step < self._total:
            return
        jax.block_until_ready(wait)
        self._last_shown = now
        if self._bar is not None:
            # "train", the bar and "step/total", with a space after each
            room = self._bar.console.width - len(self._label) - _BAR_WIDTH
            room -= 2 * len(str(self._total)) + 4
            stats = _fitting(self._stats(), room)
            self._bar.update(self._task, completed=self._step, stats=stats)
            return
        done = 100 * self._step // max(self._total, 1)
        head = f"{self._label}  step {self._step}/{self._total} ({done} %)"
        print("  ".join([head, *self._stats()]), file=self._file, flush=True)

    def _stats(self) -> list[str]:
        stats = []
        if self._timed_steps > 0 and (seconds := self.seconds) > 0:
            left = (self._total - self._step) * seconds / self._timed_steps
            if self._step < self._total and self._timed_steps >= _ETA_STEPS:
                stats.append(f"ETA {format_seconds(left)}")
            if self._timed_images and seconds >= _RATE_SECONDS:
                stats.append(f"{self.images_per_second:,.0f} images/s")
        values = jax.device_get(list(self._metrics.values()))
        return stats + [f"{name} {float(value):.4g}" for name, value in zip(self._metrics, values)]


_BAR_WIDTH = 14


def _fitting(stats: list[str], room: int) -> str:
    """As many of the figures as one line has room for; the first and the last ones stay longest."""
    while len(stats) > 1 and len("  ".join(stats)) > room:
        stats = stats[: len(stats) // 2] + stats[len(stats) // 2 + 1 :]
    return "  ".join(stats)


class _NotebookBar:
    """One output of a notebook's cell, drawn again in its place; it needs no widgets."""

    width = 120  # of its console, which is itself

    def add_task(self, label: str, *, total: int, completed: int, stats: str) -> int:
        self._label, self._total, self._completed, self._stats = label, total, completed, stats
        return 0

    @property
    def console(self) -> _NotebookBar:
        return self

    def print(self, text: str, **_: Any) -> None:
        print(text)

    def start(self) -> None:
        from IPython.display import display  # pyright: ignore

        self._shown: Any = display(self, display_id=True)

    def update(self, _: int, *, completed: int, stats: str) -> None:
        self._completed, self._stats = completed, stats
        self._shown.update(self)

    def stop(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"{self._label} {self._completed}/{self._total}  {self._stats}"

    def _repr_html_(self) -> str:
        bar = f'<progress value="{self._completed}" max="{max(self._total, 1)}"></progress>'
        return f"{bar} <code>{html.escape(repr(self))}</code>"


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _bar(file: TextIO) -> Any:
    """Returns a bar for a terminal or a notebook, None for anything else."""
    if file is sys.stderr and _in_notebook():
        return _NotebookBar()
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
        BarColumn(bar_width=_BAR_WIDTH),
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


class Clock:
    """Wall-clock seconds of a run, those before a restart included.

    Example:
      >>> clock = Clock()
      >>> clock.add(3600)
      >>> 3600 <= clock.seconds < 3660
      True
    """

    def __init__(self):
        self._start = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Adds seconds that an earlier process spent on the run."""
        self._start -= seconds

    @property
    def seconds(self) -> float:
        """Seconds since the run's start."""
        return time.perf_counter() - self._start


class Stages:
    """Wall-clock seconds of a run by stage, those before a restart included.

    Attributes:
      seconds: of each stage, in the order in which they first ended.

    Example:
      >>> stages = Stages()
      >>> stages.add({"data": 2.0, "training": 60.0})
      >>> stages.end("data")
      >>> 2 < stages.seconds["data"] < 3 and stages.seconds["training"]
      60.0
    """

    def __init__(self):
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def end(self, stage: str) -> None:
        """Counts the time since the last stage's end for this one."""
        now = time.perf_counter()
        self.add({stage: now - self._last})
        self._last = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what earlier processes spent on the run."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def at_least(self, stage: str, seconds: float) -> None:
        """Raises a stage to what is known of it from elsewhere."""
        self.seconds[stage] = max(self.seconds.get(stage, 0.0), seconds)

    def to_dict(self) -> dict[str, float]:
        """The record for a summary."""
        return {stage: round(spent, 2) for stage, spent in self.seconds.items()}
