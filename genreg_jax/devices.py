"""Where arrays live: one mesh over the devices, batches split along it, all else on every device.

Several processes run the same program over the devices of all of them. The first one writes the
files; the others take what it reads, and their own files go to a folder that is thrown away.

The training step is written for one device. `jit` runs it on many: the state is replicated, batches
carry a sharding constraint, and XLA adds the sums over devices. So one device and many compute the
same thing, up to the order of sums, and a checkpoint of one number of devices continues on another.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from genreg_jax.checks import short
from genreg_jax.door import say
from genreg_jax.errors import UserError


def is_first() -> bool:
    """Whether this process is the one that writes files; true where there is only one."""
    return jax.process_index() == 0


def warn(message: object) -> None:
    """Says something on the error stream, of several processes once."""
    if is_first():
        say(message)


_ALLOWED = (None, "allow", "log")
# Settings of JAX for looking for mistakes, with the values under which a run can be made.
_AS_IT_COMES: dict[str, tuple[Any, ...]] = {
    "jax_no_execution": (None, False),
    "jax_no_tracing": (None, False),
    "jax_debug_key_reuse": (None, False),
    "jax_transfer_guard": _ALLOWED,
    "jax_transfer_guard_host_to_device": _ALLOWED,
    "jax_transfer_guard_device_to_host": _ALLOWED,
    "jax_transfer_guard_device_to_device": _ALLOWED,
    "jax_numpy_dtype_promotion": (None, "standard"),
}


def check_jax() -> None:
    """Refuses settings of JAX under which a run could not be made, or not be made again.

    Raises:
      UserError: compilation is off, keys are such that draws depend on what is drawn beside, or JAX
        is set to stop at what a run does.
    """
    if getattr(jax.config, "jax_disable_jit", False):
        raise UserError(
            "JAX_DISABLE_JIT is set, and a run is compiled ahead of time; unset it. To look into a "
            "step, call the functions of genreg_jax.objective and genreg_jax.regularizers."
        )
    for name, right in _AS_IT_COMES.items():
        value = getattr(jax.config, name, None)
        if value not in right:
            shown = getattr(value, "value", value)
            raise UserError(
                f"{name} is {shown!r}, with which JAX stops at what a run does; unset "
                f"{name.upper()}. To look into a step, call the functions of genreg_jax.objective "
                "and genreg_jax.regularizers."
            )
    kind = getattr(jax.config, "jax_default_prng_impl", "threefry2x32")
    if kind != "threefry2x32":
        raise UserError(
            f"jax_default_prng_impl is {kind!r}. With such keys the draws of an image depend on "
            "the images and devices beside it, so that a run could not be made again elsewhere; "
            "unset JAX_DEFAULT_PRNG_IMPL, or set it to threefry2x32."
        )


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
    """Makes this process one of several.

    Args:
      coordinator: address `host:port` of the first process; empty where a cluster's own means
        (SLURM, Open MPI, Cloud TPU) say all three.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      UserError: the numbers do not fit, or the others could not be reached.
    """
    if coordinator and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} and --num_processes={num_processes} do not fit: with "
            "--coordinator=HOST:PORT, processes are counted from 0 to --num_processes - 1."
        )
    try:
        if coordinator:
            jax.distributed.initialize(coordinator, num_processes, process_id)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes could not be connected ({str(error).strip().splitlines()[0]}). Start "
            "the same command on every machine with --coordinator=HOST:PORT of the first, "
            "--num_processes and --process_id."
        ) from error


def is_key(leaf: Any) -> bool:
    """Whether an array holds PRNG keys."""
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def agreed(value: Any) -> Any:
    """A JSON value as the first process has it, in every process."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(length, np.uint8)
    if is_first():
        buffer[:] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)))


