"""MGR: its terms against NumPy, its step against the five lines of the method, its reductions."""

import dataclasses
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import genreg_jax as gr
from genreg_jax.contract import Batch, Model
from genreg_jax.hypergradient import MODES
from genreg_jax.objective import make_train_step
from genreg_jax.optimizers import make_optimizer
from genreg_jax.regularizers.mgr import Meta, Synthetic, make_regularizer
from genreg_jax.settings import OptimizerSettings
from genreg_jax.state import TrainState

CLASSES, SIDE, LATENT, WIDTH, BATCH, SAMPLES = 3, 4, (2, 5), 6, 8, 7


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --------------------------------------------------------------------------------------- pcr_loss


def test_cosine_and_l2_equal_numpy():
    a, b = normal(0, 5, 7), normal(1, 5, 7) * np.array([[1], [3], [0.1], [10], [2]], np.float32)
    cosine = [1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b)]
    l2 = [sum((x - y) ** 2) / 7 for x, y in zip(a, b)]
    np.testing.assert_allclose(gr.pcr_loss(a, b), cosine, rtol=1e-5)
    np.testing.assert_allclose(gr.pcr_loss(a, b, distance="l2"), l2, rtol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_equal_embeddings_have_no_loss(distance):
    a = normal(2, 6, 4)
    np.testing.assert_allclose(gr.pcr_loss(a, a, distance=distance), np.zeros(6), atol=1e-6)


def test_cosine_ignores_the_length_and_l2_does_not():
    a = normal(3, 4, 5)
    np.testing.assert_allclose(gr.pcr_loss(a, 9 * a), np.zeros(4), atol=1e-6)
    assert np.all(gr.pcr_loss(a, 9 * a, distance="l2") > 1)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("zeros", ["weak", "strong", "both"])
def test_value_and_gradients_are_finite_at_zero_vectors(distance, zeros):
    a, b = normal(4, 3, 4), normal(5, 3, 4)
    a[1] *= zeros == "strong"
    b[1] *= zeros == "weak"
    mean = lambda a, b: jnp.mean(gr.pcr_loss(a, b, distance=distance))
    second = lambda a, b: jax.jvp(jax.grad(mean), (a, b), (b, a))[1]
    both = lambda a, b: (jax.value_and_grad(mean, argnums=(0, 1))(a, b), second(a, b))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.jit(both)(a, b)))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_bfloat16_embeddings_give_a_float32_loss(distance):
    a, b = (jnp.asarray(normal(s, 4, 8), jnp.bfloat16) for s in (6, 7))
    loss = gr.pcr_loss(a, b, distance=distance)
    assert loss.dtype == jnp.float32
    exact = gr.pcr_loss(a.astype(jnp.float32), b.astype(jnp.float32), distance=distance)
    np.testing.assert_array_equal(loss, exact)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_gradients_agree_with_finite_differences(distance):
    a, b = normal(8, 3, 4), normal(9, 3, 4)
    # The second order too: the hypergradient differentiates this gradient.
    loss = jax.jit(lambda a, b: gr.pcr_loss(a, b, distance=distance))
    check_grads(loss, (a, b), order=2, eps=1e-2, rtol=2e-2)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_vmap_over_batches_equals_a_loop(distance):
    a, b = normal(10, 3, 4, 5), normal(11, 3, 4, 5)
    loss = lambda a, b: gr.pcr_loss(a, b, distance=distance)
    loop = np.stack([loss(x, y) for x, y in zip(a, b)])
    np.testing.assert_allclose(jax.vmap(loss)(a, b), loop, rtol=1e-6)


def test_wrong_arguments_are_named_with_their_value():
    a = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"distance must be one of .*cosine.*l2.*'l1'"):
        gr.pcr_loss(a, a, distance="l1")
    with pytest.raises(ValueError, match=r"embedding_strong .*\[B, D\].*\(2, 3\) and \(2, 4\)"):
        gr.pcr_loss(a, np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"embedding_weak .*\(2, 3, 1\)"):
        gr.pcr_loss(a[..., None], a[..., None])


