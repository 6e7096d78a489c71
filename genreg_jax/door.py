"""The door of every command: what a user or a terminal can do ends in words and a status."""

import contextlib
import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from genreg_jax.compiled import kept_programs
from genreg_jax.errors import UserError
from genreg_jax.interrupt import Interrupted


def through(command: Callable[[], Any], *, compiles: bool = False, product: bool = False) -> int:
    """Runs a command.

    A reader of its output that leaves, as `| head` does, a full device and a closed stream stop
    what is shown and not the command. What an ASCII terminal cannot show is a question mark.

    Args:
      command: returns its exit status, or None for 0.
      compiles: keep its compiled programs for the next command, see `genreg_jax.compiled`.
      product: what it prints is its result; a full device then ends it with status 1.

    Returns:
      The exit status: the command's; 1 after a `UserError`, whose paragraph is printed, and after a
      file that the system refuses, which is named; 128 and the signal's number after a signal.

    Example:
      >>> from genreg_jax.door import through
      >>> through(lambda: print("done"))
      done
      0
    """
    with _patient_streams():
        try:
            with kept_programs() if compiles else contextlib.nullcontext():
                status = command() or 0
            sys.stdout.flush()
            if product and getattr(sys.stdout, "full", False):
                raise UserError(
                    "The output could not be written whole: there is no space left on its device. "
                    "Make room, or write it elsewhere, and run the command again."
                )
            return status
        except Interrupted as stopped:
            say(stopped)
            return 128 + stopped.signum
        except KeyboardInterrupt:
            say("Interrupted.")
            return 130
        except SystemExit as stopped:  # of absl's app, whatever the command ended with
            if not isinstance(stopped.code, int | None):
                raise
            return stopped.code or 0
        except Exception as error:
            if words := _in_words(error):
                say(words)
            elif _one_of_several():
                traceback.print_exc()
            else:
                raise
            return 1


def _in_words(error: Exception) -> str:
    """What an error says that a user or a machine caused; empty for one of the code's own."""
    text = str(error).strip()
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        name = os.fsdecode(error.filename)
        name = f"{name[:100]}..." if len(name) > 100 else name
        return f"{name!r} cannot be read or written ({error.strerror}); name another one."
    # JAX asserts that there is a device where CUDA alone was asked for and there is none.
    asserted = isinstance(error, AssertionError) and _raised_in(error) == "xla_bridge.py"
    if asserted or (isinstance(error, RuntimeError) and "Unable to initialize backend" in text):
        return (
            f"JAX cannot start on the platform that was asked for: "
            f"{'it has no device.' if asserted else text} Unset JAX_PLATFORMS, or set it to one "
            "that is installed, such as cpu."
        )
    if _one_of_several() and re.search("Gloo|NCCL", text):
        return (
            f"Another process has ended or is out of reach ({text.splitlines()[0][:200]}); its own "
            "output says why. The same commands continue from the last checkpoint."
        )
    return ""


def _one_of_several() -> bool:
    """Whether this process is connected with others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _raised_in(error: BaseException) -> str:
    """The name of the file that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return os.path.basename(frames[-1].filename) if frames else ""


def leave(status: int) -> NoReturn:
    """Ends the process of a command; a Ctrl-C while its threads end is silent.

    One of several processes that fails ends at once: at its usual end it would wait minutes for the
    others, and they for it. With the first JAX aborts the others, so it lets them say theirs.
    """
    if status and _one_of_several():
        time.sleep(2 if sys.modules["jax"].process_index() == 0 else 0)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def answer_interrupts() -> None:
    """Lets every Ctrl-C end a command in a word, from its imports on.

    One that comes in a callback of the garbage collector or of C++ would end that callback alone.
    What JAX refuses of its environment variables when it is imported is a line too.
    """
    hook, hook_of_callbacks = sys.excepthook, sys.unraisablehook

    def raised(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            say("Interrupted.")
        elif issubclass(kind, ValueError) and re.search("JAX flag|environment 'JAX_", str(error)):
            say(f"JAX cannot be imported: {error}. Correct or unset that environment variable.")
        else:
            hook(kind, error, trace)

    def raised_in_callback(unraisable):
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            say("Interrupted.")
            os._exit(130)
        hook_of_callbacks(unraisable)

    sys.excepthook, sys.unraisablehook = raised, raised_in_callback


def say(message: object) -> None:
    """Prints a message about the command as one line of stderr."""
    print(" ".join(str(message).split()), file=sys.stderr)


@contextlib.contextmanager
def _patient_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    streams: Any = [_Stream(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


class _Stream:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO | None):  # None where the shell has closed it
        self.full = False
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                shown = text.encode(error.encoding, "replace").decode(error.encoding)
                self._stream.write(shown)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        self.full = self.full or error.errno in (errno.ENOSPC, errno.EDQUOT)
        nowhere = open(os.devnull, "w", encoding="utf-8")
        with contextlib.suppress(OSError, ValueError):
            # What the stream still holds goes there too, when it is flushed at the very end.
            os.dup2(nowhere.fileno(), self._stream.fileno())
        self._stream = nowhere
