"""SIGTERM and SIGINT end a run at the next safe point instead of anywhere."""

import os
import signal
import threading
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal and has saved what it needs to continue.

    A `KeyboardInterrupt`, so that no handler of ordinary errors takes it for one.

    Attributes:
      signum: number of the signal.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Interruption:
    """Context in which SIGTERM and SIGINT are only noted, for a loop that looks at `signum`.

    A second SIGINT ends the process at once. Outside of the main thread, where Python delivers no
    signals, it does nothing.

    Attributes:
      signum: number of the signal that came, None before.

    Example:
      >>> import os, signal
      >>> from genreg_jax.interrupt import Interruption
      >>> with Interruption() as interruption:
      ...     os.kill(os.getpid(), signal.SIGTERM)
      ...     interruption.signum == signal.SIGTERM
      True
    """

    def __init__(self):
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: object) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            os._exit(128 + signum)
        self.signum = signum
