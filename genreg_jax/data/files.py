"""Images of one's own: a folder of pictures, a table of them, or an `.npz`.

    PATH/<class>/**/*.png                         a subfolder a class, nested as one likes
    PATH/{train,test[,validation]}/<class>/**     the same, already split
    PATH.csv                                      columns file, label[, split]
    PATH.npz                                      images, labels[, test_images, test_labels]

`read` is a row of `data.sources.SOURCES`; `read_images` reads what is to be predicted or perturbed.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genreg_jax.checks import path_of
from genreg_jax.data.arrays import validate_images
from genreg_jax.data.dataset import Split, composed, hold_out, listed, note, take
from genreg_jax.data.folders import find
from genreg_jax.data.npz import labels_by_name, names_of, read_npz, read_splits
from genreg_jax.data.pictures import (
    FORMATS,
    fitted,
    read_pictures,
    shown,
    stored_pictures,
)
from genreg_jax.errors import UserError

# Names of folders and of a table's column `split`, in letters of any case.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
}


_MOST_TABLE = 2**28  # bytes


class Images(NamedTuple):
    """What was read.

    Attributes:
      images: uint8 `[N, H, W, C]`.
      labels: int32 `[N]`, places in the class names; None where there are none.
      names: paths of the files, relative to the folder; None for an `.npz`.
    """

    images: np.ndarray
    labels: np.ndarray | None
    names: list[Path] | None


# ---------------------------------------------------------------------------------- as a data set


def read(
    *,
    data_dir: str | os.PathLike[str],
    image_size: int = 0,
    resize: str = "crop",
    test_fraction: float = 0.2,
    unreadable: str = "refuse",
    stream: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    """Reads a data set of one's own.

    Args:
      data_dir: a folder, a `.csv` or an `.npz`, as at the top of this module.
      image_size: side of the square that pictures are brought to; 0 for their own size, which must
        then be the same for all.
      resize: `crop` (short side scaled, centre cut out) or `pad` (long side scaled, on black).
      test_fraction: share of every class that is held out where there is no test split; the same
        images for every seed.
      unreadable: `refuse` where a picture cannot be read, or `skip` such pictures; both name them.
      stream: leave the pictures where they lie.
      **options: of other readers.

    Returns:
      The training and the test `Split`, the class names, and the validation `Split`, or None.

    Raises:
      UserError: there is nothing to read, or it is not what a data set needs.
    """
    path = path_of(data_dir) if data_dir else None
    if path is None or not path.exists():
        what = f"There is no {str(path)!r}." if path else "Which folder? config.data.dir is empty."
        raise UserError(
            f"{what} Give --config.data.dir a folder with a subfolder of pictures for each class, "
            "a .csv with the columns file and label, or an .npz with images and labels."
        )
    if path.is_file() and path.suffix.lower() == ".npz":
        splits, class_names = read_splits(path)
    else:
        if path.is_file() and path.suffix.lower() not in (".csv", ".txt", ""):
            raise UserError(
                f"{str(path)!r} is no data set: that is a folder with a subfolder of pictures for "
                "each class, a .csv with the columns file and label, or an .npz with images and "
                "labels."
            )
        rows = _table(path) if path.is_file() else _folder(path)
        splits, class_names = _read_rows(path, rows, image_size, resize, unreadable, stream)
    if splits.get("test") is None:
        splits["train"], splits["test"] = hold_out(splits["train"], test_fraction)
    return splits["train"], splits["test"], class_names, splits.get("validation")


class _Row(NamedTuple):
    """A picture of a data set: where it lies, what it is of, and which split it belongs to."""

    file: Path
    label: str
    split: str  # "" where there is no split


def _folder(path: Path) -> list[_Row]:
    files, left_out = find(path)
    names = [file.relative_to(path).parts for file in files]
    tops = {parts[0]: _SPLITS.get(parts[0].lower()) for parts in names if len(parts) > 1}
    if _has_splits(path, tops):
        rows = [
            _Row(file, parts[1], tops[parts[0]] or "")
            for file, parts in zip(files, names)
            if len(parts) > 2
        ]
        loose = [file for file, parts in zip(files, names) if len(parts) <= 2]
    else:
        rows = [_Row(f, parts[0], "") for f, parts in zip(files, names) if len(parts) > 1]
        loose = [file for file, parts in zip(files, names) if len(parts) == 1]
        _check_no_splits_within(path, names)
    left_out += [f"{file.relative_to(path)} (in no class's folder)" for file in loose]
    if left_out:
        note(f"{path}: {len(left_out)} files are left out: {shown(left_out)}.")
    if not rows:
        raise UserError(
            f"There is no picture in a class's folder in {str(path)!r}; a data set is "
            f"{path}/<class>/*.png, or {path}/train/<class>/*.png with test beside train. Known "
            f"are {', '.join(FORMATS)}."
        )
    return rows


def _has_splits(path: Path, tops: dict[str, str | None]) -> bool:
    """Whether the folders are train, test and so on, and not classes; refused where both are."""
    splits = sorted(name for name, split in tops.items() if split)
    if not splits or (len(splits) == 1 and tops[splits[0]] != "train"):
        return False  # a class may be called `test`
    others = sorted(name for name, split in tops.items() if not split)
    if others:
        raise UserError(
            f"{str(path)!r} has the folders {', '.join(splits)} of a split and beside them "
            f"{listed(others)}. Give a folder of classes, or one that holds train and, as there "
            "are, test and validation, each with the classes in it."
        )
    if "train" not in tops.values():
        raise UserError(
            f"{str(path)!r} has the folders {', '.join(splits)} and no train; put the training "
            "pictures in a folder train beside them."
        )
    return True


def _check_no_splits_within(path: Path, names: Sequence[tuple[str, ...]]) -> None:
    """Refuses classes with train and test in each, which would be trained on together."""
    within: dict[str, set[str | None]] = {}
    for parts in names:
        if len(parts) > 1:
            below = _SPLITS.get(parts[1].lower()) if len(parts) > 2 else None
            within.setdefault(parts[0], set()).add(below)
    of_splits = lambda found: {"train", "test"} <= found and None not in found
    if within and all(map(of_splits, within.values())):
        first = min(within)
        raise UserError(
            f"The classes in {str(path)!r} each have folders of a split in them, such as "
            f"{first}/train and {first}/test. Put the classes into the splits instead: "
            f"{path}/train/{first} and {path}/test/{first}."
        )


def _table(path: Path) -> list[_Row]:
    if path.stat().st_size > _MOST_TABLE:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes, and a table may have {_MOST_TABLE:,}; give "
            "the folder of the pictures, or an .npz."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            lines = [(reader.line_num, line) for line in reader]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save the table as CSV in UTF-8.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {error}.") from None
    if not lines or not {"file", "label"} <= {*columns}:
        raise UserError(
            f"{path} must be a table with commas whose first line names the columns file and "
            "label, and, where there is a split, split; each further line is a picture. It has "
            f"{len(lines)} further lines, and its first has the columns {columns[:10]}."
        )
    if len(set(columns)) < len(columns):
        raise UserError(f"The first line of {path} names a column twice: {columns[:10]}.")
    rows = []
    for number, line in lines:
        if None in line:
            raise UserError(
                f"Line {number} of {path} has more cells than the first line has columns. Put "
                "quotation marks around a name with a comma."
            )
        name, *words = (line.get(key) or "" for key in ("file", "label", "split"))
        label, split = (word.strip() for word in words)
        if name != name.strip() and not os.path.exists(path.parent / name):
            name = name.strip()
        if not name or not label or (split and split.lower() not in _SPLITS):
            raise UserError(
                f"Line {number} of {path} has the file {name!r}, the label {label!r} and the split "
                f"{split!r}; a file and a label are needed, and a split is one of "
                f"{', '.join(_SPLITS)}."
            )
        rows.append(_Row(path.parent / name, label, _SPLITS.get(split.lower(), "")))
    if len({bool(row.split) for row in rows}) > 1:
        raise UserError(f"{path} gives some of its pictures a split and others none.")
    return rows


def _read_rows(
    path: Path, rows: list[_Row], image_size: int, resize: str, unreadable: str, stream: bool
) -> tuple[dict[str, Split], tuple[str, ...]]:
    rows = [row._replace(label=composed(row.label)) for row in rows]
    class_names = tuple(sorted({row.label for row in rows}, key=_natural))
    if len(class_names) < 2:
        raise UserError(
            f"{str(path)!r} has one class, {rows[0].label!r}; a classifier needs two or more."
        )
    size = (image_size, image_size) if image_size else None
    read = stored_pictures if stream else read_pictures
    images, kept = read([row.file for row in rows], size, resize, unreadable)
    rows = [rows[i] for i in kept]
    place = {name: i for i, name in enumerate(class_names)}
    labels = np.array([place[row.label] for row in rows], np.int32)
    names = _names([row.file for row in rows], path if path.is_dir() else path.parent)
    whole = Split(images, labels, names)
    which = {
        name: np.array([row.split == name for row in rows])
        for name in dict.fromkeys(row.split for row in rows)
    }
    splits = {name or "train": take(whole, np.flatnonzero(mask)) for name, mask in which.items()}
    if "train" not in splits:
        raise UserError(f"{str(path)!r} has no training pictures; there is only {list(splits)}.")
    return splits, class_names


def _names(files: Sequence[Path], root: Path) -> tuple[str, ...]:
    """Files' names for people, the same on every system; of those outside below what they share."""
    outside = [os.path.abspath(file.parent) for file in files if not file.is_relative_to(root)]
    try:
        shared = os.path.commonpath(outside) if outside else root
    except ValueError:  # of several drives
        shared = root

    def name(file: Path) -> str:
        for base in (root, Path(shared)):
            if file.is_relative_to(base):
                return shown([file.relative_to(base).as_posix()])
        return shown([file.name])

    return tuple(map(name, files))


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers in their order, before names."""
    number = name.isdecimal() and name.isascii() and len(name) < 10
    return not number, int(name) if number else 0, name


# -------------------------------------------------------------------- to be predicted or perturbed


def read_images(
    path: Path,
    image_shape: tuple[int, ...],
    class_names: Sequence[str],
    *,
    resize: str | None = None,
    unreadable: str = "refuse",
) -> Images:
    """Reads a folder of pictures, a picture, or an `.npz` with `images` and maybe `labels`.

    Args:
      path: of the folder, with a subfolder for each class where there are labels, of the picture,
        or of the `.npz`.
      image_shape: `(H, W, C)` that they are for.
      class_names: of the classes that labels count, and the names of the subfolders.
      resize: `crop` or `pad` to bring pictures to that shape; None to refuse other shapes.
      unreadable: `refuse`, or `skip` pictures that cannot be read; both name them.

    Returns:
      The `Images`.

    Raises:
      UserError: there are no such images, one cannot be read or has another shape, a subfolder is
        no class while another is, or the labels do not fit.
    """
    if path.is_dir():
        files, left_out = find(path)
        if left_out:
            note(f"{path}: {len(left_out)} files are left out: {shown(left_out)}.")
        if not files:
            raise UserError(f"There is no image in {str(path)!r}; known are {', '.join(FORMATS)}.")
        found = _read_files(path, files, image_shape, class_names, resize, unreadable)
    elif path.suffix.lower() == ".npz" and path.is_file():
        arrays = read_npz(path, image_shape if resize is None else None)
        if "images" not in arrays:
            raise UserError(f"{path} is not an .npz with an array `images`.")
        labels = arrays.get("labels")
        if labels is not None and "class_names" in arrays:
            names = names_of(path, arrays["class_names"])
            labels = labels_by_name(path, labels, names, class_names)
        found = Images(validate_images(arrays["images"]), labels, None)
        if resize is not None:
            found = found._replace(images=fitted(found.images, image_shape, resize))
    elif path.suffix.lower() in FORMATS and path.is_file():
        found = _read_files(path.parent, [path], image_shape, (), resize, unreadable)
    else:
        raise UserError(
            f"{str(path)!r} is neither a folder of images nor an .npz file nor a picture."
        )
    if found.images.shape[1:] != tuple(image_shape):
        raise UserError(
            f"The images in {str(path)!r} have the shape {found.images.shape[1:]}, and "
            f"{tuple(image_shape)} is needed. Resize them, or train on images of this size."
        )
    if found.labels is not None:
        labels = np.asarray(found.labels)
        right = labels.shape == (len(found.images),) and np.issubdtype(labels.dtype, np.integer)
        if not right or labels.min() < 0 or labels.max() >= len(class_names):
            raise UserError(
                f"The labels in {str(path)!r} must be one integer from 0 to {len(class_names) - 1} "
                f"for each of the {len(found.images)} images."
            )
        found = found._replace(labels=labels.astype(np.int32))
    return found


def _read_files(
    root: Path,
    files: list[Path],
    image_shape: tuple[int, ...],
    class_names: Sequence[str],
    resize: str | None,
    unreadable: str,
) -> Images:
    height, width, channels = image_shape
    size = None if resize is None else (height, width)
    images, kept = read_pictures(files, size, resize or "crop", unreadable, channels)
    names = [files[i].relative_to(root) for i in kept]
    return Images(images, _labels(root, names, class_names), names)


def _labels(root: Path, names: Iterable[Path], class_names: Sequence[str]) -> np.ndarray | None:
    """Labels by the first folder of each name; None where no folder is a class."""
    folders = [composed(name.parts[0]) if len(name.parts) > 1 else "" for name in names]
    place = {composed(name): i for i, name in enumerate(class_names)}
    if not any(folder in place for folder in folders):
        return None
    wrong = [folder for folder in folders if folder not in place]
    if wrong:
        raise UserError(
            f"The subfolder {wrong[0]!r} of {str(root)!r} is no class; the classes are "
            f"{shown(list(class_names), 20)}."
        )
    return np.array([place[folder] for folder in folders])
