"""The official archives of `genreg_jax.data.photographs`, verified and unpacked into a folder.

They have up to 2.7 GB and so are read from disk as a stream. Only plain files that a set needs are
written, into a temporary folder that takes its name in one step once the set is whole.
"""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from genreg_jax.data.dataset import listed, note
from genreg_jax.data.download import (
    Remote,
    move_into_place,
    registered,
    replaced,
    verified_file,
)
from genreg_jax.data.photographs import SETS, missing_files, read_lists
from genreg_jax.data.tfds import tfds_root
from genreg_jax.errors import UserError

# Several times those of the largest set.
MOST_BYTES = 2**33
MOST_FILES = 200_000


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] = "",
    *,
    archive: str | os.PathLike[str] | None = None,
    url: str | None = None,
    sha256: Sequence[str] | None = None,
    timeout: float = 8.0,
) -> Path:
    """Unpacks the official archives of a set of photographs; does nothing if it is there.

    Args:
      name: a key of `photographs.SETS`.
      data_dir: TFDS data directory; empty for `$TFDS_DATA_DIR` or else `~/tensorflow_datasets`.
      archive: the archive, or a directory that holds the set's archives; by default they are
        downloaded.
      url: another address to download from; of their directory where there are several.
      sha256: the expected SHA-256 of every archive, in the order of `SETS[name].archives`, in
        place of the registered ones.
      timeout: as in `genreg_jax.data.prepare.prepare`.

    Returns:
      The folder of the official layout, `DATA_DIR/NAME/FOLDER`.

    Raises:
      UserError: an archive cannot be had, is not the expected one, or cannot be unpacked.

    Example:
      >>> prepare("pets", archive="ARCHIVES")  # doctest: +SKIP
    """
    row, root = SETS[name], tfds_root(data_dir)
    target = root / name / row.folder
    if target.exists():
        try:
            _check_whole(name, target)
        except UserError as error:
            raise UserError(
                f"{target} exists already, and not as the whole of {name}: {error} Remove it, or "
                "give another directory with --data_dir=DIR."
            ) from error
        return target
    remotes = _remotes(name, url, sha256)
    if archive is None and url is None and not row.offered:
        raise UserError(
            f"{row.address} no longer offers {name}; give a directory with its official "
            f"{', '.join(row.archives)} with --archive=DIR, or the address of one with --url=URL."
        )
    if archive is not None and len(remotes) > 1 and os.path.isfile(os.path.expanduser(archive)):
        raise UserError(
            f"--archive={archive} is one file; for {name} give the directory that holds its "
            f"official {', '.join(row.archives)}."
        )
    # What is given is verified before anything is written.
    files = [] if archive is None else [verified_file(r, archive, root, timeout) for r in remotes]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as temporary:
            files = files or [verified_file(r, None, Path(temporary), timeout) for r in remotes]
            folder = Path(temporary, "unpacked", row.folder)
            folder.mkdir(parents=True)
            for file, filename in zip(files, row.archives):
                note(f"{name}: unpacking {filename}")
                if filename.endswith(".mat"):
                    shutil.copyfile(file, folder / filename)
                else:
                    _unpack(name, file, folder)
            _check_whole(name, folder)
            move_into_place(folder, target)
    except OSError as error:
        raise UserError(
            f"{name} cannot be written to {root} ({error}); give another directory with "
            "--data_dir=DIR, or make room there."
        ) from error
    return target


def _remotes(name: str, url: str | None, sha256: Sequence[str] | None) -> list[Remote]:
    row = SETS[name]
    if row.tfds:
        # Of two addresses of one file the first one counts.
        by_name = {r.filename: r for r in sorted(registered(row.tfds), reverse=True)}
        remotes = [by_name[filename] for filename in row.archives]
    else:
        remotes = [Remote(row.address + file, file, row.md5, None) for file in row.archives]
    return replaced(name, remotes, url, sha256)


def _check_whole(name: str, folder: Path) -> None:
    """Refuses a folder in which a list or a picture is missing."""
    missing = missing_files(name, folder)
    if not missing:
        lists, _ = read_lists(name, folder)
        files = [file for pictures in lists.values() for file, _ in pictures]
        missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{name} is not whole: {listed(missing, 3)} missing. They are in the official "
            f"{', '.join(SETS[name].archives)}, which may have to be downloaded again."
        )


def _unpack(name: str, archive: Path, folder: Path) -> None:
    """Writes the plain files of a tar archive that a set needs, and no others, below a folder."""
    needed = {need.split("/")[0] for need in SETS[name].needs}
    num_bytes = num_files = 0
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise UserError(
                        f"{archive} has the member {member.name[:80]!r}, which leads out of the "
                        "folder that it is unpacked into: it is no official archive."
                    )
                within = path.parts[:1] == (SETS[name].folder,)
                parts = path.parts[1:] if within else path.parts
                hidden = any(part.startswith(".") for part in parts)  # `._*`, which macOS adds
                if not member.isfile() or hidden or not parts or parts[0] not in needed:
                    continue
                num_bytes, num_files = num_bytes + member.size, num_files + 1
                if member.size < 0 or num_bytes > MOST_BYTES or num_files > MOST_FILES:
                    raise UserError(
                        f"{archive} unpacks to more than {MOST_BYTES:,} bytes or {MOST_FILES:,} "
                        "files: it is no official archive."
                    )
                place = folder.joinpath(*parts)
                place.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as content, place.open("wb") as file:  # type: ignore
                    shutil.copyfileobj(content, file)
    except (UserError, OSError):  # the latter of writing
        raise
    except Exception as error:  # what tarfile and zlib raise about another's bytes is anything
        raise UserError(
            f"{archive} cannot be unpacked ({type(error).__name__}: {error}); it is truncated, "
            "damaged or no archive. Download it again."
        ) from error
