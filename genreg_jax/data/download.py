"""An official file, downloaded or given, within limits of time and size, and what it must be."""

import hashlib
import http.client
import os
import queue
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from genreg_jax.errors import UserError

# No official file comes near this, so it only stops a wrong file from filling the memory.
MAX_BYTES = 2**29
_BLOCK = 2**20
_SLOWEST = 1024  # bytes a second, below which a server is one that never finishes


class Remote(NamedTuple):
    """One official file: where it is and what it must be."""

    url: str
    filename: str
    sha256: str
    size: int | None


def read_verified(
    dataset: str, remote: Remote, archive: str | os.PathLike[str] | None, timeout: float
) -> bytes:
    """The content of an official file, from an archive or its address, compared with its SHA-256.

    Raises:
      UserError: it cannot be had, or is another file.
    """
    limit = MAX_BYTES if remote.size is None else remote.size
    if archive is None:
        place, content = remote.url, _download(remote, limit, timeout)
    else:
        place, content = _read_archive(dataset, remote, Path(os.path.expanduser(archive)), limit)
    digest = hashlib.sha256(content).hexdigest()
    if digest != remote.sha256 or remote.size not in (None, len(content)):
        size = "" if remote.size is None else f" and {remote.size:,} bytes"
        got = f"more than {limit:,}" if len(content) > limit else f"{len(content):,}"
        raise UserError(
            f"{place} is not the expected {remote.filename}: it has {got} bytes and the SHA-256 "
            f"{digest} of what was read, where SHA-256 {remote.sha256}{size} are registered. It is "
            "truncated, damaged or another file; download it again. Nothing was written."
        )
    return content


def _read_archive(dataset: str, remote: Remote, archive: Path, limit: int) -> tuple[str, bytes]:
    path = archive / remote.filename if archive.is_dir() else archive
    if not archive.is_dir() and dataset == "fashion_mnist":
        raise UserError(
            f"--archive={archive} is not a directory; for fashion_mnist, give the directory that "
            "holds its four official .gz files."
        )
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is not a plain file")
        with path.open("rb") as file:
            return str(path), file.read(limit + 1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); --archive must be the official "
            f"{remote.filename}, or a directory that holds it."
        ) from error


def _download(remote: Remote, limit: int, timeout: float) -> bytes:
    content, before, then = bytearray(), 0, time.monotonic()
    try:
        with _open_url(remote.url, timeout) as response:
            # What has come, without waiting for a whole block, which a slow server never fills.
            while (block := response.read1(_BLOCK)) and len(content) <= limit:
                content += block
                _show_progress(remote.filename, len(content), remote.size)
                if (seconds := time.monotonic() - then) > timeout:
                    if len(content) - before < _SLOWEST * seconds:
                        raise TimeoutError(f"less than {_SLOWEST} bytes a second came")
                    before, then = len(content), time.monotonic()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"{remote.url} cannot be downloaded ({getattr(error, 'reason', None) or error}). Give "
            "the file by hand with --archive=PATH, or name a mirror with --url=URL."
        ) from error
    return bytes(content)


def _open_url(url: str, timeout: float) -> Any:
    """Open an address within `timeout` seconds in all.

    A socket's own time limit covers neither name resolution nor the trying of one address after
    another, so the opening runs in a thread that is left behind when it takes too long.
    """
    result: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            result.put(urllib.request.urlopen(url, timeout=timeout))
        except BaseException as error:
            result.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        opened = result.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no connection within {timeout:g} seconds") from None
    if isinstance(opened, BaseException):
        raise opened
    return opened


def _show_progress(filename: str, done: int, size: int | None) -> None:
    if sys.stderr.isatty():
        total = f" of {size / 2**20:.0f}" if size else ""
        print(f"\r{filename}: {done / 2**20:.0f}{total} MiB", end="", file=sys.stderr, flush=True)
        if done == size:
            print(file=sys.stderr)
