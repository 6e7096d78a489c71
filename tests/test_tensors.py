"""Weights files made elsewhere: every kind read, every hostile or damaged file a paragraph.

Files are written here by hand, without torch: a pickler that writes the names of torch's functions
where this file has stand-ins. Where torch is installed, its own files are read too, and torch reads
those written here.
"""

import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax.tensors import read_tensors

pytestmark = pytest.mark.timeout(120)

KINDS = {  # storage of torch: dtype, name in safetensors
    "Double": (np.float64, "F64"),
    "Float": (np.float32, "F32"),
    "Half": (np.float16, "F16"),
    "BFloat16": (ml_dtypes.bfloat16, "BF16"),
    "Long": (np.int64, "I64"),
    "Int": (np.int32, "I32"),
    "Short": (np.int16, "I16"),
    "Char": (np.int8, "I8"),
    "Byte": (np.uint8, "U8"),
    "Bool": (np.bool_, "BOOL"),
}
STORAGE_OF = {np.dtype(dtype): name for name, (dtype, _) in KINDS.items()}
FORMATS = ("zip", "legacy")


def named(module, name):
    """A class that is pickled as `module.name`."""
    return type(name, (), {"__module__": module, "__qualname__": name})


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
PARAMETER = named("torch._utils", "_rebuild_parameter")
TYPES = {name: named("torch", f"{name}Storage") for name in KINDS}


class Storage:
    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)


class Tensor:
    """What `torch.from_numpy(array)` is to torch's pickles; `storage` for one that is shared."""

    def __init__(self, array, storage=None, **changes):
        self.storage = storage or Storage(array)
        strides = tuple(s // max(array.itemsize, 1) for s in array.strides)
        self.args = {"offset": 0, "shape": array.shape, "strides": strides, **changes}

    def __reduce__(self):
        return REBUILD, (self.storage, *self.args.values(), False, OrderedDict())


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return PARAMETER, (self.tensor, True, OrderedDict())


class Pickler(pickle._Pickler):
    """Protocol 2, as torch writes it."""

    def __init__(self, file, legacy=False):
        super().__init__(file, protocol=2)
        self.storages, self.legacy = {}, legacy

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = self.storages.setdefault(obj, str(len(self.storages)))
        kind = TYPES[STORAGE_OF[obj.array.dtype]]
        return ("storage", kind, key, "cpu", obj.array.size, *([None] if self.legacy else []))

    def save_global(self, obj, name=None):
        self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())
        self.memoize(obj)


def archive(pickled, storages=(), *, method=zipfile.ZIP_STORED, extra=(), order=b"little"):
    """The bytes of a zip as torch writes it."""
    file = io.BytesIO()
    entries = [("a/data.pkl", pickled), ("a/byteorder", order), ("a/version", b"3\n")]
    entries += [(f"a/data/{key}", raw) for key, raw in dict(storages).items()]
    with zipfile.ZipFile(file, "w", method) as out:
        for name, raw in [*entries, *extra]:
            out.writestr(name, raw)
    return file.getvalue()


def legacy(pickled, storages=(), *, little=True):
    """The bytes of a file of torch before 1.6; of a storage: its number of elements, its bytes."""
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    storages = dict(storages)
    parts += [pickled, pickle.dumps(list(storages), 2)]
    for count, raw in storages.values():
        parts += [struct.pack("<q", count), raw]
    return b"".join(parts)


def saved(value, how="zip", **options):
    """The bytes of what torch.save writes for a value with `Tensor`s."""
    file = io.BytesIO()
    pickler = Pickler(file, legacy=how == "legacy")
    pickler.dump(value)
    arrays = {key: storage.array for storage, key in pickler.storages.items()}
    if how == "zip":
        raws = {key: array.tobytes() for key, array in arrays.items()}
        return archive(file.getvalue(), raws, **options)
    raws = {key: (array.size, array.tobytes()) for key, array in arrays.items()}
    return legacy(file.getvalue(), raws, **options)


