"""Perturbed copies of images of your own, by the flow of a finished run.

    python -m genreg_jax.augment --flow=WORKDIR --input=IMAGES --output=DIR --kind=random

`IMAGES` is a folder, with a subfolder for each class where labels are needed (by a flow conditioned
on them, which is the default, and by interpolation), or an `.npz` with `images` [N, H, W, C] and
`labels` [N]. Images of a folder come back as PNGs under the same names, those of an `.npz` as
`images.npz` with `images` and, if there were any, `labels`.
"""

import argparse
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genreg_jax.errors import UserError

# Radii per dimension; those of the first two are about the authors' on CIFAR-10.
_EPSILON = {"random": 0.3, "away": 0.15, "adversarial": 0.1, "interpolation": 0.5}
_BATCH = 256
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class _Images(NamedTuple):
    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int32 [N], places in the flow's class names
    names: list[Path] | None  # of the files, relative; None for an .npz


def augment(
    flow: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    kind: str = "random",
    epsilon: float | None = None,
    norm: str = "l2",
    ratio: float = 1.0,
    clip: float | None = None,
    step_size: float | None = None,
    num_steps: int = 3,
    copies: int = 1,
    seed: int = 0,
) -> int:
    """Writes perturbed copies of images; what the command line calls.

    Args:
      flow: workdir of a finished run that trained a flow.
      images: folder, or `.npz` file.
      output: new or empty folder.
      kind: `random`, `away`, `interpolation`, or `adversarial` to the classifier of that run.
      epsilon: radius per dimension: l2 radii are this times `sqrt(H W C)`; for `away` the standard
        deviation; for `interpolation` the largest share of the way. None for a usual one.
      norm: of the ball, `l2` or `linf`.
      ratio: probability of an image to be perturbed at all.
      clip: largest change of a pixel, or None.
      step_size: of `adversarial`, per dimension; None for half of `epsilon`.
      num_steps: of `adversarial`.
      copies: of each image.
      seed: of all draws.

    Returns:
      How many images were written.

    Raises:
      UserError: there is no trained flow, the images are not those it is for, labels are missing,
        an argument is out of range, two images would get the same name, or the output folder is
        not empty; nothing has been written. Or the output cannot be written.
    """
    import jax

    from genreg_jax.generator import restore_flow
    from genreg_jax.regularizers.latent import perturbation

    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"The output {str(output)!r} exists and is not an empty folder.")
    if kind not in _EPSILON:
        raise UserError(f"kind must be one of {', '.join(_EPSILON)}, got {kind!r}.")
    if copies < 1:
        raise UserError(f"copies must be at least 1, got {copies}.")
    frozen, class_names = restore_flow(flow)
    given = _read(Path(images), frozen.image_shape, class_names)
    if given.labels is None and (frozen.num_classes is not None or kind == "interpolation"):
        why = "interpolation" if frozen.num_classes is None else "a flow conditioned on classes"
        raise UserError(
            f"{str(images)!r} has no labels, which {why} needs: put the images into one subfolder "
            f"for each class ({', '.join(class_names)}), or `labels` into the .npz."
        )
    targets = _targets(given, copies)
    epsilon = _EPSILON[kind] if epsilon is None else epsilon
    try:
        perturb = perturbation(
            kind,
            epsilon=epsilon,
            norm="none" if kind == "away" else norm,
            relative=True,
            step_size=epsilon / 2 if step_size is None else step_size,
            num_steps=num_steps,
            ratio=ratio,
            clip=clip,
        )
        make_loss = _classifier_loss(Path(flow), class_names) if kind == "adversarial" else None
        labels = np.zeros(len(given.images), np.int32) if given.labels is None else given.labels

        @jax.jit
        def run(key, frozen, x, y):
            x = x.astype(np.float32) / 255
            moved = perturb(key, frozen, make_loss and make_loss(x), x, y, None)
            return jax.numpy.round(255 * moved).astype(np.uint8)

        parts = []
        for copy in range(copies):
            for start in range(0, len(labels), _BATCH):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), copy), start)
                rows = slice(start, start + _BATCH)
                parts.append(np.asarray(run(key, frozen, given.images[rows], labels[rows])))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"These images cannot be perturbed: {error}") from None
    try:
        _write(output, given, np.concatenate(parts), copies, targets)
    except OSError as error:
        raise UserError(f"{str(output)!r} could not be written ({error}). Make room.") from error
    return sum(map(len, parts))


