"""The arrays of an `.npz`: a data set of one's own, or images that are to be predicted."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genreg_jax.data.arrays import validate_images
from genreg_jax.data.dataset import Split, composed
from genreg_jax.data.pictures import most_bytes, shown
from genreg_jax.errors import UserError


def read_npz(path: Path, image_shape: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz`, whose sizes are looked at before memory is taken.

    Args:
      path: of the file.
      image_shape: `(H, W, C)` that its `images` must have, where it is known.

    Raises:
      UserError: it cannot be read, claims more than it holds or more than fits, or holds objects,
        which would be programs.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            claimed = 0
            for member in archive.infolist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read_header = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shape, _, dtype = read_header(stream)
                size = math.prod(shape) * dtype.itemsize
                if size > member.file_size:
                    raise ValueError(f"{member.filename} claims {size:,} bytes and has fewer")
                claimed += size
                if claimed > most_bytes():
                    raise ValueError("its arrays take more than half of this machine's memory")
                wrong = image_shape is not None and tuple(shape[1:]) != tuple(image_shape)
                if member.filename == "images.npy" and wrong:
                    raise UserError(
                        f"The images in {str(path)!r} have the shape {tuple(shape[1:])}, and "
                        f"{tuple(image_shape or ())} is needed. Resize them, or train on images of "
                        "this size."
                    )
            for name in file.files:
                arrays[name] = file[name]
    except UserError:
        raise
    except Exception as error:
        text = str(error).split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path} is not an .npz of arrays that can be read: {text}.") from None
    return arrays


def read_splits(path: Path) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits of a data set, by `train`, `validation` and `test`, and its class names.

    Raises:
      UserError: an array is missing or of another form.
    """
    arrays = read_npz(path)
    prefixes = {"train": "", "validation": "validation_", "test": "test_"}
    names = [f"{prefix}{part}" for prefix in prefixes.values() for part in ("images", "labels")]
    unknown = sorted({*arrays} - {*names, "class_names"})
    splits = {}
    for name, prefix in prefixes.items():
        images, labels = (arrays.get(f"{prefix}{part}") for part in ("images", "labels"))
        if unknown or (images is None) != (labels is None) or (images is None and name == "train"):
            raise UserError(
                f"{path} must hold images and labels, and may hold {', '.join(names[2:])}, each "
                f"images with their labels, and class_names; it has {', '.join(arrays)}."
            )
        if images is None or labels is None:
            continue
        images = validate_images(images, name=f"{prefix}images")
        if labels.ndim != 1 or len(labels) != len(images):
            raise UserError(
                f"{path} has {len(images)} {prefix}images and {prefix}labels of the shape "
                f"{labels.shape}; there must be a label, a class index, for each image."
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"The {prefix}labels in {path} are of the type {labels.dtype}; they must be class "
                "indices [N], integers from 0 to the number of classes less one. Of names: "
                "class_names, labels = np.unique(names, return_inverse=True)."
            )
        splits[name] = Split(images, labels)
    low, most = (int(f(splits["train"].labels)) for f in (np.min, np.max))
    if "class_names" in arrays:
        class_names = names_of(path, arrays["class_names"])
        if len(class_names) < 2:
            raise UserError(
                f"{path} has one class, {shown(class_names)}; a classifier needs two or more."
            )
    elif not 0 <= low <= most < 100_000:
        raise UserError(
            f"The labels in {path} are from {low} to {most}; they must be class indices [N], "
            "integers from 0 to the number of classes less one."
        )
    elif low == 1:
        raise UserError(
            f"The labels in {path} are from 1 to {most}, and class indices begin at 0: save "
            "labels - 1, or class_names with a name for class 0, too, if there is one."
        )
    else:
        class_names = tuple(str(c) for c in range(most + 1))
    return splits, class_names


def names_of(path: Path, names: np.ndarray) -> tuple[str, ...]:
    """The names of an `.npz`."""
    if names.ndim != 1:
        raise UserError(
            f"class_names in {path} has the shape {names.shape}; it must be a list with a name for "
            "each class."
        )
    found = tuple(composed(str(name)) for name in names)
    if len(set(found)) < len(found):
        raise UserError(f"class_names in {path} are {shown(found, 20)}, with a name twice.")
    return found


def labels_by_name(
    path: Path, labels: np.ndarray, names: Sequence[str], class_names: Sequence[str]
) -> np.ndarray:
    """Labels that count a file's own names, as places among others."""
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not whole or not np.isin(labels, range(len(names))).all():
        raise UserError(
            f"The labels in {str(path)!r} must be integers [N] from 0 to {len(names) - 1}, places "
            "in its class_names."
        )
    place = {composed(name): i for i, name in enumerate(class_names)}
    used = set(labels.tolist())
    unknown = [name for i, name in enumerate(names) if i in used and name not in place]
    if unknown:
        raise UserError(
            f"The class_names in {str(path)!r} have {shown(unknown)} among them, no class of the "
            f"run; its classes are {shown(list(class_names), 20)}."
        )
    return np.array([place.get(name, 0) for name in names])[labels]