def safetensors(tensors, **changes):
    """The bytes of a .safetensors file, by the letter of its format."""
    names = {np.dtype(dtype): name for dtype, name in KINDS.values()}
    header, raws, start = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        raws.append(array.tobytes())
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
            **changes,
        }
        start += array.nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(raws)


def arrays(seed=0):
    """An array of each dtype, asymmetric."""
    rng = np.random.default_rng(seed)
    return {
        f"layer.{name}": (rng.normal(size=(3, 5)) * 40).astype(np.float32).astype(dtype)
        if name not in ("Byte", "Bool")
        else rng.integers(0, 2 if name == "Bool" else 256, (3, 5)).astype(dtype)
        for name, (dtype, _) in KINDS.items()
    }


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "weights"
        path.write_bytes(data)
        return read_tensors(path)

    return read


@pytest.fixture
def refusal(tmp_path):
    """The paragraph that a file ends in."""

    def refusal(data, path=None):
        path = path or tmp_path / "weights"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(gr.UserError) as caught:
            read_tensors(path)
        text = str(caught.value)
        assert "\n" not in text and len(text) < 900 and text.isprintable()
        assert text.startswith(repr(str(path))) and "Allowed is a .safetensors file" in text
        assert text.rstrip().endswith(".") and caught.value.__suppress_context__
        return text

    return refusal


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].flags.c_contiguous and found[name].flags.writeable, name
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


# ------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("how", FORMATS)
def test_every_dtype_in_both_formats_of_torch(how, read):
    expected = arrays()
    value = OrderedDict((name, Tensor(array)) for name, array in expected.items())
    value._metadata = OrderedDict({"": {"version": 1}, "bn": {"version": 2}})
    assert_same(read(saved(value, how)), expected)
    # Each is viewed the other way around, as a Parameter.
    value = {name: Parameter(Tensor(array.T)) for name, array in expected.items()}
    for name, parameter in value.items():
        parameter.tensor.storage = Storage(expected[name])
    assert_same(read(saved(value, how)), {name: array.T for name, array in expected.items()})


def test_every_dtype_of_safetensors(read):
    expected = arrays() | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), "f4")}
    expected = dict(sorted(expected.items()))
    assert_same(read(safetensors(expected)), expected)
    assert_same(read(safetensors({f"module.{n}": a for n, a in expected.items()})), expected)


@pytest.mark.parametrize("how", FORMATS)
def test_views_scalars_and_empty_tensors(how, read):
    base = np.arange(24, dtype=np.float32)
    shared = Storage(base)
    value = {
        "matrix": Tensor(base.reshape(4, 6), shared),
        "rows": Tensor(base.reshape(4, 6)[1::2], shared, offset=6),
        "column": Tensor(base.reshape(4, 6)[:, 2], shared, offset=2),
        "moved": Tensor(base.reshape(2, 3, 4).transpose(2, 0, 1), shared),
        "scalar": Tensor(base[7:8].reshape(()), shared, offset=7),
        "odd": Tensor(base[:3].reshape(1, 3), shared, strides=(2**62, 1)),  # a side of length 1
        "empty": Tensor(np.zeros((0, 5), np.float16)),
        "tied": Tensor(base.reshape(4, 6), shared),
    }
    found = read(saved(value, how))
    assert_same(
        found,
        {
            "matrix": base.reshape(4, 6),
            "rows": base.reshape(4, 6)[1::2],
            "column": base.reshape(4, 6)[:, 2],
            "moved": base.reshape(2, 3, 4).transpose(2, 0, 1),
            "scalar": base[7:8].reshape(()),
            "odd": base[:3].reshape(1, 3),
            "empty": np.zeros((0, 5), np.float16),
            "tied": base.reshape(4, 6),
        },
    )
    assert found["tied"] is found["matrix"]


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state", "params"])
def test_wrappers_are_taken_off_and_plain_data_is_ignored(how, wrapper, read):
    weight, step = np.arange(6.0).reshape(2, 3), np.float32([3])
    value = OrderedDict({"module.a.weight": Tensor(weight), "module.b": {"bias": Tensor(step)}})
    value = {wrapper: value} if wrapper else value
    config = {"lr": 1e-3, "sizes": (1, 2, 3), "names": ["a", None, True], 7: -(2**40)}
    optimiser = {"state": {0: {"exp_avg": Tensor(step)}}, "param_groups": [{"params": [0]}]}
    value |= {"epoch": 3, "none": None, "config": config, "again": config, "optimizer": optimiser}
    value["logged"] = [Tensor(step)]
    found = read(saved(value, how))
    assert_same(found, {"a.weight": weight, "b.bias": step})


