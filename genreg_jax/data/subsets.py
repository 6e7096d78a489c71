"""Stratified, nested, reproducible subsets of a labelled image set.

The same images are drawn from every copy of a dataset, whatever order that copy stores them in:
examples are first sorted by a digest of their content, then shuffled by the seed. Only NumPy's
bit generator is used, because its stream, unlike that of `Generator.permutation`, is guaranteed
not to change between NumPy versions.
"""

import hashlib

import numpy as np

from genreg_jax.checks import is_number
from genreg_jax.errors import UserError


def check_subset_arguments(
    per_class: int, fraction: float, validation_fraction: float, seed: int
) -> None:
    """Raise a `UserError` unless the four arguments describe a subset.

    Args:
      per_class: training images of every class, 0 for no such limit.
      fraction: share of the training images, in (0, 1].
      validation_fraction: share of the training split kept for validation, in [0, 1).
      seed: a non-negative integer.

    Raises:
      UserError: naming the argument, the value received and what is allowed.

    Example:
      >>> check_subset_arguments(per_class=4, fraction=1.0, validation_fraction=0.1, seed=0)

    Source: none, argument checking.
    """
    for name, value in (("per_class", per_class), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise UserError(f"{name} is {value!r}; it must be an integer of at least 0.")
        if value >= 2**31:
            raise UserError(f"{name} is {value!r}; it must be below 2**31.")
    if not is_number(fraction) or not 0 < fraction <= 1:
        raise UserError(
            f"fraction is {fraction!r}; it must lie in (0, 1], where 1.0 keeps every training "
            "image."
        )
    if not is_number(validation_fraction) or not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation_fraction is {validation_fraction!r}; it must lie in [0, 1), where 0 "
            "keeps no validation set."
        )
    if per_class and fraction != 1:
        raise UserError(
            f"per_class={per_class} and fraction={fraction} were both given, and each sets the "
            "size of the labelled subset; give one, and leave per_class at 0 or fraction at 1.0."
        )


def content_digests(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """Digest every example, image and label, so that copies in another order can be matched.

    Args:
      images: uint8 [N, H, W, C].
      labels: integers [N].

    Returns:
      N digests of 16 bytes.

    Example:
      >>> images = np.zeros((3, 2, 2, 1), np.uint8)
      >>> a, b, c = content_digests(images, np.array([0, 0, 1]))
      >>> a == b, b == c
      (True, False)

    Source: BLAKE2b, RFC 7693.
    """
    label_bytes = np.ascontiguousarray(labels, "<i4")
    return [
        hashlib.blake2b(image.tobytes() + label.tobytes(), digest_size=16).digest()
        for image, label in zip(images, label_bytes)
    ]


def random_order(digests: list[bytes], seed: int) -> np.ndarray:
    """Order the examples at random, by their content and the seed and nothing else.

    Args:
      digests: N digests, from `content_digests`.
      seed: a non-negative integer.

    Returns:
      A permutation of the N indices, int64 [N].

    Example:
      >>> digests = [b"cat", b"dog", b"emu"]
      >>> order = random_order(digests, seed=0)
      >>> reordered = random_order(digests[::-1], seed=0)
      >>> [digests[i] for i in order] == [digests[::-1][i] for i in reordered]
      True

    Source: a shuffle by sorting random 64-bit keys.
    """
    by_content = np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64)
    keys = np.random.PCG64(seed).random_raw(len(digests))
    return by_content[np.argsort(keys, kind="stable")]


