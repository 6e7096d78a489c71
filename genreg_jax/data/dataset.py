"""Datasets: what they hold, and what is checked of them.

Images are uint8 [N, H, W, C], an array in memory or `Stored`, and labels int32 [N]. `make_dataset`
draws the validation set and the labelled subset from whole splits, wherever these come from.
"""

import dataclasses
import hashlib
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from genreg_jax.data import subsets
from genreg_jax.data.cache import keep, recall
from genreg_jax.data.stored import Stored, digests, rows_of
from genreg_jax.devices import shared
from genreg_jax.errors import UserError

# One seed for all: the images held out for the test are the same for every seed of a run.
_TEST_SEED = 8_128_496


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
      images: uint8 [N, H, W, C], an array or `genreg_jax.data.Stored`.
      labels: int32 [N].
      names: of the N files, for people; None where there are none.

    Example:
      >>> len(Split(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, np.int32)))
      3
    """

    images: Any
    labels: np.ndarray
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __repr__(self) -> str:
        """One line without the images."""
        return f"Split({len(self)} images {self.images.shape[1:]})"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled training subset, a validation set and a test set.

    Attributes:
      name: the name it was loaded by.
      train: the labelled subset, in an order that depends on its content and the seed alone.
      validation: images taken from the training split, for choosing models.
      test: the whole test split, in the source's order.
      class_names: one name a class.
      subset_hash: SHA-256 of the images and labels of `train` and `validation`; equal on every
        machine that drew the same examples, whatever the order of its copy of the dataset.
      fingerprint: SHA-256 of the whole dataset that they were drawn from, whatever its order.
      test_images_in_train: number of test images that are in the training split too.

    Example:
      >>> import genreg_jax as gr
      >>> dataset = gr.data.load("digits", per_class=4)
      >>> dataset.train.images.shape, dataset.num_classes, dataset.image_shape
      ((40, 8, 8, 1), 10, (8, 8, 1))
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    subset_hash: str
    fingerprint: str
    test_images_in_train: int = 0
    # Images, which of them, and how they are brought to the size of the others.
    _pool: tuple[Any, np.ndarray, str] | None = None

    def __repr__(self) -> str:
        """One line without the images."""
        sizes = ", ".join(f"{n} {len(getattr(self, n))}" for n in ("train", "validation", "test"))
        return (
            f"Dataset({self.name!r}: {sizes} images {self.image_shape}, {self.num_classes} classes)"
        )

    @property
    def unlabelled(self) -> Any:
        """Images [N, H, W, C] of the training split but those for validation; no labels."""
        if self._pool is None:
            return self.train.images
        from genreg_jax.data.pictures import fitted

        images, kept, resize = self._pool
        return fitted(rows_of(images, kept), self.image_shape, resize)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def hold_out(whole: Split, fraction: float) -> tuple[Split, Split]:
    """A training and a test split of one, stratified and the same for every seed.

    Pictures with names are drawn by these, each by its own, so that the test set is the same for
    every size and changes little as pictures come; others, and those of one name, by their content.
    """
    if len(whole.images) != len(whole.labels):
        raise UserError(
            f"There are {len(whole.images)} images but {len(whole.labels)} labels; every image "
            "needs one label."
        )
    count = round(fraction * len(whole)) if 0 < fraction < 1 else 0
    if not 0 < count < len(whole):
        raise UserError(
            f"test_fraction = {fraction} of {len(whole)} images is no test set; give test images, "
            "or another fraction."
        )
    contents = digests(whole.images, whole.labels)[0]
    if whole.names is None:
        order = subsets.random_order(contents, _TEST_SEED)
    else:
        marks = [f"{_TEST_SEED} {composed(name)}".encode() for name in whole.names]
        keys = [(hashlib.sha256(mark).digest(), own) for mark, own in zip(marks, contents)]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    test = subsets.stratified_first(whole.labels[order], count)
    train = np.delete(np.arange(len(whole)), test)
    note(
        f"There is no test split: {count} of the {len(whole)} images, {fraction:.0%} of every "
        "class as nearly as can be, are held out for it, the same for every seed."
    )
    return take(whole, order[train]), take(whole, order[test])


def make_dataset(
    name: str,
    train: Split,
    test: Split,
    class_names: tuple[str, ...],
    *,
    per_class: int,
    fraction: float,
    validation_fraction: float,
    seed: int,
    validation: Split | None = None,
) -> Dataset:
    """Draw the validation set and the labelled subset from whole splits.

    Args:
      name: the name of the dataset.
      train: the whole training split.
      test: the whole test split.
      class_names: one name a class.
      per_class: labelled training images of every class; 0 for all.
      fraction: labelled share of the training images left after validation, in (0, 1].
      validation_fraction: share of every class of the training split, in [0, 1).
      seed: non-negative integer, the seed of the draw.
      validation: where the source has a validation split; none is drawn then.

    Returns:
      A `Dataset`.

    Raises:
      UserError: if the splits do not fit each other, or are too small for the draw.
    """
    _check_splits(name, train, test, class_names)
    if validation is not None:
        _check_splits(name, train, validation, class_names, "validation")
        validation_fraction = 0.0
    labelled, alone = digests(train.images, train.labels)
    order = subsets.random_order(labelled, seed)
    train_positions, validation_positions = subsets.draw_subset(
        train.labels[order],
        class_names,
        per_class=per_class,
        fraction=fraction,
        validation_fraction=validation_fraction,
    )
    train_subset = take(train, subsets.shuffle(order[train_positions], seed))
    if validation is None:
        validation = take(train, subsets.shuffle(order[validation_positions], seed))
    kept = np.delete(order, validation_positions)
    test_labelled, test_alone = digests(test.images, test.labels)
    return Dataset(
        name=name,
        train=train_subset,
        validation=validation,
        test=test,
        class_names=class_names,
        subset_hash=_hash_splits(train_subset, validation),
        fingerprint=_fingerprint(train.images.shape[1:], labelled, test_labelled),
        test_images_in_train=_count_in_both(name, alone, test_alone),
        _pool=(train.images, kept, "crop"),
    )


def _count_in_both(name: str, train: list[bytes], test: list[bytes]) -> int:
    """The number of test images that are training images, pixel by pixel, whatever their labels."""
    known = set(train)
    count = sum(digest in known for digest in test)
    if count:
        note(
            f"{name}: {count} of the {len(test)} test images are in the training split too, "
            "pixel by pixel; the test accuracy may be too good."
        )
    return count


def check_names(names: Sequence[str], what: str) -> None:
    """Refuse names that a report could not be written with."""
    for name in names:
        if not isinstance(name, str) or len(name) > 500 or not printable(name):
            raise UserError(
                f"{what} have {name[:60] if isinstance(name, str) else name!r} among them; a name "
                "is a text of at most 500 characters that can be printed."
            )


def composed(name: str) -> str:
    """A name in one form, however the accents are written, which differs between systems."""
    return unicodedata.normalize("NFC", name)


def names_hash(split: Split) -> str:
    """SHA-256 of the names of a split's files, whatever their order; of its labels without any."""
    names = map(str, split.labels) if split.names is None else map(composed, split.names)
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def printable(text: str) -> bool:
    """Whether a text can be shown; words of several scripts need joiners, which are not seen."""
    return text.translate({0x200C: None, 0x200D: None}).isprintable()


