"""The step without synthetic data against NumPy, the optimisers' settings, and what is refused."""

import contextlib
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genreg_jax as gr
from genreg_jax.contract import Batch, Model, to_float
from genreg_jax.objective import CHECKED, make_train_step
from genreg_jax.optimizers import make_optimizer, make_schedule
from genreg_jax.regularizers.mgr import Meta, Synthetic
from genreg_jax.settings import OptimizerSettings
from genreg_jax.state import TrainState

CLASSES = 3


def linear():
    """Softmax regression on 2x2 images; its state counts the passes that were made."""

    def apply(params, model_state, x, *, rng, train):
        e = x.reshape(len(x), -1)
        logits = e @ params["w"] + params["b"][None]
        return gr.Outputs(logits, e), model_state + 1 if train else model_state

    return Model(init=lambda key, x: None, apply=apply)


def make_state(tx, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "w": jnp.asarray(rng.normal(size=(4, CLASSES)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=CLASSES), jnp.float32),
    }
    return TrainState.create(params, jnp.int32(0), tx, jax.random.key(seed))


def make_batch(seed=1, size=5):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 2, 2, 1), np.uint8)
    return Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32))


def step_with(tx, state, batch, **options):
    options = {"augment": lambda key, x: x, **options}
    step = make_train_step(linear(), tx, num_classes=CLASSES, **options)
    return step(state, batch, None, ())


def softmax_regression(state, batch, targets=None):
    """Loss and gradients by hand, in float64."""
    x = np.asarray(batch.images, np.float64).reshape(len(batch.labels), -1) / 255
    targets = np.eye(CLASSES)[batch.labels] if targets is None else targets
    logits = x @ np.asarray(state.params["w"], np.float64) + np.asarray(state.params["b"])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -(targets * np.log(p)).sum(1).mean()
    delta = (p - targets) / len(x)
    accuracy = np.mean(logits.argmax(1) == targets.argmax(1))
    return loss, accuracy, {"w": x.T @ delta, "b": delta.sum(0)}


