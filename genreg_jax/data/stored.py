"""Images that stay where they lie, and are read when they are asked for.

What a data set needs to know of all of its images, such as their digests, is found in one pass,
several images at a time and by several processes together, and remembered in the cache of pictures.
"""

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from genreg_jax.data import subsets
from genreg_jax.data.cache import keep, recall
from genreg_jax.devices import is_first
from genreg_jax.errors import UserError
from genreg_jax.logs import Progress

_BLOCK = 256  # images
_MANY = 2000  # images that are not looked at in no time
_THREADS = "images"


class Stored:
    """Images `[N, H, W, C]` uint8 that are read one by one from wherever they lie.

    Indexed along its first axis it gives arrays; `take` and `map` give others of its kind. It is
    not made into an array as a whole. Give it to `genreg_jax.data.from_arrays` for images.

    Args:
      source: what `len` counts and `source[i]` reads, image i as uint8 `[H, W, C]` or as what
        `decode` makes that of; such as a data source of `grain` or TFDS. It is read by several
        threads.
      decode: of what the source has.
      rows: which of the source's images, `[N]`, or a mask of them; None for all.
      key: names the content, so that what is found out about it is remembered; empty to forget.
      shape: of an image; None to read the first one for it.

    Raises:
      UserError: the first image is not uint8 `[H, W, C]`, there is none, or `rows` are not there.

    Example:
      >>> images = Stored([np.full((2, 2, 1), i, np.uint8) for i in range(4)])
      >>> images.shape, images[1:3].shape, images.take([3, 0])[0].max().item()
      ((4, 2, 2, 1), (2, 2, 2, 1), 3)
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        source: Any,
        decode: Callable[[Any], Any] = lambda image: image,
        *,
        rows: Sequence[int] | np.ndarray | None = None,
        key: str = "",
        shape: tuple[int, ...] | None = None,
    ):
        self._source, self._decode, self._base = source, decode, key
        self._rows = np.arange(len(source))
        if rows is not None:
            try:
                self._rows = self._rows[np.asarray(rows) if len(rows) else []]
            except (IndexError, ValueError) as error:
                raise UserError(f"rows must be places in the source, or a mask: {error}.") from None
        self.key = _named(key, self._rows)
        self.shape = (len(self._rows), *(shape or self._first_shape()))

    def _first_shape(self) -> tuple[int, ...]:
        if not len(self._rows):
            raise UserError("There is no image to be read.")
        try:
            first = np.asarray(self._found(int(self._rows[0])))
        except UserError:
            raise
        except ValueError:  # of an image and its label, say
            first = np.empty(0, object)
        if first.ndim != 3 or first.dtype != np.uint8 or not first.size:
            raise UserError(
                f"The first image has the shape {first.shape} and the type {first.dtype}; "
                "images that are read as they are needed must be uint8 [H, W, C]."
            )
        if first.shape[0] in (1, 3) and min(first.shape[1:]) > 4:
            raise UserError(
                f"The first image has the shape {first.shape}, which is [C, H, W]; images must be "
                "[H, W, C]: give decode=lambda image: image.transpose(1, 2, 0)."
            )
        return first.shape

    def __len__(self) -> int:
        """The number of images."""
        return len(self._rows)

    def __repr__(self) -> str:
        """One line without the images."""
        return f"Stored({len(self)} images {self.shape[1:]})"

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise UserError(
            f"All {len(self)} images at once are needed here, and config.data.stream leaves them "
            "where they lie; set it to False, or keep fewer images."
        )

    def __getitem__(self, index: Any) -> np.ndarray:
        """One image, or those of a slice, of indices or of a mask, as an array."""
        rows = self._rows[index]
        if np.ndim(rows) == 0:
            return self._read(int(rows))
        if threading.current_thread().name.startswith(_THREADS):  # a source that has one inside
            return self._stacked([self._read(i) for i in rows.tolist()])
        return self._stacked(list(_pool().map(self._read, rows.tolist())))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The images at some indices, read by this thread alone."""
        return self._stacked([self._read(i) for i in self._rows[rows].tolist()])

    def _stacked(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Image after image, each block of them read by several threads."""
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[np.ndarray]:
        """Arrays of some hundred images."""
        for start in range(0, len(self), _BLOCK):
            yield self[start : start + _BLOCK]

    def _found(self, row: int) -> Any:
        """What the source and `decode` make of a row; in words where they cannot be reached."""
        try:
            return self._decode(self._source[row])
        except OSError as error:
            raise UserError(
                f"Image {row} of the source, a {type(self._source).__name__}, cannot be read "
                f"({error}). See that it can be reached, and run the same again; nothing that is "
                "saved was changed."
            ) from error

    def _read(self, row: int) -> np.ndarray:
        image = np.asarray(self._found(row))
        if image.shape != self.shape[1:] or image.dtype != np.uint8:
            raise UserError(
                f"Image {row} has the shape {image.shape} and the type {image.dtype}, where the "
                f"others have {self.shape[1:]} and uint8; images that are read as they are needed "
                "must be of one size."
            )
        return image

    def take(self, rows: Sequence[int] | np.ndarray) -> "Stored":
        """The images at some indices, not read yet."""
        rows = self._rows[rows]
        return Stored(self._source, self._decode, rows=rows, key=self._base, shape=self.shape[1:])

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: Any, name: str) -> "Stored":
        """The images as `function` makes them, of another shape; `name` says what it does."""
        decode = lambda image: function(self._decode(image))
        key = _named(self._base, self.shape[1:], name)
        return Stored(self._source, decode, rows=self._rows, key=key, shape=tuple(shape))

    def of_each(self, what: str, function: Callable[[int, np.ndarray], bytes]) -> np.ndarray:
        """What `function(i, image)` makes of each, bytes of one length: uint8 `[N, length]`.

        Remembered as `what`; several processes read a share of the images each.
        """
        read = lambda i: function(i, self._read(int(self._rows[i])))
        return looked_at(len(self), read, _named(self.key, what))


def _named(key: str, *what: Any) -> str:
    """A key of what is made of something with a key."""
    if not key:
        return ""
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for part in what:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def looked_at(
    count: int,
    look: Callable[[int], bytes],
    key: str,
    whole: Callable[[np.ndarray], bool] = lambda found: True,
) -> np.ndarray:
    """What `look` finds at each of `count` places, bytes of one length: uint8 `[count, length]`.

    Several threads look, and several processes at a share of the places each.

    Args:
      count: of the places.
      look: place to bytes.
      key: to remember what was found under; empty to forget.
      whole: whether that is to be remembered.

    Raises:
      UserError: what `look` raised, here or in another process.
    """
    found = recall(key)
    if _everywhere(found is not None):
        assert found is not None
        return found
    # Every process looks at equally many, the last ones maybe at the last place again.
    processes = jax.process_count()
    rows = np.arange(-(-count // processes)) * processes + jax.process_index()
    rows, own, error = np.minimum(rows, count - 1), [], None
    show = is_first() and count >= _MANY
    with Progress(len(rows), label="looking at images", enabled=show) as progress:
        for start in range(0, len(rows), _BLOCK):
            try:
                own += _pool().map(look, rows[start : start + _BLOCK].tolist())
            except UserError as raised:
                error = raised
                break
            progress.update(len(own))
    # All processes stop where one does, or the others would wait for it.
    if not _everywhere(error is None):
        raise error or UserError("Another process could not read an image; see what it says.")
    found = np.frombuffer(b"".join(own), np.uint8).reshape(len(rows), -1)
    if processes > 1:
        every = np.asarray(multihost_utils.process_allgather(found))  # [processes, rows, bytes]
        found = every.transpose(1, 0, 2).reshape(-1, found.shape[1])[:count]
    if whole(found):
        keep(key, found)
    return found


def _everywhere(value: bool) -> bool:
    """Whether a value is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.bool_(value))))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix=_THREADS)


