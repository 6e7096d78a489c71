"""Perturbed copies of images, by the flow of a finished run."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genreg_jax.checks import path_of
from genreg_jax.data.files import Images, read_images
from genreg_jax.errors import UserError
from genreg_jax.logs import check_new_folder
from genreg_jax.regularizers.latent import perturbation
from genreg_jax.report.images import save_png
from genreg_jax.restore import restore_classifier, restore_flow

# Radii per dimension; those of the first two are about the authors' on CIFAR-10.
EPSILON = {"random": 0.3, "away": 0.15, "adversarial": 0.1, "interpolation": 0.5}
_BATCH = 256


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
    difference: bool = False,
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
      difference: add to an image what the perturbation changes in what the flow decodes, instead of
        taking that itself; the image keeps its detail.
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
    output, flow = path_of(output), path_of(flow)
    check_new_folder(output)
    if kind not in EPSILON:
        raise UserError(f"kind must be one of {', '.join(EPSILON)}, got {kind!r}.")
    if copies < 1:
        raise UserError(f"copies must be at least 1, got {copies}.")
    trained = restore_flow(flow)
    frozen, class_names = trained.freeze(), trained.class_names
    given = read_images(path_of(images), frozen.image_shape, class_names)
    if given.labels is None and (frozen.num_classes is not None or kind == "interpolation"):
        why = "interpolation" if frozen.num_classes is None else "a flow conditioned on classes"
        raise UserError(
            f"{str(images)!r} has no labels, which {why} needs: put the images into one subfolder "
            f"for each class ({', '.join(class_names)}), or `labels` into the .npz."
        )
    targets = _targets(given, copies)
    epsilon = EPSILON[kind] if epsilon is None else epsilon
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
            difference=difference,
        )
        make_loss = _classifier_loss(flow) if kind == "adversarial" else None
        labels = np.zeros(len(given.images), np.int32) if given.labels is None else given.labels

        @jax.jit
        def run(key, frozen, x, y):
            x = x.astype(np.float32) / 255
            moved = perturb(key, frozen, make_loss and make_loss(x), x, y, None)
            return jnp.round(255 * moved).astype(np.uint8)

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


def _classifier_loss(workdir: Path) -> Callable[[Any], Callable]:
    """`x -> loss_fn`: cross-entropy to the predictions on `x` of the run's best classifier."""
    try:
        logits = restore_classifier(workdir).logits
    except UserError as error:
        raise UserError(
            f"An adversarial perturbation is adversarial to a classifier. {error} Or use "
            "--kind=random, which needs none."
        ) from None

    def make_loss(x):
        labels = jnp.argmax(logits(x), -1)
        return lambda images: optax.losses.softmax_cross_entropy_with_integer_labels(
            logits(images), labels
        )

    return make_loss


def _targets(given: Images, copies: int) -> list[Path]:
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
    output: Path, given: Images, images: np.ndarray, copies: int, targets: Sequence[Path]
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if given.names is None:
        arrays: dict[str, Any] = {"images": images}
        if given.labels is not None:
            arrays["labels"] = np.tile(given.labels, copies)
        np.savez_compressed(output / "images.npz", **arrays)
        return
    for target, image in zip(targets, images, strict=True):
        save_png(output / target, image)
