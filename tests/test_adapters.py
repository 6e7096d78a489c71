"""The four adapters: one network in each framework gives the same numbers through the contract."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import genreg_jax as gr

eqx = pytest.importorskip("equinox")
hk = pytest.importorskip("haiku")

INPUTS, WIDTH, CLASSES = 4, 6, 3


class LinenNet(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(WIDTH, use_bias=False)(x.reshape(len(x), -1))
        x = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x), x


class NnxNet(nnx.Module):
    def __init__(self, rate=0.0):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(INPUTS, WIDTH, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(jnp.tanh(self.norm(self.first(x.reshape(len(x), -1)))))
        return self.head(x), x


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, rate=0.0):
        keys = jax.random.split(jax.random.key(0))
        self.first = eqx.nn.Linear(INPUTS, WIDTH, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(WIDTH, axis_name="batch", momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(rate)
        self.head = eqx.nn.Linear(WIDTH, CLASSES, key=keys[1])

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.first(x.ravel()), state)
        x = self.dropout(jnp.tanh(x), key=key)
        return (self.head(x), x), state


def haiku_net(x, train, rate=0.0):
    x = hk.Linear(WIDTH, with_bias=False)(x.reshape(len(x), -1))
    x = jnp.tanh(hk.BatchNorm(True, True, decay_rate=0.9)(x, is_training=train))
    if train and rate:
        x = hk.dropout(hk.next_rng_key(), rate, x)
    return hk.Linear(CLASSES)(x), x


MODELS = {
    "linen": lambda rate: gr.from_linen(LinenNet(rate)),
    "nnx": lambda rate: gr.from_nnx(NnxNet(rate)),
    "equinox": lambda rate: gr.from_equinox(EquinoxNet(rate)),
    "haiku": lambda rate: gr.from_haiku(functools.partial(haiku_net, rate=rate)),
}
every_framework = pytest.mark.parametrize("name", MODELS)


def images(seed, size=9):
    x = np.random.default_rng(seed).normal(size=(size, 2, 2, 1)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.random.default_rng(seed).integers(0, CLASSES, size))


def values():
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "first": normal(INPUTS, WIDTH), "scale": 1 + 0.3 * normal(WIDTH), "bias": normal(WIDTH),
        "head": normal(WIDTH, CLASSES), "head_bias": normal(CLASSES),
    }  # fmt: skip


def transplanted(params):
    """The parameters of any of the networks with the values of `values`."""
    new, used = values(), []

    def value(path, leaf):
        shape = [side for side in leaf.shape if side > 1]  # Haiku's scale is [1, D]
        if len(shape) == 2:
            name = "first" if INPUTS in shape else "head"
        elif shape == [CLASSES]:
            name = "head_bias"
        else:
            where = jax.tree_util.keystr(path)
            name = "scale" if "scale" in where or "weight" in where else "bias"
        used.append(name)
        found = new[name] if list(new[name].shape) == shape else new[name].T  # Equinox: [out, in]
        return jnp.asarray(found).reshape(leaf.shape)

    params = jax.tree_util.tree_map_with_path(value, params)
    assert sorted(used) == sorted(new)
    return params


@functools.cache
def made(name, rate=0.0):
    model = MODELS[name](rate)
    params, model_state = model.init(jax.random.key(0), images(0)[0])
    return model, transplanted(params), model_state


def reference(x):
    v, x = values(), np.asarray(x, np.float64).reshape(len(x), -1)
    h = x @ v["first"]
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * v["scale"] + v["bias"]
    return np.tanh(h) @ v["head"] + v["head_bias"], np.tanh(h)


@every_framework
def test_a_training_pass_is_the_network_by_hand_and_updates_the_state_alone(name):
    model, params, model_state = made(name)
    x, _ = images(0)
    outputs, new_state = model.apply(params, model_state, x, rng=jax.random.key(0), train=True)
    logits, embedding = reference(x)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.embedding, embedding, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(new_state) == jax.tree.structure(model_state)
    pairs = list(zip(jax.tree.leaves(new_state), jax.tree.leaves(model_state)))
    assert pairs and any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


@every_framework
def test_an_evaluation_treats_images_on_their_own_and_leaves_the_state_as_it_is(name):
    model, params, state = made(name)
    x, _ = images(0)
    _, state = model.apply(params, state, x, rng=None, train=True)
    whole, same = model.apply(params, state, x, rng=None, train=False)
    part, _ = model.apply(params, state, x[:2], rng=None, train=False)
    np.testing.assert_allclose(part.logits, whole.logits[:2], rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same, state)


def hypergradient(name):
    """The derivative of an outer loss in the inner examples' scales, through BatchNorm twice."""
    model, params, model_state = made(name)
    (x, y), (xv, yv) = images(2), images(3, 7)

    def cross_entropy(params, x, y):
        outputs, _ = model.apply(params, model_state, x, rng=None, train=True)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, y)
        return jnp.mean(losses) + 0.1 * jnp.mean(outputs.embedding**2)

    tx = optax.sgd(0.3, momentum=0.9, nesterov=True)

    @jax.jit
    def run(params, phi):
        return gr.hypergradient(
            lambda p, phi: cross_entropy(p, x * phi, y),
            lambda p: cross_entropy(p, xv, yv),
            params,
            phi,
            tx,
            tx.init(params),
        )

    phi = 1 + 0.1 * jnp.asarray(np.random.default_rng(4).normal(size=(9, 2, 2, 1)), jnp.float32)
    return run(params, phi)


