"""Where the steps' batches come from: images on the devices, or read while others train.

Which images a batch has is known from the seed, the epoch and the update. So where batches are read
the number of updates made is all that a checkpoint needs to go on from the same one, and they are
those of the same run with its images in memory. Each process reads the rows of its own devices.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from genreg_jax.batches import EpochIndices
from genreg_jax.contract import Batch, to_float
from genreg_jax.data import Dataset, Split, Stored
from genreg_jax.errors import UserError
from genreg_jax.settings import Settings

_AHEAD = 4  # batches that are read before they are needed
_THREADS = 4  # each of which reads a batch


@dataclasses.dataclass(frozen=True)
class Feed:
    """The images and labels of the steps' batches, left where they lie.

    Attributes:
      images: `[N, H, W, C]`.
      labels: int32 `[N]`.
      mesh: the devices that batches go to.
    """

    images: Stored
    labels: np.ndarray
    mesh: Mesh

    def shapes(self, indices: EpochIndices) -> list[Any]:
        """The inner and the outer batch of an update, a `Batch` of `jax.ShapeDtypeStruct`."""

        def of(rows: np.ndarray) -> Any:
            count, sharding = rows.shape[1], _sharding(self.mesh, rows.shape[1])
            make: Any = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            image_shape = (count, *self.images.shape[1:])
            return Batch(make(image_shape, np.uint8), make((count,), self.labels.dtype))

        return [None if rows is None else of(rows) for rows in indices]

    def batches(self, indices: EpochIndices, first: int) -> Iterator[list[Batch | None]]:
        """The inner and outer batches of an epoch's updates from the first on, as global arrays.

        Threads of `grain` read ahead.
        """
        import grain

        def read(i: int) -> list[Any]:
            return [rows is not None and self._read(rows[i]) for rows in indices]

        steps = grain.MapDataset.range(first, len(indices.inner)).map(read)
        ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        for number, parts in enumerate(steps.to_iter_dataset(ahead), first):
            yield [
                None
                if rows is None
                else Batch(*(_placed(self.mesh, own, len(rows[number])) for own in part))
                for rows, part in zip(indices, parts)
            ]

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = rows[_own(self.mesh, len(rows))]
        return self.images.gather(own), self.labels[own]


def training_data(splits: Sequence[Split], mesh: Mesh) -> Batch | Feed:
    """The images and labels of some splits, one after the other, or what reads batches of them."""
    labels = np.concatenate([split.labels for split in splits])
    if not isinstance(splits[0].images, Stored):
        images = jnp.concatenate([split.images for split in splits])
        return Batch(images, jnp.asarray(labels))
    images = Stored(_Joined([split.images for split in splits]), shape=splits[0].images.shape[1:])
    return Feed(images, labels, mesh)


class _Joined:
    """Stored images one after the other, as a source."""

    def __init__(self, parts: Sequence[Stored]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> np.ndarray:
        part = int(np.searchsorted(self._ends, i, side="right"))
        return self._parts[part][i - int(self._ends[part]) + len(self._parts[part])]


def fetch(mesh: Mesh, array: Any, rows: np.ndarray) -> Any:
    """`array[rows]`; of stored images, those of each device by the process that it belongs to."""
    if not isinstance(array, Stored):
        return array[rows]
    return _placed(mesh, array[rows[_own(mesh, len(rows))]], len(rows))


def _sharding(mesh: Mesh, count: int) -> NamedSharding:
    return NamedSharding(mesh, P("data") if count % mesh.size == 0 else P())


def _own(mesh: Mesh, count: int) -> slice:
    """The rows of a batch that this process's devices need, which lie side by side in a mesh."""
    places = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    if count % mesh.size or not places:
        return slice(None)
    each = count // mesh.size
    return slice(places[0] * each, (places[-1] + 1) * each)


def _placed(mesh: Mesh, own: np.ndarray, count: int) -> jax.Array:
    shape = (count, *own.shape[1:])
    return jax.make_array_from_process_local_data(_sharding(mesh, count), own, shape)


def check_stored(settings: Settings, dataset: Dataset, own: dict[str, Any]) -> None:
    """Refuses what needs all images at once, where they are left where they lie.

    Args:
      settings: of the run.
      dataset: its images.
      own: the caller's `generator` and `flow`, None where there is none.

    Raises:
      UserError: a flow is to be trained, samples start from encodings of all images, or `grain` is
        missing.
    """
    if not isinstance(dataset.train.images, Stored):
        return
    leave = "config.data.stream leaves the images where they lie"
    wants = settings.uses_synthetic and own["generator"] is None
    wants |= settings.perturbs_latents and own["flow"] is None
    if settings.flow_only or (wants and not settings.flow.workdir):
        raise UserError(
            f"{leave}, and a flow is trained on images in memory. Train it on a part of them first "
            "(config.model.name = 'none' with config.data.per_class or fraction, stream False) and "
            "give its workdir as config.flow.workdir."
        )
    if settings.uses_synthetic and settings.synthetic.source != "prior":
        raise UserError(
            f"{leave}, and config.synthetic.source = {settings.synthetic.source!r} starts from "
            "encodings of all of them; choose 'prior', or set stream to False."
        )
    try:
        import grain  # noqa: F401
    except ImportError:
        raise UserError(
            f"{leave} and reads batches with the package grain, which is not installed: pip "
            "install 'genreg_jax[stream]', or set stream to False."
        ) from None


def encode_all(encode: Any, params: Any, data: Batch, settings: Settings) -> jax.Array:
    """What `encode(params, x, y)` makes of all training images."""
    size = settings.train.eval_batch_size
    rows = [slice(start, start + size) for start in range(0, len(data.labels), size)]
    run = jax.jit(lambda params, x, y: encode(params, to_float(x), y))
    return jnp.concatenate([run(params, data.images[r], data.labels[r]) for r in rows])
