"""Whole flows: what the public methods promise, their errors, and the density of a known target."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import genreg_jax as gr
from genreg_jax import flows
from genreg_jax.devices import data_mesh

SHAPE = (4, 4, 2)
LABELS = jnp.array([0, 1, 2, 1])
X = jnp.asarray(np.random.default_rng(0).uniform(0.05, 0.95, (4, *SHAPE)), jnp.float32)


@functools.cache
def built(kind, num_classes=None):
    """A flow with random parameters of a trained flow's size, its images and labels."""
    make = {"glow": flows.glow, "realnvp": flows.realnvp}[kind]
    flow = make(SHAPE, levels=2, steps=2, width=6, num_classes=num_classes)
    y = None if num_classes is None else LABELS
    params = flow.init(jax.random.key(0), X, y)
    rng = np.random.default_rng(1)
    draw = lambda leaf: leaf + np.float32(0.05) * rng.standard_normal(leaf.shape, np.float32)
    return flow, jax.tree.map(draw, jax.device_get(params)), y


FLOWS = [("glow", None), ("glow", 3), ("realnvp", 3)]


@pytest.mark.parametrize("kind, num_classes", FLOWS)
def test_freezing_changes_nothing(kind, num_classes):
    flow, params, y = built(kind, num_classes)
    frozen = flow.freeze(params)
    z, log_det = flow.encode(params, X, y)
    x, inverse_log_det = flow.decode(params, z, y)
    np.testing.assert_allclose(x, X, atol=1e-5)
    np.testing.assert_allclose(log_det, -inverse_log_det, atol=1e-3)
    np.testing.assert_allclose(frozen.encode(X, y), z, atol=1e-5)
    np.testing.assert_allclose(frozen.decode(z, y), x, atol=1e-5)


def test_freezing_solves_one_triangular_system_at_a_time():
    # On CPU a batch of them runs on XLA's own threads, and two batches at once never end.
    flow, params, _ = built("glow", None)
    text = str(jax.make_jaxpr(lambda params: flow.freeze(params).params)(params))
    solved = re.findall(r":f32\[([\d,]+)\] = triangular_solve", text)
    assert len(solved) == 2 * 2 and all(shape.count(",") == 1 for shape in solved), solved


def test_gradients_reach_the_latent_through_a_frozen_flow():
    flow, params, y = built("glow", 3)
    frozen = flow.freeze(params)
    z = frozen.encode(X, y)
    weights, direction = (jax.random.normal(jax.random.key(seed), X.shape) for seed in (0, 1))
    # The frozen flow is a pytree: it goes through `jit` as an argument.
    loss = jax.jit(lambda frozen, z: jnp.sum(weights * frozen.decode(z, y)))
    got = np.asarray(jax.grad(loss, argnums=1)(frozen, z))
    expected = jax.jit(jax.grad(lambda z: jnp.sum(weights * flow.decode(params, z, y)[0])))(z)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (np.abs(got).max((1, 2, 3)) > 0).all()
    step = np.float32(1e-2)
    difference = loss(frozen, z + step * direction) - loss(frozen, z - step * direction)
    np.testing.assert_allclose(difference / (2 * step), np.vdot(got, direction), rtol=0.02)


def test_couplings_in_bfloat16_stay_near():
    flow, params, y = built("glow", 3)
    exact, fast = flow.freeze(params), flow.freeze(params, coupling_dtype="bfloat16")
    z = fast.encode(X, y)
    assert z.dtype == jnp.float32
    assert 0 < float(jnp.abs(z - exact.encode(X, y)).max()) < 0.1


def test_examples_are_independent_and_vmap_agrees():
    flow, params, y = built("glow", 3)
    z, log_det = flow.encode(params, X, y)
    one, one_log_det = flow.encode(params, X[2:3], y[2:3])
    np.testing.assert_allclose(one[0], z[2], atol=1e-5)
    np.testing.assert_allclose(one_log_det[0], log_det[2], atol=1e-4)
    halves = jax.vmap(lambda x, y: flow.encode(params, x, y)[0])(
        X.reshape(2, 2, *SHAPE), y.reshape(2, 2)
    )
    np.testing.assert_allclose(halves.reshape(z.shape), z, atol=1e-5)


