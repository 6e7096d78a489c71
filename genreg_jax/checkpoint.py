"""Checkpoints: a thin adapter over orbax, the only module that knows it.

Orbax writes a step into a temporary folder and renames it, so that a kill during a save costs that
save alone. What it does not do is notice a flipped bit, or fall back on the step before; this
module adds a checksum per leaf, verified at every restore, and that walk.
"""

import contextlib
import copy
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from genreg_jax.devices import from_first, is_first, on_one_device, shared
from genreg_jax.door import say
from genreg_jax.errors import UserError
from genreg_jax.fingerprints import (
    digest_of,
    fingerprints,
    like_by_names,
    named,
    type_of,
    with_key_data,
    with_keys,
)
from genreg_jax.logs import unfinished
from genreg_jax.orbax_threads import end_waiting_threads
from genreg_jax.records import fits


# Of several processes only the first one saves and reads, and does not wait for the others.
def _alone() -> Any:
    options: dict[str, Any] = {"active_processes": {0}} if jax.process_count() > 1 else {}
    return ocp.options.MultiprocessingOptions(primary_host=0, **options)


class _WithoutOrphans:
    """An `unraisablehook` silent on what follows a failure that orbax has reported.

    When one array of a checkpoint cannot be read or written, those under way end after orbax's
    event loop has, in threads of tensorstore, which prints a traceback for each.
    """

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)


end_waiting_threads()


