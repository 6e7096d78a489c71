"""What a run's generator makes: samples of its source, those of its finder, and are they copies?"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax.build import Parts
from genreg_jax.contract import Generator
from genreg_jax.data import Dataset, Stored
from genreg_jax.devices import on_one_device
from genreg_jax.memorisation import memorisation_report
from genreg_jax.regularizers.mgr import source_latents
from genreg_jax.regularizers.synthetic import latent_diagnostics
from genreg_jax.settings import Settings
from genreg_jax.state import Best

# How many samples are looked at, of how many classes at most, and decoded at once.
_TOTAL, _CLASSES, _BATCH = 512, 64, 64
# Held-out images that say how far an unseen image is from the nearest training image.
_HELD_OUT = 1000


class Samples(NamedTuple):
    """Synthetic images, as many of each class, sorted by class.

    Attributes:
      labels: int `[N]`.
      drawn: of the source, uint8 `[N, H, W, C]`.
      found: of the latents that the finder makes of the same ones, or None.
      search: `latent_diagnostics` of the finder, or None.
    """

    labels: np.ndarray
    drawn: np.ndarray
    found: np.ndarray | None = None
    search: dict[str, float] | None = None

    @property
    def used(self) -> np.ndarray:
        """The images that the classifier was trained with."""
        return self.drawn if self.found is None else self.found


def draw_samples(key: jax.Array, parts: Parts, dataset: Dataset, finder_params: Any) -> Samples:
    """Samples of a run's generator, 512 of up to 64 classes.

    Args:
      key: of the draws.
      parts: of a run with a generator.
      dataset: whose training images a source starts from.
      finder_params: of the run's finder, on one device.
    """
    generator, synthetic = parts.generator, parts.synthetic
    assert generator is not None and synthetic is not None
    classes = np.unique(dataset.train.labels)[:_CLASSES]
    each = _TOTAL // len(classes)
    labels = np.repeat(classes.astype(np.int32), each)
    if synthetic.source == "prior":
        shape = (len(labels), *generator.latent_shape)
        z = jax.jit(lambda key: synthetic.temperature * jax.random.normal(key, shape))(key)
    else:
        rows = [np.flatnonzero(dataset.train.labels == c) for c in classes]
        rows = np.concatenate([r[np.arange(each) % len(r)] for r in rows])
        data: Any = parts.train_data
        source = lambda key, encodings, rows, y: source_latents(
            key, synthetic, encodings[rows], y, len(y)
        )
        z, _ = jax.jit(source)(key, on_one_device(data.encodings), rows, labels)
    generator = generator._replace(params=on_one_device(generator.params))
    if parts.meta is None:
        return Samples(labels, decode_all(generator, z, labels))
    found = jax.jit(parts.find)(finder_params, z, labels)
    search = jax.jit(latent_diagnostics)(z, found, labels)
    search = {name: float(value) for name, value in search.items()}
    drawn, moved = (decode_all(generator, latents, labels) for latents in (z, found))
    return Samples(labels, drawn, moved, search)


def decode_all(generator: Generator, z: Any, y: Any) -> np.ndarray:
    """What a generator makes of latents `[N, ...]` and labels `[N]`, uint8 `[N, H, W, C]`."""
    z, y, images = np.asarray(z), np.asarray(y), []
    for first in range(0, len(y), _BATCH):
        # The last batch repeats the last row, so that one program serves all of them.
        rows = np.minimum(np.arange(first, first + _BATCH), len(y) - 1)
        out = _decode(generator.apply, generator.params, z[rows], y[rows])
        images.append(np.asarray(out)[: len(y) - first])
    return np.concatenate(images)


@functools.partial(jax.jit, static_argnums=0)
def _decode(apply, params, z, y):
    return jnp.round(255 * jnp.clip(apply(params, z, y), 0, 1)).astype(jnp.uint8)


def about_samples(
    samples: Samples, parts: Parts, best: Best, dataset: Dataset, settings: Settings
) -> dict[str, float] | None:
    """`compare` for a run's samples, which its best classifier predicts; None without images to.

    The images that were held out are those of validation, or, without any, those of the test set
    if the run reads it. None as well where the images are not in memory: they are all gone through.
    """
    if isinstance(dataset.train.images, Stored):
        return None
    held_out = dataset.validation
    if not len(held_out) and settings.train.evaluate_test:
        held_out = dataset.test
    if not len(held_out):
        return None
    result = parts.evaluate(best.params, best.model_state, samples.used, samples.labels)
    predictions = result["predictions"]
    return compare(
        samples.used, samples.labels, dataset, settings, held_out.images, predictions=predictions
    )


def about_prior(
    key: jax.Array,
    generator: Generator,
    dataset: Dataset,
    settings: Settings,
    held_out: np.ndarray,
    classify: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, float]:
    """`compare` for 512 samples of a flow's prior.

    Args:
      key: of the latents.
      generator: of the flow.
      dataset: that it was trained on.
      settings: that it was trained with.
      held_out: real images that it was not trained on, `[L, H, W, C]`.
      classify: images `[N, H, W, C]` uint8 to classes `[N]`.
    """
    y = np.arange(_TOTAL) % dataset.num_classes
    z = jax.random.normal(key, (_TOTAL, *generator.latent_shape))
    images, labels, predictions = decode_all(generator, z, y), None, None
    if settings.flow.conditional:
        labels, predictions = y, classify(images) if classify else None
    return compare(images, labels, dataset, settings, held_out, predictions=predictions)


def compare(
    images: np.ndarray,
    labels: np.ndarray | None,
    dataset: Dataset,
    settings: Settings,
    held_out: np.ndarray,
    *,
    predictions: np.ndarray | None = None,
) -> dict[str, float]:
    """`memorisation_report` of synthetic images, for a generator trained as the settings say."""
    everything = settings.flow.images == "all"
    return memorisation_report(
        images,
        dataset.unlabelled if everything else dataset.train.images,
        held_out[:_HELD_OUT],
        labels=labels,
        train_labels=None if everything or labels is None else dataset.train.labels,
        predictions=predictions,
    )
