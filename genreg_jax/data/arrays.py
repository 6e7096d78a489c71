"""Datasets made of arrays of one's own, and what is checked of these."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from genreg_jax.checks import check_no_mask
from genreg_jax.data import subsets
from genreg_jax.data.dataset import Dataset, Split, hold_out, make_dataset
from genreg_jax.data.stored import Stored
from genreg_jax.errors import UserError

_MOST_CLASSES = 100_000


def from_arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    *,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    per_class: int = 0,
    fraction: float = 1.0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Make a `Dataset` of arrays in memory, drawing subsets as `load` does.

    Args:
      train_images: [N, H, W, C], uint8 or float in [0, 1]; floats are rounded to uint8. Or
        `Stored` images, which are read as they are needed.
      train_labels: integers [N] in [0, number of classes).
      test_images: [M, H, W, C], as `train_images`; None to hold some of those out, which is said.
      test_labels: integers [M].
      name: the name of the dataset.
      class_names: one name a class; by default the classes are numbered up to the largest label.
      per_class: labelled training images of every class; 0 for all.
      fraction: labelled share of the training images left after validation, in (0, 1].
      validation_fraction: share of every class of the training images, in [0, 1).
      test_fraction: share of every class that is held out where there are no test images, in
        (0, 1); the same images for every seed.
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
    """
    subsets.check_subset_arguments(per_class, fraction, validation_fraction, seed)
    train = as_split(train_images, train_labels, "train")
    if test_images is None and test_labels is None:
        train, test = hold_out(train, test_fraction)
    else:
        test = as_split(test_images, test_labels, "test")
    if class_names is None:
        num_classes = 1 + max(int(split.labels.max(initial=-1)) for split in (train, test))
        if num_classes > _MOST_CLASSES:
            raise UserError(
                f"The largest label is {num_classes - 1}; labels are class indices from 0, at most "
                f"{_MOST_CLASSES - 1} where class_names is not given. Number the classes that "
                "there are: np.unique(labels, return_inverse=True)."
            )
        class_names = [str(c) for c in range(num_classes)]
    return make_dataset(
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
    """
    check_no_mask(images, name)
    try:
        images = np.asarray(images)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} cannot be made into one array, most likely because its images differ in "
            "size; resize them to one size first."
        ) from error
    if images.ndim != 4 or images.size == 0:
        raise UserError(
            f"{name} has the shape {images.shape}; it must be [N, H, W, C] with nothing empty. "
            "Grey images need a last axis of size 1: images[..., None]."
        )
    _, height, width, channels = images.shape
    if height in (1, 3) and channels > 4 and width > 4:
        raise UserError(
            f"{name} has the shape {images.shape}, which is [N, C, H, W]; it must be [N, H, W, C]: "
            "images.transpose(0, 2, 3, 1)."
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
            f"{name} is floating point with values from {low:.9g} to {high:.9g}; they must lie in "
            "[0, 1]. Undo any standardisation, or divide by 255, or give uint8."
        )
    return np.rint(images * images.dtype.type(255)).astype(np.uint8)


def as_split(images: Any, labels: Any, name: str) -> Split:
    """A checked split: uint8 images and int32 labels.

    Args:
      images: as `validate_images` takes them, or `Stored`.
      labels: integers [N].
      name: what the split is called in an error, as in `train_images`.

    Returns:
      A `Split`.

    Raises:
      UserError: if an array has the wrong rank, type or range.

    Example:
      >>> as_split(np.zeros((2, 8, 8, 1), np.uint8), [0, 1], "train").labels.dtype
      dtype('int32')
    """
    if not isinstance(images, Stored):
        images = validate_images(images, name=f"{name}_images")
    return Split(images, _as_labels(labels, f"{name}_labels"))


def _as_labels(labels: Any, name: str) -> np.ndarray:
    check_no_mask(labels, name)
    try:
        labels = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be made into one array: {error}.") from error
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name} has the shape {labels.shape} and the type {labels.dtype}; it must be one "
            "integer class index an image, [N]. One-hot labels: labels.argmax(-1)."
        )
    narrow = labels.astype(np.int32)
    if np.any(narrow != labels):
        raise UserError(
            f"{name} has the label {labels[narrow != labels][0]}; labels are class indices, 0 for "
            "the first class."
        )
    return narrow