def test_the_hypergradient_through_batch_norm_agrees_across_the_frameworks():
    results = {name: hypergradient(name) for name in MODELS}
    expected = results.pop("linen")
    assert np.max(np.abs(expected.grads)) > 1e-2
    for h in results.values():
        np.testing.assert_allclose(h.grads, expected.grads, rtol=0, atol=1e-6)
        np.testing.assert_allclose(h.outer_loss, expected.outer_loss, rtol=1e-6)


@every_framework
def test_noise_comes_from_the_rng_of_the_call_alone(name):
    model, params, model_state = made(name, 0.5)
    x, _ = images(0)
    run = jax.jit(lambda rng: model.apply(params, model_state, x, rng=rng, train=True)[0].embedding)
    first, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other) and 0.1 < np.mean(first == 0) < 0.9


@pytest.mark.parametrize("name", ["nnx", "equinox", "haiku"])
def test_a_model_of_any_framework_is_trained_and_its_run_continues(name, tmp_path, monkeypatch):
    monkeypatch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)
    rng = np.random.default_rng(5)
    labels = np.arange(24) % CLASSES
    x = (60 * labels[:, None, None, None] + rng.integers(0, 40, (24, 2, 2, 1))).astype(np.uint8)
    dataset = gr.data.from_arrays(x[:12], labels[:12], x[12:], labels[12:])
    config = {
        "optimizer": {"learning_rate": 0.3},
        "phantom": {"loss": "attraction"},
        "train": {"epochs": 2, "steps_per_epoch": 20, "batch_size": 6, "progress": False},
    }
    run = lambda: gr.train_and_evaluate(config, tmp_path, dataset=dataset, model=MODELS[name](0.0))
    first = run()
    (tmp_path / "summary.json").unlink()
    again = run()
    assert again["test_loss"] == first["test_loss"] and again["steps"] == 40
    assert first["test_accuracy"] > 0.5


def test_another_kind_of_object_is_refused_by_name():
    with pytest.raises(TypeError, match="from_nnx: module must be an instance of flax.nnx.Module"):
        gr.from_nnx(LinenNet())
    with pytest.raises(TypeError, match=r"got <class .*NnxNet.*construct"):
        gr.from_nnx(NnxNet)
    with pytest.raises(TypeError, match="from_equinox: module must be .* equinox.Module, got"):
        gr.from_equinox(haiku_net)
    with pytest.raises(TypeError, match="from_haiku: fn must be a function .* got"):
        gr.from_haiku(LinenNet())
    module, state = eqx.nn.make_with_state(EquinoxNet)()
    with pytest.raises(ValueError, match="state must be given .* got None"):
        gr.from_equinox(module)
    assert gr.from_equinox(module, state=state).init(None, None)[1]


def test_a_transformed_haiku_function_is_taken_as_it_is():
    x, _ = images(0)
    plain = lambda x, train: (hk.Linear(2)(x.reshape(len(x), -1)), x.reshape(len(x), -1))
    for fn in (plain, hk.transform(plain), hk.transform_with_state(plain)):
        model = gr.from_haiku(fn)
        params, model_state = model.init(jax.random.key(0), x)
        outputs, _ = model.apply(params, model_state, x, rng=None, train=True)
        assert outputs.logits.shape == (9, 2) and not jax.tree.leaves(model_state)