def test_the_plain_step_is_softmax_regression_by_hand():
    tx = optax.sgd(0.3)
    state, batch = make_state(tx), make_batch()
    new, metrics = step_with(tx, state, batch)
    loss, accuracy, grads = softmax_regression(state, batch)
    for name in ("w", "b"):
        expected = state.params[name] - 0.3 * grads[name]
        np.testing.assert_allclose(new.params[name], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["train/cross_entropy"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["train/accuracy"], accuracy, rtol=1e-6)
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    np.testing.assert_allclose(metrics["train/gradient_norm"], norm, rtol=1e-5)
    assert metrics["train/loss"] == metrics["train/cross_entropy"]
    assert int(new.step) == 1 and int(new.model_state) == 1
    assert set(metrics) == {
        "train/cross_entropy", "train/accuracy", "train/loss", "train/gradient_norm",
        "train/nonfinite",
    }  # fmt: skip


def test_label_smoothing_spreads_its_mass_over_all_classes():
    tx = optax.sgd(0.3)
    state, batch = make_state(tx), make_batch()
    _, metrics = step_with(tx, state, batch, label_smoothing=0.3)
    targets = 0.7 * np.eye(CLASSES)[batch.labels] + 0.1
    loss, accuracy, _ = softmax_regression(state, batch, targets)
    np.testing.assert_allclose(metrics["train/cross_entropy"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["train/accuracy"], accuracy)


def test_mixing_changes_images_and_targets_together():
    tx = optax.sgd(0.3)
    state, batch = make_state(tx), make_batch()
    half = lambda key, x, y: (0.5 * x, 0.25 * y + 0.75 * y[::-1])
    _, metrics = step_with(tx, state, batch, mix=half)
    onehot = np.eye(CLASSES)[batch.labels]
    mixed = Batch(np.asarray(batch.images) / 2, batch.labels)
    loss, _, _ = softmax_regression(state, mixed, 0.25 * onehot + 0.75 * onehot[::-1])
    np.testing.assert_allclose(metrics["train/cross_entropy"], loss, rtol=1e-5)


def test_every_step_draws_anew_and_the_same_step_draws_the_same():
    tx = optax.sgd(0.3)
    state, batch = make_state(tx), make_batch()
    noise = lambda key, x: x + jax.random.normal(key, x.shape)
    run = lambda step: float(
        step_with(tx, TrainState(**{**vars(state), "step": jnp.int32(step)}), batch, augment=noise)[
            1
        ]["train/loss"]
    )
    assert run(3) == run(3)
    assert len({run(step) for step in range(4)}) == 4


def test_images_become_float32_in_the_unit_interval():
    x = to_float(jnp.arange(256, dtype=jnp.uint8))
    assert x.dtype == jnp.float32 and x[0] == 0 and x[-1] == 1
    np.testing.assert_allclose(x, np.arange(256) / 255, rtol=1e-6)
    for dtype in (jnp.bfloat16, jnp.float32):
        x = to_float(jnp.array([0.0, 0.25, 1.0], dtype))
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, np.float32([0, 0.25, 1]))


def failing(what):
    """A complete step in which one thing is not finite, and an update that is made without it."""
    nan_where = lambda name, value: value * jnp.nan if what == name else value
    # Finite itself, with a derivative that is not.
    steep = lambda name, value: jnp.sqrt(0 * value) if what == name else 0 * value

    def apply(params, model_state, x, *, rng, train):
        flat = x.reshape(len(x), -1)
        total = params["w"].sum()
        e = flat * total
        if what == "the gradient of the synthetic term":  # the generator's images begin with 0.5
            e += jnp.sqrt((total * (flat[:, :1] - 0.5)) ** 2)
        return gr.Outputs(flat @ params["w"] + params["b"][None], e), model_state + 1

    def generate(params, z, y):
        images = z.at[:, 0, 0, 0].set(0.5)
        return nan_where("the synthetic term", images)

    same = lambda key, x: x
    strong = lambda key, x: x.at[:, 1].multiply(0.5)
    step = make_train_step(
        Model(init=lambda key, x: None, apply=apply),
        optax.chain(
            optax.sgd(0.1), optax.scale(np.inf if what == "the updated parameters" else 1.0)
        ),
        num_classes=CLASSES,
        augment=lambda key, x: nan_where("the cross-entropy", x),
        embedding_term=lambda key, outputs, labels, step: (
            nan_where("the embedding term", jnp.ones(len(labels)))
            + steep("the gradient on the real batch", outputs.embedding.sum(1))
        ),
        synthetic=Synthetic("pcr", 1.0, "l2", same, strong, 4, 1.0),
        generator=gr.Generator(generate, (), (2, 2, 1)),
        meta=Meta(
            lambda phi, z, y: z + phi + steep("the hypergradient", phi),
            optax.sgd(0.1),
            "forward_over_reverse",
            lambda key, x: nan_where("the outer loss", x),
        )
        if what not in CHECKED[5:]  # else the hypergradient or the outer loss fails first
        else None,
        skip_nonfinite=what == "the cross-entropy",
    )
    tx = optax.chain(optax.sgd(0.1), optax.scale(1.0))
    state = make_state(tx)
    phi = jnp.float32(0.3)
    state = dataclasses.replace(state, finder_params=phi, finder_opt_state=optax.sgd(0.1).init(phi))
    return jax.jit(step), state


@pytest.mark.parametrize("what", ["nothing", *CHECKED])
def test_an_update_that_is_not_finite_is_named_and_not_made(what):
    step, state = failing(what)
    after, metrics = step(state, make_batch(), make_batch(2), ())
    if what == "nothing":
        assert metrics["train/nonfinite"] == 0 and int(after.step) == 1
        assert not np.array_equal(after.params["w"], state.params["w"])
        return
    assert CHECKED[int(metrics["train/nonfinite"]) - 1] == what
    skips = what == "the cross-entropy"
    assert int(after.step) == int(skips)
    chex.assert_trees_all_equal(dataclasses.replace(after, step=state.step), state)


def test_a_missing_part_is_named():
    same = lambda key, x: x
    synthetic = Synthetic("pcr", 1.0, "l2", same, same, 4, 1.0)
    meta = Meta(lambda p, z, y: z, optax.sgd(0.1), "reverse", same)
    generator = gr.Generator(lambda p, z, y: z, (), (2, 2, 1))
    make = lambda **parts: make_train_step(
        linear(), optax.sgd(0.1), num_classes=CLASSES, augment=same, **parts
    )
    with pytest.raises(ValueError, match="generator is required .* got None"):
        make(synthetic=synthetic)
    with pytest.raises(ValueError, match="synthetic is required .* got None"):
        make(meta=meta, generator=generator)


# ------------------------------------------------------------------------------------- optimisers


def first_update(params, grads, **settings):
    tx = make_optimizer(OptimizerSettings(**settings), optax.constant_schedule(0.1))
    return tx.update(grads, tx.init(params), params)[0]


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weights_decay_and_biases_and_scales_do_not(name):
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0), "scale": jnp.full(2, 2.0)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates = first_update(params, zero, name=name, weight_decay=0.5, momentum=0.0)
    # adam divides the decayed gradient by its own size, adamw and sgd do not.
    expected = -0.1 if name == "adam" else -0.1 * 0.5 * 2
    np.testing.assert_allclose(updates["kernel"], np.full((2, 3), expected), rtol=1e-5)
    assert np.all(updates["bias"] == 0) and np.all(updates["scale"] == 0)