def shuffle(indices: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle the examples drawn, independently of the order that they were drawn in.

    A stratified draw takes each class up to another place in the random order, which leaves the
    classes uneven at the beginning and the end of what it drew.

    Args:
      indices: [N].
      seed: a non-negative integer.

    Returns:
      The same indices in another order, [N].

    Example:
      >>> np.sort(shuffle(np.arange(5), seed=0))
      array([0, 1, 2, 3, 4])

    Source: as `random_order`, with keys from a part of the stream that it never reaches.
    """
    keys = np.random.PCG64(seed).jumped().random_raw(len(indices))
    return indices[np.argsort(keys, kind="stable")]


def stratified_first(labels: np.ndarray, total: int) -> np.ndarray:
    """Pick `total` examples in the classes' proportions, earlier ones of each class first.

    The k-th of a class's n examples gets the priority (k + 1/2) / n and the `total` smallest are
    taken. Unlike largest-remainder rounding, a larger total never takes fewer from any class, so
    the picks are nested.

    Args:
      labels: integers [N], in the order in which examples are to be preferred.
      total: how many to pick, from 0 to N.

    Returns:
      The sorted positions of the picks, int64 [total].

    Example:
      >>> stratified_first(np.array([0, 0, 0, 0, 1, 1]), 3)
      array([0, 1, 4])

    Source: the Webster / Sainte-Lague apportionment.
    """
    priority = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        priority[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Ties between classes go to the lower class: lexsort's last key is the first to count.
    return np.sort(np.lexsort((labels, priority))[:total])


def draw_subset(
    labels: np.ndarray,
    class_names: tuple[str, ...],
    *,
    per_class: int,
    fraction: float,
    validation_fraction: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the validation set, then the labelled subset from what is left.

    The validation set does not depend on the subset's size, and smaller subsets lie inside
    larger ones.

    Args:
      labels: integers [N], in the random order of `random_order`.
      class_names: the name of every class.
      per_class: training images of every class, 0 for no such limit.
      fraction: share of the images left after validation.
      validation_fraction: share of every class kept for validation, rounded, at least one image
        of every class unless it is 0.

    Returns:
      The sorted positions of the training and of the validation examples, int64.

    Raises:
      UserError: if a class has too few images.

    Example:
      >>> labels = np.array([0, 1, 0, 1, 0, 1])
      >>> draw_subset(labels, ("a", "b"), per_class=1, fraction=1.0, validation_fraction=0.4)
      (array([2, 3]), array([0, 1]))

    Source: none, stratified sampling.
    """
    validation = _draw_validation(labels, class_names, validation_fraction)
    is_rest = np.ones(len(labels), bool)
    is_rest[validation] = False
    rest = np.flatnonzero(is_rest)
    counts = np.bincount(labels[rest], minlength=len(class_names))
    if per_class:
        _check_per_class(per_class, counts, len(validation), class_names)
        picks = [rest[labels[rest] == c][:per_class] for c in range(len(class_names))]
        return np.sort(np.concatenate(picks)), validation
    if fraction == 1:
        return rest, validation
    train = rest[stratified_first(labels[rest], int(np.floor(fraction * len(rest) + 0.5)))]
    drawn = np.bincount(labels[train], minlength=len(class_names))
    if drawn.min() == 0:
        c = int(drawn.argmin())
        raise UserError(
            f"fraction={fraction} leaves no training image of class {class_names[c]!r}, which has "
            f"{counts[c]} of the {len(rest)} images that remain after {len(validation)} were kept "
            "for validation; give a larger fraction, or per_class= to draw the same number of "
            "every class."
        )
    return train, validation


def _draw_validation(
    labels: np.ndarray, class_names: tuple[str, ...], validation_fraction: float
) -> np.ndarray:
    picks = [np.zeros(0, np.int64)]
    for c, name in enumerate(class_names):
        members = np.flatnonzero(labels == c)
        if not validation_fraction or not len(members):
            continue
        size = max(1, int(np.floor(validation_fraction * len(members) + 0.5)))
        if size >= len(members):
            raise UserError(
                f"validation_fraction={validation_fraction} keeps {size} of the {len(members)} "
                f"training images of class {name!r} for validation and leaves none to train on; "
                "give a smaller validation_fraction, or 0 for no validation set."
            )
        picks.append(members[:size])
    return np.sort(np.concatenate(picks))


def _check_per_class(
    per_class: int, counts: np.ndarray, num_validation: int, class_names: tuple[str, ...]
) -> None:
    smallest = int(counts.argmin())
    if counts[smallest] < per_class:
        raise UserError(
            f"per_class={per_class}, but class {class_names[smallest]!r} has {counts[smallest]} "
            f"training images left after {num_validation} images of all classes were kept for "
            f"validation; per_class may be at most {counts[smallest]} here, or 0 for every image."
        )