def rows_of(images: Any, rows: np.ndarray) -> Any:
    """Some images: of an array an array, of stored images stored ones."""
    return images.take(rows) if isinstance(images, Stored) else images[rows]


def channel_statistics(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of images, of values in [0, 1].

    Sums of integers, so that the result does not depend on how the images are gone through.

    Args:
      images: uint8 `[N, H, W, C]`, an array or `Stored`.

    Returns:
      Two arrays float32 `[C]`.

    Example:
      >>> mean, std = channel_statistics(np.array([0, 255], np.uint8).reshape(1, 2, 1, 1))
      >>> mean.tolist(), std.tolist()
      ([0.5], [0.5])
    """

    def sums(block: np.ndarray) -> np.ndarray:
        values = block.reshape(-1, block.shape[-1]).astype(np.uint32)  # squares to 65,025
        return np.stack([values.sum(0, dtype=np.int64), (values**2).sum(0, dtype=np.int64)])

    count = int(np.prod(images.shape[:3]))
    if isinstance(images, Stored):
        each = images.of_each("sums of channels", lambda i, image: sums(image).tobytes())
        total = each.copy().view(np.int64).sum(axis=0).reshape(2, -1)
    else:
        starts = range(0, len(images), _BLOCK)
        total = np.sum([sums(images[start : start + _BLOCK]) for start in starts], axis=0)
    first, second = total.astype(object)  # whole numbers without a largest one
    variance = (count * second - first**2) / count**2 / 255**2
    mean = (first / count / 255).astype(np.float32)
    return mean, np.sqrt(variance.astype(np.float64)).astype(np.float32)


def digests(images: Any, labels: np.ndarray) -> tuple[list[bytes], list[bytes]]:
    """Digests of images `[N, H, W, C]` with their labels, and of the images alone.

    Example:
      >>> images = np.zeros((2, 2, 2, 1), np.uint8)
      >>> labelled, alone = digests(Stored(images), np.array([0, 1]))
      >>> (labelled, alone) == digests(images, np.array([0, 1])), labelled[0] == labelled[1]
      (True, False)
    """
    alone = np.zeros_like(labels)
    if not isinstance(images, Stored):
        labelled, plain = (subsets.content_digests(images, these) for these in (labels, alone))
        return labelled, plain

    def both(i: int, image: np.ndarray) -> bytes:
        one = lambda label: subsets.content_digests(image[None], label[i : i + 1])[0]
        return one(labels) + one(alone)

    labels_digest = hashlib.blake2b(labels.astype("<i4").tobytes(), digest_size=16)
    table = images.of_each(f"digests {labels_digest.hexdigest()}", both)
    return [row[:16].tobytes() for row in table], [row[16:].tobytes() for row in table]
