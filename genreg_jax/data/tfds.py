"""Image-classification datasets of TensorFlow Datasets, read without TensorFlow.

The directory is looked at before TFDS is asked, because an absent dataset makes TFDS retry the
network for minutes and then blame the format.
"""

import contextlib
import difflib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from genreg_jax.data.cache import key_of
from genreg_jax.data.dataset import Split, listed, note
from genreg_jax.data.pictures import fit_array
from genreg_jax.data.stored import Stored, looked_at, rows_of
from genreg_jax.errors import UserError
from genreg_jax.logs import read_json

_READ_AT_ONCE = 4096
_FEATURES = "tensorflow_datasets.core.features."


def tfds_root(data_dir: str | os.PathLike[str]) -> Path:
    """The TFDS data directory: the one given, or `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(data_dir or default))


def read(
    *,
    name: str,
    data_dir: str | os.PathLike[str],
    download: bool,
    unreadable: str,
    known: Sequence[str] = (),
    stream: bool = False,
    **options: Any,
) -> tuple[Split, Split, tuple[str, ...]]:
    """Read a dataset of TFDS from a data directory; prepare it there first where that is possible.

    Args:
      name: of the dataset, with its config where it has several (`emnist/balanced`).
      data_dir: TFDS data directory; empty for `$TFDS_DATA_DIR` or else `~/tensorflow_datasets`.
      download: whether an absent dataset that `prepare` knows may be downloaded.
      unreadable: `refuse` an image that cannot be decoded, or `skip` it.
      known: names that do not belong to TFDS, to suggest where a name is unknown.
      stream: leave the images where they lie.
      **options: not used.

    Returns:
      The training split, the test split and the class names.

    Raises:
      UserError: if the dataset is unknown, absent or unusable.
    """
    from genreg_jax.data import prepare

    root = tfds_root(data_dir)
    directory = _find_prepared(name, root)
    if directory is None:
        _check_name(name, known)
        if not download or name not in prepare.DATASETS:
            raise UserError(_absent_message(name, root))
        note(f"{name} is not in {root}; trying to download it.")
        try:
            directory = prepare.prepare(name, root)
        except UserError as error:
            raise UserError(
                f"{_absent_message(name, root)} Preparing it automatically failed: {error}"
            ) from error
    with _damage(name, directory):
        return _read_prepared(name, directory, unreadable, stream)


@contextlib.contextmanager
def _damage(name: str, directory: Path) -> Iterator[None]:
    """What goes wrong while a prepared dataset is read, as one paragraph."""
    try:
        yield
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


def _check_name(name: str, others: Sequence[str]) -> None:
    import tensorflow_datasets as tfds

    known = [*others, *tfds.list_builders(with_community_datasets=False)]
    if name.split("/")[0] in known:
        return
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(
        f"Unknown dataset {name!r}.{hint} Allowed are {', '.join([*others, 'cifar10'])}, "
        "cifar100, fashion_mnist, and any other image-classification dataset of TensorFlow "
        "Datasets; for arrays of your own use genreg_jax.data.from_arrays."
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
    name: str, directory: Path, unreadable: str, stream: bool
) -> tuple[Split, Split, tuple[str, ...]]:
    builder = _builder(name, directory)
    test_split = "test" if "test" in builder.info.splits else "validation"
    splits, class_names = _read_splits(
        name, builder, ("train", test_split), unreadable, stream=stream
    )
    return splits["train"], splits[test_split], class_names


def read_squares(
    name: str,
    data_dir: str | os.PathLike[str],
    splits: Sequence[str],
    *,
    unreadable: str,
    size: int,
    resize: str,
    check: Callable[[Path, dict[str, int], int], None],
) -> tuple[dict[str, Split], tuple[str, ...]] | None:
    """Read splits of a prepared dataset whose images have many sizes.

    Args:
      name: of the dataset in TFDS.
      data_dir: TFDS data directory.
      splits: their names in TFDS.
      unreadable: `refuse` an image that cannot be decoded, or `skip` it.
      size: side of the square that images are brought to as they are read.
      resize: `crop` or `pad`, see `genreg_jax.data.pictures.fit`.
      check: called with the directory, the number of images of each split and the number of
        classes, before an image is read.

    Returns:
      The splits by their names and the class names; None where the dataset is not prepared there.

    Raises:
      UserError: if it is there and cannot be read.

    Example:
      >>> options = {"unreadable": "refuse", "size": 8, "resize": "crop", "check": print}
      >>> read_squares("dtd", "/no/such/folder", ["train"], **options) is None
      True
    """
    directory = _find_prepared(name, tfds_root(data_dir))
    if directory is None:
        return None
    with _damage(name, directory):
        builder = _builder(name, directory)
        sizes = {s: info.num_examples for s, info in builder.info.splits.items() if s in splits}
        labels = builder.info.features[_feature_keys(name, builder)[1]]
        check(directory, {s: sizes.get(s, 0) for s in splits}, labels.num_classes)
        return _read_splits(name, builder, splits, unreadable, (size, resize))


def _builder(name: str, directory: Path) -> Any:
    import tensorflow_datasets as tfds

    info = read_json(directory / "dataset_info.json")
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"{directory} holds {name} in the format {file_format!r}, which cannot be read without "
            "TensorFlow; prepare it in another data directory, with `python -m "
            "genreg_jax.data.prepare` (cifar10, cifar100, fashion_mnist) or `tfds build "
            "--file_format=array_record`."
        )
    _check_features(directory / "features.json")
    return tfds.builder_from_directory(directory)


def _read_splits(
    name: str,
    builder: Any,
    splits: Sequence[str],
    unreadable: str,
    fitted: tuple[int, str] | None = None,
    stream: bool = False,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    image_key, label_key = _feature_keys(name, builder)
    for split in splits:
        _check_files(name, builder.data_path, builder, split)
    found = {
        split: _read_split(name, builder, split, image_key, label_key, unreadable, fitted, stream)
        for split in splits
    }
    return found, class_names(name, builder.info.features[label_key].names)


def _check_features(path: Path) -> None:
    """Refuses a folder that names classes which are not TFDS's own: TFDS would import them."""
    groups: list[Any] = [read_json(path)]
    while groups:
        group = groups.pop()
        for key, value in group.items() if isinstance(group, dict) else enumerate(group):
            names_class = key in ("pythonClassName", "python_class_name", "type")
            if names_class and not str(value).startswith(_FEATURES):
                raise UserError(
                    f"{path} names the class {str(value)[:80]!r}, which reading the data set would "
                    f"import and run; only those of {_FEATURES.rstrip('.')} are. Prepare the data "
                    "set anew."
                )
            if isinstance(value, dict | list):
                groups.append(value)


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
    name: str,
    builder: Any,
    split: str,
    image_key: str,
    label_key: str,
    unreadable: str,
    fitted: tuple[int, str] | None,
    stream: bool,
) -> Split:
    import tensorflow_datasets as tfds

    # Decoding is Pillow's, one image after another: for images of this size a pool of threads
    # takes longer, because the interpreter's lock outweighs the decoding.
    features = builder.info.features
    encoded = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    skip = dict.fromkeys(encoded, tfds.decode.SkipDecoding())
    source = builder.as_data_source(split=split, decoders=skip)
    feature = features[image_key]
    if feature.np_dtype != np.uint8:
        raise UserError(
            f"{name!r} has images of type {np.dtype(feature.np_dtype)}; only 8-bit images can be "
            "used. Convert them and use genreg_jax.data.from_arrays."
        )
    channels = feature.shape[-1]
    if stream:
        files = [Path(os.fspath(p)) for p in builder.info.splits[split].filepaths]
        key = key_of(files, {"split": split, "stored": True}) or ""
        decode = lambda record: _decode(record[image_key], channels)
        images, labels = _stored(
            _Guarded(source, name, Path(builder.data_path)), decode, label_key, key
        )
        skipped = np.flatnonzero(labels < 0).tolist()
        if skipped and unreadable == "refuse":
            _refuse(name, builder, split, skipped[0], "its encoding is damaged")
        return _without(name, split, images, labels, skipped)
    images = None
    labels = np.empty(len(source), np.int32)
    skipped: list[int] = []
    for start in range(0, len(source), _READ_AT_ONCE):
        stop = min(start + _READ_AT_ONCE, len(source))
        for i, record in enumerate(source.__getitems__(range(start, stop)), start):
            try:
                image = _decode(record[image_key], channels)
                if fitted:
                    size, resize = fitted
                    image = fit_array(image, (size, size, image.shape[-1]), resize)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow's, by where the damage is
                if unreadable == "skip":
                    skipped.append(i)
                    continue
                _refuse(name, builder, split, i, error)
            if images is None:
                images = np.empty((len(source), *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                raise UserError(
                    f"The images of {name!r} differ in size: {images.shape[1:]} and {image.shape} "
                    "among others. Resize them to one size and use genreg_jax.data.from_arrays."
                )
            images[i] = image
            labels[i] = record[label_key]
    return _without(name, split, images, labels, skipped)


def _refuse(name: str, builder: Any, split: str, i: int, why: object) -> NoReturn:
    raise UserError(
        f"Image {i} of the {split} split of {name!r} cannot be decoded ({why}). Prepare the "
        f"dataset in {builder.data_path} again, or leave such images out with "
        "config.data.unreadable = 'skip'."
    ) from (why if isinstance(why, Exception) else None)


def _without(name: str, split: str, images: Any, labels: np.ndarray, skipped: list[int]) -> Split:
    """A split without the images that cannot be read, which are named."""
    if images is None:
        raise UserError(
            f"The {split} split of {name!r} has no image that can be read; prepare it again."
        )
    if skipped:
        note(f"{name}: images {listed(skipped)} of the {split} split are unreadable and left out.")
        readable = np.delete(np.arange(len(labels)), skipped)
        images, labels = rows_of(images, readable), labels[readable]
    return Split(images, labels)


class _Guarded:
    """A data source, whose errors are paragraphs."""

    def __init__(self, source: Any, name: str, directory: Path):
        self._source, self._damage = source, functools.partial(_damage, name, directory)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> Any:
        with self._damage():
            return self._source[i]


def _stored(
    source: Any, decode: Callable[[Any], np.ndarray], label_key: str, key: str
) -> tuple[Stored | None, np.ndarray]:
    """The images of a data source, left where they lie, and labels; -1 where one is damaged."""

    def look(i: int) -> bytes:
        record = source[i]
        try:
            found = [int(record[label_key]), *decode(record).shape]
        except (OSError, SyntaxError, ValueError):
            found = [-1, 0, 0, 0]
        return np.array(found, np.int32).tobytes()

    everything = lambda found: bool(np.all(found.copy().view(np.int32)[:, 0] >= 0))
    found = looked_at(len(source), look, key, everything).copy().view(np.int32)
    whole = np.flatnonzero(found[:, 0] >= 0)
    if not len(whole):
        return None, found[:, 0]
    shape = tuple(found[whole[0], 1:].tolist())

    def read(record: Any) -> np.ndarray:
        try:
            return decode(record)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"An image cannot be decoded any more ({error}).") from error

    return Stored(source, read, key=key, shape=shape), found[:, 0]


def _decode(encoded: bytes, channels: int | None) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels or 3]
        array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array if array.ndim == 3 else array[..., None]


def class_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names, or those that TFDS registers for the dataset where the names are only numbers."""
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