def shared(function: Callable[[], Any]) -> Any:
    """What a function gives in the first process, or the error it raises there, in every process.

    It is called in the first process only, and gives a JSON value or raises a `UserError`.
    """
    result, error, ours = None, None, None
    if is_first():
        try:
            result = function()
        except UserError as raised:
            error, ours = str(raised), raised
    result, error = agreed([result, error])
    if error is not None:
        raise ours or UserError(error)
    return result


def from_first(tree: Any) -> Any:
    """A tree of arrays as the first process has it, in every process, as NumPy arrays.

    Elsewhere only its structure, shapes and types count.
    """

    def host(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return np.zeros(leaf.shape, leaf.dtype)
        return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)

    values = multihost_utils.broadcast_one_to_all(jax.tree.map(host, tree))
    return jax.tree.map(
        lambda leaf, value: (
            jax.random.wrap_key_data(jax.numpy.asarray(value))
            if is_key(leaf)
            else np.asarray(value, leaf.dtype)
        ),
        tree,
        values,
    )


@contextlib.contextmanager
def own_folder(workdir: Path) -> Iterator[Path]:
    """The folder that this process writes to: the workdir, or a passing one if not first."""
    if is_first():
        yield workdir
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def on_one_device(tree: Any) -> Any:
    """A replicated tree as this process's first device has it."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, jax.Array) else a, tree)


def largest(value: int) -> int:
    """The largest of the processes' values, in every process."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def data_mesh(count: int, batch_size: int, of: str = "train") -> Mesh:
    """A mesh with the one axis `data`, equally many devices of each process.

    Args:
      count: number of devices; 0 for all accelerators, or as many as divide a batch evenly. On CPU
        0 is one device a process.
      batch_size: real images an update.
      of: the group of settings that has the batch size.

    Raises:
      UserError: there are fewer devices, or they do not divide a batch evenly.

    Example:
      >>> from genreg_jax.devices import data_mesh
      >>> data_mesh(0, 64).shape["data"]
      1
    """
    processes, local = jax.process_count(), jax.local_device_count()
    if count > processes * local:
        raise UserError(
            f"config.train.devices = {count}, but JAX sees {processes * local} "
            f"({jax.default_backend()}); ask for at most that many, or 0 for all accelerators."
        )
    most = 1 if jax.default_backend() == "cpu" else local
    allowed = range(1, most + 1) if not count else [count // processes]
    fitting = [n for n in allowed if n and batch_size % (n * processes) == 0]
    if not fitting or count % processes:
        raise UserError(
            f"config.{of}.batch_size = {batch_size} does not divide evenly over "
            f"config.train.devices = {count or processes} of {processes} process(es); change one "
            "of them (0 devices chooses a number that fits)."
        )
    of_process = lambda index: [d for d in jax.devices() if d.process_index == index]
    chosen = [d for i in range(processes) for d in of_process(i)[: fitting[-1]]]
    return Mesh(np.array(chosen), ("data",))


def check_mesh(mesh: Any) -> None:
    """Refuses what is neither None nor a mesh such as `data_mesh` makes, with a `ValueError`."""
    auto = isinstance(mesh, Mesh) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    if mesh is not None and not (auto and mesh.axis_names == ("data",)):
        raise ValueError(
            f"mesh is {short(mesh)}; allowed is a jax.sharding.Mesh with the one axis 'data', of "
            "type Auto, such as genreg_jax.devices.data_mesh makes."
        )


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree with every array on every device of the mesh."""
    return everywhere(mesh, tree if jax.process_count() == 1 else from_first(tree))


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """The tree, which every process has alike, with every array on every device of the mesh."""
    sharding = NamedSharding(mesh, P())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf):
        if is_key(leaf):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def splitter(mesh: Mesh) -> Callable[[Any], Any]:
    """A function for use under `jit` that splits arrays along their first axis over the mesh.

    An array that does not split evenly, such as a small outer batch, is left whole.
    """

    def split(array):
        spec = P("data") if len(array) % mesh.size == 0 else P()
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    return lambda tree: jax.tree.map(split, tree)