def test_a_wrapper_beside_other_tensors_is_a_name(read):
    one, two = np.float32([1]), np.float32([2])
    value = {"model": {"w": Tensor(one)}, "ema": {"w": Tensor(two)}}
    assert_same(read(saved(value)), {"model.w": one, "ema.w": two})
    value = {"params": Tensor(one), "model": {"module.w": Tensor(two)}}
    assert_same(read(saved(value)), {"params": one, "model.module.w": two})
    assert_same(read(saved({"params": {"params": Tensor(one)}})), {"params": one})


def test_what_older_writers_wrote(read):
    # Python 2: strings as bytes, the first rebuild function; no byte order; no checksums.
    pickled = (
        b"\x80\x02ccollections\nOrderedDict\n]](U\x01wctorch._utils\n_rebuild_tensor\n("
        b"(U\x07storagectorch\nFloatStorage\nU\x010U\x06cuda:0K\x03NtQK\x01K\x02\x85K\x01\x85tR"
        b"ea\x85R."
    )
    raw = np.float32([1, 2, 3]).tobytes()
    assert_same(read(legacy(pickled, {"0": (3, raw)})), {"w": np.float32([2, 3])})
    data = bytearray(archive(pickled.replace(b"NtQ", b"tQ"), {"0": raw}))
    at = data.index(b"PK\x01\x02")
    while at >= 0:
        data[at + 16 : at + 20] = bytes(4)
        at = data.find(b"PK\x01\x02", at + 1)
    data = bytes(data).replace(b"byteorder", b"byteordex")
    assert_same(read(data), {"w": np.float32([2, 3])})


def test_a_bool_has_two_values(read):
    raw = bytes([0, 1, 2, 255])
    value = {"b": Tensor(np.frombuffer(raw, np.bool_))}
    for data in (saved(value), saved(value, "legacy"), safetensors({"b": np.frombuffer(raw, "?")})):
        assert read(data)["b"].view(np.uint8).tolist() == [0, 1, 1, 1]


def test_memory_is_a_small_multiple_of_the_file(read):
    value = {f"w{i}": Tensor(np.full((100_000,), i, np.float32).reshape(100, -1)) for i in range(8)}
    plain = {name: np.full((100, 1000), i, np.float32) for i, name in enumerate(value)}
    for data in (saved(value), saved(value, "legacy"), safetensors(plain)):
        tracemalloc.start()
        assert read(data)["w5"][3, 4] == 5
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3.5 * len(data)


# ------------------------------------------------------------------------------------ beside torch


def torch_of():
    return pytest.importorskip("torch", reason="torch, the oracle of its own files, is missing")


def as_numpy(tensor):
    torch = torch_of()
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("new", [True, False])
def test_files_of_torch(new, tmp_path):
    torch = torch_of()
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    net(torch.randn(4, 2, 5, 5))
    base = torch.randn(4, 6)
    dtypes = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    tensors = {dtype: (base * 30).to(getattr(torch, dtype)) for dtype in dtypes}
    tensors |= {"transposed": base.T, "row": base[2], "scalar": base[1, 1], "tied": base}
    tensors |= {"parameter": torch.nn.Parameter(base[:, 1]), "empty": torch.zeros(0, 3)}
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 2, 5, 5)).sum().backward()
    optimiser.step()
    for value, expected in [
        (net.state_dict(), net.state_dict()),
        (tensors, tensors),
        (
            {"epoch": 1, "model": net.state_dict(), "optimizer": optimiser.state_dict()},
            net.state_dict(),
        ),
        ({"state_dict": torch.nn.DataParallel(net).state_dict()}, net.state_dict()),
    ]:
        torch.save(value, path, _use_new_zipfile_serialization=new)
        assert_same(read_tensors(path), {name: as_numpy(t) for name, t in expected.items()})


