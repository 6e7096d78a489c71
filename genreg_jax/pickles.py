"""The pickles of torch's state dicts, read without running them, and without torch.

A pickle is a program. Here it is read in two passes of `pickletools.genops`, which only decodes:
`_scan` refuses what state dicts do not need, `_evaluate` builds dicts, lists, tuples, numbers,
strings and descriptions of tensors. Python's own unpickler takes no part: it can set attributes of
whatever it is given, and a deeply nested key ends the process.
"""

import math
import pickletools
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from genreg_jax.checks import short

# dtype: its name in safetensors, its storage's in torch.
KINDS = {
    np.dtype("<f8"): ("F64", "Double"),
    np.dtype("<f4"): ("F32", "Float"),
    np.dtype("<f2"): ("F16", "Half"),
    np.dtype(ml_dtypes.bfloat16): ("BF16", "BFloat16"),
    np.dtype("<i8"): ("I64", "Long"),
    np.dtype("<i4"): ("I32", "Int"),
    np.dtype("<i2"): ("I16", "Short"),
    np.dtype("i1"): ("I8", "Char"),
    np.dtype("u1"): ("U8", "Byte"),
    np.dtype("bool"): ("BOOL", "Bool"),
}
_STORAGES = {f"torch {name}Storage": dtype for dtype, (_, name) in KINDS.items()}
# `_rebuild_tensor` is what torch before 0.4 wrote.
_REBUILD = {"torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"}
_PARAMETER = "torch._utils _rebuild_parameter"
_NAMES = {"collections OrderedDict", "torch Size", _PARAMETER, *_REBUILD, *_STORAGES}
# BINSTRING and SHORT_BINSTRING are what Python 2 wrote.
_OPCODES = frozenset(
    """
    PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINSTRING
    SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS
    SETITEM SETITEMS BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD BINPERSID
    """.split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# Far above what weights need (a tensor takes 45 opcodes and 200 bytes), so that a pickle cannot ask
# for more time or memory than its size is good for.
MOST_BYTES, _MOST_OPCODES = 8 * 2**20, 10**6

SAVE = "Save the weights again with torch.save(model.state_dict(), PATH) or as .safetensors."
COPY = "It may be incomplete or damaged: copy or download it again."


class Refused(Exception):
    """What was found in a file, and what to do about it."""

    def __init__(self, found: str, way_out: str = SAVE):
        super().__init__(found)
        self.found, self.way_out = found, way_out


class _Name(NamedTuple):
    """What a pickle refers to, as "module name"; nothing is looked up."""

    name: str


class Storage(NamedTuple):
    """Elements of one dtype in a row."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage, in elements, within its bounds."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(data: bytes, start: int = 0) -> tuple[Any, dict[str, Storage], int]:
    """The value of the pickle that starts there, the storages it describes, and where it ends.

    Raises:
      Refused: it is damaged, or more than a description of tensors and plain data.

    Example:
      >>> import pickle
      >>> unpickle(pickle.dumps({"epoch": 3}, protocol=2))
      ({'epoch': 3}, {}, 21)
    """
    pickled = data[start : start + MOST_BYTES]
    length = _scan(pickled)
    try:
        return (*_evaluate(pickled), start + length)
    except Refused:
        raise
    except Exception:  # what is on the stack is not what an opcode needs
        raise Refused("holds a damaged pickle", COPY) from None


def _operations(pickled: bytes) -> Iterator[tuple[str, Any, int]]:
    for opcode, arg, position in pickletools.genops(pickled):
        yield opcode.name, arg, (position or 0) + 1


def _scan(pickled: bytes) -> int:
    """The length of a pickle of which nothing is to be refused."""
    names: dict[str, None] = {}  # in the order of the file
    unwanted: dict[str, None] = {}
    end, damaged = 0, False
    try:
        for count, (code, arg, after) in enumerate(_operations(pickled), start=1):
            end = after
            if code == "INST" or (code == "GLOBAL" and arg not in _NAMES):
                names[short(arg.replace(" ", "."))] = None
            if code not in _OPCODES:
                unwanted[f"the opcode {code}"] = None
            elif code == "PROTO" and arg != 2:
                unwanted[f"protocol {arg}"] = None
            elif code == "LONG1" and abs(arg) > 2**64:
                unwanted["a number of more than 64 bits"] = None
            elif code in ("BINPUT", "LONG_BINPUT") and arg > count:
                unwanted["a memo index beyond its own length"] = None
            elif count > _MOST_OPCODES:
                unwanted[f"more than {_MOST_OPCODES} opcodes"] = None
            if len(names) > 3 or count > _MOST_OPCODES:
                break
    except Exception:  # pickletools raises ValueError, and warnings can be errors
        damaged = True
    if names:
        shown = ", ".join([*names][:3]) + (", ..." if len(names) > 3 else "")
        raise Refused(f"asks for {shown}, which is no dense tensor; nothing of it was run")
    if unwanted:
        raise Refused(f"holds a pickle with {next(iter(unwanted))}, which weights do not need")
    if damaged:
        raise Refused("holds a damaged pickle", COPY)
    return end


def _evaluate(pickled: bytes) -> tuple[Any, dict[str, Storage]]:
    """What a scanned pickle describes, made by this function and `_call` alone."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}

    def pop(number: int | None = None) -> list[Any]:
        """So many values, or all above the last mark."""
        start = marks.pop() if number is None else len(stack) - number
        values = stack[start:]
        del stack[start:]
        return values

    for code, arg, _ in _operations(pickled):
        match code:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[code])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(pop()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(code[-1]))))
            case "APPEND" | "APPENDS":
                values = pop(1 if code == "APPEND" else None)
                if type(stack[-1]) is not list:
                    raise Refused("appends to what is no list", COPY)
                stack[-1].extend(values)
            case "SETITEM" | "SETITEMS":
                values = pop(2 if code == "SETITEM" else None)
                _fill(stack[-1], values[::2], values[1::2])
            case "GLOBAL":
                stack.append(_Name(arg))
            case "REDUCE":
                function, args = pop(2)
                stack.append(_call(function, args))
            case "BUILD":  # sets `_metadata` of a state dict
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise Refused("sets attributes of what is no dict")
            case "BINPERSID":
                storage = _describe(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise Refused("disagrees with itself on what it stores", COPY)
                stack.append(storage)
            case _:  # the numbers and strings among `_OPCODES`
                stack.append(arg)
    return stack[-1], storages


def _fill(target: Any, keys: Any, values: Any) -> None:
    if type(target) is not dict:
        raise Refused("sets items of what is no dict", COPY)
    for key, value in zip(keys, values, strict=True):
        # The hash of a deeply nested tuple would end the process.
        if type(key) not in (str, int, float, bool):
            raise Refused("has a dict with a key that is neither a string nor a number")
        target[key] = value


def _describe(persistent_id: Any) -> Storage:
    match persistent_id:
        case ("storage", _Name(name), str(key), _, int(size), *view) if name in _STORAGES:
            if size >= 0 and view in ([], [None]):
                return Storage(key, _STORAGES[name], size)
    raise Refused("has a storage that torch.save does not write in a state dict")


def _call(function: Any, args: Any) -> Any:
    """What torch's function would return, or its description."""
    if type(function) is not _Name or type(args) is not tuple:
        raise Refused("calls what is no function", COPY)
    match function.name, args:
        case "collections OrderedDict", ():
            return {}
        case "collections OrderedDict", (list(pairs),):  # of Python 2
            made: dict[Any, Any] = {}
            for key, value in pairs:
                _fill(made, [key], [value])
            return made
        case "torch Size", (tuple(sizes) | list(sizes),):
            return tuple(sizes)
        case name, (Tensor() as tensor, *_) if name == _PARAMETER:
            return tensor
        case name, (Storage() as storage, offset, shape, strides, *rest) if name in _REBUILD:
            if rest[2:] not in ([], [None], [{}]):
                raise Refused("has a tensor that is conjugated or negated only when it is used")
            numbers = [offset, *shape, *strides]
            right = all(type(n) is int and n >= 0 for n in numbers)
            if not right or len(shape) != len(strides) or len(shape) > 64:
                raise Refused("has a tensor whose offset, shape or strides are no sizes", COPY)
            # A stride of a side of length 1 says nothing.
            strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides))
            last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
            elements = math.prod(shape)
            if elements > storage.size or (elements and last >= storage.size):
                raise Refused(
                    f"has a tensor of shape {short(shape)} that its storage of {storage.size} "
                    "elements does not hold",
                    "Save contiguous tensors, or copy or download the file again if it is damaged.",
                )
            return Tensor(storage, offset, tuple(shape), strides)
    raise Refused(f"calls {short(function.name)} with other arguments than torch does", COPY)