# ----------------------------------------------------------------------------------------- finder


def finder_and_inputs(**options):
    finder = gr.Finder(hidden=(9, 8), **options)
    z, y = jnp.asarray(normal(20, 6, *LATENT)), jnp.array([0, 2, 1, 1, 0, 2])
    return finder, finder.init(jax.random.key(1), z, y)["params"], z, y


def disturbed(params, seed=21, scale=0.3):
    leaves, tree = jax.tree.flatten(params)
    noise = [scale * normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return tree.unflatten([leaf + n for leaf, n in zip(leaves, noise)])


@pytest.mark.parametrize("keep_norm", [True, False])
@pytest.mark.parametrize("num_classes", [CLASSES, None])
def test_a_residual_finder_starts_as_the_identity_bit_for_bit(keep_norm, num_classes):
    finder, params, z, y = finder_and_inputs(keep_norm=keep_norm, num_classes=num_classes)
    found = jax.jit(lambda p, z, y: finder.apply({"params": p}, z, y))(params, z, y)
    np.testing.assert_array_equal(found, z)


def test_a_plain_finder_does_not_start_as_the_identity():
    finder, params, z, y = finder_and_inputs(residual=False, keep_norm=False)
    found = finder.apply({"params": params}, z, y)
    assert found.shape == z.shape
    assert np.mean(np.abs(found - z)) > 0.1


@pytest.mark.parametrize("residual", [True, False])
def test_keep_norm_keeps_the_norm_of_every_draw(residual):
    finder, params, z, y = finder_and_inputs(residual=residual, num_classes=CLASSES)
    params = disturbed(params)
    found = finder.apply({"params": params}, z, y)
    norm = lambda a: np.linalg.norm(np.asarray(a).reshape(len(a), -1), axis=1)
    np.testing.assert_allclose(norm(found), norm(z), rtol=1e-5)
    assert np.mean(np.abs(found - z)) > 0.1
    free = dataclasses.replace(finder, keep_norm=False).apply({"params": params}, z, y)
    assert np.max(np.abs(norm(free) / norm(z) - 1)) > 0.05


def test_only_a_conditional_finder_sees_the_class_and_asks_for_it():
    finder, params, z, y = finder_and_inputs(num_classes=CLASSES)
    params = disturbed(params)
    changed = finder.apply({"params": params}, z, (y + 1) % CLASSES)
    assert np.all(np.any(finder.apply({"params": params}, z, y) != changed, axis=(1, 2)))
    with pytest.raises(ValueError, match="y is required: .* conditional on 3 classes"):
        finder.apply({"params": params}, z)
    finder, params, z, y = finder_and_inputs(num_classes=None)
    params = disturbed(params)
    np.testing.assert_array_equal(
        finder.apply({"params": params}, z, y), finder.apply({"params": params}, z)
    )


@pytest.mark.parametrize("keep_norm", [True, False])
def test_the_last_layer_of_a_residual_finder_learns_from_the_start(keep_norm):
    finder, params, z, y = finder_and_inputs(keep_norm=keep_norm, num_classes=CLASSES)
    target = jnp.asarray(normal(30, *z.shape))
    loss = lambda params: jnp.sum(target * finder.apply({"params": params}, z, y))
    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.max(np.abs(leaf)) > 1e-3 for leaf in jax.tree.leaves(grads["Dense_2"]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


# --------------------------------------------------------------------------------------- the step


class Problem(NamedTuple):
    """A small classifier with batch statistics and noise, and a generator; nothing symmetric."""

    model: Model
    state: TrainState
    batch: Batch
    outer: Batch
    generator: gr.Generator
    synthetic: Synthetic
    meta: Meta
    tx: optax.GradientTransformation


def apply_model(params, model_state, x, *, rng, train):
    h = x.reshape(len(x), -1) @ params["w"]
    mean, var = (h.mean(0), h.var(0)) if train else (model_state["mean"], model_state["var"])
    new = {
        "mean": 0.9 * model_state["mean"] + 0.1 * mean,
        "var": 0.9 * model_state["var"] + 0.1 * var,
    }
    h = (h - mean[None]) / jnp.sqrt(var[None] + 1e-3) * params["scale"][None]
    e = jnp.tanh(h + params["bias"][None])
    if train:
        e = e * (1 + 0.1 * jax.random.normal(rng, e.shape))
    logits = e @ params["head"]["kernel"] + params["head"]["bias"][None]
    return gr.Outputs(logits, e), new if train else model_state


def augment_real(key, x):
    return x + 0.1 * jax.random.uniform(key, x.shape)


def weak_view(key, x):
    return x * jax.random.uniform(key, (len(x), 1, 1, 1), minval=0.8)


def strong_view(key, x):
    return x[:, ::-1] ** 2 + 0.2 * jax.random.normal(key, x.shape)


def make_problem(optimizer="sgd", distance="cosine", loss="pcr", finder_tx=None, started=True):
    finder = gr.Finder(hidden=(8,), num_classes=CLASSES)
    z = jnp.zeros((1, *LATENT))
    phi = finder.init(jax.random.key(5), z, jnp.zeros(1, jnp.int32))["params"]
    if started:
        phi = disturbed(phi, 40)
    params = {
        "w": 0.5 * normal(50, SIDE * SIDE, WIDTH),
        "scale": 1 + 0.3 * normal(51, WIDTH),
        "bias": 0.3 * normal(52, WIDTH),
        "head": {"kernel": normal(53, WIDTH, CLASSES), "bias": normal(54, CLASSES)},
    }
    params = jax.tree.map(jnp.asarray, params)
    model_state = {"mean": jnp.asarray(normal(55, WIDTH)), "var": jnp.ones(WIDTH)}
    settings = OptimizerSettings(name=optimizer, learning_rate=0.2, weight_decay=1e-2)
    tx = make_optimizer(settings, optax.constant_schedule(0.2))
    # An optimiser that has been running, so that its state matters.
    opt_state = tx.update(disturbed(params, 60), tx.init(params), params)[1]
    finder_tx = finder_tx or optax.sgd(30.0, momentum=0.5)
    pixels, offsets = normal(70, *LATENT, SIDE, SIDE), normal(71, CLASSES, SIDE, SIDE)

    def generate(generator_params, z, y):
        x = jnp.einsum("bij,ijhw->bhw", z, generator_params["pixels"])
        return jax.nn.sigmoid(x + generator_params["offsets"][y])[..., None]

    images = np.random.default_rng(80).integers(0, 256, (2 * BATCH, SIDE, SIDE, 1), np.uint8)
    labels = jnp.asarray(np.random.default_rng(81).integers(0, CLASSES, 2 * BATCH), jnp.int32)
    return Problem(
        model=Model(init=lambda key, x: (params, model_state), apply=apply_model),
        state=TrainState(
            step=jnp.int32(11),
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            finder_params=phi,
            finder_opt_state=finder_tx.init(phi),
            key=jax.random.key(90),
        ),
        batch=Batch(jnp.asarray(images[:BATCH]), labels[:BATCH]),
        outer=Batch(jnp.asarray(images[BATCH:]), labels[BATCH:]),
        generator=gr.Generator(
            generate, {"pixels": jnp.asarray(pixels), "offsets": jnp.asarray(offsets)}, LATENT
        ),
        synthetic=Synthetic(loss, 0.7, distance, weak_view, strong_view, SAMPLES, 0.8),
        meta=Meta(
            lambda phi, z, y: finder.apply({"params": phi}, z, y),
            finder_tx,
            "forward_over_reverse",
            augment_real,
        ),
        tx=tx,
    )


def run_step(problem, *, synthetic=True, meta=True, **changes):
    """One step; `changes` replace fields of the `Synthetic`.

    Not compiled as a whole: compiling takes seconds for each variant, and would let XLA round the
    same sum differently in two programs that are to agree bit for bit.
    """
    step = make_train_step(
        problem.model,
        problem.tx,
        num_classes=CLASSES,
        augment=augment_real,
        synthetic=dataclasses.replace(problem.synthetic, **changes) if synthetic else None,
        generator=problem.generator,
        meta=problem.meta if meta else None,
    )
    outer = problem.outer if meta else None
    return step(problem.state, problem.batch, outer, problem.generator.params)


def reference_step(problem, reading="method"):
    """Lines 1 to 5 of the method as they are written, all derivatives by reverse mode.

    The other readings are wrong ones, to show that the comparison tells them apart.
    """
    p, state = problem, problem.state
    real, made, outer = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
    real_augment, _, real_model = jax.random.split(real, 3)
    key_z, key_y, key_weak, key_strong, made_model = jax.random.split(made, 5)
    outer_augment, outer_model = jax.random.split(outer)

    def cross_entropy(logits, labels):
        log_p = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=1, keepdims=True))
        return -jnp.mean(log_p[jnp.arange(len(labels)), labels])

    def classify(theta, images, rng):
        return apply_model(theta, state.model_state, images, rng=rng, train=True)

    def f(theta, batch, key_augment, key_model):
        images = augment_real(key_augment, batch.images.astype(jnp.float32) / 255)
        outputs, new_model_state = classify(theta, images, key_model)
        return cross_entropy(outputs.logits, batch.labels), new_model_state

    def l_pcr(theta, phi):
        z = 0.8 * jax.random.normal(key_z, (SAMPLES, *LATENT))
        y = jax.random.randint(key_y, (SAMPLES,), 0, CLASSES)
        x = p.generator.apply(p.generator.params, p.meta.apply(phi, z, y), y)
        views = jnp.concatenate([weak_view(key_weak, x), strong_view(key_strong, x)])
        embeddings = classify(theta, views, made_model)[0].embedding
        a, b = embeddings[:SAMPLES], embeddings[SAMPLES:]
        if p.synthetic.distance == "l2":
            return jnp.mean((a - b) ** 2)
        norms = jnp.sqrt(jnp.sum(a**2, 1) * jnp.sum(b**2, 1))
        return jnp.mean(1 - jnp.sum(a * b, 1) / norms)

    def l_in(theta, phi):  # line 1
        return f(theta, p.batch, real_augment, real_model)[0] + 0.7 * l_pcr(theta, phi)

    def update(theta, phi):  # line 2
        grads = jax.grad(l_in)(theta, phi)
        updates, opt_state = p.tx.update(grads, state.opt_state, theta)
        return optax.apply_updates(theta, updates), opt_state

    def l_outer(phi):
        theta = state.params if reading == "outer at theta" else update(state.params, phi)[0]
        extra = l_pcr(theta, phi) if reading == "outer at theta" else 0.0
        return f(theta, p.outer, outer_augment, outer_model)[0] + extra

    h = jax.grad(l_outer)(state.finder_params)  # line 3
    updates, finder_opt_state = p.meta.tx.update(h, state.finder_opt_state, state.finder_params)
    phi = optax.apply_updates(state.finder_params, updates)
    # Lines 4 and 5.
    used = state.finder_params if reading == "old samples" else phi
    theta = state.params
    if reading == "theta' is kept":
        theta = update(theta, state.finder_params)[0]
    theta, opt_state = update(theta, used)
    return TrainState(
        step=state.step + 1,
        params=theta,
        model_state=f(state.params, p.batch, real_augment, real_model)[1],
        opt_state=opt_state,
        finder_params=phi,
        finder_opt_state=finder_opt_state,
        key=state.key,
    )


