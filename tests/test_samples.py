"""Samples of a run's generator: of its source, class by class; what is said of them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax.config import from_config
from genreg_jax.contract import Batch
from genreg_jax.data import Dataset, Split
from genreg_jax.memorisation import memorisation_in_words
from genreg_jax.regularizers.mgr import Synthetic
from genreg_jax.regularizers.synthetic import latent_diagnostics
from genreg_jax.samples import about_prior, about_samples, decode_all, draw_samples

KEY = jax.random.key(2)
CLASSES = 5


def images_of(seed, labels):
    """Images of a class differ in noise, classes in brightness."""
    noise = np.random.default_rng(seed).integers(0, 40, (len(labels), 4, 4, 1))
    return (noise + 40 * np.asarray(labels)[:, None, None, None]).astype(np.uint8)


def encode(params, x, y):
    x = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x
    return jax.scipy.special.logit(jnp.clip(x, 1e-3, 1 - 1e-3)).reshape(len(x), 16) * params


def decode(params, z, y):
    return jax.nn.sigmoid(z / params).reshape(len(z), 4, 4, 1)


GENERATOR = gr.Generator(decode, jnp.float32(2), (16,), encode)


def dataset_of(validation=30):
    # Class 2 has three images, class 3 none in training.
    labels = np.repeat([0, 1, 2, 4], [60, 140, 3, 50])
    split = lambda seed, y: Split(images_of(seed, y), np.asarray(y, np.int32))
    train = split(0, labels)
    return Dataset(
        name="made",
        class_names=tuple(map(str, range(CLASSES))),
        train=train,
        validation=split(1, np.arange(validation) % CLASSES),
        test=split(2, np.arange(40) % CLASSES),
        subset_hash="",
        fingerprint="",
    )


def parts_of(dataset, find=None, **changes):
    keep = lambda key, x: x
    options = {"source": "renoised", "low": 0.0, "high": 0.0, **changes}
    synthetic = Synthetic("pcr", 1.0, "cosine", keep, keep, 16, 0.5, **options)
    train = dataset.train
    encodings = encode(GENERATOR.params, train.images, train.labels)
    return types.SimpleNamespace(
        generator=GENERATOR,
        synthetic=synthetic,
        meta=None if find is None else "any",
        find=lambda params, z, y: find(params, z, y),
        train_data=Batch(train.images, train.labels, encodings=encodings),
        evaluate=lambda params, state, images, labels: {"predictions": np.zeros_like(labels)},
    )


def test_samples_of_a_source_are_as_many_of_each_class_that_has_images():
    dataset = dataset_of()
    samples = draw_samples(KEY, parts_of(dataset), dataset, ())
    assert np.unique(samples.labels, return_counts=True)[1].tolist() == [128] * 4
    assert np.unique(samples.labels).tolist() == [0, 1, 2, 4]
    assert samples.found is None and samples.used is samples.drawn
    # Without noise they are the training images, again from the first where there are few.
    for label in (0, 1, 2, 4):
        real = dataset.train.images[dataset.train.labels == label]
        expected = real[np.arange(128) % len(real)]
        shown = samples.drawn[samples.labels == label].astype(int)
        assert np.abs(shown - expected).max() <= 1


def test_samples_of_the_prior_have_its_temperature():
    dataset = dataset_of()
    samples = draw_samples(KEY, parts_of(dataset, source="prior"), dataset, ())
    z = 0.5 * jax.random.normal(KEY, (512, 16))
    expected = np.round(255 * np.asarray(decode(GENERATOR.params, z, None)))
    np.testing.assert_allclose(samples.drawn.astype(int), expected, atol=1)


def test_found_samples_are_those_of_the_same_latents_moved():
    dataset = dataset_of()
    find = lambda shift, z, y: z + shift * y[:, None].astype(jnp.float32)
    parts = parts_of(dataset, find, high=0.4)
    samples = draw_samples(KEY, parts, dataset, 0.7)
    z = encode(2.0, samples.drawn, samples.labels)
    moved = decode(2.0, z + 0.7 * samples.labels[:, None], None)
    inside = (samples.drawn > 20) & (samples.drawn < 235)  # where 8 bits tell the latent well
    difference = np.abs(samples.found.astype(int) - np.round(255 * np.asarray(moved)))
    assert difference[inside].max() <= 4 and samples.used is samples.found
    search = latent_diagnostics(z, z + 0.7 * samples.labels[:, None], samples.labels)
    assert samples.search is not None
    assert abs(samples.search["distance"] / float(search["distance"]) - 1) < 0.05


def test_decoding_in_batches_is_decoding_at_once():
    z = jax.random.normal(KEY, (70, 16))
    expected = np.round(255 * np.asarray(decode(2.0, z, None)))
    made = decode_all(GENERATOR, z, jnp.zeros(70, jnp.int32))
    assert made.dtype == np.uint8 and made.shape == (70, 4, 4, 1)
    np.testing.assert_allclose(made.astype(int), expected, atol=1)


def test_a_generator_that_returns_its_images_is_called_one():
    dataset = dataset_of()
    parts = parts_of(dataset)
    samples = draw_samples(KEY, parts, dataset, ())
    best = types.SimpleNamespace(params=(), model_state=())
    settings = from_config({})
    report = about_samples(samples, parts, best, dataset, settings)
    assert report is not None and report["duplicates"] == 1 and report["copies"] > 0.9
    assert report["label_agreement"] == 0.25  # everything is predicted as the first of four
    # As real ones, but for the class of three images, of whose pairs every third is one image.
    assert report["diversity_ratio"] == pytest.approx((3 + 2 / 3) / 4, abs=0.02)
    assert "the generator returns its training images" in memorisation_in_words(report)
    noisy = parts_of(dataset, low=0.5, high=0.5)
    report = about_samples(draw_samples(KEY, noisy, dataset, ()), noisy, best, dataset, settings)
    assert report is not None and report["duplicates"] == 0 and report["distance_ratio"] > 1.2
    assert "returns" not in memorisation_in_words(report)


def test_what_samples_are_compared_with():
    best = types.SimpleNamespace(params=(), model_state=())
    dataset = dataset_of(validation=0)
    parts = parts_of(dataset, low=0.3, high=0.3)
    samples = draw_samples(KEY, parts, dataset, ())
    report = about_samples(samples, parts, best, dataset, from_config({}))
    expected = gr.memorisation_report(samples.drawn, dataset.train.images, dataset.test.images)
    assert report is not None and report["held_out_distance"] == expected["held_out_distance"]
    unread = from_config({"train": {"evaluate_test": False}})
    assert about_samples(samples, parts, best, dataset, unread) is None


def test_samples_of_a_flow_s_prior_have_labels_only_if_it_is_conditional():
    dataset = dataset_of()
    seen = []

    def classify(images):
        seen.append(images)
        return np.arange(len(images)) % CLASSES

    held_out = dataset.test.images
    report = about_prior(KEY, GENERATOR, dataset, from_config({}), held_out, classify)
    assert report["label_agreement"] == 1 and seen[0].dtype == np.uint8
    unconditional = from_config({"flow": {"conditional": False}})
    report = about_prior(KEY, GENERATOR, dataset, unconditional, held_out, classify)
    assert "label_agreement" not in report and "diversity_ratio" not in report
    assert len(seen) == 1