def test_gradients_are_clipped_before_anything_else():
    params, grads = jnp.zeros((1, 2)), jnp.array([[30.0, 40.0]])
    updates = first_update(params, grads, grad_clip=1.0, momentum=0.0, weight_decay=0.0)
    np.testing.assert_allclose(updates, [[-0.06, -0.08]], rtol=1e-5)


def test_nesterov_momentum_by_hand():
    tx = make_optimizer(OptimizerSettings(weight_decay=0.0), optax.constant_schedule(0.1))
    theta, trace = np.array([[1.0, -2.0]]), 0.0
    params, state = jnp.asarray(theta, jnp.float32), tx.init(jnp.asarray(theta, jnp.float32))
    for _ in range(3):
        trace = 3 * theta + 0.9 * trace
        theta = theta - 0.1 * (3 * theta + 0.9 * trace)
        updates, state = tx.update(3 * params, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, theta, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, {0: 1.0, 50: 1.0, 99: 1.0}),
        ({"schedule": "cosine"}, {0: 1.0, 25: 0.5 + 0.5**1.5, 50: 0.5, 100: 0.0}),
        ({"schedule": "step", "step_epochs": (2, 5), "step_factor": 0.1},
         {0: 1.0, 19: 1.0, 20: 0.1, 49: 0.1, 50: 0.01}),
        ({"schedule": "constant", "warmup_epochs": 2.0}, {0: 0.0, 10: 0.5, 20: 1.0, 70: 1.0}),
        ({"schedule": "cosine", "warmup_epochs": 2.0}, {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
        ({"schedule": "step", "warmup_epochs": 1.0, "step_epochs": (2,), "step_factor": 0.5},
         {5: 0.5, 10: 1.0, 19: 1.0, 21: 0.5}),
    ],
)  # fmt: skip
def test_schedules_in_epochs_of_ten_steps(settings, expected):
    settings = OptimizerSettings(learning_rate=1.0, **settings)
    schedule = make_schedule(settings, total_steps=100, steps_per_epoch=10)
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": jnp.zeros((5, 1), jnp.int32)}, r"batch.labels has shape \(5, 1\)"),
        ({"labels": jnp.eye(5, CLASSES)}, r"batch.labels has .*argmax"),
        ({"labels": jnp.zeros(4, jnp.int32)}, r"allowed are integer labels of shape \(5,\)"),
        ({"labels": jnp.zeros(5)}, "batch.labels has .*float32"),
        ({"images": jnp.ones((5, 2, 2, 1), jnp.int32)}, "batch.images has dtype int32"),
        ({"images": jnp.ones((5, 2, 2, 1), bool)}, "batch.images has dtype bool"),
        ({"images": jnp.ones((5, 4), jnp.uint8)}, r"batch.images has shape \(5, 4\)"),
        ({"images": jnp.zeros((0, 2, 2, 1))}, r"batch.images has shape \(0, 2, 2, 1\)"),
    ],
)
def test_a_batch_of_other_types_and_shapes_is_refused_when_the_step_is_traced(
    change, message, jitted
):
    tx = optax.sgd(0.1)
    step = make_train_step(linear(), tx, num_classes=CLASSES, augment=lambda key, x: x)
    with pytest.raises(ValueError, match=message):
        (jax.jit(step) if jitted else step)(make_state(tx), make_batch()._replace(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": jnp.array([1, 2, 3, 1, 2])}, r"labels in \[1, 3\]; allowed is \[0, 2\]"),
        ({"labels": jnp.array([0, 2, -1, 1, 2])}, r"labels in \[-1, 2\]"),
        ({"images": jnp.full((5, 2, 2, 1), 200.0)}, r"values in \[200, 200\]; allowed is \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_refused_where_they_can_be_seen(change, message):
    with pytest.raises(ValueError, match=message):
        step_with(optax.sgd(0.1), make_state(optax.sgd(0.1)), make_batch()._replace(**change))


# ------------------------------------------------------------------ parts that do not fit together

OPTIMISERS = {"sgd": optax.sgd(0.1), "momentum": optax.sgd(0.1, 0.9), "adam": optax.adam(0.1)}
SAME = lambda key, x: x
FEW = Batch(jnp.ones((4, 2, 2, 1)), jnp.array([0, 1, 2, 0]))


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("other", [*OPTIMISERS, "another shape"])
def test_a_state_of_another_optimiser_is_refused(name, other):
    """Optax's Adam itself needs the standard promotion of types."""
    tx, state = OPTIMISERS[name], make_state(OPTIMISERS[name])
    wrong = {"w": jnp.ones((5, CLASSES)), "b": jnp.ones(CLASSES)}
    given = tx.init(wrong) if other not in OPTIMISERS else OPTIMISERS[other].init(state.params)
    alike = other == name or (other, name) == ("another shape", "sgd")
    refused = pytest.raises(ValueError, match="opt_state is .*no state of tx")
    step = make_train_step(linear(), tx, num_classes=CLASSES, augment=SAME)
    with jax.numpy_dtype_promotion("standard"), contextlib.nullcontext() if alike else refused:
        jax.eval_shape(step, dataclasses.replace(state, opt_state=given), FEW)
    inner = lambda params, meta: meta * (params["w"].sum() + params["b"].sum())
    outer = lambda params: params["w"].sum()
    refused = pytest.raises(ValueError, match="opt_state is .*no state of tx")
    with jax.numpy_dtype_promotion("standard"), contextlib.nullcontext() if alike else refused:
        gr.hypergradient(inner, outer, state.params, jnp.array(1.0), tx, given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": "cross-entropy"}, "synthetic.loss must be one of"),
        ({"source": "real"}, "synthetic.source must be one of"),
        ({"search": "finder"}, "synthetic.search must be one of"),
    ],
)
def test_a_slip_in_a_name_is_not_another_regulariser(change, words):
    right = dict(loss="pcr", weight=1.0, distance="l2", weak=SAME, strong=SAME)
    generator = gr.Generator(lambda p, z, y: z, (), (5,))
    synthetic = Synthetic(**{**right, "batch_size": 6, "temperature": 1.0, **change})
    with pytest.raises(ValueError, match=words):
        make_train_step(
            linear(), optax.sgd(0.1), num_classes=CLASSES, augment=SAME, generator=generator,
            synthetic=synthetic,
        )  # fmt: skip


def test_the_labels_of_an_attack_are_predicted_or_true():
    pgd = gr.perturbation("pgd", epsilon=0.1)
    for labels, mix, words in (("prediction", 0.0, "latent.labels"), ("true", 3.0, "latent.mix")):
        latent = gr.Latent(pgd, labels, mix, SAME)
        with pytest.raises(ValueError, match=words):
            make_train_step(
                linear(), optax.sgd(0.1), num_classes=CLASSES, augment=SAME, latent=latent
            )


@pytest.mark.parametrize("shape", [(), (4, 2), (3,)])
def test_a_term_that_is_not_a_loss_of_each_image_is_refused(shape):
    step = make_train_step(
        linear(), optax.sgd(0.1), num_classes=CLASSES, augment=SAME,
        embedding_term=lambda key, outputs, labels, step: jnp.ones(shape),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"embedding_term returned .* losses of shape \(4,\)"):
        step(make_state(optax.sgd(0.1)), FEW)


def test_parts_of_another_kind_are_named():
    tx, state = optax.sgd(0.1), make_state(optax.sgd(0.1))
    make = lambda **c: make_train_step(
        **{"model": linear(), "tx": tx, "num_classes": CLASSES, "augment": SAME, **c}
    )
    for change, words in (
        ({"model": "convnet"}, "model is 'convnet'; allowed: a gr.Model"),
        ({"num_classes": None}, "num_classes"),
        ({"augment": None}, "augment is None; allowed: a function"),
        ({"mix": 0.5}, "mix is 0.5; allowed: a function"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**change)
    with pytest.raises(ValueError, match=r"num_classes is 5, but .* logits of shape \(4, 3\)"):
        make(num_classes=5)(state, FEW)
    for args, words in (
        ((state, (FEW.images, FEW.labels)), "batch is .*allowed: a gr.Batch"),
        ((state, None), "batch is None"),
        ((FEW, state), "state is Batch"),
        (({}, FEW), r"state is \{\}; allowed: what TrainState.create returns"),
    ):
        with pytest.raises(ValueError, match=words):
            make()(*args)
    for args, words in (((tx, 0), "key is 0; allowed: one PRNG key"), ((None, state.key), "tx is")):
        with pytest.raises(ValueError, match=words):
            TrainState.create({}, {}, *args)