def distance_between(a, b, origin):
    """|a - b| relative to |b - origin|: the error of an update in units of the update."""
    square = lambda a, b: sum(
        float(jnp.sum((x - y) ** 2)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )
    return (square(a, b) / square(b, origin)) ** 0.5


@pytest.mark.parametrize(("optimizer", "distance"), [("sgd", "cosine"), ("adam", "l2")])
def test_the_step_is_the_five_lines_of_the_method(optimizer, distance):
    problem = make_problem(optimizer, distance)
    old = problem.state
    new, metrics = run_step(problem)
    expected = reference_step(problem)
    assert distance_between(new.finder_params, expected.finder_params, old.finder_params) < 1e-3
    assert distance_between(new.params, expected.params, old.params) < 1e-4
    assert int(new.step) == 12
    assert jnp.array_equal(jax.random.key_data(new.key), jax.random.key_data(old.key))
    for name in ("model_state", "opt_state", "finder_opt_state"):
        for a, b in zip(
            jax.tree.leaves(getattr(new, name)), jax.tree.leaves(getattr(expected, name))
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("reading", ["old samples", "theta' is kept", "outer at theta"])
def test_the_comparison_above_tells_wrong_readings_apart(reading):
    problem = make_problem()
    new, _ = run_step(problem)
    wrong = reference_step(problem, reading)
    assert distance_between(new.params, wrong.params, problem.state.params) > 1e-2


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "forward_over_reverse"])
def test_every_mode_makes_the_same_step(mode):
    problem = make_problem()
    other = problem._replace(meta=dataclasses.replace(problem.meta, mode=mode))
    (a, wanted), (b, metrics) = run_step(problem), run_step(other)
    tolerance = 0.5 if mode == "finite_difference" else 1e-3
    assert (
        distance_between(b.finder_params, a.finder_params, problem.state.finder_params) < tolerance
    )
    gain = "train/search_gain"
    np.testing.assert_allclose(metrics[gain], wanted[gain], rtol=tolerance)