def note(text: str) -> None:
    """Tell the user something about the data, on the error stream."""
    print(text, file=sys.stderr, flush=True)


def listed(items: Sequence[Any], most: int = 10) -> str:
    """The first items in words, and how many there are besides."""
    shown = ", ".join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def take(split: Split, indices: np.ndarray) -> Split:
    """The images, labels and names of a split at some indices, in their order."""
    names = None if split.names is None else tuple(split.names[i] for i in indices)
    return Split(rows_of(split.images, indices), split.labels[indices], names)


def _hash_splits(*splits: Split) -> str:
    if not isinstance(splits[0].images, Stored):
        return _sha256(splits)
    keys = [getattr(split.images, "key", "") for split in splits]
    labels = [split.labels.tobytes() for split in splits]
    key = hashlib.sha256(repr([keys, labels]).encode()).hexdigest() if all(keys) else ""

    def found() -> str:
        kept = recall(key)
        if kept is None:
            kept = np.frombuffer(bytes.fromhex(_sha256(splits)), np.uint8)
            keep(key, kept)
        return kept.tobytes().hex()

    return shared(found)


def _sha256(splits: Sequence[Split]) -> str:
    sha256 = hashlib.sha256()
    for split in splits:
        sha256.update(repr(split.images.shape).encode())
        stored = isinstance(split.images, Stored)
        for block in split.images.blocks() if stored else [split.images]:
            sha256.update(np.ascontiguousarray(block).data)
        sha256.update(np.ascontiguousarray(split.labels, "<i4").data)
    return sha256.hexdigest()


def _fingerprint(image_shape: tuple[int, ...], *splits: list[bytes]) -> str:
    sha256 = hashlib.sha256(repr(image_shape).encode())
    for split in splits:
        sha256.update(len(split).to_bytes(8, "little"))
        sha256.update(b"".join(sorted(split)))
    return sha256.hexdigest()


def _check_splits(
    name: str, train: Split, test: Split, class_names: tuple[str, ...], other: str = "test"
) -> None:
    for split_name, split in (("training", train), (other, test)):
        if len(split.images) != len(split.labels):
            raise UserError(
                f"The {split_name} data of {name!r} has {len(split.images)} images but "
                f"{len(split.labels)} labels; every image needs one label."
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(class_names):
            raise UserError(
                f"The {split_name} labels of {name!r} run from {low} to {high}; with "
                f"{len(class_names)} classes they must lie in 0..{len(class_names) - 1}."
            )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"The training images of {name!r} have the shape {train.images.shape[1:]} and the "
            f"{other} images {test.images.shape[1:]}; they must be the same."
        )
    if other != "test":
        return
    check_names(class_names, f"The class names of {name!r}")
    counts = np.bincount(train.labels, minlength=len(class_names))
    for number, text in ((0, "no training image"), (1, "a single training image")):
        few = [class_names[c] for c in np.flatnonzero(counts == number)]
        if few:
            note(f"{name}: there is {text} of {listed(few)}.")
