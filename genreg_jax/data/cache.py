"""Decoded pictures, kept between runs: reading a folder again takes no decoding.

What was read lies in `$GENREG_CACHE/pictures`, or `~/.cache/genreg_jax/pictures`, under a digest of
the pictures' names, sizes, times and inodes and of what was made of them. The folder is bounded,
nothing breaks where it is removed or cannot be written, and `GENREG_CACHE=` turns it off.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genreg_jax.compiled import cache_home
from genreg_jax.logs import write_atomically

LEAST_PICTURES = 256  # fewer are decoded in no time
MOST_BYTES = 4 * 2**30  # of the whole folder; what was not used for longest goes first
_DIGEST_BYTES = 16


def cached(
    files: Sequence[Path], policy: dict[str, Any], read: Callable[[], tuple[np.ndarray, list[int]]]
) -> tuple[np.ndarray, list[int]]:
    """What `read` makes of some pictures, from the cache where they have not changed.

    Args:
      files: the pictures.
      policy: all else that decides what `read` makes of them.
      read: returns an array, and which of the pictures it holds; kept if all, since what is left
        out is said each time.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "a.png")
      >>> _ = path.write_bytes(b"...")
      >>> cached([path], {"size": 8}, lambda: (np.zeros(2), [0]))
      (array([0., 0.]), [0])
    """
    many = cache_home() is not None and len(files) >= LEAST_PICTURES
    key = (key_of(files, policy) if many else None) or ""
    array, everything = recall(key), list(range(len(files)))
    if array is not None and len(array) == len(files):
        return array, everything
    array, kept = read()
    if kept == everything and array.nbytes <= MOST_BYTES:
        keep(key, array)
    return array, kept


def recall(key: str) -> np.ndarray | None:
    """The array that was kept under a key, None without one."""
    home = cache_home()
    return _load(home / "pictures" / f"{key}.npy") if home and key else None


def keep(key: str, array: np.ndarray) -> None:
    """Keeps an array under a key; not under an empty one, nor where the cache is off."""
    home = cache_home()
    if home and key:
        _save(home / "pictures" / f"{key}.npy", array)


def key_of(files: Sequence[Path], policy: dict[str, Any]) -> str | None:
    """A digest of a policy and of files as the disk lists them; None where one is not there."""
    import PIL

    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([2, PIL.__version__, policy], sort_keys=True).encode())
    for file in files:
        try:
            status = file.stat()
        except (OSError, ValueError):  # the latter for a name with a NUL
            return None
        # Of two files that change places size and time may be equal, the inode is not.
        line = [os.path.abspath(file), status.st_size, status.st_mtime_ns, status.st_ino]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _load(path: Path) -> np.ndarray | None:
    """The array of a file, None where it is not there or not whole."""
    try:
        content = path.read_bytes()
        if (
            hashlib.blake2b(content[_DIGEST_BYTES:], digest_size=_DIGEST_BYTES).digest()
            != (content[:_DIGEST_BYTES])
        ):
            return None
        array = np.load(io.BytesIO(content[_DIGEST_BYTES:]), allow_pickle=False)
        os.utime(path)
        return array
    except (OSError, ValueError):
        return None


def _save(path: Path, array: np.ndarray) -> None:
    text = io.BytesIO()
    np.save(text, array, allow_pickle=False)
    content = text.getvalue()
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    with contextlib.suppress(OSError):  # a full disk, a home that cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
        others = sorted(path.parent.glob("*.npy"), key=lambda p: p.stat().st_mtime, reverse=True)
        taken = len(content)
        for other in others:
            taken += other.stat().st_size
            if taken > MOST_BYTES:
                other.unlink()
        write_atomically(path, digest + content)