def test_the_gain_of_a_finder_is_the_slope_of_the_outer_loss_in_the_length_of_its_offset():
    problem = make_problem()

    def outer_loss(length):
        apply = lambda phi, z, y: z + length * (problem.meta.apply(phi, z, y) - z)
        scaled = problem._replace(meta=dataclasses.replace(problem.meta, apply=apply))
        return float(run_step(scaled)[1]["train/outer_loss"])

    _, metrics = run_step(problem)
    slope = (outer_loss(1.01) - outer_loss(0.99)) / 0.02
    assert abs(slope) > 1e-4
    np.testing.assert_allclose(metrics["train/search_gain"], -slope, rtol=0.05)
    # An optimiser that does not move shows the outer loss before the step.
    still = optax.GradientTransformation(
        problem.tx.init, lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), state)
    )
    before = run_step(problem._replace(tx=still))[1]["train/outer_loss"]
    decrease = before - metrics["train/outer_loss"]
    np.testing.assert_allclose(metrics["train/outer_decrease"], decrease, rtol=1e-4)
    assert abs(decrease) > 1e-3


def test_shuffled_outer_labels_are_those_of_the_outer_batch_in_another_order():
    problem = make_problem()
    key = jax.random.split(jax.random.fold_in(problem.state.key, problem.state.step), 3)[2]
    labels = jax.random.permutation(jax.random.fold_in(key, 2), problem.outer.labels)
    assert not jnp.array_equal(labels, problem.outer.labels)
    written_out = problem._replace(outer=problem.outer._replace(labels=labels))
    shuffled = problem._replace(meta=dataclasses.replace(problem.meta, shuffle=True))
    (a, _), (b, _) = run_step(written_out), run_step(shuffled)
    jax.tree.map(np.testing.assert_array_equal, a.finder_params, b.finder_params)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_running_statistics_come_from_the_real_pass_alone():
    problem = make_problem()
    base, _ = run_step(problem, synthetic=False, meta=False)
    key = jax.random.fold_in(problem.state.key, problem.state.step)
    key_augment, _, _ = jax.random.split(jax.random.split(key, 3)[0], 3)
    x = np.asarray(augment_real(key_augment, problem.batch.images.astype(jnp.float32) / 255))
    h = x.reshape(BATCH, -1) @ np.asarray(problem.state.params["w"])
    mean = 0.9 * problem.state.model_state["mean"] + 0.1 * h.mean(0)
    np.testing.assert_allclose(base.model_state["mean"], mean, rtol=1e-4, atol=1e-6)
    for options in ({"meta": False}, {"meta": False, "loss": "cross_entropy"}, {}):
        new, _ = run_step(problem, **options)
        jax.tree.map(np.testing.assert_array_equal, new.model_state, base.model_state)


