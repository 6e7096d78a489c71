"""A regulariser, a data set and a model of one's own, added from the outside."""

import errno

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genreg_jax as gr
from genreg_jax.build import _both
from genreg_jax.data import sources
from genreg_jax.errors import UserError
from genreg_jax.logs import read_metrics
from genreg_jax.restore import restore_classifier

TRAIN = {"epochs": 2, "steps_per_epoch": 4, "batch_size": 8, "progress": False}


def halves(**options):
    """Images that are bright above or below, and their classes."""
    rng = np.random.default_rng(3)

    def split(n):
        labels = np.arange(n, dtype=np.int32) % 2
        images = rng.integers(0, 60, (n, 6, 4, 1)).astype(np.uint8)
        for image, label in zip(images, labels):
            image[3 * label : 3 * label + 3] += 150
        return gr.data.Split(images, labels)

    return split(40), split(20), ("above", "below")


class Wide(nn.Module):
    """One hidden layer, its width and its dropout by settings."""

    num_classes: int
    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train):
        embedding = nn.relu(nn.Dense(self.features)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="head")(embedding), embedding


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(gr.data.SOURCES, "halves", halves)
    monkeypatch.setitem(gr.models.MODELS, "wide", gr.models.Entry(Wide, {"features": "width"}))


def config(**groups):
    data = {"name": "halves", "validation_fraction": 0.2}
    model = {"name": "wide", "width": 11}
    return {"data": data, "model": model, "train": TRAIN, **groups}


def test_a_data_set_and_a_model_are_one_row_each(added, tmp_path):
    summary = gr.train_and_evaluate(config(), tmp_path)
    assert summary["dataset"] == "halves" and summary["train_examples"] == 32
    assert summary["parameters"] == (24 * 11 + 11) + (11 * 2 + 2)
    assert summary["test_accuracy"] == 1.0
    # And the run can be read back alone, since it says what it is.
    classifier = restore_classifier(tmp_path)
    assert classifier.class_names == ("above", "below") and classifier.image_shape == (6, 4, 1)
    images = halves()[1].images[:4] / np.float32(255)
    assert jnp.argmax(classifier.logits(images), -1).tolist() == [0, 1, 0, 1]


def test_a_term_on_embeddings_is_added_to_the_configured_one(added, tmp_path):
    def term(key, outputs, labels, step):
        return 0.25 * jnp.mean(outputs.embedding**2, axis=1) + 0.5 * step

    def first_losses(name, **options):
        groups = {"optimizer": {"learning_rate": 0.0}}  # all see the same embeddings
        if name != "own":
            groups["phantom"] = {"loss": "attraction", "weight": 0.5}
        gr.train_and_evaluate(config(**groups), tmp_path / name, **options)
        return read_metrics(tmp_path / name)[0]

    own = first_losses("own", embedding_term=term)
    assert own["train/embedding_loss"] > 0.5 * np.mean(range(4)) - 1e-6
    configured, both = first_losses("phantom"), first_losses("both", embedding_term=term)
    assert configured["train/embedding_loss"] > 0.01
    total = own["train/embedding_loss"] + configured["train/embedding_loss"]
    np.testing.assert_allclose(both["train/embedding_loss"], total, rtol=1e-5)


def test_the_sum_of_two_terms_is_their_sum():
    outputs = gr.Outputs(jnp.ones((3, 2)), jnp.arange(6.0).reshape(3, 2))
    a = lambda key, outputs, labels, step: outputs.embedding[:, 0]
    b = lambda key, outputs, labels, step: 10.0 * labels
    labels = jnp.array([1, 2, 5])
    assert _both(a, b)(None, outputs, labels, 0).tolist() == [10.0, 22.0, 54.0]
    assert _both(a, None) is a and _both(None, b) is b and _both(None, None) is None


def test_a_model_that_no_row_names_is_refused_with_those_there_are(added):
    with pytest.raises(gr.UserError, match=r"config\.model\.name must be one of .*wide, got 'x'"):
        gr.train_and_evaluate({"model": {"name": "x"}}, "unused")


def test_a_loop_of_ones_own_imports_nothing_but_the_package(added):
    train = gr.data.load("halves").train
    model = gr.models.make("wide", num_classes=2, features=5)
    batch = gr.Batch(jnp.asarray(train.images), jnp.asarray(train.labels))
    params, model_state = model.init(jax.random.key(0), batch.images / 255.0)
    tx = optax.adam(1e-2)
    state = gr.TrainState.create(params, model_state, tx, jax.random.key(1))
    step = jax.jit(gr.make_train_step(model, tx, num_classes=2, augment=lambda key, x: x))
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["train/loss"]))
    assert int(state.step) == 20 and losses[-1] < 0.5 * losses[0]


def test_a_data_set_of_ones_own_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def read(**options):
        raise PermissionError(errno.EACCES, "Permission denied", "/net/images.npz")

    monkeypatch.setitem(sources.SOURCES, "mine", read)
    named = r"config\.data: .*'mine' cannot be read .*/net/images.npz"
    with pytest.raises(UserError, match=named) as found:
        gr.train_and_evaluate({"data": {"name": "mine"}}, tmp_path / "run")
    assert "make room" not in str(found.value) and not (tmp_path / "run").exists()
