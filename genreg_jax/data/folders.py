"""The picture files of a folder."""

import os
from pathlib import Path

from genreg_jax.data.pictures import FORMATS


def find(folder: Path) -> tuple[list[Path], list[str]]:
    """The picture files of a folder and its subfolders, and what is left out.

    Args:
      folder: to look through. What is hidden, and what an archive of macOS adds, is passed over. A
        link that leads out of the folder, and one to a subfolder, are not followed.

    Returns:
      Paths in the order of their names, and a line for each thing that is left out.
    """
    root = os.path.realpath(folder)
    files, left_out = [], []

    def leads_out(path: str) -> bool:
        return os.path.commonpath([root, os.path.realpath(path)]) != root

    def not_read(error: OSError) -> None:
        left_out.append(f"{os.path.relpath(error.filename, folder)} ({error.strerror})")

    for here, folders, names in os.walk(folder, onerror=not_read):
        for name in sorted(folders):
            if os.path.islink(os.path.join(here, name)):
                left_out.append(f"{_relative(here, name, folder)} (a link to a folder)")
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        for name in [name for name in folders if _is_run(os.path.join(here, name))]:
            left_out.append(f"{_relative(here, name, folder)} (a run of this program)")
            folders.remove(name)
        if not folders and not names and here != os.fspath(folder):  # maybe of a class
            left_out.append(f"{os.path.relpath(here, folder)} (an empty folder)")
        for name in sorted(names):
            path = os.path.join(here, name)
            if name.startswith(".") or name == "Thumbs.db":
                continue
            if os.path.splitext(name)[1].lower() not in FORMATS:
                left_out.append(f"{_relative(here, name, folder)} (no picture by its suffix)")
            elif os.path.islink(path) and leads_out(path):
                left_out.append(f"{_relative(here, name, folder)} (a link out of the folder)")
            else:
                files.append(Path(path))
    return files, left_out


def _is_run(folder: str) -> bool:
    """Whether it is a workdir, whose pictures are of what was learned."""
    there = lambda name: os.path.exists(os.path.join(folder, name))
    return there("config.json") and any(map(there, ("checkpoints", "flow", "flow_training")))


def _relative(here: str, name: str, folder: Path) -> str:
    return os.path.relpath(os.path.join(here, name), folder)