# --------------------------------------------------------------------------------------- reductions


def assert_same_classifier(a, b):
    """Bit for bit: parameters, running statistics and the optimiser's state."""
    for name in ("step", "params", "model_state", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["pcr", "gda", "mgr"])
def test_weight_zero_is_the_base_step_bit_for_bit(optimizer, method):
    problem = make_problem(optimizer)
    base, _ = run_step(problem, synthetic=False, meta=False)
    loss = "cross_entropy" if method == "gda" else "pcr"
    new, metrics = run_step(problem, meta=method == "mgr", loss=loss, weight=0.0)
    assert_same_classifier(new, base)
    assert float(metrics["train/synthetic_loss"]) == 0.0
    if method == "mgr":
        assert float(metrics["train/hypergradient_norm"]) == 0.0
        phi = problem.state.finder_params
        jax.tree.map(np.testing.assert_array_equal, new.finder_params, phi)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_a_finder_that_starts_as_the_identity_and_is_not_updated_is_pcr_bit_for_bit(distance):
    problem = make_problem(distance=distance, finder_tx=optax.sgd(0.0), started=False)
    pcr, _ = run_step(problem, meta=False)
    mgr, metrics = run_step(problem)
    assert_same_classifier(mgr, pcr)
    jax.tree.map(np.testing.assert_array_equal, mgr.finder_params, problem.state.finder_params)
    assert float(metrics["train/hypergradient_norm"]) > 0


