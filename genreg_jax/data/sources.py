"""Image-classification data by name: decoded once to uint8 and kept in memory, or left on disk.

`load` finds a dataset by name: one of the table `SOURCES`, such as `digits` (comes with
scikit-learn), `synthetic` (made on the spot) and `pets` (from its official archives), or any
image-classification dataset of TensorFlow Datasets prepared as `array_record`, which is read
without TensorFlow.

Example:
  A dataset of one's own is one row. Its function is called with keyword arguments of `load`
  (`name`, `data_dir`, `download`, `unreadable` and more) and returns the training and the test
  split, one name a class, and, where there is one, the validation split. `config.data.name =
  "halves"` then trains on it.

  >>> def halves(**options):
  ...     images = np.random.default_rng(0).random((60, 8, 8, 1))
  ...     labels = np.arange(60) % 2
  ...     images[labels == 1, :4] = 1
  ...     whole = Split(images, labels)
  ...     return take(whole, np.arange(40)), take(whole, np.arange(40, 60)), ("dark", "bright")
  >>> SOURCES["halves"] = halves
  >>> dataset = load("halves", per_class=5)
  >>> len(dataset.train), len(dataset.test), dataset.class_names
  (10, 20, ('dark', 'bright'))
  >>> del SOURCES["halves"]
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from genreg_jax.checks import check_choice, check_number, short
from genreg_jax.data import files, photographs, subsets, tfds
from genreg_jax.data.arrays import as_split
from genreg_jax.data.dataset import Dataset, Split, make_dataset, take
from genreg_jax.data.pictures import RESIZE, resized
from genreg_jax.data.stored import Stored
from genreg_jax.errors import UserError
from genreg_jax.settings import DataSettings

# The digits come without an official split, and the synthetic images from nowhere. Both are made
# with a seed of their own, so that no subset's seed repeats the draws that made them.
_FIXED_SEED = 8_128_496
_DIGITS_TEST_IMAGES = 500
_SYNTHETIC_CLASSES = ("stripes", "columns", "diagonals", "checks")

# What reads the whole of a dataset: `(*, name, data_dir, download, unreadable, **options) ->
# (training split, test split, class names[, validation split or None])`.
Reader = Callable[..., tuple[Any, ...]]


def _digits(**options: Any) -> tuple[Split, Split, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images[..., None] * 255 / 16).astype(np.uint8)
    whole = Split(images, bunch.target.astype(np.int32))
    order = subsets.random_order(subsets.content_digests(whole.images, whole.labels), _FIXED_SEED)
    test = subsets.stratified_first(whole.labels[order], _DIGITS_TEST_IMAGES)
    train = np.delete(np.arange(len(whole)), test)
    return (
        take(whole, order[train]),
        take(whole, order[test]),
        tuple(str(c) for c in bunch.target_names),
    )


def _synthetic(**options: Any) -> tuple[Split, Split, tuple[str, ...]]:
    """Coloured patterns under noise, 16x16x3: 1,024 to train on and 256 to test."""
    num_train, num_test, size = 1024, 256, 16
    num = num_train + num_test
    labels = (np.arange(num) % len(_SYNTHETIC_CLASSES)).astype(np.int32)
    bits = np.random.PCG64(_FIXED_SEED)
    phases = (bits.random_raw(num) >> np.uint64(62)).astype(np.int64)[:, None, None]
    noise = bits.random_raw(num * size * size * 3 // 8).astype("<u8").view(np.uint8)
    row, column = np.indices((size, size))
    stripe = np.array([row, column, row + column, row // 2 * 2 + column // 2 * 2])[labels]
    pattern = (stripe + phases) // 2 % 2
    colors = np.array([[220, 60, 60], [60, 200, 60], [60, 80, 220], [210, 200, 50]])[labels]
    clean = 40 + pattern[..., None] * (colors[:, None, None] - 40)
    images = clean + noise.reshape(num, size, size, 3) // 8
    whole = Split(images.astype(np.uint8), labels)
    train, test = np.split(np.arange(num), [num_train])
    return take(whole, train), take(whole, test), _SYNTHETIC_CLASSES


# The datasets that are known by name, a row each. Any other name is looked for in TFDS.
SOURCES: dict[str, Reader] = {
    "digits": _digits,
    "synthetic": _synthetic,
    "folder": files.read,
    **dict.fromkeys(photographs.SETS, photographs.read),
}


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] = "",
    per_class: int = 0,
    fraction: float = 1.0,
    validation_fraction: float = 0.1,
    seed: int = 0,
    download: bool = True,
    unreadable: str = "refuse",
    image_size: int = 0,
    resize: str = "crop",
    test_fraction: float = 0.2,
    stream: bool = False,
) -> Dataset:
    """Load a dataset by name and draw its validation set and labelled subset.

    First a stratified `validation_fraction` of the training split becomes the validation set;
    then the labelled subset is drawn, stratified, from the rest. The draw is a function of the
    dataset's content, the subset's size and the seed: smaller subsets lie inside larger ones, and
    the validation set does not change with `per_class` or `fraction`. The test split is untouched.

    Args:
      name: a name of `SOURCES` (`digits`, `synthetic`), or `cifar10`, `cifar100`, `fashion_mnist`
        or another image-classification dataset of TFDS, with its config where it has several
        (`emnist/balanced`). Of TFDS splits, `train` is drawn from, and `test`, or `validation`
        where there is no `test`, is the test split. Or `cars`, `aircraft`, `cub`, `dtd`, `flowers`
        or `pets`, with their official splits, see `genreg_jax.data.photographs`.
      data_dir: TFDS data directory; empty for `$TFDS_DATA_DIR` or else `~/tensorflow_datasets`. For
        the six sets of photographs the folder of the official layout, or the one that holds it, as
        well.
      per_class: labelled training images of every class; 0 for all.
      fraction: labelled share of the training images left after validation, in (0, 1].
      validation_fraction: share of every class of the training split, in [0, 1).
      seed: non-negative integer, the seed of the draw.
      download: where the dataset is absent and can be prepared (`cifar10`, `cifar100`,
        `fashion_mnist`), try to download and prepare it first.
      unreadable: what to do about an image that cannot be decoded: `refuse` the dataset, naming the
        image, or `skip` such images and name them on the error stream.
      image_size: side of the square that images are brought to; 0 for their own size. The
        six sets of photographs have many sizes and want one.
      resize: how, see `from_folder`.
      test_fraction: of `folder`.
      stream: of `folder` and of TFDS: leave the images where they lie; they are `Stored`.

    Returns:
      A `Dataset` of uint8 images [N, H, W, C] and int32 labels [N].

    Raises:
      UserError: if the dataset is unknown, absent or unusable, or an argument is out of range.

    Example:
      >>> dataset = load("digits", per_class=10, seed=1)
      >>> len(dataset.train), len(dataset.validation), len(dataset.test)
      (100, 130, 500)

    Source: TensorFlow Datasets; for `digits`, scikit-learn's copy of the UCI optical recognition
    of handwritten digits.
    """
    subsets.check_subset_arguments(per_class, fraction, validation_fraction, seed)
    if not isinstance(name, str):
        raise UserError(f"name is {short(name)}; it must be the name of a dataset, such as digits.")
    if not isinstance(stream, bool):
        raise UserError(f"stream is {short(stream)}; it must be True or False.")
    if unreadable not in ("refuse", "skip"):
        raise UserError(f"unreadable is {unreadable!r}; it must be 'refuse' or 'skip'.")
    try:
        check_number("image_size", image_size, maximum=4096, integer=True)
        check_choice("resize", resize, RESIZE)
    except ValueError as error:
        raise UserError(str(error)) from None
    read = SOURCES.get(name) or functools.partial(tfds.read, known=list(SOURCES))
    try:
        train, test, class_names, *validation = read(
            name=name,
            data_dir=data_dir,
            download=download,
            unreadable=unreadable,
            image_size=image_size,
            resize=resize,
            test_fraction=test_fraction,
            stream=stream,
        )
    except OSError as error:
        raise UserError(
            f"The dataset {name!r} cannot be read ({error}). See that what it reads is there and "
            "can be reached; nothing was changed."
        ) from error
    if stream and not isinstance(train.images, Stored):
        raise UserError(
            f"stream is True, and {name!r} is read into memory as a whole; only folders and tables "
            "of pictures and data sets of TFDS can be left where they lie. Leave stream at False."
        )
    given = validation[0] if validation else None
    dataset = make_dataset(
        name,
        _checked(train, "train"),
        _checked(test, "test"),
        tuple(class_names),
        per_class=per_class,
        fraction=fraction,
        validation_fraction=validation_fraction,
        seed=seed,
        validation=None if given is None else _checked(given, "validation"),
    )
    return resized(dataset, image_size, resize) if image_size else dataset


def _checked(split: Split, name: str) -> Split:
    return dataclasses.replace(as_split(split.images, split.labels, name), names=split.names)


def from_folder(
    path: str | os.PathLike[str],
    *,
    image_size: int = 0,
    resize: str = "crop",
    test_fraction: float = 0.2,
    unreadable: str = "refuse",
    per_class: int = 0,
    fraction: float = 1.0,
    validation_fraction: float = 0.1,
    seed: int = 0,
    stream: bool = False,
) -> Dataset:
    """Make a `Dataset` of pictures of one's own.

    Args:
      path: `PATH/<class>/*`, nested as one likes; or `PATH/{train,test}/<class>/*`, with
        `validation` beside them where there is one; or a `.csv` with the columns file, label and
        maybe split; or an `.npz` with `images` [N, H, W, C] and `labels` [N], maybe `test_images`
        and `test_labels` and `class_names`.
      image_size: side of the square that pictures are brought to; 0 for their own size, which must
        then be the same for all.
      resize: `crop` (short side scaled, centre cut out) or `pad` (long side scaled, on black).
      test_fraction: share of every class held out where there is no test split; the same images
        for every seed.
      unreadable: `refuse` where a picture cannot be read, or `skip` such pictures; both name them.
      per_class: labelled training images of every class; 0 for all.
      fraction: labelled share of the training images left after validation, in (0, 1].
      validation_fraction: share of every class of the training split, in [0, 1); none is drawn
        where there is a validation split.
      seed: non-negative integer, the seed of the draw.
      stream: leave the pictures where they lie; they are `Stored`. Not of an `.npz`.

    Returns:
      A `Dataset` of uint8 images, grey where all pictures are, else RGB, and int32 labels. Upright
      as EXIF says; what is transparent lies on white; 16 bits become 8.

    Raises:
      UserError: there is nothing to read, a picture cannot be read, or an argument is out of range.

    Example:
      >>> import pathlib, tempfile
      >>> from PIL import Image
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for name in ("cat", "dog"):
      ...     (folder / name).mkdir()
      ...     for i in range(10):
      ...         Image.new("RGB", (40, 30), (25 * i, 0, 9)).save(folder / name / f"{i}.png")
      >>> dataset = from_folder(folder, image_size=16)
      >>> dataset.class_names, dataset.image_shape, len(dataset.train), len(dataset.test)
      (('cat', 'dog'), (16, 16, 3), 14, 4)
    """
    return load(
        "folder",
        data_dir=path,
        per_class=per_class,
        fraction=fraction,
        validation_fraction=validation_fraction,
        seed=seed,
        unreadable=unreadable,
        image_size=image_size,
        resize=resize,
        test_fraction=test_fraction,
        stream=stream,
    )


def from_settings(settings: DataSettings, seed: int) -> Dataset:
    """Load the dataset of a config.

    Args:
      settings: `config.data`.
      seed: `config.seed`, of the draw.

    Returns:
      A `Dataset`, as from `load`.

    Raises:
      UserError: as `load` does.

    Example:
      >>> from genreg_jax.settings import DataSettings
      >>> len(from_settings(DataSettings(name="digits", per_class=3), seed=0).train)
      30
    """
    options = dataclasses.asdict(settings)
    name, data_dir = options.pop("name"), options.pop("dir")
    try:
        return load(name, data_dir=data_dir, seed=seed, **options)
    except UserError as error:
        if "config." in str(error):
            raise
        raise UserError(f"config.data: {error}") from None
