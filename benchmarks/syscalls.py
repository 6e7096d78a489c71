"""Stops a program before each of its operations on the files of a folder (Linux on x86-64).

`ptrace` stops every thread, those of C++ libraries too, at each system call, so that no operation
is left out. While one is stopped nothing can change in the folder: a thread that wants to is
stopped in turn.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Number of a system call to its name and the places of its arguments: what is a path or an open
# file. A pair is an open folder and a path in it.
OPERATIONS: dict[int, tuple[str, list[int | tuple[int, int]], list[int]]] = {
    1: ("write", [], [0]),
    18: ("pwrite", [], [0]),
    20: ("writev", [], [0]),
    296: ("pwritev", [], [0]),
    40: ("sendfile", [], [0]),
    326: ("copy_file_range", [], [2]),
    77: ("ftruncate", [], [0]),
    76: ("truncate", [0], []),
    285: ("fallocate", [], [0]),
    74: ("fsync", [], [0]),
    75: ("fdatasync", [], [0]),
    2: ("open", [0], []),
    257: ("open", [(0, 1)], []),
    85: ("open", [0], []),
    82: ("rename", [0, 1], []),
    264: ("rename", [(0, 1), (2, 3)], []),
    316: ("rename", [(0, 1), (2, 3)], []),
    83: ("mkdir", [0], []),
    258: ("mkdir", [(0, 1)], []),
    84: ("rmdir", [0], []),
    87: ("unlink", [0], []),
    263: ("unlink", [(0, 1)], []),
    86: ("link", [0, 1], []),
    265: ("link", [(0, 1), (2, 3)], []),
    88: ("symlink", [1], []),
    266: ("symlink", [(1, 2)], []),
    9: ("mmap", [], [4]),
}
_OPENING = {2: 1, 257: 2}  # the place of the flags, where opening may change nothing
_CHANGES = os.O_CREAT | os.O_TRUNC
_SEIZE, _INTERRUPT, _SYSCALL, _INFO = 0x4206, 0x4207, 24, 0x420E
_OPTIONS = 1 | 2 | 4 | 8 | 0x100000  # mark system calls; follow forks and threads; die with us
_WALL = 0x40000000  # wait for threads too


class _Info(ctypes.Structure):
    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("places", ctypes.c_uint64 * 2),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("rest", ctypes.c_uint64 * 2),
    ]


def stopped_at(program: Callable[[], object], folder: Path, before: Callable[[str, Path], None]):
    """Runs a program in a fork of this process, which must have no threads yet.

    Args:
      program: what to run.
      folder: whose files are watched.
      before: called with the name and the path of each operation, before it is made.

    Returns:
      The exit status of the program, or minus the signal that ended it.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise SystemExit("Stopping at system calls is written for Linux on x86-64.")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request, pid, address=0, data=0):
        if libc.ptrace(request, pid, address, data) < 0 and ctypes.get_errno() != 3:  # it is gone
            raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}")

    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.read(wait, 1)
            program()
            status = 0
        finally:
            os._exit(status)
    ptrace(_SEIZE, child, 0, _OPTIONS)
    ptrace(_INTERRUPT, child)
    os.write(go, b"x")
    while True:
        pid, status = os.waitpid(-1, _WALL)
        if not os.WIFSTOPPED(status):
            if pid == child:
                return os.waitstatus_to_exitcode(status)
            continue
        sent = os.WSTOPSIG(status)
        if sent == signal.SIGTRAP | 0x80:
            info = _Info()
            ptrace(_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
            if info.op == 1 and info.number in OPERATIONS:  # on its way in
                for path in _paths(pid, info):
                    if path == folder or folder in path.parents:
                        before(OPERATIONS[info.number][0], path)
                        break
            sent = 0
        elif status >> 16:  # an event of tracing itself
            sent = 0
        ptrace(_SYSCALL, pid, 0, sent)


def _paths(pid: int, info: _Info) -> list[Path]:
    name, paths, files = OPERATIONS[info.number]
    args = info.args
    if info.number in _OPENING and not args[_OPENING[info.number]] & _CHANGES:
        return []
    if name == "mmap" and not (args[2] & 2 and args[3] & 1):  # writable and shared
        return []
    found = [_open(pid, args[place]) for place in files]
    for place in paths:
        at, place = place if isinstance(place, tuple) else (None, place)
        start = _open(pid, args[at] if at is not None else -100)
        found.append(Path(os.path.normpath(start / _text(pid, args[place]))))
    return found


def _open(pid: int, number: int) -> Path:
    """The path of an open file, or of the working directory."""
    number = ctypes.c_int32(number & 0xFFFFFFFF).value
    try:
        return Path(os.readlink(f"/proc/{pid}/{'cwd' if number == -100 else f'fd/{number}'}"))
    except OSError:  # not an open file: the call will fail
        return Path()


def _text(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        text = b""
        while b"\0" not in text:
            # Not beyond a page, behind which there may be nothing.
            text += memory.read(4096 - (address + len(text)) % 4096)
    return os.fsdecode(text.partition(b"\0")[0])


def states(program: Callable[[], object], folder: Path, store: Path):
    """Copies of a folder as it was before each operation of a program on its files.

    Such a copy is what a SIGKILL at that moment leaves: the kernel keeps what has been written. Of
    states that are alike there is one.

    Returns:
      How many operations of each name there were, and a list of `(name of the operation, its path
      in the folder, the copy)`; a copy of a folder that was not there yet is not there either.
    """
    counts: Counter[str] = Counter()
    found: dict[str, tuple[str, str, Path]] = {}

    def before(name: str, path: Path) -> None:
        counts[name] += 1
        state = hashlib.sha256()
        for file in sorted(folder.rglob("*")):
            state.update(repr((str(file), file.read_bytes() if file.is_file() else 0)).encode())
        copy = store / str(len(found))
        if (
            found.setdefault(state.hexdigest(), (name, str(path.relative_to(folder)), copy))[2]
            == copy
        ):
            if folder.exists():
                shutil.copytree(folder, copy)

    status = stopped_at(program, folder, before)
    if status:
        raise RuntimeError(f"the program ended with status {status}")
    return counts, list(found.values())
