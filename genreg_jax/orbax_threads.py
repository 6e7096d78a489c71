"""Orbax's threads end where one of them has failed.

They wait for what others do, such as making a folder, for 300 seconds, and the end of a process
waits for them. This module alone uses what orbax does not promise, and does nothing where it is
otherwise.
"""

import contextlib
import threading
from typing import Any

_FAILED: dict[str, Exception] = {}  # operation of orbax to the error that a thread of it ended in


def end_waiting_threads() -> None:
    """Lets each thread of orbax fail at once where another one has whose work it waits for."""
    try:
        from orbax.checkpoint._src.futures import future

        thread_class: Any = future._SignalingThread
        run, wait, set_signals = (
            thread_class.run,
            thread_class._wait_for_signals,
            future.set_signals,
        )
    except (ImportError, AttributeError):  # another version
        return

    def waiting(thread: Any) -> None:
        if thread._operation_id not in _FAILED:
            wait(thread)
        if thread._operation_id in _FAILED:
            raise _FAILED[thread._operation_id]

    def running(thread: Any) -> None:
        run(thread)
        if isinstance(thread._exception, Exception):
            operation = thread._operation_id
            _FAILED.setdefault(operation, thread._exception)
            others: list[Any] = threading.enumerate()
            for other in others:
                if isinstance(other, thread_class) and other._operation_id == operation:
                    with contextlib.suppress(Exception):  # then it waits
                        set_signals(other._receive_signals, operation_id=operation)

    thread_class.run, thread_class._wait_for_signals = running, waiting