def _read(path: Path, image_shape: tuple[int, ...], class_names: Sequence[str]) -> _Images:
    from genreg_jax.data import validate_images

    if path.is_dir():
        found = _read_folder(path, image_shape, class_names)
    elif path.suffix == ".npz" and path.is_file():
        try:
            with np.load(path) as arrays:
                images = validate_images(arrays["images"])
                labels = arrays["labels"] if "labels" in arrays else None
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not an .npz with an array `images`: {error}.") from None
        found = _Images(images, labels, None)
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


def _read_folder(path: Path, image_shape: tuple[int, ...], class_names: Sequence[str]) -> _Images:
    from PIL import Image, UnidentifiedImageError

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"There is no image in {str(path)!r}; known are {', '.join(_SUFFIXES)}.")
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
    return _Images(np.stack(images), labels, names)


def _classifier_loss(workdir: Path, class_names: Sequence[str]) -> Callable[[Any], Callable]:
    """`x -> loss_fn`: cross-entropy to the predictions on `x` of the run's best classifier."""
    import jax.numpy as jnp
    import optax

    from genreg_jax.train import restore_classifier

    logits = restore_classifier(workdir, len(class_names))
    if logits is None:
        raise UserError(
            f"{str(workdir)!r} holds no trained classifier, which an adversarial perturbation is "
            "adversarial to; use --kind=random, or the workdir of a finished run."
        )

    def make_loss(x):
        labels = jnp.argmax(logits(x), -1)
        return lambda images: optax.losses.softmax_cross_entropy_with_integer_labels(
            logits(images), labels
        )

    return make_loss


def _targets(given: _Images, copies: int) -> list[Path]:
    """Relative paths of the PNGs to write, in order; none for an .npz."""
    endings = [f"_{i}" if copies > 1 else "" for i in range(copies)]
    names = given.names or []
    targets = [name.parent / f"{name.stem}{ending}.png" for ending in endings for name in names]
    double = [target for target, count in Counter(targets).items() if count > 1]
    if double:
        raise UserError(
            f"More than one image would be written as {str(double[0])!r}; give the files names "
            "that differ in more than their suffix."
        )
    return targets


def _write(
    output: Path, given: _Images, images: np.ndarray, copies: int, targets: Sequence[Path]
) -> None:
    from genreg_jax.report.images import save_png

    output.mkdir(parents=True, exist_ok=True)
    if given.names is None:
        arrays: dict[str, Any] = {"images": images}
        if given.labels is not None:
            arrays["labels"] = np.tile(given.labels, copies)
        np.savez_compressed(output / "images.npz", **arrays)
        return
    for target, image in zip(targets, images, strict=True):
        save_png(output / target, image)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(
        prog="python -m genreg_jax.augment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--flow", required=True, help="workdir of a finished run")
    parser.add_argument("--input", required=True, help="folder of images, or .npz")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument("--kind", default="random", choices=_EPSILON)
    parser.add_argument("--epsilon", type=float, help="radius per dimension")
    parser.add_argument("--norm", default="l2", choices=("l2", "linf"))
    parser.add_argument("--ratio", type=float, default=1.0, help="share of images perturbed")
    parser.add_argument("--clip", type=float, help="largest change of a pixel")
    parser.add_argument("--step_size", type=float, help="of adversarial, per dimension")
    parser.add_argument("--num_steps", type=int, default=3, help="of adversarial")
    parser.add_argument("--copies", type=int, default=1, help="of each image")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    flow, images, output = (options.pop(name) for name in ("flow", "input", "output"))
    try:
        count = augment(flow, images, output, **options)
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"{count} images in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
