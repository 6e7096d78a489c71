"""The tensors of a weights file made elsewhere, without torch, and without running any of the file.

`.safetensors`, and what `torch.save` wrote of a state dict, as a zip or in the format before it.
Their pickles are read by `pickles.py`.
"""

import io
import math
import os
import pickle
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from genreg_jax.checks import short
from genreg_jax.errors import UserError
from genreg_jax.pickles import COPY, KINDS, MOST_BYTES, Refused, Storage, Tensor, unpickle

_SAFETENSORS = {name: dtype for dtype, (name, _) in KINDS.items()}
_WRAPPERS = {"state_dict", "model", "model_state", "model_state_dict", "params"}
_OPTIMISER = {"state", "param_groups"}  # the keys of an optimiser's state
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
# Far above what weights need, so that a file cannot ask for more than its size is good for.
_MOST_ENTRIES, _MOST_DEPTH, _MOST_LETTERS, _MOST_COPIES = 10**5, 32, 500, 4
_STARTS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"<": "a web page, HTML or XML",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"\x80": "a pickle, but not of torch.save",
}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a weights file by name: `.safetensors`, or what `torch.save` wrote.

    The format is told from the content, whatever the file is called. Nothing of the file is run and
    torch is not needed. Nested dicts become names with dots; if all tensors lie in one entry
    `state_dict`, `model`, `model_state`, `model_state_dict` or `params`, they are taken from there,
    and `module.` in front of all names is dropped. An optimiser's state, numbers, strings and
    lists beside them are left out.

    Args:
      path: the file.

    Returns:
      Contiguous arrays of any shape: float64, float32, float16, bfloat16, int64, int32, int16,
      int8, uint8 and bool; in the order of the file, or sorted for `.safetensors`. Names that
      share a tensor share an array.

    Raises:
      UserError: it cannot be read, is damaged, or holds anything but tensors and plain data.

    Example:
      >>> import tempfile
      >>> from safetensors.numpy import save_file
      >>> path = Path(tempfile.mkdtemp(), "weights.safetensors")
      >>> save_file({"module.head.weight": np.ones((2, 3), np.float32)}, path)
      >>> {name: array.shape for name, array in read_tensors(path).items()}
      {'head.weight': (2, 3)}

    Source: the format of safetensors; PyTorch's torch/serialization.py, `_save`, `_legacy_save`.
    """
    try:
        data = _read(path)
        if data.startswith(b"PK\x03\x04"):
            found = _from_zip(data)
        elif data.startswith(_LEGACY):
            found = _from_legacy(data)
        elif data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= 10**8:
            found = _from_safetensors(data)
        elif data.startswith(b"{") and b'"weight_map"' in data:
            raise Refused(
                "is the index of weights in several files, without the weights",
                "Read the files that it names, one by one.",
            )
        else:
            what = next((w for start, w in _STARTS.items() if data.startswith(start)), "")
            raise Refused(f"is {what or 'no weights file'}")
        if not found:
            raise Refused("holds no tensors with names")
    except Refused as refused:
        raise UserError(
            f"{str(path)!r} {refused.found}. Allowed is a .safetensors file, or what torch.save "
            "wrote of a state dict, with dense tensors of "
            f"{', '.join(dtype.name for dtype in KINDS)}. {refused.way_out}"
        ) from None
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): array for name, array in found.items()}
    return found


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        file = Path(os.path.expanduser(path))
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Refused("is a folder", "Give one of the files in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its other end
            raise Refused("is no regular file", "Copy what it gives to a file first.")
        if status.st_size == 0:
            raise Refused("is empty", COPY)
        return file.read_bytes()
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})", "Check the path.") from None
    except (TypeError, ValueError):  # no path at all, or a zero byte in it
        raise Refused("is no path of a file", "Check the path.") from None


def _array(
    raw: bytearray | memoryview,
    dtype: np.dtype,
    shape: tuple[int, ...],
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
) -> np.ndarray:
    """A contiguous copy of a view; offset and strides in bytes, whose bounds NumPy checks again."""
    try:
        if 0 in shape:
            return np.zeros(shape, dtype)
        array = np.ndarray(shape, dtype, buffer=raw, offset=offset, strides=strides).copy()
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"holds a tensor of an impossible shape, {short(shape)}", COPY) from None
    # A byte of a bool other than 0 and 1 would be a third value.
    return array.view(np.uint8) != 0 if dtype.kind == "b" else array


# -------------------------------------------------------------------------------------- the formats


def _from_safetensors(data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = sorted(deserialize(data), key=lambda named: named[0])  # they come in any order
    except (SafetensorError, ValueError) as error:
        reason = short(str(error).removeprefix("Error while deserializing: "))
        raise Refused(f"begins as .safetensors but cannot be read ({reason})", COPY) from None
    found = {}
    for name, tensor in tensors:
        dtype = _SAFETENSORS.get(tensor["dtype"])
        if dtype is None:
            raise Refused(f"has tensor {short(name)} of dtype {tensor['dtype']}")
        found[name] = _array(tensor["data"], dtype, tuple(tensor["shape"]))
    return found


def _from_zip(data: bytes) -> dict[str, np.ndarray]:
    if data.count(b"PK\x01\x02") > _MOST_ENTRIES:
        raise Refused(f"is an archive of more than {_MOST_ENTRIES} entries")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = archive.infolist()
    except Exception:  # zipfile raises anything on a damaged directory
        raise Refused("is an archive that ends early or is damaged", COPY) from None
    entries = {entry.filename: entry for entry in listed}
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise Refused(
            "is a TorchScript archive, a program",
            "Save its weights with torch.save(torch.jit.load(PATH).state_dict(), NEW).",
        )
    if len(roots) != 1:
        raise Refused("is an archive, but not of torch.save")
    for name, entry in entries.items():
        if not name.startswith(f"{roots[0]}/") or ".." in name.split("/"):
            raise Refused(f"has the entry {short(name)}, which torch.save does not write")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"has its entry {short(name)} compressed or encrypted")
    if len(entries) < len(listed) or sum(entry.file_size for entry in listed) > len(data):
        raise Refused("has an entry twice, or entries of more than the file's size", COPY)

    def content(name: str) -> memoryview:
        entry = entries.get(f"{roots[0]}/{name}")
        if entry is None:
            raise Refused(f"lacks the entry {short(name)}", COPY)
        header = entry.header_offset
        lengths = (data[header + at : header + at + 2] for at in (26, 28))  # of the name, the rest
        start = header + 30 + sum(int.from_bytes(length, "little") for length in lengths)
        raw = memoryview(data)[start : start + entry.file_size]
        # torch writes the checksum 0 where it was told to leave it out.
        wrong = entry.CRC and zlib.crc32(raw) != entry.CRC
        if header < 0 or len(raw) < entry.file_size or wrong:
            raise Refused(f"has a damaged entry {short(name)}", COPY)
        return raw

    if f"{roots[0]}/byteorder" in entries and content("byteorder") != b"little":
        raise Refused("is in big-endian or unknown byte order")
    pickled = content("data.pkl")
    if len(pickled) > MOST_BYTES:
        raise Refused(f"has a pickle of more than {MOST_BYTES} bytes")
    tree, storages, _ = unpickle(bytes(pickled))
    return _arrays(tree, {s: content(f"data/{s.key}") for s in storages.values()}, len(data))


def _from_legacy(data: bytes) -> dict[str, np.ndarray]:
    system, _, end = unpickle(data, len(_LEGACY))
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Refused("is in big-endian or unknown byte order")
    tree, storages, end = unpickle(data, end)
    keys, _, end = unpickle(data, end)
    raws = {}
    for key in keys if type(keys) is list else []:
        storage = storages.get(key) if type(key) is str else None
        if storage is None or int.from_bytes(data[end : end + 8], "little") != storage.size:
            raise Refused("disagrees with itself on what it stores", COPY)
        start, end = end + 8, end + 8 + storage.size * storage.dtype.itemsize
        raws[storage] = memoryview(data)[start:end]
    if end > len(data):
        raise Refused("ends early", COPY)
    return _arrays(tree, raws, len(data))


def _arrays(tree: Any, raws: dict[Storage, memoryview], size: int) -> dict[str, np.ndarray]:
    """The arrays of a nested dict of descriptions, from the bytes of its storages."""
    if type(tree) is not dict:
        what = "tensor" if isinstance(tree, Tensor) else type(tree).__name__
        raise Refused(f"holds a {what}, and no dict from names to tensors")
    tensors: list[tuple[tuple[str, ...], Tensor]] = []
    _walk(tree, (), tensors, {})
    while len({path[0] for path, _ in tensors}) == 1 and tensors[0][0][0] in _WRAPPERS:
        if len(tensors[0][0]) == 1:
            break
        tensors = [(path[1:], tensor) for path, tensor in tensors]
    found: dict[str, np.ndarray] = {}
    made: dict[Tensor, np.ndarray] = {}
    bytes_left = _MOST_COPIES * size
    for path, tensor in tensors:
        name = ".".join(path)
        if name in found:
            raise Refused(f"has two tensors called {short(name)}")
        if tensor not in made:
            storage, width = tensor.storage, tensor.storage.dtype.itemsize
            raw = raws.get(storage)
            if raw is None or len(raw) != storage.size * width:
                raise Refused(f"does not hold what it claims for {short(name)}", COPY)
            bytes_left -= math.prod(tensor.shape) * width
            if bytes_left < 0:
                raise Refused(f"has tensors of more than {_MOST_COPIES} times its own size")
            strides = tuple(stride * width for stride in tensor.strides)
            made[tensor] = _array(raw, storage.dtype, tensor.shape, tensor.offset * width, strides)
        found[name] = made[tensor]
    return found


def _walk(tree: dict, path: tuple[str, ...], tensors: list, seen: dict[int, bool]) -> None:
    """Collects the tensors of nested dicts; `seen`: whether a dict is being read or had tensors."""
    if len(path) > _MOST_DEPTH:
        raise Refused(f"nests dicts more than {_MOST_DEPTH} deep")
    before = len(tensors)
    seen[id(tree)] = True
    for key, value in tree.items():
        if isinstance(value, Tensor):
            if sum(len(part) + 1 for part in path) + len(str(key)) > _MOST_LETTERS:
                raise Refused(f"has names of more than {_MOST_LETTERS} letters")
            tensors.append(((*path, str(key)), value))
        elif type(value) is dict and not value.keys() >= _OPTIMISER:
            if seen.get(id(value)):
                raise Refused("holds a dict in itself, or one dict of tensors twice")
            if id(value) not in seen:
                _walk(value, (*path, str(key)), tensors, seen)
    seen[id(tree)] = len(tensors) > before
