"""Compiled programs, kept between the commands of a machine: a second run starts in seconds.

They lie in `$GENREG_CACHE/programs`, or `~/.cache/genreg_jax/programs`, in a folder for each
version of XLA and kind of processor, and are found by JAX's own key: program, options and devices.
The folder is bounded, nothing breaks where it is full, removed or cannot be written, and
`GENREG_CACHE=`, or a cache of JAX's that is set already, turns it off.

JAX writes an entry in place, and what a killed process or a full disk has left is half a program.
So a process works in a folder of its own, of links to the entries there are; what it adds is moved
among them when it ends, if it is whole. An entry's name there ends with a digest of its content,
which is compared before it is used.
"""

import contextlib
import hashlib
import importlib
import os
import platform
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

MOST_BYTES = 2**30  # of the entries of one machine; the oldest go first
_OWN = ".own-"  # begins the name of a process's folder
_LOCK = ".lock"


@contextlib.contextmanager
def kept_programs() -> Iterator[Path | None]:
    """Within it JAX takes compiled programs from those that are kept, and adds its own to them.

    Yields:
      The folder that JAX works in, or None where nothing is kept.

    Example:
      >>> import os, tempfile
      >>> import jax, jax.numpy as jnp
      >>> before = os.environ.get("GENREG_CACHE")
      >>> os.environ["GENREG_CACHE"] = tempfile.mkdtemp()
      >>> for _ in range(2):
      ...     with kept_programs() as folder:
      ...         there = len(list(folder.glob("*-cache")))
      ...         _ = jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(3))
      >>> there > 0
      True
      >>> _ = os.environ.pop("GENREG_CACHE") if before is None else os.environ.update(
      ...     GENREG_CACHE=before)
    """
    import jax

    with contextlib.ExitStack() as stack:
        own = None
        in_use = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009, of pyright unknown
        if in_use is None and (shared := _shared()):
            with contextlib.suppress(OSError, ImportError):  # the latter on Windows, of locks
                own = stack.enter_context(_own_folder(shared))
        if own is not None:
            stack.enter_context(_in_use(own))
        yield own


def cache_home() -> Path | None:
    """Where what can be made again is kept; None where nothing is to be.

    Example:
      >>> import os
      >>> before = os.environ.get("GENREG_CACHE")
      >>> os.environ["GENREG_CACHE"] = ""
      >>> cache_home() is None
      True
      >>> _ = os.environ.pop("GENREG_CACHE") if before is None else os.environ.update(
      ...     GENREG_CACHE=before)
    """
    given = os.environ.get("GENREG_CACHE")
    if given == "":
        return None
    home = given or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "genreg_jax")
    path = Path(os.path.expanduser(home))
    return None if str(path).startswith("~") else path  # where there is no home


def _shared() -> Path | None:
    """Where the entries of this machine lie."""
    home = cache_home()
    if home is None:
        return None
    features = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    machine = f"{platform.machine()} {platform.processor()} {features}"
    digest = hashlib.blake2b(machine.encode(), digest_size=6).hexdigest()
    return home / "programs" / f"{metadata.version('jaxlib')}-{digest}"


@contextlib.contextmanager
def _own_folder(shared: Path) -> Iterator[Path]:
    """A folder of links to the entries there are; what is new in it is moved to them at the end."""
    import fcntl

    shared.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_abandoned(shared)
    own = Path(tempfile.mkdtemp(prefix=_OWN, dir=shared))
    with open(own / _LOCK, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        names = {name for entry in _entries(shared) if (name := _link(entry, own))}
        try:
            yield own
        finally:
            with contextlib.suppress(OSError):
                _publish(own, names, shared)
            shutil.rmtree(own, ignore_errors=True)


def _remove_abandoned(shared: Path) -> None:
    """Removes the folders of processes that were killed."""
    import fcntl

    for own in shared.glob(f"{_OWN}*"):
        with contextlib.suppress(OSError), open(own / _LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held as long as the process lives
            shutil.rmtree(own, ignore_errors=True)


def _entries(shared: Path) -> list[Path]:
    """The entries, the newest first."""
    with os.scandir(shared) as found:
        times = {Path(e.path): e.stat().st_mtime for e in found if e.is_file()}
    return sorted(times, key=lambda path: times[path], reverse=True)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _link(entry: Path, own: Path) -> str | None:
    """Makes an entry known to this process, by JAX's name for it; removes one that is damaged."""
    name, _, digest = entry.name.rpartition(".")
    with contextlib.suppress(OSError):
        if name and _digest(entry.read_bytes()) == digest:
            os.link(entry, own / name)
            return name
        entry.unlink()
    return None


def _publish(own: Path, known: set[str], shared: Path) -> None:
    """Moves what is new and whole to the entries, and the oldest of these out."""
    for path in own.glob("*-cache"):
        if path.name not in known and _is_whole(content := path.read_bytes()):
            path.replace(shared / f"{path.name}.{_digest(content)}")
    taken = 0
    for entry in _entries(shared):
        taken += entry.stat().st_size
        if taken > MOST_BYTES:
            entry.unlink()


def _is_whole(content: bytes) -> bool:
    """Whether what JAX has compressed, with what it has found on this machine, can be unpacked."""
    try:
        if not content.startswith(b"\x28\xb5\x2f\xfd"):
            zlib.decompress(content)
        elif sys.version_info >= (3, 14):
            importlib.import_module("compression.zstd").decompress(content)
        else:
            importlib.import_module("zstandard").ZstdDecompressor().decompress(content)
    except Exception:  # of which zstandard's has no name without the package
        return False
    return True


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Within it the folder is JAX's cache, of all programs, however small."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        # Else XLA keeps files of its own there, whose place is part of JAX's key.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        with warnings.catch_warnings():
            # A full disk is no concern of the run's.
            warnings.filterwarnings("ignore", ".*persistent compilation cache entry.*")
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