@pytest.mark.filterwarnings("ignore")  # torch's, of what it gives up
@pytest.mark.parametrize("new", [True, False])
def test_what_else_torch_saves_is_refused(new, tmp_path, refusal):
    torch = torch_of()
    path = tmp_path / "weights"
    dense = torch.eye(3)
    quantised = torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8)
    for value, words in [
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "torch.nn.modules.container.Sequential"),
        ({"w": dense.to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
        ({"w": quantised}, "torch._utils._rebuild_qtensor"),
        ({"w": dense.to(torch.complex64)}, "torch.ComplexFloatStorage"),
        ({"w": torch.imag(dense.to(torch.complex64).conj())}, "negated"),
        ({"w": torch._neg_view(dense)}, "negated"),
        ({"w": torch.zeros(1).expand(1000, 1000)}, "does not hold"),
        (dense, "holds a tensor"),
        ([dense], "holds a list"),
    ]:
        torch.save(value, path, _use_new_zipfile_serialization=new)
        assert words in refusal(None, path), words
    if new:
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
        assert "TorchScript" in refusal(None, path)


def test_torch_reads_what_is_written_here(tmp_path):
    torch = torch_of()
    expected = arrays()
    for how in FORMATS:
        path = tmp_path / how
        value = {name: Tensor(array) for name, array in expected.items()}
        path.write_bytes(saved(value, how))
        found = torch.load(path, weights_only=True)
        assert_same({name: as_numpy(tensor) for name, tensor in found.items()}, expected)


# ---------------------------------------------------------------------------------- what is no file


def test_what_is_no_weights_file(tmp_path, refusal):
    index = json.dumps({"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}})
    npz = io.BytesIO()
    np.savez(npz, w=np.ones(3))
    for data, words in [
        (b"", "is empty"),
        (b"\0", "is no weights file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "a PNG picture"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.example/spec/v1\noid sha256:0", "Git LFS"),
        (index.encode(), "is the index of weights in several files"),
        (pickle.dumps({"w": 1}), "a pickle, but not of torch.save"),
        (npz.getvalue(), "is an archive, but not of torch.save"),
        (saved({"epoch": 3, "notes": ["a"]}), "holds no tensors"),
        (saved({}, "legacy"), "holds no tensors"),
        (safetensors({}), "holds no tensors"),
        (safetensors({"w": np.ones(4, np.uint8)}, dtype="F8_E4M3"), "dtype F8_E4M3"),
        (safetensors({"w": np.ones(4, np.uint8)}, shape=[5]), "cannot be read"),
        (safetensors({"w": np.zeros(0, np.uint8)}, shape=[0, 2**63]), "an impossible shape"),
        (struct.pack("<Q", 10**8) + b"{}", "cannot be read"),
        (saved({"a.b": Tensor(np.ones(1)), "a": {"b": Tensor(np.ones(2))}}), "two tensors called"),
        (saved({"w": Tensor(np.ones(1))}, order=b"big"), "byte order"),
        (saved({"w": Tensor(np.ones(1))}, "legacy", little=False), "byte order"),
    ]:
        assert words in refusal(data), words


def test_what_is_no_file(tmp_path, refusal):
    assert "No such file" in refusal(None, tmp_path / "missing.pth")
    assert "is a folder" in refusal(None, tmp_path)
    assert "cannot be read" in refusal(None, tmp_path / ("n" * 300))
    assert "is no path" in refusal(None, "a\0b")
    for path in (None, 3, b"a"):
        with pytest.raises(gr.UserError, match="is no path of a file"):
            read_tensors(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(None, tmp_path / "loop")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        assert "is no regular file" in refusal(None, tmp_path / "fifo")


# ------------------------------------------------------------------------------------ hostile files

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value):
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    """LONG1."""
    raw = pickle.encode_long(value)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(*, offset=0, shape=(2,), strides=(1,), size=2, key="0", kind="FloatStorage", more=b""):
    """The pickle of {"w": a tensor}; its storage has two float32."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    storage += number(size) + b"tQ"
    args = storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89N" + more
    return b"\x80\x02}" + text("w") + TENSOR + b"(" + args + b"tRs."


def hostile(canary):
    """Pickles by what is wrong with them, and a word of the paragraph."""
    touch = text(f"touch {canary}")
    inner = pickle.dumps(named("a", "b").__name__, 2)
    code = text(f"open({str(canary)!r}, 'w').close()")
    good = tensor().removeprefix(b"\x80\x02").removesuffix(b".")
    head = b"\x80\x02"
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return {
        "os.system": (head + b"cos\nsystem\n" + touch + b"\x85R.", "'os.system'"),
        "posix.system": (head + b"cposix\nsystem\n(" + touch + b"tR.", "'posix.system'"),
        "after the tensors": (head + good + b"cos\nsystem\n" + touch + b"\x85R0.", "os.system"),
        "after the end": (head + good + b"0cos\nsystem\n" + touch + b"\x85R.", "os.system"),
        "eval": (head + b"c__builtin__\neval\n" + code + b"\x85R.", "__builtin__.eval"),
        "builtins": (head + b"cbuiltins\nexec\n" + code + b"\x85R.", "builtins.exec"),
        "getattr": (head + b"cbuiltins\ngetattr\n(cos\npath\n" + touch + b"tR.", "getattr"),
        "dotted": (head + b"ccollections\nOrderedDict.__init__\n)R.", "OrderedDict.__init__"),
        "numpy": (head + b"cnumpy.core.multiarray\nscalar\n)R.", "numpy.core.multiarray"),
        "partial": (head + b"cfunctools\npartial\n(cos\nsystem\n" + touch + b"tR.", "functools"),
        "one letter off": (tensor().replace(b"_tensor_v2", b"_tensor_v4"), "_rebuild_tensor_v4"),
        "another module": (tensor().replace(b"torch._utils", b"torch_utils."), "torch_utils."),
        "torch.load": (head + b"ctorch.serialization\nload\n" + touch + b"\x85R.", ".load"),
        "an escaped name": (head + b"cos\\x2epath\nsystem\n)R.", "os.path.system"),
        "STACK_GLOBAL": (head + text("os") + text("system") + b"\x93" + touch + b"\x85R.", "STACK"),
        "protocol 4": (pickle.dumps({"w": 1}, 4), "protocol 4"),
        "INST": (head + b"(" + touch + b"ios\nsystem\n.", "os.system"),
        "OBJ": (head + b"(ccollections\nOrderedDict\no.", "OBJ"),
        "NEWOBJ": (head + b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        "NEWOBJ_EX": (head + b"ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
        "EXT1": (head + b"\x82\x01.", "EXT1"),
        "EXT4": (head + b"\x84\x01\0\0\0.", "EXT4"),
        "BUILD of a function": (
            head + function + b"N}" + text("__defaults__") + number(1) + b"\x85s\x86b.",
            "sets attributes",
        ),
        "BUILD of a tensor": (
            head + good.removesuffix(b"s") + b"}" + text("__setstate__") + function + b"sb.",
            "sets attributes",
        ),
        "a pickle in a pickle": (
            head + b"c_pickle\nloads\n" + b"U" + bytes([len(inner)]) + inner + b"\x85R.",
            "_pickle.loads",
        ),
        "a string called": (head + text("os.system") + touch + b"\x85R.", "no function"),
        "a dict called": (head + b"}" + touch + b"\x85R.", "no function"),
        "a storage called": (head + b"ctorch\nFloatStorage\n" + touch + b"\x85R.", "arguments"),
        "Size of a string": (head + b"ctorch\nSize\n" + touch + b"\x85R.", "arguments"),
        "no arguments": (head + TENSOR + b")R.", "arguments"),
        "negative offset": (tensor(offset=-1), "are no sizes"),
        "negative stride": (tensor(offset=1, strides=(-1,)), "are no sizes"),
        "negative shape": (tensor(shape=(-2,)), "are no sizes"),
        "negative storage": (tensor(size=-2), "storage"),
        "more strides": (tensor(strides=(1, 1)), "are no sizes"),
        "70 dimensions": (tensor(shape=(1,) * 70, strides=(1,) * 70), "are no sizes"),
        "beyond the storage": (tensor(shape=(3,)), "does not hold"),
        "offset beyond": (tensor(offset=1), "does not hold"),
        "stride beyond": (tensor(strides=(2,)), "does not hold"),
        "10**12 elements": (tensor(shape=(10**12,), strides=(0,)), "does not hold"),
        "2**64 elements": (tensor(shape=(2**32, 2**32), strides=(0, 0)), "does not hold"),
        "an empty giant": (tensor(shape=(0, 2**63), strides=(0, 0)), "an impossible shape"),
        "claims more": (tensor(size=3), "claims|disagrees|ends early"),
        "claims 2**40": (tensor(size=2**40, shape=(2**40,)), "claims|disagrees|ends early"),
        "claims less": (tensor(size=1, shape=(1,)), "claims|disagrees"),
        "claims wider": (tensor(kind="DoubleStorage"), "claims|ends early"),
        "no such storage": (tensor(key="1"), "lacks|disagrees"),
        "a path as storage": (tensor(key="../../../etc/passwd"), "lacks|disagrees"),
        "negated": (tensor(more=b"}" + text("neg") + b"\x88s"), "negated"),
        "memo 2**31": (head + b"}r" + struct.pack("<I", 2**31) + b".", "memo index"),
        "memo of nothing": (head + b"h\x07.", "damaged"),
        "a literal of 2**32": (head + b"X\xff\xff\xff\xffabc.", "damaged"),
        "a literal of 2**40": (head + b"\x8d" + struct.pack("<Q", 2**40) + b"abc.", "damaged"),
        "a number of 2**31": (head + b"\x8b\xff\xff\xff\x7fabc.", "damaged"),
        "a long number": (head + b"\x8a\xff" + b"\1" * 255 + b".", "64 bits"),
        "a decimal number": (head + b"L" + b"9" * 10**6 + b"L\n.", "damaged"),
        "a dict in itself": (head + b"}q\x00" + text("w") + b"h\x00s.", "in itself"),
        "2**25 names": (head + doubling(good), "twice"),
        "dicts 100 deep": (head + (b"}" + text("a")) * 100 + b"}" + b"s" * 100 + b".", "deep"),
        "lists 20000 deep": (head + b"]" * 20_000 + b"a" * 19_999 + b".", "holds a list"),
        "a key 20000 deep": (head + b"})" + b"\x85" * 20_000 + b"Ns.", "a key"),
        "a list as key": (head + b"}]Ns.", "a key"),
        "a million names": (
            head + b"".join(b"cm\nn%d\n0" % i for i in range(10**6)) + b".",
            "m.n0|more than 8388608 bytes",
        ),
        "long names": (
            head + b"}" + text("n" * 400) + b"}" + text("n" * 400) + good[7:-1] + b"ss.",
            "letters",
        ),
        "no end": (head + good, "damaged"),
        "an empty stack": (head + b".", "damaged"),
        "no mark": (head + b"t.", "damaged"),
        "nothing": (b"", "damaged"),
        "text": (b"hello", "opcode"),
        "a name in two lines": (head + b"cos\nsystem\\nand\\tmore\n.", "os.system"),
    }


def doubling(good):
    """Dicts in dicts, each with the one before under two names."""
    pickled = good + b"q\x00"
    for i in range(1, 26):
        last = bytes([i - 1])
        pickled += b"}q" + bytes([i]) + b"(" + text("a") + b"h" + last
        pickled += text("b") + b"h" + last + b"u"
    return pickled + b"."


HOSTILE = hostile("canary")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_ends_in_a_paragraph(name, tmp_path, refusal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled, words = HOSTILE[name]
    raw = np.float32([1, 2]).tobytes()
    described = {"0": (2, raw)} if b"FloatStorage\nX" in pickled else {}
    for data in (archive(pickled, {"0": raw}), legacy(pickled, described)):
        said = refusal(data)
        assert any(word in said for word in words.split("|")), said
        assert os.listdir() == ["weights"]


def test_a_pickle_of_too_many_opcodes(refusal):
    assert "more than 1000000 opcodes" in refusal(archive(b"\x80\x02" + b"]" * 10**6 + b"."))


def test_hostile_archives(tmp_path, refusal):
    good = tensor()
    raw = np.float32([1, 2]).tobytes()
    bomb = archive(good, {"0": bytes(10**7)}, method=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    twice = bytearray(archive(good, {"0": raw, "1": raw}).replace(b"a/data/1", b"a/data/0"))
    claims = bytearray(archive(good, {"0": raw}))
    at = claims.rindex(b"PK\x01\x02", 0, claims.rindex(b"a/data/0"))
    claims[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    far = bytearray(archive(good, {"0": raw}))
    far[at + 42 : at + 46] = struct.pack("<I", 2**31)
    flipped = bytearray(archive(good, {"0": raw}))
    flipped[flipped.index(raw)] ^= 1
    for data, words in [
        (bomb, "compressed"),
        (archive(good, {"0": raw}, extra=[("../x", b"")]), "'../x'"),
        (archive(good, {"0": raw}, extra=[("a/../x", b"")]), "'a/../x'"),
        (archive(good, {"0": raw}, extra=[("/etc/x", b"")]), "'/etc/x'"),
        (archive(good, {"0": raw}, extra=[("b/data.pkl", good)]), "not of torch.save"),
        (archive(good, {"0": raw}, extra=[("a/constants.pkl", good)]), "TorchScript"),
        (archive(good), "lacks the entry 'data/0'"),
        (bytes(twice), "twice"),
        (bytes(claims), "more than the file"),
        (bytes(far), "damaged"),
        (bytes(flipped), "damaged entry 'data/0'"),
        (archive(good, {"0": raw}).replace(b"PK\x05\x06", b"PK\x05\x07"), "ends early"),
    ]:
        assert words in refusal(data), words
    assert os.listdir(tmp_path) == ["weights"]


def test_many_views_of_one_storage_are_not_unrolled(refusal):
    base = np.zeros(50_000, np.float32)
    shared = Storage(base)
    views = {f"w{i}": Tensor(base[i:], shared, offset=i) for i in range(300)}
    for how in FORMATS:
        assert "more than 4 times" in refusal(saved(views, how))


def test_nothing_of_torch_or_of_the_file_is_imported(read):
    before = set(sys.modules)
    read(saved({"w": Tensor(np.ones(3))}))
    assert "torch" not in set(sys.modules) - before


# ------------------------------------------------------------------------------------ damaged files


def small(how):
    rng = np.random.default_rng(1)
    plain = {"a.weight": rng.normal(size=(3, 4)).astype(np.float32), "a.steps": np.array([7, 9])}
    if how == "safetensors":
        return plain, safetensors(plain)
    return plain, saved(OrderedDict((name, Tensor(a)) for name, a in plain.items()), how)


@pytest.mark.parametrize("how", [*FORMATS, "safetensors"])
def test_a_truncated_file_is_always_refused(how, refusal):
    _, data = small(how)
    for length in {*range(1, len(data), 5), *range(len(data) - 100, len(data))}:
        refusal(data[:length])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("how", [*FORMATS, "safetensors"])
def test_flipped_bytes_end_in_a_paragraph_or_in_arrays(how, read):
    rng = np.random.default_rng(2)
    plain, data = small(how)
    refused = 0
    tracemalloc.start()
    for trial in range(300):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 1 + trial % 3):
            damaged[at] = rng.integers(0, 256) if trial % 2 else damaged[at] ^ 1 << rng.integers(8)
        try:
            found = read(bytes(damaged))
        except gr.UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 900
            continue
        if how == "zip":  # whose entries have checksums
            assert_same(found, plain)
        assert 0 < len(found) <= 2 and sum(a.nbytes for a in found.values()) <= 4 * len(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 100 and peak < 200 * 2**20
