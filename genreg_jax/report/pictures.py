"""The pictures that a run leaves in `samples/`, each with the caption that the report shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genreg_jax.contract import Augment, Model, to_float
from genreg_jax.data import Dataset, Split
from genreg_jax.flows import Flow
from genreg_jax.report.fonts import picture_names
from genreg_jax.report.images import captioned, grid, save_png
from genreg_jax.samples import Samples

_COLUMNS = 8
_MOST_CLASSES = 10
_SOURCES = {
    "prior": "Generated from uniformly drawn latents.",
    "renoised": "Generated from latents of training images, partly replaced by noise.",
    "interpolated": "Generated from latents of training images, moved towards others of the class.",
}
# What to look for.
_REAL = " Look for wrong labels, and for what matters that is cut off or too small to be seen."
_GENERATED = (
    " Look for samples of another class than their row's, for rows of nearly one picture, and for "
    "copies of the training images."
)
_FOUND = (
    " Look for what the finder changes: a row that has become one picture has collapsed, one that "
    "is the same as before shows that it does nothing."
)
_VIEWS = (
    " Look whether both still show their class; where one does not, its augmentation is strong."
)
_PERTURBED = (
    " Look whether the perturbed image still shows its class: if not, the perturbation is too "
    "large; if the prediction never changes, it may be too small."
)
_TEMPERATURES = (0.5, 0.7, 1.0)  # of a flow's samples


def write_samples(
    key: jax.Array,
    workdir: Path,
    dataset: Dataset,
    *,
    samples: Samples | None = None,
    source: str = "prior",
    views: tuple[Augment, Augment] | None = None,
) -> None:
    """Writes real images and, where there is a generator, what it makes; one class a row.

    Args:
      key: of the views.
      workdir: of the run; the pictures go to its `samples`.
      dataset: whose training images are shown, where each class has enough of them.
      samples: of the run's generator.
      source: of their latents, for the caption.
      views: the weak and the strong augmentation, to show pairs of views of the samples.

    Example:
      >>> import tempfile
      >>> import genreg_jax as gr
      >>> workdir = Path(tempfile.mkdtemp())
      >>> write_samples(jax.random.key(0), workdir, gr.data.load("digits", per_class=8))
      >>> [path.name for path in (workdir / "samples").iterdir()]
      ['1_real.png']
    """
    classes = min(dataset.num_classes, _MOST_CLASSES)
    names, also = picture_names(dataset.class_names[:classes])
    save = partial(_save, workdir)

    def rows_of(labels):
        return [np.flatnonzero(labels == c)[:_COLUMNS] for c in range(classes)]

    real = rows_of(dataset.train.labels)
    if min(len(rows) for rows in real) == _COLUMNS:
        images = dataset.train.images[np.concatenate(real)] / 255.0
        caption = f"Real training images, one class a row.{also}{_REAL}"
        save("1_real", images, caption, row_labels=names)
    if samples is None:
        return
    rows = np.concatenate(rows_of(samples.labels))
    caption = f"{_SOURCES[source]}{also}{_GENERATED}"
    save("2_generated", samples.drawn[rows] / 255.0, caption, row_labels=names)
    if samples.found is not None:
        caption = (
            f"Generated from the latents that the finder makes of the same ones.{also}{_FOUND}"
        )
        save("3_found", samples.found[rows] / 255.0, caption, row_labels=names)
    if views is not None:
        images = jnp.asarray(samples.used[rows[: 2 * _COLUMNS]] / np.float32(255))
        pairs = zip(jax.random.split(key), views)
        weak, strong = (jax.jit(view)(key, images) for key, view in pairs)
        pairs = np.stack([weak, strong], axis=1).reshape(-1, *images.shape[1:])
        save("4_views", pairs, f"The two views of synthetic samples, side by side.{_VIEWS}")


def write_perturbed(
    key: jax.Array,
    workdir: Path,
    dataset: Dataset,
    model: Model,
    params: Any,
    model_state: Any,
    perturb: Callable[..., jax.Array],
    *,
    kind: str,
    flow: Any = None,
    predicted_labels: bool = False,
) -> None:
    """Writes a picture of originals, decoded, perturbed, and the difference, with predictions.

    Args:
      key: of the perturbation.
      workdir: of the run; the picture goes to its `samples`.
      dataset: whose training images are perturbed, one of each class.
      model: the classifier.
      params: its parameters.
      model_state: its state.
      perturb: `(key, flow, loss_fn, x, labels, z) -> images`, on every image; see
        `genreg_jax.regularizers.latent.perturbation`.
      kind: what the caption calls the perturbation.
      flow: frozen, or None for a perturbation of pixels.
      predicted_labels: the loss is that of the classifier's own labels and not of the true ones.
    """
    classes = np.unique(dataset.train.labels)[:_MOST_CLASSES]
    rows = np.array([np.flatnonzero(dataset.train.labels == c)[0] for c in classes])
    x, y = (
        to_float(jnp.asarray(dataset.train.images[rows])),
        jnp.asarray(dataset.train.labels[rows]),
    )

    @jax.jit
    def make(key, params, model_state, flow, x, y):  # whose programs other seeds share
        logits = lambda x: model.apply(params, model_state, x, rng=None, train=False)[0].logits
        target = jnp.argmax(logits(x), -1) if predicted_labels else y
        loss_fn = lambda x: optax.losses.softmax_cross_entropy_with_integer_labels(
            logits(x), target
        )
        decoded = x
        if flow is not None:
            labels = None if flow.num_classes is None else y
            decoded = jnp.clip(flow.decode(flow.encode(x, labels), labels), 0, 1)
        views = (x, decoded, perturb(key, flow, loss_fn, x, y, None))
        return views, [jax.nn.softmax(logits(view).astype(jnp.float32)) for view in views]

    views, chances = jax.device_get(make(key, params, model_state, flow, x, y))
    change = views[2] - views[0]
    largest = max(float(np.abs(change).max()), 1e-6)
    names, _ = picture_names(dataset.class_names)
    _, also = picture_names(dataset.class_names[: len(classes)])
    captions = [[f"{p.max():.0%} {names[p.argmax()]}" for p in c] for c in chances]
    captions.append([f"{np.sqrt(np.sum(d**2)):.2f}" for d in change])
    pictures = np.stack([*views, 0.5 + 0.5 * change / largest], axis=1)
    texts = [text for row in zip(*captions) for text in row]
    picture = grid(
        captioned(pictures.reshape(-1, *x.shape[1:]), texts),
        columns=4,
        scale=1,
        pad=4,
        row_labels=[names[c] for c in classes],
    )
    save_png(
        workdir / "samples" / "5_perturbed.png",
        picture,
        caption=f"From left to right: training image, decoded without perturbation, perturbed "
        f"({kind}), and the difference, grey for none and full range "
        f"{largest:.2f}. Below: what the classifier takes it for and how surely; below the "
        f"difference: its length.{also}{_PERTURBED}",
    )


def write_flow_samples(
    key: jax.Array, workdir: Path, flow: Flow, params: Any, dataset: Dataset, unseen: Split
) -> None:
    """Writes real images, samples, reconstructions and interpolations of a flow, one class a row.

    Args:
      key: of the samples.
      workdir: of the run; the pictures go to its `samples`.
      flow: the flow.
      params: its parameters.
      dataset: whose training images are shown as real ones.
      unseen: images that the flow was not trained on, to reconstruct and to interpolate.
    """
    classes = min(dataset.num_classes, _MOST_CLASSES)
    names, also = picture_names(dataset.class_names[:classes])
    conditional = flow.num_classes is not None
    labels = names if conditional else None
    y = jnp.repeat(jnp.arange(classes), _COLUMNS) if conditional else None
    y_row = None if y is None else y[::_COLUMNS]
    save = partial(_save, workdir)

    def pick(split: Split, count: int) -> np.ndarray:
        """Rows of `count` images of each class."""
        rows = [np.resize(np.flatnonzero(split.labels == c), count) for c in range(classes)]
        return np.concatenate(rows)

    real = dataset.train.images[pick(dataset.train, _COLUMNS)] / np.float32(255)
    save("1_real", real, f"Real training images, one class a row.{also}{_REAL}", row_labels=names)
    of_class = ", one class a row" if conditional else ""
    for temperature in _TEMPERATURES:
        # The same draws at every temperature.
        images = flow.sample(params, key, classes * _COLUMNS, y, temperature=temperature)
        caption = (
            f"Samples at temperature {temperature}{of_class}.{also if conditional else ''} Look "
            "for what real images do not have; lower temperatures are cleaner and less varied."
        )
        save(f"2_temperature_{temperature}_samples", images, caption, row_labels=labels)

    x = jnp.asarray(unseen.images[pick(unseen, 1)] / np.float32(255))
    z, _ = flow.encode(params, x, y_row)
    again, _ = flow.decode(params, z, y_row)
    errors = jnp.abs(again - x)
    largest = float(errors.max())
    save(
        "3_reconstructions",
        jnp.concatenate([x, again, errors / max(largest, 1e-12)]),
        f"Images that the flow has not seen, their reconstructions, and the errors; white is the "
        f"largest, {largest:.1e}. Look for the size of the errors alone: far above 1e-3 the flow "
        "can hardly be inverted.",
        columns=classes,
        row_labels=["images", "reconstructions", "errors"],
    )
    rows = pick(unseen, 2).reshape(classes, 2)
    x0, x1 = (jnp.asarray(unseen.images[rows[:, i]] / np.float32(255)) for i in (0, 1))
    path = flow.interpolate(params, x0, x1, y_row, num=_COLUMNS)
    save(
        "4_interpolations",
        jnp.swapaxes(path, 0, 1).reshape(-1, *flow.image_shape),
        "Interpolations in latent space; the first and the last image of a row are real."
        f"{also} Look for images between them that could be real.",
        row_labels=names,
    )


def _save(
    workdir: Path,
    name: str,
    images: Any,
    caption: str,
    *,
    columns: int = _COLUMNS,
    row_labels: list[str] | None = None,
) -> None:
    """One grid of images as `samples/NAME.png`."""
    picture = grid(np.clip(np.asarray(images), 0, 1), columns=columns, row_labels=row_labels)
    save_png(workdir / "samples" / f"{name}.png", picture, caption=caption)
