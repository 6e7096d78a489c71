"""Every command ends in words and a status, whatever becomes of its streams."""

import os
import signal
import subprocess
import sys
import types

import pytest

from genreg_jax.door import answer_interrupts, leave, through
from genreg_jax.errors import UserError
from genreg_jax.interrupt import Interrupted

PROGRAM = """
import pathlib, sys
from genreg_jax.door import through
def command():
    for i in range(20000):
        print(i, "to ± be read")
    print("a word", file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1]).write_text("reached")
    return 3
sys.exit(through(command))
"""


def without_device():
    exec(compile("assert False", "jax/_src/xla_bridge.py", "exec"))


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (lambda: None, 0, ""),
        (lambda: 4, 4, ""),
        (raising(UserError("Two\n lines.")), 1, "Two lines.\n"),
        (raising(Interrupted("Stopped by SIGTERM.", 15)), 143, "Stopped by SIGTERM.\n"),
        (raising(KeyboardInterrupt()), 130, "Interrupted.\n"),
        (
            lambda: os.stat("a" * 300),
            1,
            f"'{'a' * 100}...' cannot be read or written (File name too long); name another one.\n",
        ),
        (
            raising(RuntimeError("Unable to initialize backend 'x': no.")),
            1,
            "JAX cannot start on the platform that was asked for: Unable to initialize backend "
            "'x': no. Unset JAX_PLATFORMS, or set it to one that is installed, such as cpu.\n",
        ),
        (
            without_device,
            1,
            "JAX cannot start on the platform that was asked for: it has no device. Unset "
            "JAX_PLATFORMS, or set it to one that is installed, such as cpu.\n",
        ),
    ],
)
def test_what_a_user_can_do_ends_in_a_line_and_a_status(command, status, words, capsys):
    streams = sys.stdout, sys.stderr
    assert through(command) == status
    assert capsys.readouterr().err == words and (sys.stdout, sys.stderr) == streams


def test_every_ctrl_c_is_a_word_also_where_no_handler_can_take_it(monkeypatch, capsys):
    seen, left = [], []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error))
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    monkeypatch.setattr(os, "_exit", left.append)
    answer_interrupts()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "Interrupted.\n" and not left
    error = ValueError("invalid truth value 'odd' for environment 'JAX_ENABLE_X64'")
    sys.excepthook(ValueError, error, None)
    said = capsys.readouterr().err
    assert said.startswith("JAX cannot be imported: ") and "'JAX_ENABLE_X64'. Correct" in said
    sys.excepthook(OSError, OSError(), None)
    sys.excepthook(ValueError, ValueError("set jax_numpy_dtype_promotion=standard"), None)
    sys.unraisablehook(types.SimpleNamespace(exc_type=OSError))
    assert len(seen) == 3 and not left
    sys.unraisablehook(types.SimpleNamespace(exc_type=KeyboardInterrupt))
    assert capsys.readouterr().err == "Interrupted.\n" and left == [130]


def test_leaving_lets_a_ctrl_c_end_the_process_unless_it_is_ignored(monkeypatch):
    for handler, then in (
        (signal.default_int_handler, signal.SIG_DFL),
        (signal.SIG_IGN, signal.SIG_IGN),
    ):
        before = signal.signal(signal.SIGINT, handler)
        try:
            with pytest.raises(SystemExit) as stop:
                leave(3)
            assert stop.value.code == 3 and signal.getsignal(signal.SIGINT) is then
        finally:
            signal.signal(signal.SIGINT, before)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        through(lambda: 1 / 0)
    with pytest.raises(AssertionError):
        through(raising(AssertionError()))


def test_a_result_that_a_full_device_cannot_hold_is_no_success(tmp_path):
    program = "import sys; from genreg_jax.door import through\n"
    program += "sys.exit(through(lambda: print('x' * 10**5), product=True))"
    (tmp_path / "program.py").write_text(program)
    command = f"{sys.executable} {tmp_path / 'program.py'}"
    run = lambda shell: subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60)
    full = run(f"{command} > /dev/full")
    assert full.returncode == 1 and b"no space left" in full.stderr
    assert full.stderr.count(b"\n") == 1
    assert run(f"set -o pipefail; {command} | head -c 5").returncode == 0


@pytest.mark.parametrize(
    ("shell", "shown"),
    [
        ("{} | head -1", "0 to ± be read\n"),
        ("{} > /dev/full", ""),
        ("{} >&-", ""),
        ("{} 2>&- | tail -1", "19999 to ± be read\n"),
        ("PYTHONIOENCODING=ascii {} | head -1", "0 to ? be read\n"),
    ],
)
def test_a_stream_that_cannot_be_written_stops_nothing(tmp_path, shell, shown):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = f"{sys.executable} {tmp_path / 'program.py'} {tmp_path / 'file'}"
    shell = f"set -o pipefail; {shell.format(command)}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60)
    assert (tmp_path / "file").read_text() == "reached"
    assert done.stdout.decode() == shown and done.returncode == 3
    assert done.stderr in (b"a word\n", b"")
