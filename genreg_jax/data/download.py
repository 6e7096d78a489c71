"""An official file, downloaded or given, within limits of time and size, and what it must be."""

import hashlib
import http.client
import io
import os
import queue
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from genreg_jax.errors import UserError

# No official file comes near these, so they only stop a wrong one from filling memory or disk.
MAX_BYTES = 2**29
MAX_FILE_BYTES = 2**32
_BLOCK = 2**20
_SLOWEST = 1024  # bytes a second, below which a server is one that never finishes


class Remote(NamedTuple):
    """One official file: where it is and what it must be; `sha256` may be an MD5 where it is all
    that is published."""

    url: str
    filename: str
    sha256: str
    size: int | None


def registered(name: str) -> list[Remote]:
    """The official files of a data set, as TFDS registers them."""
    import tensorflow_datasets as tfds

    return [
        Remote(address, info.filename or address.rsplit("/", 1)[-1], info.checksum, int(info.size))
        for address, info in (tfds.builder_cls(name).url_infos or {}).items()
    ]


def replaced(
    dataset: str, remotes: list[Remote], url: str | None, sha256: Sequence[str] | None
) -> list[Remote]:
    """The official files with the address and the checksums that a user gives in their place.

    Args:
      dataset: its name, for an error.
      remotes: the official files.
      url: of the file, or of the directory of several; None for the official ones.
      sha256: one a file; None for the official ones.

    Raises:
      UserError: there are not as many checksums as files.
    """
    if sha256 is not None:
        if len(sha256) != len(remotes):
            raise UserError(
                f"sha256 has {len(sha256)} values; {dataset} needs {len(remotes)}, in this order: "
                f"{', '.join(r.filename for r in remotes)}."
            )
        remotes = [r._replace(sha256=s.lower(), size=None) for r, s in zip(remotes, sha256)]
    if url is None:
        return remotes
    if len(remotes) == 1:
        return [remotes[0]._replace(url=url)]
    return [r._replace(url=f"{url.rstrip('/')}/{r.filename}") for r in remotes]


def move_into_place(folder: Path, target: Path) -> None:
    """Gives a finished folder its name, in one step."""
    target.parent.mkdir(exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():  # Otherwise another process has just prepared the same.
            raise


def read_verified(
    dataset: str, remote: Remote, archive: str | os.PathLike[str] | None, timeout: float
) -> bytes:
    """The content of an official file, from an archive or its address, compared with its SHA-256.

    Raises:
      UserError: it cannot be had, or is another file.
    """
    limit = MAX_BYTES if remote.size is None else remote.size
    if archive is None:
        place, content = remote.url, io.BytesIO()
        _download(remote, limit, timeout, content)
        content = content.getvalue()
    else:
        place, content = _read_archive(dataset, remote, Path(os.path.expanduser(archive)), limit)
    _check(place, remote, limit, io.BytesIO(content))
    return content


def verified_file(
    remote: Remote, archive: str | os.PathLike[str] | None, folder: Path, timeout: float
) -> Path:
    """The path of an official file that is too large for memory, once its checksum is right.

    Args:
      remote: what it must be.
      archive: the file, or a directory that holds it; None to download it.
      folder: where a download goes.
      timeout: as in `prepare`.

    Raises:
      UserError: it cannot be had, or is another file.
    """
    limit = MAX_FILE_BYTES if remote.size is None else remote.size
    if archive is None:
        path, place = folder / remote.filename, remote.url
        with path.open("wb") as file:
            _download(remote, limit, timeout, file)
    else:
        path = _path(remote, Path(os.path.expanduser(archive)))
        place = str(path)
    try:
        with path.open("rb") as file:
            _check(place, remote, limit, file)
    except OSError as error:
        raise _unreadable(path, remote, error) from error
    return path


def _check(place: str, remote: Remote, limit: int, file: BinaryIO) -> None:
    """Refuses what is not the expected file; reads no more than one byte beyond its size."""
    kind = "MD5" if len(remote.sha256) == 32 else "SHA-256"
    digest, size = hashlib.new(kind.replace("-", "")), 0
    while block := file.read(min(_BLOCK, limit + 1 - size)):
        digest.update(block)
        size += len(block)
    if digest.hexdigest() == remote.sha256 and remote.size in (None, size):
        return
    expected = "" if remote.size is None else f" and {remote.size:,} bytes"
    got = f"more than {limit:,}" if size > limit else f"{size:,}"
    raise UserError(
        f"{place} is not the expected {remote.filename}: it has {got} bytes and the {kind} "
        f"{digest.hexdigest()} of what was read, where {kind} {remote.sha256}{expected} are "
        "registered. It is truncated, damaged or another file; download it again. Nothing was "
        "written."
    )


def _read_archive(dataset: str, remote: Remote, archive: Path, limit: int) -> tuple[str, bytes]:
    if not archive.is_dir() and dataset == "fashion_mnist":
        raise UserError(
            f"--archive={archive} is not a directory; for fashion_mnist, give the directory that "
            "holds its four official .gz files."
        )
    path = _path(remote, archive)
    try:
        with path.open("rb") as file:
            return str(path), file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, remote, error) from error


def _path(remote: Remote, archive: Path) -> Path:
    path = archive / remote.filename if archive.is_dir() else archive
    if path.exists() and not path.is_file():
        raise _unreadable(path, remote, OSError(0, "it is not a plain file"))
    return path


def _unreadable(path: Path, remote: Remote, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read ({error.strerror}); --archive must be the official "
        f"{remote.filename}, or a directory that holds it."
    )


def _download(remote: Remote, limit: int, timeout: float, file: BinaryIO) -> None:
    done, before, then = 0, 0, time.monotonic()
    try:
        with _open_url(remote.url, timeout) as response:
            # What has come, without waiting for a whole block, which a slow server never fills.
            while (block := response.read1(_BLOCK)) and done <= limit:
                file.write(block)
                done += len(block)
                _show_progress(remote.filename, done, remote.size)
                if (seconds := time.monotonic() - then) > timeout:
                    if done - before < _SLOWEST * seconds:
                        raise TimeoutError(f"less than {_SLOWEST} bytes a second came")
                    before, then = done, time.monotonic()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"{remote.url} cannot be downloaded ({getattr(error, 'reason', None) or error}). Give "
            "the file by hand with --archive=PATH, or name a mirror with --url=URL."
        ) from error


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
