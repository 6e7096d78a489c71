"""Image-classification data, decoded once to uint8 and kept in memory.

`load` finds a dataset by name: `digits` (comes with scikit-learn), `synthetic` (made on the spot)
or any image-classification dataset of TensorFlow Datasets prepared as `array_record`, which is
read without TensorFlow. `from_arrays` makes the same `Dataset` of arrays in memory.
"""

import dataclasses
import difflib
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genreg_jax.data import subsets
from genreg_jax.errors import UserError
from genreg_jax.settings import DataSettings

# The digits come without an official split, and the synthetic images from nowhere. Both are made
# with a seed of their own, so that no subset's seed repeats the draws that made them.
_FIXED_SEED = 8_128_496
_DIGITS_TEST_IMAGES = 500
_SYNTHETIC_CLASSES = ("stripes", "columns", "diagonals", "checks")
_READ_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].

    Example:
      >>> len(Split(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, np.int32)))
      3
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


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
      >>> dataset = load("digits", per_class=4)
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
    _pool: tuple[np.ndarray, np.ndarray] | None = None  # images, and which of them

    @property
    def unlabelled(self) -> np.ndarray:
        """Images [N, H, W, C] of the training split but those for validation; no labels."""
        if self._pool is None:
            return self.train.images
        images, kept = self._pool
        return images[kept]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


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
) -> Dataset:
    """Load a dataset by name and draw its validation set and labelled subset.

    First a stratified `validation_fraction` of the training split becomes the validation set;
    then the labelled subset is drawn, stratified, from the rest. The draw is a function of the
    dataset's content, the subset's size and the seed: smaller subsets lie inside larger ones, and
    the validation set does not change with `per_class` or `fraction`. The test split is untouched.

    Args:
      name: `digits`, `synthetic`, `cifar10`, `cifar100`, `fashion_mnist`, or another
        image-classification dataset of TFDS, with its config where it has several
        (`emnist/balanced`). Of TFDS splits, `train` is drawn from, and `test`, or `validation`
        where there is no `test`, is the test split.
      data_dir: TFDS data directory; empty for `$TFDS_DATA_DIR` or else `~/tensorflow_datasets`.
      per_class: labelled training images of every class; 0 for all.
      fraction: labelled share of the training images left after validation, in (0, 1].
      validation_fraction: share of every class of the training split, in [0, 1).
      seed: non-negative integer, the seed of the draw.
      download: where the dataset is absent and can be prepared (`cifar10`, `cifar100`,
        `fashion_mnist`), try to download and prepare it first.
      unreadable: what to do about an image that cannot be decoded: `refuse` the dataset, naming the
        image, or `skip` such images and name them on the error stream.

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
    if unreadable not in ("refuse", "skip"):
        raise UserError(f"unreadable is {unreadable!r}; it must be 'refuse' or 'skip'.")
    if name == "digits":
        train, test, class_names = _digits()
    elif name == "synthetic":
        train, test, class_names = _synthetic()
    else:
        train, test, class_names = _tfds(name, tfds_root(data_dir), download, unreadable)
    return _make_dataset(
        name,
        train,
        test,
        class_names,
        per_class=per_class,
        fraction=fraction,
        validation_fraction=validation_fraction,
        seed=seed,
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

    Source: none.
    """
    options = dataclasses.asdict(settings)
    name, data_dir = options.pop("name"), options.pop("dir")
    return load(name, data_dir=data_dir, seed=seed, **options)