def test_an_updated_finder_is_not_pcr():
    problem = make_problem(started=False)
    (pcr, _), (mgr, _) = run_step(problem, meta=False), run_step(problem)
    assert distance_between(mgr.params, pcr.params, problem.state.params) > 1e-3


@pytest.mark.parametrize("meta", [False, True])
def test_pcr_leaves_the_head_alone_and_naive_augmentation_does_not(meta):
    problem = make_problem()
    base, _ = run_step(problem, synthetic=False, meta=False)
    pcr, _ = run_step(problem, meta=meta)
    naive, _ = run_step(problem, meta=meta, loss="cross_entropy")
    jax.tree.map(np.testing.assert_array_equal, pcr.params["head"], base.params["head"])
    assert np.max(np.abs(pcr.params["w"] - base.params["w"])) > 1e-3
    for name in ("kernel", "bias"):
        assert np.max(np.abs(naive.params["head"][name] - base.params["head"][name])) > 1e-3


def test_the_gradient_of_pcr_in_the_head_is_exactly_zero():
    problem = make_problem()
    x = jnp.asarray(normal(100, 2 * SAMPLES, SIDE, SIDE, 1))

    def pcr(params):
        outputs, _ = apply_model(
            params, problem.state.model_state, x, rng=jax.random.key(0), train=True
        )
        return jnp.mean(gr.pcr_loss(*jnp.split(outputs.embedding, 2)))

    grads = jax.grad(pcr)(problem.state.params)
    assert np.all(np.asarray(grads["head"]["kernel"]) == 0)
    assert np.all(np.asarray(grads["head"]["bias"]) == 0)
    assert np.all(np.max(np.abs(grads["w"]), axis=0) > 0)


