"""Files that are whole at every moment, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genreg_jax.errors import UserError

_DEEPEST = 32  # levels of a JSON text
MOST_BYTES = 2**27  # of a file that is read in one piece


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes valid JSON in one piece: a reader sees the old file or the new one, never half.

    Keys keep their order. Non-finite numbers become `null`; NumPy and JAX arrays become lists,
    paths become strings, and objects with `to_dict` (ml_collections configs) become objects.

    Args:
      path: The file; its directory must exist.
      obj: What to write.

    Raises:
      TypeError: `obj` holds something that has no JSON form.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "summary.json")
      >>> write_json(path, {"test_accuracy": np.float32(0.5), "loss": float("inf")})
      >>> print(path.read_text(), end="")
      {
        "test_accuracy": 0.5,
        "loss": null
      }
    """
    write_atomically(Path(path), json.dumps(to_json(obj), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, **types: Any) -> dict[str, Any]:
    """Reads a JSON object that may come from anywhere.

    Args:
      path: The file.
      **types: Name of an entry that is needed to the type, or the types, that it must have.

    Returns:
      The object. Its whole numbers have at most 64 bits, and all numbers are finite.

    Raises:
      UserError: the file is not such an object.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "summary.json")
      >>> _ = path.write_text('{"seed": 3}')
      >>> read_json(path, seed=int)
      {'seed': 3}
    """
    try:
        obj = parse_json(read_bytes(path).decode())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {str(error).rstrip('.')}. Put the file back."
        ) from None
    if not isinstance(obj, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object, but {type(obj).__name__}.")
    for name in types:
        if name not in obj:
            raise UserError(f"{path} is damaged: its {name!r} is absent. Put the file back.")
    check_types(path, obj, types)
    return obj


def check_types(path: str | os.PathLike, obj: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuses an entry of a file's object that has another type, with a `UserError`.

    Args:
      path: The file.
      obj: What it holds.
      types: Name of an entry that there may be to the type, or the types, that it then has.
    """
    for name, allowed in types.items():
        if name in obj and not isinstance(obj[name], allowed):
            raise UserError(
                f"{path} is damaged: its {name!r} is {repr(obj[name])[:60]}. Put the file back."
            )


def read_bytes(path: str | os.PathLike, most: int = MOST_BYTES) -> bytes:
    """What a file of a workdir holds, which may come from anywhere.

    Args:
      path: The file.
      most: Bytes that are read.

    Raises:
      UserError: it is no plain file, such as a pipe, for which one could wait for ever, or too
        large to be what a run has written.

    Example:
      >>> read_bytes("/dev/null")
      Traceback (most recent call last):
        ...
      genreg_jax.errors.UserError: /dev/null is no plain file. Put back what the run has written.
    """
    # Not opened before it is known: opening a pipe waits for its writer.
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no plain file. Put back what the run has written.")
    if status.st_size > most:
        raise UserError(
            f"{path} has {status.st_size:,} bytes, and at most {most:,} are read. Put back what "
            "the run has written."
        )
    return Path(path).read_bytes()


def parse_json(text: str) -> Any:
    """What a JSON text holds; a `ValueError` too for numbers that are not finite or beyond 64 bits,
    for halves of characters, and for what is nested too deeply."""

    def whole(digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
            raise ValueError(f"the number {digits[:20]}... is too large")
        return int(digits)

    def real(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError(f"the number {digits[:20]} is not finite")
        return float(digits)

    try:
        obj = json.loads(text, parse_int=whole, parse_float=real, parse_constant=real)
        if "\\ud" in text.lower():  # as JSON writes halves of characters
            json.dumps(obj, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a character") from None
    level = [obj]
    for _ in range(_DEEPEST):
        groups = [value for value in level if isinstance(value, dict | list)]
        if not groups:
            return obj
        level = [v for g in groups for v in (g.values() if isinstance(g, dict) else g)]
    raise ValueError("it is nested too deeply")


def check_new_folder(path: Path) -> None:
    """Refuses an output folder that holds something already, with a `UserError`."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"The output {str(path)!r} exists and is not an empty folder.")


def to_json(obj: Any) -> Any:
    """Returns `obj` as plain dicts, lists, strings and numbers, with None for non-finite numbers.

    Args:
      obj: Anything `write_json` takes.

    Returns:
      The same content in what `json.dumps(..., allow_nan=False)` accepts.

    Raises:
      TypeError: `obj` holds something that has no JSON form.

    Example:
      >>> to_json({"a": (1, float("nan")), "b": np.arange(2)})
      {'a': [1, None], 'b': [0, 1]}
    """
    if hasattr(obj, "to_dict"):
        obj = obj.to_dict()
    if obj is None or isinstance(obj, str | bool | int):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): to_json(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_json(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, np.ndarray | np.generic | jax.Array):
        return to_json(np.asarray(obj).tolist())
    raise TypeError(f"{type(obj).__name__} has no JSON form: {obj!r}")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file in one piece: a reader sees the old content or the new, never half.

    Args:
      path: The file; its directory must exist.
      content: Text, written as UTF-8 with its newlines as they are, or bytes.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "note.txt"
      >>> write_atomically(path, "done")
      >>> path.read_text()
      'done'
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = unfinished(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """The name, beside a path, of what is to become it or is to go again."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


# What a run has in its workdir; other folders there are somebody else's.
FOLDERS = ("checkpoints", "flow", "flow_training", "postmortem", "samples", "tensorboard")


def remove_unfinished(folder: Path) -> None:
    """Removes what a process that was killed in the middle of writing has left in a workdir."""
    own = [path for name in FOLDERS for path in (folder / name).rglob(".*.tmp")]
    for path in [*folder.glob(".*.tmp"), *own]:
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