class CheckpointReader:
    """The checkpoints of one directory, read only: a pytree of arrays and a JSON dict per step.

    Nothing in the directory is changed, and its writer may be at work: what it deletes meanwhile is
    passed over. Of several processes the first one reads, and the others have what it reads.
    Restoring walks from the newest step to the oldest until one verifies; a damaged one is named
    with `note`.

    Args:
      directory: may be missing.
      shape: what the JSON dicts must be like, as of `genreg_jax.records.fits`; one that is not
        makes its checkpoint a damaged one.
      note: called with lines for people.
    """

    def __init__(
        self, directory: str | Path, *, shape: Any = dict, note: Callable[[str], None] = say
    ):
        self._directory = Path(directory).absolute()
        check_path(self._directory)
        self._shape = shape
        self._note = note
        if not isinstance(sys.unraisablehook, _WithoutOrphans):
            sys.unraisablehook = _WithoutOrphans(sys.unraisablehook)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def extra(self) -> dict[str, Any] | None:
        """The JSON dict of the newest checkpoint whose record is whole, None without one."""
        return shared(self._extra)

    def _extra(self) -> dict[str, Any] | None:
        for step in self._steps():
            record = self._record(step)
            if record is not None:
                return record["extra"]
            self._damaged(step, "its record cannot be read")
        return None

    def digest(self) -> str | None:
        """A hash of all arrays of the newest checkpoint whose record is whole, None without one.

        Equal arrays have equal hashes, wherever they lie.
        """
        return shared(self._digest_of_newest)

    def _digest_of_newest(self) -> str | None:
        for step in self._steps():
            record = self._record(step)
            if record is not None:
                return digest_of(record["leaves"])[:12]
        return None

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest `(step, tree, extra)` that verifies, None without one.

        Args:
          like: a tree with the structure, shapes and types of the saved one; its values are not
            used. Where its leaves carry a sharding, the restored ones have it. None restores lists
            and dicts in the place of other containers, and the data of keys.

        Raises:
          UserError: the checkpoint is whole but of other arrays than `like`.
        """
        if jax.process_count() == 1:
            return self._restore(like)
        found: list[Any] = []  # in the first process

        def restore():
            found.append(self._restore(like))
            return found[0] and [found[0][0], found[0][2]]

        answer = shared(restore)
        if answer is None:
            return None
        return answer[0], from_first(found[0][1] if found else like), answer[1]

    def _restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        abstract = None
        if like is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, with_key_data(like))
        if like is not None and jax.process_count() > 1:  # orbax must not wait for the others
            abstract = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), abstract)
        for step in self._steps():
            record = self._record(step)
            if record is None:
                self._damaged(step, "its record cannot be read")
                continue
            if like is not None:
                self._check_same_arrays(step, record["leaves"], like)
            try:
                tree = self._read(step, tree=ocp.args.StandardRestore(abstract))["tree"]
            except Exception as error:
                tree = None if like is None else self._by_names(step, like)
                if tree is None:
                    self._damaged(step, f"orbax cannot read it ({_line(error)})")
                    continue
            found = {name: leaf[2] for name, leaf in fingerprints(tree).items()}
            changed = [n for n, leaf in record["leaves"].items() if found.get(n) != leaf[2]]
            if changed:
                self._damaged(step, f"the checksum of {changed[0]} is wrong")
                continue
            return step, tree if like is None else with_keys(tree, like), record["extra"]
        return None

    def _steps(self) -> Iterator[int]:
        """Steps from the newest on, each once, as they are in the directory at that moment."""
        seen = set()
        # A step that is being written has a longer name, until all of it is there.
        while left := {int(n) for n in _names(self._directory) if _is_step(n)} - seen:
            seen.add(max(left))
            yield max(left)

    def _read(self, step: int, **items: Any) -> Any:
        """What orbax reads of a step."""
        options = {"multiprocessing_options": _alone()}
        composite = ocp.CompositeOptions(**options)
        handler = ocp.CompositeCheckpointHandler(composite_options=composite)
        with ocp.Checkpointer(handler, **options) as reader:
            return reader.restore(self._directory / str(step), args=ocp.args.Composite(**items))

    def _by_names(self, step: int, like: Any) -> Any:
        """The tree of a step in other containers, leaf by leaf by name; None if it cannot be read.

        Orbax refuses the same arrays where a container that is empty has come or gone, as a field
        of a later version.
        """
        try:
            tree = self._read(step, tree=ocp.args.StandardRestore(None))["tree"]
            return like_by_names(dict(named(tree)), like)
        except Exception:
            return None

    def _record(self, step: int) -> dict[str, Any] | None:
        """The verified record of a step, None if it is damaged."""
        try:
            record = dict(self._read(step, record=ocp.args.JsonRestore())["record"])
            right = record.pop("digest") == digest_of(record) and fits(record["extra"], self._shape)
            return record if right else None
        except Exception:
            return None

    def _damaged(self, step: int, reason: str) -> None:
        folder = self._directory / str(step)
        if folder.exists():
            time.sleep(0.5)  # its writer may be at deleting it
        if folder.exists():
            self._note(
                f"The checkpoint of step {step} in {self._directory} is damaged: {reason}. It is "
                "left as it is, and the one before it is tried."
            )

    def _check_same_arrays(self, step: int, saved: dict[str, list], like: Any) -> None:
        wanted = {name: type_of(leaf) for name, leaf in named(like)}
        stored = {name: leaf[:2] for name, leaf in saved.items()}
        if stored != wanted:
            names = [n for n in {**stored, **wanted} if stored.get(n) != wanted.get(n)]
            raise UserError(
                f"The checkpoint of step {step} in {self._directory} is of another model: "
                f"{names[0]} is {stored.get(names[0], 'absent')} there and "
                f"{wanted.get(names[0], 'absent')} here, and {len(names) - 1} more arrays differ. "
                "Nothing was changed; use the code and the settings it was made with, or a new "
                "workdir."
            )


class Checkpoints(CheckpointReader):
    """The checkpoints of one directory, for the one program that writes them.

    Saving is asynchronous; leaving the context waits for it. What an earlier program left
    unfinished is removed, and a damaged checkpoint is moved to `<directory>_damaged` and named with
    `note`.

    Args:
      directory: created when the first checkpoint is saved.
      keep: number of most recent checkpoints kept.
      shape: as of `CheckpointReader`.
      note: called with lines for people.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from genreg_jax.checkpoint import Checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(folder) as checkpoints:
      ...         checkpoints.save(3, {"w": jnp.arange(2)}, {"note": "third"})
      ...     with Checkpoints(folder) as checkpoints:
      ...         step, tree, extra = checkpoints.restore({"w": jnp.zeros(2, jnp.int32)})
      >>> step, tree["w"].tolist(), extra
      (3, [0, 1], {'note': 'third'})
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        shape: Any = dict,
        note: Callable[[str], None] = say,
    ):
        super().__init__(directory, shape=shape, note=note)
        check_path(self._directory, written=True)
        self._keep = keep
        self._home = _identity(self._directory.parent)
        if not is_first():
            return
        self._set_odd_names_aside()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                cleanup_tmp_directories=True,
                # Orbax's own threads expect to be started by the main one.
                enable_async_checkpointing=threading.current_thread() is threading.main_thread(),
                multiprocessing_options=_alone(),
            ),
        )

    def __exit__(self, kind, *_):
        if not is_first():
            return
        try:
            self._manager.close()
        except Exception as error:
            if kind is None:
                raise self._not_written(error) from error
        if kind is None:  # what an earlier program was killed in removing
            for step in list(self._steps())[self._keep :]:
                shutil.rmtree(self._directory / str(step), ignore_errors=True)

    def save(self, step: int, tree: Any, extra: dict[str, Any]) -> None:
        """Saves `tree` and `extra` under `step`.

        Raises:
          UserError: it, or the save before it, could not be written; what was saved earlier is
            whole. Or the folder is no longer the one it was: it, or that above it, has been
            removed, moved or replaced.
        """
        if not is_first():
            return
        self._check_home()
        tree = on_one_device(tree)
        # A copy: it is written while its caller goes on, and appends to its lists.
        record = {"extra": copy.deepcopy(extra), "leaves": fingerprints(tree)}
        tree = jax.tree.map(np.asarray, with_key_data(tree))
        try:
            self._make_room()
            self._home = self._home or _identity(self._directory.parent)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    tree=ocp.args.StandardSave(tree),
                    record=ocp.args.JsonSave({**record, "digest": digest_of(record)}),
                ),
            )
        except Exception as error:
            raise self._not_written(error) from error

    def _check_home(self) -> None:
        home = _identity(self._directory.parent)
        if self._home not in (None, home):
            raise UserError(
                f"The folder {self._directory.parent} was removed, moved or replaced while a run "
                "wrote to it. The run has ended, and nothing more was written. What it saved is "
                "where that folder is now; the same command goes on there, or starts afresh."
            )

    def _make_room(self) -> None:
        """Fails where a step's folder could not be made.

        Orbax's own threads would not end for five minutes after that.
        """
        probe = unfinished(self._directory / "probe")
        deep = probe / ("0" * 100)  # as long as the names in a step are
        try:
            deep.mkdir(parents=True, exist_ok=True)
        finally:
            for folder in (deep, probe):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def wait(self) -> None:
        """Returns once everything saved is on disk."""
        if not is_first():
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def _set_odd_names_aside(self) -> None:
        """Moves what orbax would take for a step, maybe a later one than all, and no run writes."""
        for name in _names(self._directory):
            if _is_number(name) and not _is_step(name):
                target = self._move_away(name)
                self._note(f"{self._directory / name} is no checkpoint. It was moved to {target}.")

    def _move_away(self, name: str) -> Path:
        target = self._directory.with_name(f"{self._directory.name}_damaged") / name
        while target.exists():
            target = target.with_name(f"{target.name}_again")
        target.parent.mkdir(exist_ok=True)
        (self._directory / name).rename(target)
        return target

    def _damaged(self, step: int, reason: str) -> None:
        target = self._move_away(str(step))
        self._manager.reload()
        self._note(
            f"The checkpoint of step {step} in {self._directory} is damaged: {reason}. It was "
            f"moved to {target}; "
            + (
                "there is none before it."
                if next(self._steps(), None) is None
                else "the one before it is tried."
            )
        )

    def _not_written(self, error: Exception) -> UserError:
        return UserError(
            f"A checkpoint could not be written to {self._directory}: {_line(error)}. Earlier "
            "checkpoints are whole; make room, or make the folder writable, and run the same "
            "command again to continue from the last one."
        )


def check_path(path: Path, *, written: bool = False) -> None:
    """Refuses a path that orbax would take for another one.

    Args:
      path: absolute.
      written: whether checkpoints are to be written there, not read alone.

    Raises:
      UserError: it would.
    """
    # A backslash becomes a slash in tensorstore, the others are patterns where orbax joins files.
    odd = [c for c in ("\\*?[" if written else "\\") if c in str(path) and c != os.sep]
    odd += [part for part in path.parts if part in ("gs:", "s3:")]
    if odd:
        raise UserError(
            f"The folder {str(path)!r} has {odd[0]!r} in its path, which checkpoints cannot have. "
            "Rename it, or choose another one."
        )


def _identity(folder: Path) -> tuple[int, int] | None:
    """What a folder is, whatever it is called; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_step(name: str) -> bool:
    """Whether a name is that of a step, as a run writes it."""
    return re.fullmatch("0|[1-9][0-9]{0,17}", name) is not None


def _is_number(name: str) -> bool:
    try:
        return int(name) is not None
    except ValueError:
        return False


def _line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0][:300] if text else type(error).__name__).rstrip(".")