def test_naive_augmentation_is_cross_entropy_on_the_weak_view_with_the_drawn_labels():
    problem = make_problem("sgd")
    naive, metrics = run_step(problem, meta=False, loss="cross_entropy")
    _, made, _ = jax.random.split(jax.random.fold_in(problem.state.key, 11), 3)
    key_z, key_y, key_weak, _, key_model = jax.random.split(made, 5)
    z = 0.8 * jax.random.normal(key_z, (SAMPLES, *LATENT))
    y = np.asarray(jax.random.randint(key_y, (SAMPLES,), 0, CLASSES))
    x = weak_view(key_weak, problem.generator.apply(problem.generator.params, z, y))
    outputs, _ = apply_model(
        problem.state.params, problem.state.model_state, x, rng=key_model, train=True
    )
    logits = np.asarray(outputs.logits, np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(SAMPLES), y]
    np.testing.assert_allclose(metrics["train/synthetic_loss"], 0.7 * losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["train/loss"],
        metrics["train/cross_entropy"] + metrics["train/synthetic_loss"],
        rtol=1e-6,
    )


# ------------------------------------------------------------------------------------- dead units


def dead_unit_losses():
    """A ReLU network of which one unit never fires, so that its gradients are exactly zero."""
    x, y = jnp.asarray(np.abs(normal(110, 5, 3))), jnp.asarray(normal(111, 5))
    w = normal(112, 3, 4)
    w[:, 2] = -np.abs(w[:, 2])
    params = {"w": jnp.asarray(w), "v": jnp.asarray(normal(113, 4))}
    out = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"]
    inner = lambda p, phi: jnp.mean((out(p, x * phi[None]) - y) ** 2)
    outer = lambda p: jnp.mean((out(p, x[:, ::-1]) - y) ** 2)
    return params, jnp.array([1.0, 0.5, 2.0]), inner, outer


def test_the_direction_of_a_random_search_owes_nothing_to_the_noise_of_the_source():
    same = lambda key, x: x
    generator = gr.Generator(
        lambda p, z, y: z, params={}, latent_shape=(64,), encode=lambda p, x, y: x
    )
    options = Synthetic(
        "pcr", 1.0, "l2", weak=same, strong=same, batch_size=16, temperature=1.0, search="random",
        source="renoised", low=0.2, high=0.2, radius=0.3, keep_norm=False,
    )  # fmt: skip
    batch = types.SimpleNamespace(
        images=jnp.zeros((16, 8, 8, 1)), labels=jnp.zeros(16, int),
        encodings=jax.random.normal(jax.random.key(9), (16, 64)),
    )  # fmt: skip
    state = types.SimpleNamespace(params={}, model_state={})
    draw = make_regularizer(lambda *a: None, options, generator, None, num_classes=3).draw
    found = draw(state, jax.random.key(0), batch, {})
    offset, noise = found.z - found.drawn, found.drawn - jnp.sqrt(0.8) * batch.encodings
    unit = lambda a: a / jnp.linalg.norm(a, axis=1, keepdims=True)
    cosines = jnp.sum(unit(offset) * unit(noise), axis=1)
    assert float(jnp.mean(cosines**2)) == pytest.approx(1 / 64, abs=0.03)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_hypergradient_through_adam_is_finite_where_units_are_dead(name):
    params, phi, inner, outer = dead_unit_losses()
    assert np.all(np.asarray(jax.jit(jax.grad(inner))(params, phi)["w"])[:, 2] == 0)
    own = make_optimizer(OptimizerSettings(name=name, weight_decay=0.0), lambda step: 0.01)
    run = lambda tx, m: gr.hypergradient(inner, outer, params, phi, tx, tx.init(params), mode=m)
    pairs = [(tx, m) for tx in (own, optax.adam(0.01)) for m in MODES if m != "finite_difference"]
    for h in jax.jit(lambda: [run(*pair) for pair in pairs])():
        assert np.all(np.isfinite(h.grads)) and np.max(np.abs(h.grads)) > 0
