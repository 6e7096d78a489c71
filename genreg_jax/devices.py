"""Where arrays live: one mesh over the devices, batches split along it, all else on every device.

The training step is written for one device. `jit` runs it on many: the state is replicated, batches
carry a sharding constraint, and XLA adds the sums over devices. So one device and many compute the
same thing, up to the order of sums, and a checkpoint of one number of devices continues on another.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from genreg_jax.errors import UserError


def data_mesh(count: int, batch_size: int) -> Mesh:
    """A mesh with the one axis `data`.

    Args:
      count: number of devices; 0 for all accelerators, or as many as divide a batch evenly. On CPU
        0 is one device.
      batch_size: real images an update.

    Raises:
      UserError: there are fewer devices, or they do not divide a batch evenly.

    Example:
      >>> from genreg_jax.devices import data_mesh
      >>> data_mesh(0, 64).shape["data"]
      1
    """
    devices = jax.devices()
    if count > len(devices):
        raise UserError(
            f"config.train.devices = {count}, but JAX sees {len(devices)} "
            f"({jax.default_backend()}); ask for at most that many, or 0 for all accelerators."
        )
    if count and batch_size % count:
        raise UserError(
            f"config.train.devices = {count} does not divide config.train.batch_size = "
            f"{batch_size} evenly; change one of them (0 devices chooses a number that fits)."
        )
    if not count:
        most = 1 if jax.default_backend() == "cpu" else len(devices)
        count = max(n for n in range(1, most + 1) if batch_size % n == 0)
    return Mesh(np.array(devices[:count]), ("data",))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree with every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def splitter(mesh: Mesh) -> Callable[[Any], Any]:
    """A function for use under `jit` that splits arrays along their first axis over the mesh.

    An array that does not split evenly, such as a small outer batch, is left whole.
    """

    def split(array):
        spec = P("data") if len(array) % mesh.size == 0 else P()
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    return lambda tree: jax.tree.map(split, tree)