def test_log_prob_is_the_change_of_variables_and_has_gradients_for_every_parameter():
    flow, params, y = built("glow", 3)
    z, log_det = flow.encode(params, X, y)
    expected = jax.scipy.stats.norm.logpdf(z).sum((1, 2, 3)) + log_det
    log_prob = flow.log_prob(params, X, y)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    bits = flow.bits_per_dim(params, X, y)
    np.testing.assert_allclose(bits, np.log2(255) - expected / (32 * np.log(2)), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda p: flow.log_prob(p, X, y).sum()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    flat, _ = jax.tree_util.tree_flatten_with_path(grads)
    zero = [path for path, g in flat if not np.any(g)]
    assert zero == []


def test_dequantisation_stays_inside_the_bin():
    x = jnp.full((2, 4, 4, 1), 100 / 255)
    noisy = flows.dequantize(jax.random.key(0), x)
    assert bool((jnp.floor(255 * noisy + 0.5) == 100).all()) and float(jnp.std(noisy)) > 0


def test_samples_and_interpolations():
    flow, params, y = built("glow", 3)
    cold = flow.sample(params, jax.random.key(0), 4, y, temperature=0.0)
    assert cold.shape == X.shape and bool((cold[1] == cold[3]).all())
    warm = flow.sample(params, jax.random.key(0), 4, 1)
    assert bool(((warm >= 0) & (warm <= 1)).all()) and not bool((warm[0] == warm[1]).all())
    path = flow.interpolate(params, X, X[::-1], y, num=3)
    assert path.shape == (3, *X.shape)
    np.testing.assert_allclose(path[0], X, atol=1e-4)
    np.testing.assert_allclose(path[-1], X[::-1], atol=1e-4)


def test_bfloat16_images_are_computed_in_float32():
    flow, params, y = built("glow", 3)
    z, _ = flow.encode(params, X.astype(jnp.bfloat16), y)
    assert z.dtype == jnp.float32


def test_latents_far_out_and_black_white_and_constant_images():
    flow, params, y = built("glow", 3)
    z, _ = flow.encode(params, X, y)
    far, log_det = flow.decode(params, 10 * z, y)
    assert bool(jnp.isfinite(far).all() and jnp.isfinite(log_det).all())
    assert bool((jnp.abs(far - 0.5) < 0.57).all())
    extreme = jnp.stack([jnp.full(SHAPE, v) for v in (0.0, 1.0, 0.5, 0.0)])
    z, log_det = flow.encode(params, extreme, y)
    assert bool(jnp.isfinite(z).all() and jnp.isfinite(log_det).all())
    np.testing.assert_allclose(flow.decode(params, z, y)[0], extreme, atol=1e-4)


def test_initialisation_on_one_constant_image():
    flow, _, _ = built("glow", 3)
    black = jnp.zeros((1, *SHAPE))
    params = flow.init(jax.random.key(0), black, LABELS[:1])
    z, log_det = flow.encode(params, black, LABELS[:1])
    assert bool(jnp.isfinite(z).all() and jnp.isfinite(log_det).all())
    np.testing.assert_allclose(flow.decode(params, z, LABELS[:1])[0], black, atol=1e-4)


@pytest.mark.parametrize("y", [None, 2])
def test_distrax_agrees(y):
    distrax = pytest.importorskip("distrax")
    flow, params, _ = built("glow", None if y is None else 3)
    base = distrax.Independent(distrax.Normal(jnp.zeros(SHAPE), jnp.ones(SHAPE)), 3)
    bijector = flow.as_distrax(params, y)
    transformed = distrax.Transformed(base, bijector)
    labels = None if y is None else jnp.full(4, y)
    ours = flow.log_prob(params, X, labels)
    with jax.numpy_rank_promotion("allow"):  # distrax relies on it
        theirs = transformed.log_prob(X)
        samples = transformed.sample(seed=jax.random.key(0), sample_shape=(4,))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    z, _ = flow.encode(params, X, labels)
    np.testing.assert_allclose(bijector.inverse(bijector.forward(z)), z, atol=1e-3)
    # Under `jit`, because samples may leave [0, 1] by what the logit leaves room for.
    there_and_back = jax.jit(lambda x: bijector.forward(bijector.inverse(x)))
    np.testing.assert_allclose(there_and_back(samples), samples, atol=1e-4)


GOOD = dict(levels=1, steps=1, width=4)


@pytest.mark.parametrize("make", [flows.glow, flows.realnvp])
@pytest.mark.parametrize(
    "shape, change, message",
    [
        ((7, 8, 1), {}, r"image_shape=\(7, 8, 1\) has an odd side"),
        ((8, 8), {}, r"image_shape=\(8, 8\) must be \(height, width, channels\)"),
        ((28, 28, 1), {"levels": 3}, r"levels=3 is too many .* At most levels=2"),
        ((8, 8, 1), {"levels": 0}, "levels=0 must be a positive integer"),
        ((8, 8, 1), {"steps": 0}, "steps=0 must be a positive integer"),
        ((8, 8, 1), {"width": -1}, "width=-1 must be a positive integer"),
        ((8, 8, 1), {"num_classes": 0}, "num_classes=0 must be"),
        ((8, 8, 1), {"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ((8, 8, 1), {"scale": 0.0}, "scale=0.0 must be positive"),
        ((8, 8, 1), {"num_bins": 1}, "num_bins=1 must be"),
    ],
)
def test_a_wrong_architecture_is_named(make, shape, change, message):
    with pytest.raises(ValueError, match=message):
        make(shape, **{**GOOD, **change})


@pytest.mark.parametrize(
    "x, y, message",
    [
        (X[0], LABELS, r"x has shape \(4, 4, 2\)"),
        (X[:, :2], LABELS, r"x has shape \(4, 2, 4, 2\); allowed is \[B, H, W, C\]"),
        (X[:0], LABELS[:0], "the batch is empty"),
        (X + 0.5, LABELS, r"x has values in \[.*\]; allowed is \[0, 1\]"),
        (X - 0.5, LABELS, r"x has values in"),
        (X.at[0, 0, 0, 0].set(jnp.nan), LABELS, "x contains NaN or infinity"),
        ((255 * X).astype(jnp.uint8), LABELS, "x has dtype uint8.*divide 8-bit images by 255"),
        (X, None, r"y is None, but the flow is conditional"),
        (X, LABELS[:2], r"y has shape \(2,\)"),
        (X, LABELS + 0.0, "y has .* dtype float32"),
        (X, LABELS + 1, r"y has labels in \[1, 3\]; allowed is \[0, 2\]"),
    ],
)
def test_wrong_images_and_labels_are_named(x, y, message):
    flow, params, _ = built("glow", 3)
    with pytest.raises(ValueError, match=message):
        flow.encode(params, x, y)


def test_other_wrong_arguments_are_named():
    flow, params, _ = built("glow")
    with pytest.raises(ValueError, match="y was given to an unconditional flow"):
        flow.encode(params, X, LABELS)
    with pytest.raises(ValueError, match="z contains NaN"):
        flow.decode(params, jnp.full(X.shape, jnp.nan))
    with pytest.raises(ValueError, match="n=0 must be"):
        flow.sample(params, jax.random.key(0), 0)
    with pytest.raises(ValueError, match="temperature is -1.0"):
        flow.sample(params, jax.random.key(0), 1, temperature=-1.0)
    with pytest.raises(ValueError, match="num is 1; allowed: an integer from 2"):
        flow.interpolate(params, X, X, num=1)
    with pytest.raises(ValueError, match="coupling_dtype='int8'"):
        flow.freeze(params, coupling_dtype="int8")


TINY = flows.glow((4, 4, 1), levels=1, steps=1, width=4, num_classes=3, dropout=0.1)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
CLASSES = np.arange(40) % 3


def test_fit_is_deterministic_stops_early_and_compiles_once():
    traces, seen = [], []

    def augment(key, x):
        traces.append(x.shape)
        return gr.augment.crop(key, x, padding=1)

    options = dict(steps=7, batch_size=8, eval_every=3, learning_rate=1e-2, augment=augment)
    options["validation"] = (IMAGES[:9], CLASSES[:9])
    run = lambda **kw: flows.fit(jax.random.key(0), TINY, IMAGES, CLASSES, **options, **kw)
    first = run(on_progress=lambda step, metrics: seen.append((step, metrics)))
    # Once for the step, once for the large batch that initialises ActNorm.
    assert sorted(traces) == [(8, 4, 4, 1), (256, 4, 4, 1)]
    assert [step for step, _ in seen] == [3, 6, 7] == [e["step"] for e in first.history]
    scores = {e["step"]: e["validation_bits_per_dim"] for e in first.history}
    assert first.bits_per_dim == min(scores.values()) == scores[first.best_step]
    again = run()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first.params, again.params))
    like = TINY.init(jax.random.key(0), IMAGES[:2] / np.float32(255), CLASSES[:2])
    assert jax.tree.structure(like) == jax.tree.structure(first.params)


def test_fit_on_many_devices_is_fit_on_one_and_continues_there():
    flow = flows.glow((4, 4, 1), levels=1, steps=2, width=6, num_classes=3, dropout=0.1)
    options = dict(steps=20, eval_every=5, learning_rate=1e-3, warmup=4)
    options["augment"] = lambda key, x: gr.augment.crop(key, x, padding=1)
    options["validation"] = (IMAGES[:9], CLASSES[:9])

    def run(devices, batch_size=16, **kwargs):
        mesh = data_mesh(devices, devices)
        found = flows.fit(
            jax.random.key(0), flow, IMAGES, CLASSES,
            batch_size=batch_size, mesh=mesh, **options, **kwargs,
        )  # fmt: skip
        assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(found.params))
        # Not committed there: images on another device can go through the flow.
        flow.log_prob(found.params, jax.device_put(IMAGES[:2] / 255, jax.devices()[1]), CLASSES[:2])
        return found

    def same(a, b):
        for one, other in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params)):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
        scores = [[e["validation_bits_per_dim"] for e in fit.history] for fit in (a, b)]
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)

    saved = {}

    def keep(step, tree, extra):
        saved[step] = step, jax.tree.map(np.array, tree), json.loads(json.dumps(extra))

    one, eight = run(1), run(8, save=keep)
    same(one, eight)
    same(one, run(2, restore=lambda like: saved[10]))
    same(run(1, batch_size=9), run(8, batch_size=9))  # left whole: eight do not divide it