def from_arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    *,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    per_class: int = 0,
    fraction: float = 1.0,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Make a `Dataset` of arrays in memory, drawing subsets as `load` does.

    Args:
      train_images: [N, H, W, C], uint8 or float in [0, 1]; floats are rounded to uint8.
      train_labels: integers [N] in [0, number of classes).
      test_images: [M, H, W, C], as `train_images`.
      test_labels: integers [M].
      name: the name of the dataset.
      class_names: one name a class; by default the classes are numbered up to the largest label.
      per_class: labelled training images of every class; 0 for all.
      fraction: labelled share of the training images left after validation, in (0, 1].
      validation_fraction: share of every class of the training images, in [0, 1).
      seed: non-negative integer, the seed of the draw.

    Returns:
      A `Dataset` of uint8 images and int32 labels.

    Raises:
      UserError: if an array has the wrong rank, type or range, or an argument is out of range.

    Example:
      >>> images = np.random.default_rng(0).random((20, 8, 8, 3))
      >>> labels = np.arange(20) % 2
      >>> dataset = from_arrays(images, labels, images, labels, class_names=["cat", "dog"])
      >>> dataset.train.images.dtype, len(dataset.train), len(dataset.validation)
      (dtype('uint8'), 18, 2)

    Source: none.
    """
    subsets.check_subset_arguments(per_class, fraction, validation_fraction, seed)
    train = Split(
        validate_images(train_images, name="train_images"), _as_labels(train_labels, "train_labels")
    )
    test = Split(
        validate_images(test_images, name="test_images"), _as_labels(test_labels, "test_labels")
    )
    if class_names is None:
        num_classes = 1 + max(int(split.labels.max(initial=-1)) for split in (train, test))
        class_names = [str(c) for c in range(num_classes)]
    return _make_dataset(
        name,
        train,
        test,
        tuple(class_names),
        per_class=per_class,
        fraction=fraction,
        validation_fraction=validation_fraction,
        seed=seed,
    )


def validate_images(images: Any, *, name: str = "images") -> np.ndarray:
    """Check that an array holds a batch of images, and return it as uint8.

    Args:
      images: [N, H, W, C], uint8, or floats in [0, 1], which are multiplied by 255 and rounded.
      name: what to call the array in an error.

    Returns:
      uint8 [N, H, W, C].

    Raises:
      UserError: if the array is empty, of another rank or type, has values outside [0, 1] or NaN.

    Example:
      >>> validate_images(np.full((1, 1, 1, 1), 0.5)).item()
      128

    Source: none.
    """
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise UserError(
            f"{name} cannot be made into one array, most likely because its images differ in "
            "size; resize them to one size first."
        ) from error
    if images.ndim != 4 or images.size == 0:
        raise UserError(
            f"{name} has the shape {images.shape}; it must be [N, H, W, C] with nothing empty. "
            "Grey images need a last axis of size 1: images[..., None]."
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(
            f"{name} has the type {images.dtype}; it must be uint8, or floating point in [0, 1]."
        )
    low, high = float(images.min()), float(images.max())
    if np.isnan(low):
        raise UserError(f"{name} contains NaN; every value must lie in [0, 1].")
    if low < 0 or high > 1:
        raise UserError(
            f"{name} is floating point with values from {low:g} to {high:g}; they must lie in "
            "[0, 1]. Undo any standardisation, or divide by 255, or give uint8."
        )
    return np.rint(images * images.dtype.type(255)).astype(np.uint8)


def _as_labels(labels: Any, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name} has the shape {labels.shape} and the type {labels.dtype}; it must be one "
            "integer class index an image, [N]. One-hot labels: labels.argmax(-1)."
        )
    return labels.astype(np.int32)


def _make_dataset(
    name: str,
    train: Split,
    test: Split,
    class_names: tuple[str, ...],
    *,
    per_class: int,
    fraction: float,
    validation_fraction: float,
    seed: int,
) -> Dataset:
    _check_splits(name, train, test, class_names)
    digests = subsets.content_digests(train.images, train.labels)
    order = subsets.random_order(digests, seed)
    train_positions, validation_positions = subsets.draw_subset(
        train.labels[order],
        class_names,
        per_class=per_class,
        fraction=fraction,
        validation_fraction=validation_fraction,
    )
    train_subset = _take(train, subsets.shuffle(order[train_positions], seed))
    validation = _take(train, subsets.shuffle(order[validation_positions], seed))
    kept = np.delete(order, validation_positions)
    test_digests = subsets.content_digests(test.images, test.labels)
    return Dataset(
        name=name,
        train=train_subset,
        validation=validation,
        test=test,
        class_names=class_names,
        subset_hash=_hash_splits(train_subset, validation),
        fingerprint=_fingerprint(train.images.shape[1:], digests, test_digests),
        test_images_in_train=_count_in_both(name, train, test),
        _pool=(train.images, kept),
    )


def _count_in_both(name: str, train: Split, test: Split) -> int:
    """The number of test images that are training images, pixel by pixel, whatever their labels."""
    digests = [
        subsets.content_digests(split.images, np.zeros_like(split.labels))
        for split in (train, test)
    ]
    known = set(digests[0])
    count = sum(digest in known for digest in digests[1])
    if count:
        _note(
            f"{name}: {count} of the {len(test.labels)} test images are in the training split too, "
            "pixel by pixel; the test accuracy may be too good."
        )
    return count


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _listed(items: Sequence[Any], most: int = 10) -> str:
    shown = ", ".join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def _take(split: Split, indices: np.ndarray) -> Split:
    return Split(split.images[indices], split.labels[indices])


def _hash_splits(*splits: Split) -> str:
    sha256 = hashlib.sha256()
    for split in splits:
        sha256.update(repr(split.images.shape).encode())
        sha256.update(np.ascontiguousarray(split.images).data)
        sha256.update(np.ascontiguousarray(split.labels, "<i4").data)
    return sha256.hexdigest()


def _fingerprint(image_shape: tuple[int, ...], *split_digests: list[bytes]) -> str:
    sha256 = hashlib.sha256(repr(image_shape).encode())
    for digests in split_digests:
        sha256.update(len(digests).to_bytes(8, "little"))
        sha256.update(b"".join(sorted(digests)))
    return sha256.hexdigest()


def _check_splits(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> None:
    for split_name, split in (("training", train), ("test", test)):
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
    counts = np.bincount(train.labels, minlength=len(class_names))
    for number, text in ((0, "no training image"), (1, "a single training image")):
        few = [class_names[c] for c in np.flatnonzero(counts == number)]
        if few:
            _note(f"{name}: there is {text} of {_listed(few)}.")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"The training images of {name!r} have the shape {train.images.shape[1:]} and the "
            f"test images {test.images.shape[1:]}; they must be the same."
        )


# Data that needs no files.


def _digits() -> tuple[Split, Split, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images[..., None] * 255 / 16).astype(np.uint8)
    whole = Split(images, bunch.target.astype(np.int32))
    order = subsets.random_order(subsets.content_digests(whole.images, whole.labels), _FIXED_SEED)
    test = subsets.stratified_first(whole.labels[order], _DIGITS_TEST_IMAGES)
    train = np.delete(np.arange(len(whole)), test)
    return (
        _take(whole, order[train]),
        _take(whole, order[test]),
        tuple(str(c) for c in bunch.target_names),
    )


def _synthetic() -> tuple[Split, Split, tuple[str, ...]]:
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
    return _take(whole, train), _take(whole, test), _SYNTHETIC_CLASSES


# TensorFlow Datasets, read without TensorFlow. The directory is looked at before TFDS is asked,
# because an absent dataset makes TFDS retry the network for minutes and then blame the format.


def tfds_root(data_dir: str | os.PathLike[str]) -> Path:
    """The TFDS data directory: the one given, or `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def _tfds(
    name: str, root: Path, download: bool, unreadable: str
) -> tuple[Split, Split, tuple[str, ...]]:
    from genreg_jax.data import prepare

    directory = _find_prepared(name, root)
    if directory is None:
        _check_name(name)
        if not download or name not in prepare.DATASETS:
            raise UserError(_absent_message(name, root))
        _note(f"{name} is not in {root}; trying to download it.")
        try:
            directory = prepare.prepare(name, root)
        except UserError as error:
            raise UserError(
                f"{_absent_message(name, root)} Preparing it automatically failed: {error}"
            ) from error
    try:
        return _read_prepared(name, directory, unreadable)
    except UserError:
        raise
    except Exception as error:
        # What TFDS, protobuf and array_record raise depends on where the damage is.
        raise UserError(
            f"{directory} cannot be read ({type(error).__name__}: {str(error)[:200]}); the copy of "
            f"{name} is most likely damaged. Delete that directory and prepare it again."
        ) from error


def _find_prepared(name: str, root: Path) -> Path | None:
    """Return the newest prepared version of a dataset, or None where there is none."""
    if not re.fullmatch(r"\w+(/[\w.-]+)?", name):
        return None
    directory = root / name
    versions = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in directory.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    }
    if versions:
        return versions[max(versions)]
    configs = sorted({path.parents[1].name for path in directory.glob("*/*/dataset_info.json")})
    if configs:
        raise UserError(
            f"{name!r} has several configs in {root}: {', '.join(configs)}. Name one of them, as "
            f"in {name}/{configs[0]}."
        )
    return None


def _check_name(name: str) -> None:
    import tensorflow_datasets as tfds

    known = ["digits", "synthetic", *tfds.list_builders(with_community_datasets=False)]
    if name.split("/")[0] in known:
        return
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(
        f"Unknown dataset {name!r}.{hint} Allowed are digits and synthetic, which need no files, "
        "cifar10, cifar100, fashion_mnist, and any other image-classification dataset of "
        "TensorFlow Datasets; for arrays of your own use genreg_jax.data.from_arrays."
    )


def _absent_message(name: str, root: Path) -> str:
    from genreg_jax.data import prepare

    if name in prepare.DATASETS:
        way = (
            f"run `python -m genreg_jax.data.prepare --dataset={name} --archive=PATH "
            f"--data_dir={root}` with the official archive"
        )
    else:
        way = (
            f"run `tfds build {name} --file_format=array_record --data_dir={root}` where "
            "TensorFlow is installed"
        )
    return (
        f"{name} is not prepared in {root / name}. Give a TFDS data directory that holds it in "
        f"array_record format with --config.data.dir=DIR (data_dir=DIR in Python); or {way}; or "
        "use digits, which needs no download."
    )


