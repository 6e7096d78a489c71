"""Images and labels of one's own: a folder of pictures, or an `.npz`."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genreg_jax.data.dataset import validate_images
from genreg_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


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


def read_images(path: Path, image_shape: tuple[int, ...], class_names: Sequence[str]) -> Images:
    """Reads a folder of pictures or an `.npz` with `images` and, where there are any, `labels`.

    Args:
      path: of the folder, with a subfolder for each class where there are labels, or of the `.npz`.
      image_shape: `(H, W, C)` that a flow is for.
      class_names: of the classes that labels count, and the names of the subfolders.

    Returns:
      The `Images`.

    Raises:
      UserError: there are no such images, one cannot be read or has another shape, a subfolder is
        no class, or the labels do not fit.
    """
    if path.is_dir():
        found = read_folder(path, image_shape, class_names)
    elif path.suffix == ".npz" and path.is_file():
        try:
            with np.load(path) as arrays:
                images = validate_images(arrays["images"])
                labels = arrays["labels"] if "labels" in arrays else None
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not an .npz with an array `images`: {error}.") from None
        found = Images(images, labels, None)
    else:
        raise UserError(f"{str(path)!r} is neither a folder of images nor an .npz file.")
    if found.images.shape[1:] != tuple(image_shape):
        raise UserError(
            f"The images in {str(path)!r} have the shape {found.images.shape[1:]}, and the flow is "
            f"for {tuple(image_shape)}. Resize them, or train a flow on images of this size."
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


def read_folder(path: Path, image_shape: tuple[int, ...], class_names: Sequence[str]) -> Images:
    """Reads the pictures of a folder and its subfolders, in the order of their names.

    Args:
      path: of the folder.
      image_shape: `(H, W, C)`; with one channel the pictures are read as grey.
      class_names: names of the subfolders; without any of them there are no labels.

    Returns:
      The `Images`.

    Raises:
      UserError: there is no picture, one cannot be read or has another shape, or a subfolder is no
        class while another is.
    """
    from PIL import Image, UnidentifiedImageError

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"There is no image in {str(path)!r}; known are {', '.join(SUFFIXES)}.")
    names = [file.relative_to(path) for file in files]
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                array = np.asarray(image.convert("L" if image_shape[-1] == 1 else "RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{file} is not a picture that can be read: {error}.") from None
        array = array.reshape(*array.shape[:2], image_shape[-1])
        if array.shape != tuple(image_shape):
            raise UserError(
                f"{file} has the shape {array.shape}, and the flow is for {tuple(image_shape)}. "
                "Resize the images, or train a flow on images of this size."
            )
        images.append(array)
    folders = [name.parts[0] if len(name.parts) > 1 else "" for name in names]
    labels = None
    if all(folder in class_names for folder in folders):
        labels = np.array([list(class_names).index(folder) for folder in folders])
    elif any(folder in class_names for folder in folders):
        wrong = next(folder for folder in folders if folder not in class_names)
        raise UserError(
            f"The subfolder {wrong!r} of {str(path)!r} is no class of the flow; its classes are "
            f"{', '.join(class_names)}."
        )
    return Images(np.stack(images), labels, names)