def test_fit_without_a_mesh_leaves_placement_to_jax():
    with jax.default_device(jax.devices()[3]):
        found = flows.fit(jax.random.key(0), TINY, IMAGES, CLASSES, steps=2, eval_every=2)
    assert {leaf.device for leaf in jax.tree.leaves(found.params)} == {jax.devices()[3]}
    moved = jax.device_put(IMAGES[:2] / 255, jax.devices()[1])
    assert TINY.log_prob(found.params, moved, CLASSES[:2]).shape == (2,)


@pytest.mark.parametrize(
    "mesh",
    [
        8,
        Mesh(np.array(jax.devices()), ("batch",)),
        Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model")),
        jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)),
    ],
)
def test_fit_refuses_a_mesh_of_another_kind(mesh):
    with pytest.raises(ValueError, match="mesh is .*; allowed is .* one axis 'data'"):
        flows.fit(jax.random.key(0), TINY, IMAGES, CLASSES, steps=2, mesh=mesh)


def test_fit_names_the_step_and_the_layer_that_fail():
    where = r"not finite at step \d+ \(the first layer to fail is flow\.\d\d_.*learning_rate"
    with pytest.raises(ValueError, match=where):
        flows.fit(
            jax.random.key(0),
            TINY,
            IMAGES,
            CLASSES,
            steps=6,
            batch_size=8,
            learning_rate=1e30,
            warmup=0,
            eval_every=6,
        )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps=0"),
        ({"optimizer": "adagrad"}, "optimizer='adagrad' must be 'adam' or 'adamax'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"labels": None}, "labels is None"),
        ({"labels": CLASSES[:3]}, r"labels has shape \(3,\)"),
        ({"images": IMAGES[:, :2]}, "images has shape"),
        ({"images": IMAGES.astype(np.float32)}, "images has values in"),
        ({"validation": (IMAGES, None)}, "validation labels is None"),
    ],
)
def test_fit_names_wrong_arguments(change, message):
    arguments = dict(images=IMAGES, labels=CLASSES, steps=1, batch_size=8) | change
    with pytest.raises(ValueError, match=message):
        flows.fit(jax.random.key(0), TINY, **arguments)


