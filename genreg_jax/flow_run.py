"""A run that trains a flow and no classifier: `config.model.name = "none"`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax.data import Dataset, Split
from genreg_jax.flows import Flow
from genreg_jax.flows.measure import evaluate_flow, print_result, test_key
from genreg_jax.generator import trained_flow
from genreg_jax.images import grid, save_png
from genreg_jax.logs import provenance, write_json
from genreg_jax.objective import Augment
from genreg_jax.report import write_report
from genreg_jax.settings import Settings, config_hash, to_dict

_TEMPERATURES = (0.5, 0.7, 1.0)
_COLUMNS = 8


def train_flow(
    settings: Settings,
    dataset: Dataset,
    workdir: Path,
    *,
    augment: Augment,
    command: str | None = None,
) -> dict[str, Any]:
    """Trains the flow of `config.flow` on the training images, and reads the test set once.

    Args:
      settings: of the run.
      dataset: the flow learns from `train`; `validation` chooses its parameters.
      workdir: of the run.
      augment: of the training images.
      command: what to type to get this run again, shown in the report.

    Returns:
      The summary, also written to `workdir/summary.json`: `test_bits_per_dim`,
      `validation_bits_per_dim`, `train_bits_per_dim` (of as many training images as there are test
      images), `reconstruction_error_max` and `reconstruction_error_median` over the test set,
      `seconds`, `compile_seconds`, `images_per_second` and more.
    """
    note: Callable[[str], None] = print if settings.train.progress else (lambda text: None)
    note(
        f"{settings.name} on {dataset.name}: {len(dataset.train)} training, "
        f"{len(dataset.validation)} validation and {len(dataset.test)} test images of shape "
        f"{dataset.image_shape}"
    )
    flow, params, trained = trained_flow(settings, dataset, workdir, augment=augment, note=note)
    key = test_key(settings.seed)

    def measure(split: Split, limit: int | None = None) -> dict[str, float]:
        labels = split.labels[:limit] if settings.flow.conditional else None
        return evaluate_flow(flow, params, split.images[:limit], labels, key=key)

    train = measure(dataset.train, len(dataset.test))
    validation = measure(dataset.validation) if len(dataset.validation) else None
    test = measure(dataset.test) if settings.train.evaluate_test else None
    if test is not None and settings.train.progress:
        print_result(len(dataset.test), test)
    shown = next(
        split
        for split, read in ((dataset.test, test), (dataset.validation, validation))
        + ((dataset.train, train),)
        if read is not None
    )
    _write_samples(workdir, flow, params, dataset, shown, jax.random.fold_in(key, 1))
    summary = {
        "name": settings.name,
        "dataset": dataset.name,
        "test_bits_per_dim": test and test["bits_per_dim"],
        "test_bits_per_dim_error": test and test["bits_per_dim_error"],
        "validation_bits_per_dim": validation and validation["bits_per_dim"],
        "train_bits_per_dim": train["bits_per_dim"],
        **{k: v for k, v in (test or {}).items() if "reconstruction" in k},
        "best_step": trained["best_update"],
        "steps": trained["updates"],
        "train_examples": len(dataset.train),
        "validation_examples": len(dataset.validation),
        "test_examples": len(dataset.test),
        "seconds": trained["seconds"],
        "compile_seconds": trained["compile_seconds"],
        "images_per_second": trained["images_per_second"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "seed": settings.seed,
        "subset_hash": dataset.subset_hash,
        "config_hash": config_hash(settings),
        **provenance(),
    }
    write_report(
        workdir,
        title=f"{settings.name} on {dataset.name}",
        summary=summary,
        config=to_dict(settings),
        defaults=to_dict(Settings()),
        command=command,
    )
    write_json(workdir / "summary.json", summary)  # last: its presence means that all is done
    return summary


def _write_samples(
    workdir: Path, flow: Flow, params: Any, dataset: Dataset, shown: Split, key: jax.Array
) -> None:
    """Pictures: real images, samples, reconstructions and interpolations, one class a row."""
    classes = min(dataset.num_classes, 10)
    names = list(dataset.class_names[:classes])
    conditional = flow.num_classes is not None
    labels = names if conditional else None
    y = jnp.repeat(jnp.arange(classes), _COLUMNS) if conditional else None
    folder = workdir / "samples"

    def save(name: str, images: Any, caption: str, columns: int = _COLUMNS, **options: Any) -> None:
        picture = grid(np.clip(np.asarray(images), 0, 1), columns=columns, **options)
        save_png(folder / f"{name}.png", picture, caption=caption)

    def pick(split: Split, count: int) -> np.ndarray:
        """Rows of `count` images of each class."""
        rows = [np.resize(np.flatnonzero(split.labels == c), count) for c in range(classes)]
        return np.concatenate(rows)

    real = dataset.train.images[pick(dataset.train, _COLUMNS)] / np.float32(255)
    save("1_real", real, "Real training images, one class a row.", row_labels=names)
    of_class = ", one class a row" if conditional else ""
    for temperature in _TEMPERATURES:
        # The same draws at every temperature.
        images = flow.sample(params, key, classes * _COLUMNS, y, temperature=temperature)
        caption = f"Samples at temperature {temperature}{of_class}."
        save(f"2_temperature_{temperature}_samples", images, caption, row_labels=labels)

    rows = pick(shown, 1)
    x = jnp.asarray(shown.images[rows] / np.float32(255))
    z, _ = flow.encode(params, x, None if y is None else y[::_COLUMNS])
    again, _ = flow.decode(params, z, None if y is None else y[::_COLUMNS])
    errors = jnp.abs(again - x)
    largest = float(errors.max())
    pictures = jnp.concatenate([x, again, errors / max(largest, 1e-12)])
    save(
        "3_reconstructions",
        pictures,
        f"Images that the flow has not seen, their reconstructions, and the errors; white is the "
        f"largest, {largest:.1e}.",
        columns=classes,
        row_labels=["images", "reconstructions", "errors"],
    )
    rows = pick(shown, 2).reshape(classes, 2)
    x0, x1 = (jnp.asarray(shown.images[rows[:, i]] / np.float32(255)) for i in (0, 1))
    path = flow.interpolate(params, x0, x1, None if y is None else y[::_COLUMNS], num=_COLUMNS)
    save(
        "4_interpolations",
        jnp.swapaxes(path, 0, 1).reshape(-1, *flow.image_shape),
        "Interpolations in latent space; the first and the last image of a row are real.",
        row_labels=names,
    )