def _read_prepared(
    name: str, directory: Path, unreadable: str
) -> tuple[Split, Split, tuple[str, ...]]:
    import tensorflow_datasets as tfds

    info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"{directory} holds {name} in the format {file_format!r}, which cannot be read without "
            "TensorFlow; prepare it in another data directory, with `python -m "
            "genreg_jax.data.prepare` (cifar10, cifar100, fashion_mnist) or `tfds build "
            "--file_format=array_record`."
        )
    builder: Any = tfds.builder_from_directory(directory)
    image_key, label_key = _feature_keys(name, builder)
    test_split = "test" if "test" in builder.info.splits else "validation"
    for split in ("train", test_split):
        _check_files(name, directory, builder, split)
    train, test = (
        _read_split(name, builder, split, image_key, label_key, unreadable)
        for split in ("train", test_split)
    )
    return train, test, _class_names(name, builder.info.features[label_key].names)


def _feature_keys(name: str, builder: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or ("image", "label")
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if len(keys) == 2 and all(isinstance(features.get(k), kind) for k, kind in zip(keys, kinds)):
        return keys[0], keys[1]
    raise UserError(
        f"{name!r} is not an image-classification dataset: its features are "
        f"{', '.join(sorted(features))}, and one image with one class label is needed. For other "
        "data, make arrays and use genreg_jax.data.from_arrays."
    )


def _check_files(name: str, directory: Path, builder: Any, split: str) -> None:
    if split not in builder.info.splits:
        raise UserError(
            f"{name!r} in {directory} has the splits {', '.join(builder.info.splits)}; a train "
            "split and a test or validation split are needed."
        )
    missing = [p.name for p in builder.info.splits[split].filepaths if not p.exists()]
    if missing:
        raise UserError(
            f"{directory} is incomplete: {', '.join(missing)} missing. Copy the whole directory, "
            "or delete it and prepare it again."
        )


def _read_split(
    name: str, builder: Any, split: str, image_key: str, label_key: str, unreadable: str
) -> Split:
    import tensorflow_datasets as tfds

    # Decoding is Pillow's, one image after another: for images of this size a pool of threads
    # takes longer, because the interpreter's lock outweighs the decoding.
    source = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    feature = builder.info.features[image_key]
    if feature.np_dtype != np.uint8:
        raise UserError(
            f"{name!r} has images of type {np.dtype(feature.np_dtype)}; only 8-bit images can be "
            "used. Convert them and use genreg_jax.data.from_arrays."
        )
    channels = feature.shape[-1]
    images = None
    labels = np.empty(len(source), np.int32)
    skipped: list[int] = []
    for start in range(0, len(source), _READ_AT_ONCE):
        stop = min(start + _READ_AT_ONCE, len(source))
        for i, record in enumerate(source.__getitems__(range(start, stop)), start):
            try:
                image = _decode(record[image_key], channels)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow's, by where the damage is
                if unreadable == "skip":
                    skipped.append(i)
                    continue
                raise UserError(
                    f"Image {i} of the {split} split of {name!r} cannot be decoded ({error}). "
                    f"Prepare the dataset in {builder.data_path} again, or leave such images out "
                    "with config.data.unreadable = 'skip'."
                ) from error
            if images is None:
                images = np.empty((len(source), *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                raise UserError(
                    f"The images of {name!r} differ in size: {images.shape[1:]} and {image.shape} "
                    "among others. Resize them to one size and use genreg_jax.data.from_arrays."
                )
            images[i] = image
            labels[i] = record[label_key]
    if images is None:
        raise UserError(
            f"The {split} split of {name!r} has no image that can be read; prepare it again."
        )
    if skipped:
        _note(
            f"{name}: images {_listed(skipped)} of the {split} split are unreadable and left out."
        )
        images, labels = np.delete(images, skipped, axis=0), np.delete(labels, skipped)
    return Split(images, labels)


def _decode(encoded: bytes, channels: int | None) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels or 3]
        array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array if array.ndim == 3 else array[..., None]


def _class_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    import tensorflow_datasets as tfds

    names = tuple(names)
    if names != tuple(str(c) for c in range(len(names))):
        return names
    # Copies made by other tools may lack the names, which TFDS knows for registered datasets. The
    # directory must be one without data, so that the names come from TFDS's code.
    try:
        builder: Any = tfds.builder(name, data_dir=os.devnull)
        registered = builder.info.features["label"].names
    except (KeyError, OSError, ValueError, tfds.core.DatasetNotFoundError):
        return names
    return tuple(registered) if len(registered) == len(names) else names