def test_a_known_density_is_found():
    # x = sigmoid(g), g a correlated Gaussian: log p(x) = log N(g; m, C) - sum log x (1 - x).
    rng = np.random.default_rng(0)
    factor = 0.6 * np.eye(4) + 0.35 * rng.standard_normal((4, 4))
    mean = 0.5 * rng.standard_normal(4)
    g = rng.standard_normal((6000, 4)) @ factor.T + mean
    x = (1 / (1 + np.exp(-g))).astype(np.float32)
    white = np.linalg.solve(factor, (g - mean).T).T
    log_p = -0.5 * (white**2 + np.log(2 * np.pi)).sum(1) - np.linalg.slogdet(factor)[1]
    log_p = log_p - np.log(x * (1 - x)).sum(1)
    # Fine bins, because these images are not quantised.
    flow = flows.glow((2, 2, 1), levels=1, steps=4, width=24, num_bins=4096)
    images = x.reshape(-1, 2, 2, 1)
    fitted = flows.fit(
        jax.random.key(0),
        flow,
        images[:5000],
        steps=1200,
        batch_size=250,
        learning_rate=5e-3,
        validation=(images[4500:5000], None),
        eval_every=200,
    )
    test = flow.bits_per_dim(fitted.params, images[5000:])
    truth = np.log2(4095) - log_p[5000:] / (4 * np.log(2))
    assert abs(float(test.mean()) - truth.mean()) < 0.02

    # Its density over the whole four-dimensional box is one.
    edge = np.linspace(-0.056, 1.056, 33, dtype=np.float32)
    centres = (edge[1:] + edge[:-1]) / 2
    grid = np.stack(np.meshgrid(*[centres] * 4), -1).reshape(-1, 2, 2, 1)
    run = jax.jit(flow.bijector.forward_and_log_det)
    z, log_det = map(np.asarray, run(fitted.params, grid))
    log_p = np.sum(-0.5 * (z**2 + np.log(2 * np.pi)), (1, 2, 3)) + log_det
    cell = float(centres[1] - centres[0]) ** 4
    assert abs(np.exp(log_p[np.isfinite(log_p)]).sum() * cell - 1) < 0.02


KEY = jax.random.key(3)


@pytest.mark.parametrize("make", [flows.glow, flows.realnvp])
def test_float32_stays_float32_where_float64_is_on(make, float64):
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 4, 4, 2), np.float32), np.arange(6) % 3
    flow = make((4, 4, 2), levels=1, steps=1, width=4, num_classes=3)
    params = flow.init(KEY, x, y)
    z, log_det = flow.encode(params, x, y)
    back, _ = flow.decode(params, z, y)
    frozen = flow.freeze(params)
    results = [
        z, log_det, back, frozen.encode(x, y), frozen.decode(z, y),
        flow.log_prob(params, x, y, key=KEY), flow.sample(params, KEY, 3, y[:3]),
        flow.bits_per_dim(params, x, y),
    ]  # fmt: skip
    assert {a.dtype for a in [*jax.tree.leaves(params), *results]} == {jnp.dtype("float32")}
    np.testing.assert_allclose(back, x, atol=1e-5)
    if make is flows.glow:  # fitting asks a flow for no more than the above
        fitted = flows.fit(KEY, flow, x, y, steps=2, batch_size=3, eval_every=2)
        assert np.isfinite(fitted.bits_per_dim)


def test_distrax_gives_the_density_of_its_own_samples_and_refuses_wrong_labels():
    import distrax

    x, y = np.random.default_rng(0).random((6, 4, 4, 2), np.float32), np.arange(6) % 3
    flow = flows.glow((4, 4, 2), levels=1, steps=1, width=4, num_classes=3)
    params = flow.init(KEY, x, y)
    normal = distrax.Normal(jnp.zeros((4, 4, 2)), jnp.ones((4, 4, 2)))
    density = distrax.Transformed(distrax.Independent(normal, 3), flow.as_distrax(params, 1))
    with jax.numpy_rank_promotion("allow"):  # distrax broadcasts
        samples, log_prob = density.sample_and_log_prob(seed=KEY, sample_shape=(200,))
        again = density.log_prob(samples)
    assert samples.min() < 0 and samples.max() > 1  # as far as the logit's bounds let them
    np.testing.assert_allclose(again, log_prob, rtol=1e-3)
    for wrong in (3, -1, 1.5, None):
        with pytest.raises(ValueError, match="y"):
            flow.as_distrax(params, wrong)


def test_the_advice_about_an_odd_side_fits_the_levels():
    with pytest.raises(ValueError, match=r"has an odd side; with levels=2 .* multiples of 4"):
        gr.flows.glow((33, 33, 1), levels=2, steps=1, width=4)
