"""Synthetic latents: sources and searches against loops in float64, and the bound on collapse."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import genreg_jax as gr
from genreg_jax.regularizers import synthetic
from genreg_jax.regularizers.phantom import PhantomMemory

KEY = jax.random.key(3)
# Two classes of one, one of two, one of many, and a row that takes no part.
LABELS = np.array([2, 0, 0, 3, 2, 0, -1, 0, 1, 0])
SHAPE = (len(LABELS), 3, 2, 2)

# Each compiled whole: as operations on their own they would be hundreds of programs.
renoised = jax.jit(synthetic.renoised_latents, static_argnames=("low", "high", "temperature"))
interpolated = jax.jit(synthetic.interpolated_latents, static_argnames="strength")
bounded = jax.jit(synthetic.bounded_offset, static_argnames="radius")
entropy_offset = jax.jit(synthetic.entropy_offset, static_argnums=0, static_argnames="radius")
random_offset = jax.jit(synthetic.random_offset, static_argnames="radius")
restore_norm = jax.jit(synthetic.restore_norm)
diagnostics = jax.jit(synthetic.latent_diagnostics)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rows(z):
    z = np.asarray(z, np.float64)
    return z.reshape(len(z), -1)


def norms(z):
    return np.linalg.norm(rows(z), axis=1)


def row_draws(key, shape, sampler, indices=None):
    """Draws row by row, each from a key of its own."""
    indices = range(shape[0]) if indices is None else indices
    return np.stack([np.asarray(sampler(jax.random.fold_in(key, i), shape[1:])) for i in indices])


# --------------------------------------------------------------------------------------- renoised


@pytest.mark.parametrize("indices", [None, [4, 9, 1, 0, 33, 7, 2, 5, 6, 3]])
def test_renoised_latents_are_the_formula_row_by_row(indices):
    z = normal(0, *SHAPE) + 1
    rows_of = None if indices is None else jnp.array(indices)
    made = renoised(KEY, z, low=0.1, high=0.7, temperature=0.8, indices=rows_of)
    key_share, key_noise = jax.random.split(KEY)
    s = 0.1 + 0.6 * row_draws(key_share, (len(z), 1, 1, 1), jax.random.uniform, indices)
    eps = 0.8 * row_draws(key_noise, SHAPE, jax.random.normal, indices)
    np.testing.assert_allclose(made, np.sqrt(1 - s) * z + np.sqrt(s) * eps, rtol=1e-5, atol=1e-6)
    assert len(np.unique(s)) == len(s)


def test_no_noise_is_the_latent_and_all_noise_is_the_prior_bit_for_bit():
    z = normal(1, *SHAPE)
    np.testing.assert_array_equal(renoised(KEY, z, low=0.0, high=0.0), z)
    noise = row_draws(jax.random.split(KEY)[1], SHAPE, jax.random.normal)
    np.testing.assert_array_equal(renoised(KEY, z, low=1.0, high=1.0), noise)


def test_renoised_normal_latents_are_normal():
    z = normal(2, 400, 50)
    made = np.asarray(renoised(KEY, z, low=0.0, high=1.0))
    assert abs(made.mean()) < 0.02 and abs(made.std() - 1) < 0.02
    expected = np.sqrt((norms(z) ** 2).mean())
    assert abs(np.sqrt((norms(made) ** 2).mean()) / expected - 1) < 0.02


@pytest.mark.parametrize("high", [0.3, 1.0])
def test_shares_fill_their_range_and_stay_in_it(high):
    # With z = 1 and no noise the result is sqrt(1 - s).
    made = renoised(KEY, np.ones((500, 1), "f"), low=0.1, high=high, temperature=0.0)
    s = 1 - np.asarray(made, np.float64) ** 2
    assert s.min() > 0.1 - 1e-6 and s.max() < high + 1e-6
    np.testing.assert_allclose(np.sort(s.ravel()), np.linspace(0.1, high, 500), atol=0.06 * high)


# ----------------------------------------------------------------------------------- interpolated


def interpolated_in_float64(z, labels, strength, pool=None, **options):
    """The docstring's formula with the weights that phantoms of unit vectors show."""
    key_phantom, key_share = jax.random.split(KEY)
    size = len(z) + (0 if pool is None else len(pool.labels))
    unit = np.eye(size, dtype=np.float32)
    memory = None if pool is None else PhantomMemory(unit[len(z) :], pool.labels)
    weights, where = gr.phantom_embeddings(
        key_phantom, unit[: len(z)], labels, memory=memory, **options
    )
    weights = np.asarray(weights, np.float64)
    points = rows(z) if pool is None else np.concatenate([rows(z), rows(pool.embeddings)])
    share = strength * row_draws(key_share, (len(z), 1), jax.random.uniform).astype(np.float64)
    made = rows(z).copy()
    for i in np.flatnonzero(where):
        p = weights[i] @ points
        q = weights[i] @ np.linalg.norm(points, axis=1) * p / np.linalg.norm(p)
        a = math.acos(made[i] @ q / (np.linalg.norm(made[i]) * np.linalg.norm(q)))
        t = share[i, 0]
        made[i] = (math.sin((1 - t) * a) * rows(z)[i] + math.sin(t * a) * q) / math.sin(a)
    return made.reshape(z.shape)


OPTIONS = [{}, {"subset_size": 2}, {"weighting": "uniform"}, {"subset_size": 1}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("with_memory", [False, True])
def test_interpolated_latents_are_the_formula_row_by_row(options, with_memory):
    z = normal(3, *SHAPE) + 0.3
    memory = None
    if with_memory:
        memory = PhantomMemory(jnp.asarray(normal(4, 4, *SHAPE[1:])), jnp.array([1, 0, -1, 1]))
    made = synthetic.interpolated_latents(KEY, z, LABELS, strength=0.9, memory=memory, **options)
    expected = interpolated_in_float64(z, LABELS, 0.9, memory, **options)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    alone = (LABELS < 0) | (LABELS == 3) | ((LABELS == 1) & (not with_memory))
    np.testing.assert_array_equal(np.asarray(made)[alone], z[alone])
    assert np.all(np.any(rows(made) != rows(z), axis=1) | alone)


def test_one_image_to_a_class_and_no_strength_give_the_latent_bit_for_bit():
    z = normal(5, *SHAPE)
    np.testing.assert_array_equal(interpolated(KEY, z, np.arange(len(z)), strength=1.0), z)
    np.testing.assert_array_equal(interpolated(KEY, z, LABELS, strength=0.0), z)


def test_the_norm_of_normal_latents_is_kept_where_the_chord_shrinks_it():
    z, labels = normal(6, 64, 500), np.arange(64) % 4
    made = interpolated(KEY, z, labels, strength=1.0)
    assert np.abs(norms(made) / norms(z) - 1).max() < 0.15
    phantoms, _ = gr.phantom_embeddings(KEY, z, labels)
    assert (norms(phantoms) / norms(z)).max() < 0.6


def test_twins_opposites_and_zeros_stay_finite_and_so_do_gradients():
    z = np.stack([np.ones(6), np.ones(6), -np.ones(6), np.zeros(6), np.zeros(6)]).astype(np.float32)

    @jax.jit
    def grads_and_made(z, y):
        made = lambda z: synthetic.interpolated_latents(KEY, z, y, strength=1.0)
        return jax.grad(lambda z: jnp.sum(made(z) ** 3))(z), made(z)

    for labels in ([0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 2, 2]):
        grads, made = grads_and_made(z, np.array(labels))
        assert np.all(np.isfinite(made)) and np.all(np.isfinite(grads))
    np.testing.assert_allclose(made[:2], z[:2], rtol=1e-4)  # the twins, alone in their class


def test_gradients_of_the_sources_agree_with_finite_differences():
    z, labels = normal(7, 5, 3), np.array([0, 1, 0, 0, 1])
    f = lambda z: interpolated(KEY, z, labels, strength=0.8)
    g = lambda z: renoised(KEY, z, low=0.1, high=0.5)
    check_grads(f, (z,), order=1, eps=1e-2, rtol=2e-2)
    check_grads(g, (z,), order=1, eps=1e-2, rtol=2e-2)


def test_a_batch_over_eight_devices_gives_what_one_gives():
    z, labels = normal(8, 16, 5), jnp.arange(16) % 3
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def made(z, labels, indices, axis_name=None):
        return (
            synthetic.interpolated_latents(KEY, z, labels, strength=0.7, axis_name=axis_name),
            synthetic.renoised_latents(KEY, z, low=0.2, high=0.9, indices=indices),
        )

    spread = jax.shard_map(
        functools.partial(made, axis_name="data"),
        mesh=mesh,
        in_specs=(P("data"),) * 3,
        out_specs=(P("data"),) * 2,
    )
    inputs = z, labels, jnp.arange(16)
    for a, b in zip(jax.jit(spread)(*inputs), jax.jit(made)(*inputs)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.promotes
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_shape_and_dtype_are_those_of_the_latents(dtype):
    @jax.jit
    def everything(z):
        offset = jnp.ones_like(z)
        return (
            synthetic.renoised_latents(KEY, z, low=0.1, high=0.3),
            synthetic.interpolated_latents(KEY, z, LABELS, strength=0.5),
            synthetic.bounded_offset(z, offset, radius=0.3),
            synthetic.restore_norm(z + offset, z),
            synthetic.entropy_offset(lambda z: z.reshape(len(z), -1), z, radius=0.3),
            synthetic.random_offset(KEY, z, radius=0.3),
        )

    for made in everything(normal(9, *SHAPE).astype(dtype)):
        assert made.shape == SHAPE and made.dtype == dtype


# --------------------------------------------------------------------------------- bounded offset


def test_the_squares_of_float16_do_not_overflow_and_noise_in_few_bits_is_normal():
    z = 3 * normal(8, 4, 3 * 32 * 32)
    z[3] = 0
    half = jnp.asarray(z, jnp.float16)
    wide, key = half.astype(jnp.float32), jax.random.key(5)
    for function in (
        lambda z: synthetic.restore_norm(z, z[::-1]),
        lambda z: synthetic.bounded_offset(z, 3 * z[::-1], radius=0.3),
        lambda z: synthetic.random_offset(key, z, radius=0.3),
        lambda z: synthetic.renoised_latents(key, z, low=0.2, high=0.8),
        lambda z: synthetic.interpolated_latents(key, z, jnp.zeros(4, int), strength=0.7),
    ):
        found = function(half)
        assert found.dtype == jnp.float16
        np.testing.assert_allclose(found, function(wide), rtol=2e-3, atol=2e-3)
    slope = jax.grad(lambda a: jnp.sum(synthetic.restore_norm(a, half).astype(jnp.float32)))(half)
    assert np.isfinite(slope).all()
    noise = synthetic.renoised_latents(key, jnp.zeros((64, 4096), jnp.bfloat16), low=1.0, high=1.0)
    assert len(np.unique(noise.astype(jnp.float32))) > 1000 and float(jnp.abs(noise).max()) > 4


def test_bounded_offset_is_the_formula_and_stays_inside():
    z, offset = normal(10, 6, 2, 4), normal(11, 6, 2, 4)
    offset *= np.array([1e-3, 0.1, 1, 10, 1e3, 0], np.float32).reshape(6, 1, 1)
    made = bounded(z, offset, radius=0.3)
    bound = 0.3 * norms(z)
    length = norms(offset)
    factor = bound / np.sqrt(length**2 + bound**2)
    np.testing.assert_allclose(made, offset * factor.reshape(6, 1, 1), rtol=1e-5)
    assert np.all(norms(made) <= bound * (1 + 1e-6))
    np.testing.assert_allclose(made[0], offset[0], rtol=1e-5)
    np.testing.assert_array_equal(made[5], 0)


def test_no_offset_is_too_long_or_too_short():
    z = normal(12, 4, 5)
    z[3] = 0
    offset = normal(13, 4, 5) * np.array([[1e30], [1e-30], [3e38 / 4], [1]], np.float32)
    made = np.asarray(bounded(z, offset, radius=0.5))
    np.testing.assert_allclose(norms(made)[[0, 2]], 0.5 * norms(z)[[0, 2]], rtol=1e-5)
    np.testing.assert_allclose(made[1], offset[1], rtol=1e-5)
    np.testing.assert_array_equal(made[3], 0)
    total = lambda z, offset: jnp.sum(synthetic.bounded_offset(z, offset, radius=0.5))
    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(z, offset)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_the_derivative_is_the_identity_at_zero_and_positive_definite_everywhere():
    z, offset = normal(14, 1, 4), normal(15, 1, 4)
    jacobian_of = jax.jit(jax.jacobian(lambda offset: bounded(z, offset, radius=0.3)))
    jacobian = lambda offset: np.asarray(jacobian_of(offset)).reshape(4, 4)
    np.testing.assert_allclose(jacobian(np.zeros_like(offset)), np.eye(4), atol=1e-6)
    bound = 0.3 * norms(z)[0]
    for scale in (0.1, 1.0, 3.0):
        c = bound / math.hypot(scale * norms(offset)[0], bound)
        eigenvalues = np.linalg.eigvalsh(jacobian(scale * offset))
        np.testing.assert_allclose(eigenvalues, [c**3, c, c, c], rtol=1e-3)
    f = functools.partial(bounded, radius=0.3)
    check_grads(f, (z, offset), order=1, eps=1e-2, rtol=3e-2)


def test_radius_zero_and_infinity():
    z, offset = normal(16, 3, 4), normal(17, 3, 4)
    np.testing.assert_array_equal(bounded(z, offset, radius=0.0), 0 * offset)
    np.testing.assert_array_equal(bounded(z, offset, radius=math.inf), offset)
    np.testing.assert_allclose(bounded(z, offset, radius=1e5), offset, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------- the finder


small_finder = functools.partial(gr.Finder, hidden=(9, 8), num_classes=3)


@functools.partial(jax.jit, static_argnums=0)
def init(finder, z, y):
    return finder.init(jax.random.key(1), z, y)["params"]


@functools.partial(jax.jit, static_argnums=0)
def apply(finder, params, z, y):
    return finder.apply({"params": params}, z, y)


def finder_and_params(**options):
    finder = small_finder(**options)
    z, y = normal(20, 7, 2, 5), np.array([0, 2, 1, 1, 0, 2, 1])
    params = init(small_finder(), z, y)
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf + 0.4 * normal(30 + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return finder, tree.unflatten(leaves), z, y


def free_finder(params, z, y, residual, keep_norm):
    """The finder without a radius, layer by layer."""
    h = z.reshape(len(z), -1)
    draw = h
    h = jnp.concatenate([h, params["Embed_0"]["embedding"][y]], axis=1)
    for i in range(3):
        layer = params[f"Dense_{i}"]
        h = h @ layer["kernel"] + layer["bias"][None]
        h = jnp.where(h >= 0, h, 0.2 * h) if i < 2 else h
    found = draw + h if residual else h
    if keep_norm:
        norm = lambda a: jnp.sqrt(jnp.maximum(jnp.sum(a**2, axis=1, keepdims=True), 1e-12))
        found = found * (norm(draw) / jnp.maximum(norm(found), 1e-6))
    return found.reshape(z.shape)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("keep_norm", [True, False])
def test_a_finder_without_bound_is_the_free_one_and_with_none_left_the_source(residual, keep_norm):
    options = {"residual": residual, "keep_norm": keep_norm}
    finder, params, z, y = finder_and_params(**options)
    found = apply(finder, params, z, y)
    free = jax.jit(functools.partial(free_finder, **options))
    np.testing.assert_array_equal(found, free(params, z, y))
    np.testing.assert_array_equal(apply(small_finder(radius=0.0, **options), params, z, y), z)
    wide = apply(small_finder(radius=1e6, **options), params, z, y)
    np.testing.assert_allclose(wide, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", [True, False])
def test_found_latents_stay_within_the_radius(residual):
    finder, params, z, y = finder_and_params(residual=residual, radius=0.3, keep_norm=False)
    params = jax.tree.map(lambda leaf: 1e3 * leaf, params)
    found = apply(finder, params, z, y)
    relative = norms(found - z) / norms(z)
    assert np.all(relative <= 0.3 * (1 + 1e-5)) and np.all(relative > 0.29)
    found = apply(small_finder(residual=residual, radius=0.3), params, z, y)
    np.testing.assert_allclose(norms(found), norms(z), rtol=1e-5)
    assert np.all(norms(found - z) / norms(z) <= chord(0.3) * (1 + 1e-5))


def test_a_bounded_finder_starts_as_the_identity_and_learns_as_fast_as_a_free_one():
    z, y = normal(40, 7, 2, 5), np.array([0, 2, 1, 1, 0, 2, 1])
    target = normal(41, *z.shape)
    params, grads = init(small_finder(), z, y), []
    for finder in (small_finder(radius=0.3), small_finder()):
        np.testing.assert_array_equal(apply(finder, params, z, y), z)
        total = lambda params, finder=finder: jnp.sum(target * apply(finder, params, z, y))
        grads.append(jax.jit(jax.grad(total))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *grads)


def chord(radius):
    """Largest relative distance of a bounded offset after `restore_norm`, for a radius below 1."""
    return radius * math.sqrt(2 / (1 + math.sqrt(1 - radius**2)))


def spread_in_float64(draws, found, labels):
    """As the docstring has it, class by class."""
    total = [0.0, 0.0]
    for k, points in enumerate((rows(found), rows(draws))):
        for c in np.unique(labels):
            part = points[labels == c]
            total[k] += ((part - part.mean(0)) ** 2).sum()
    return math.sqrt(total[0] / total[1])


def least_spread(draws, labels, radius, keep_norm):
    """What no finder of this radius can fall below, in closed form, from the draws alone.

    With P the subtraction of class means, |P f| >= |P z| - |P b| >= |P z| - radius |z|. Where norms
    are kept, also |P f|^2 = |z|^2 - sum_c n_c |mean f|^2, and |mean f| <= |mean z| + chord mean|z|.
    """
    z = rows(draws)
    bound = chord(radius) if keep_norm else radius
    centred = spread_in_float64(draws, draws, labels) and math.sqrt(
        sum(((z[labels == c] - z[labels == c].mean(0)) ** 2).sum() for c in np.unique(labels))
    )
    least = max(0.0, centred - bound * np.linalg.norm(z))
    if keep_norm:
        pulled = 0.0
        for c in np.unique(labels):
            part = z[labels == c]
            mean = np.linalg.norm(part.mean(0)) + bound * np.linalg.norm(part, axis=1).mean()
            pulled += len(part) * mean**2
        least = max(least, math.sqrt(max(0.0, np.linalg.norm(z) ** 2 - pulled)))
    return least / centred


def collapsed_params(params, seed, scale):
    """Parameters whose last layer pulls every draw to one latent, as strongly as wanted."""
    bias = normal(seed, *params["Dense_2"]["bias"].shape)
    last = {"kernel": params["Dense_2"]["kernel"], "bias": scale * bias}
    return {**params, "Dense_2": last}


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("keep_norm", [True, False])
def test_no_parameters_can_collapse_a_bounded_finder(radius, keep_norm):
    z, y = normal(50, 48, 8, 8, 1), np.repeat(np.arange(3), 16)
    least = least_spread(z, y, radius, keep_norm)
    if radius == 0.3:
        assert least > (0.85 if keep_norm else 0.65)
    spread = lambda found: float(diagnostics(z, found, y)["spread"])
    for scale in (1.0, 30.0, 1e20):
        params = collapsed_params(init(small_finder(), z, y), 51, scale)
        found = apply(small_finder(radius=radius, keep_norm=keep_norm), params, z, y)
        assert spread(found) >= least
        assert np.all(np.isfinite(found))
        if scale == 30.0 and keep_norm:
            assert spread(apply(small_finder(), params, z, y)) < 0.1
    # The worst that offsets of this length can do: every draw towards the centre of its class.
    means = np.stack([rows(z)[y == c].mean(0) for c in y]).reshape(z.shape)
    worst = (1e6 * (means - z)).astype(np.float32)
    found = z + np.asarray(bounded(z, worst, radius=radius))
    if keep_norm:
        found = restore_norm(found, z)
    else:
        assert spread(found) < least + 0.07  # the bound is nearly reached
    assert spread(found) >= least


def test_the_large_sample_bounds_of_the_docstring():
    z, y = normal(52, 600, 400), np.zeros(600, int)
    for radius in (0.1, 0.3, 0.5):
        assert abs(least_spread(z, y, radius, False) - (1 - radius)) < 0.01
        # Within what a sample of 600 leaves of the mean, 1 / sqrt(600).
        kept = math.sqrt(2 * math.sqrt(1 - radius**2) - 1)
        assert kept - 0.05 < least_spread(z, y, radius, True) <= kept + 0.01


# ----------------------------------------------------------------------------------------- rivals


def classifier(seed, size, classes=4):
    w, b = normal(seed, size, classes), normal(seed + 1, classes)
    return lambda z: jnp.tanh(z.reshape(len(z), -1)) @ w + b[None]


def entropy_in_float64(logits):
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return -(p * np.log(p)).sum(1)


def test_the_hard_offset_is_the_direction_of_steepest_ascent_of_the_entropy():
    z = normal(60, 5, 2, 3)
    logits = classifier(61, 6)
    offset = np.asarray(entropy_offset(logits, z, radius=0.2))
    np.testing.assert_allclose(norms(offset), 0.2 * norms(z), rtol=1e-5)
    # Central differences in float64.
    w, b = normal(61, 6, 4).astype(np.float64), normal(62, 4).astype(np.float64)
    entropy = lambda z: entropy_in_float64(np.tanh(rows(z)) @ w + b)
    gradient = np.zeros((5, 6))
    for j in range(6):
        step = np.zeros((1, 6))
        step[0, j] = 1e-5
        gradient[:, j] = (entropy(rows(z) + step) - entropy(rows(z) - step)) / 2e-5
    direction = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(
        rows(offset) / norms(offset)[:, None], direction, rtol=1e-3, atol=1e-4
    )
    small = 0.01 * offset
    assert np.all(entropy(z + small) > entropy(z))


def test_where_nothing_can_be_gained_there_is_no_step():
    z = normal(63, 4, 5)
    constant = lambda z: jnp.zeros((len(z), 3)) * jnp.sum(z)
    np.testing.assert_array_equal(entropy_offset(constant, z, radius=0.5), 0 * z)
    sure = lambda z: jnp.stack([1e4 + z[:, 0], -1e4 * jnp.ones(len(z))], axis=1)
    np.testing.assert_array_equal(entropy_offset(sure, z, radius=0.5), 0 * z)
    # A gradient of which the squares are zero in float32 still has its direction.
    faint = lambda z: jnp.stack([5 + 1e-25 * z[:, 0], jnp.zeros(len(z))], axis=1)
    faint_offset = entropy_offset(faint, z, radius=0.5)
    np.testing.assert_allclose(norms(faint_offset), 0.5 * norms(z), rtol=1e-5)


def test_a_random_offset_has_the_length_and_a_direction_of_its_own_for_each_row():
    z = normal(64, 300, 4) * np.array([1, 2, 3, 4], np.float32)
    offset = np.asarray(random_offset(KEY, z, radius=0.2))
    np.testing.assert_allclose(norms(offset), 0.2 * norms(z), rtol=1e-5)
    directions = offset / norms(offset)[:, None]
    np.testing.assert_allclose(directions.mean(0), np.zeros(4), atol=0.1)
    np.testing.assert_allclose(directions.T @ directions / 300, np.eye(4) / 4, atol=0.05)
    draws = row_draws(KEY, z.shape, jax.random.normal)
    np.testing.assert_allclose(
        directions, draws / np.linalg.norm(draws, axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )
    again = random_offset(KEY, z[5:9], radius=0.2, indices=np.arange(5, 9))
    np.testing.assert_allclose(again, offset[5:9], rtol=1e-5)


def test_rivals_are_constants_and_radius_zero_is_the_source():
    z, w = normal(65, 4, 6), normal(66, 6, 3)
    hard = lambda z, w, radius: synthetic.entropy_offset(lambda z: z @ w, z, radius=radius)
    random = lambda z, w, radius: synthetic.random_offset(KEY, z, radius=radius)
    for offset in (hard, random):
        total = lambda z, w, offset=offset: jnp.sum(offset(z, w, 0.3) ** 3)
        assert not any(g.any() for g in jax.jit(jax.grad(total, argnums=(0, 1)))(z, w))
        none = jax.jit(offset, static_argnums=2)(z, w, 0.0)
        np.testing.assert_array_equal(restore_norm(z + none, z), z)


def test_every_search_of_a_radius_ends_equally_far_out():
    z, y = normal(67, 8, 4, 4, 1), np.arange(8) % 3
    params = collapsed_params(init(small_finder(), z, y), 68, 1e4)
    for found in (
        apply(small_finder(radius=0.3), params, z, y),
        restore_norm(z + entropy_offset(classifier(69, 16), z, radius=0.3), z),
        restore_norm(z + random_offset(KEY, z, radius=0.3), z),
    ):
        np.testing.assert_allclose(norms(found), norms(z), rtol=1e-5)
        distance = float(diagnostics(z, found, y)["distance"])
        assert 0.25 < distance <= chord(0.3)


def test_restore_norm_is_finite_at_zero():
    z, moved = normal(70, 3, 4), normal(71, 3, 4)
    z[1], moved[2] = 0, 0
    made = restore_norm(moved, z)
    np.testing.assert_allclose(norms(made)[0], norms(z)[0], rtol=1e-5)
    assert np.max(np.abs(made[1])) < 1e-5 and np.all(np.asarray(made[2]) == 0)
    grads = jax.jit(jax.grad(lambda a, b: jnp.sum(restore_norm(a, b)), argnums=(0, 1)))(moved, z)
    assert all(np.all(np.isfinite(g)) for g in grads)


# ------------------------------------------------------------------------------------ diagnostics


def test_diagnostics_are_the_formulas():
    z = normal(80, *SHAPE) + 5
    found = 0.5 * z + normal(81, *SHAPE)
    result = diagnostics(z, found, LABELS)
    np.testing.assert_allclose(result["spread"], spread_in_float64(z, found, LABELS), rtol=1e-4)
    np.testing.assert_allclose(result["distance"], np.mean(norms(found - z) / norms(z)), rtol=1e-5)


def test_classes_of_one_size_give_the_ratio_of_standard_deviations():
    z, found = normal(82, 12, 5), normal(83, 12, 5) * 0.3
    stds = [np.sqrt(a.reshape(3, 4, 5).var(1).mean()) for a in (found, z)]
    result = diagnostics(z, found, np.repeat(np.arange(3), 4))
    np.testing.assert_allclose(result["spread"], stds[0] / stds[1], rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 3])
def test_equal_draws_have_no_spread_to_compare_with(rows):
    draws = np.repeat(normal(9, 1, 64), rows, axis=0)
    found = draws * np.linspace(0.9, 1.1, rows, dtype=np.float32)[:, None]
    result = diagnostics(draws, found, np.zeros(rows, int))
    assert result["spread"] == 1 and 0.05 < float(result["distance"]) < 0.2


def test_diagnostics_of_nothing_moved_of_collapse_and_of_lone_rows():
    z, labels = normal(84, 6, 5), np.array([0, 0, 0, 1, 1, 1])
    same = diagnostics(z, z, labels)
    assert float(same["spread"]) == 1 and float(same["distance"]) == 0
    collapsed = np.tile(normal(85, 1, 5), (6, 1))
    assert float(diagnostics(z, collapsed, labels)["spread"]) < 1e-6
    assert float(diagnostics(z, collapsed, np.arange(6))["spread"]) == 1


# ------------------------------------------------------------------------------------- bad input


Z = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: synthetic.renoised_latents(KEY, Z, low=-0.1, high=1), "low is -0.1; .*0 to 1"),
        (lambda: synthetic.renoised_latents(KEY, Z, low=0, high=1.5), "high is 1.5; .*0 to 1"),
        (lambda: synthetic.renoised_latents(KEY, Z, low=0.6, high=0.5), "low is 0.6, above high"),
        (
            lambda: synthetic.renoised_latents(KEY, Z, low=0, high=1, temperature=-1.0),
            "temperature is -1.0",
        ),
        (
            lambda: synthetic.renoised_latents(KEY, Z, low=0, high=1, indices=jnp.arange(3)),
            r"indices has shape \(3,\) .*\(4,\)",
        ),
        (
            lambda: synthetic.renoised_latents(KEY, Z.astype(int), low=0, high=1),
            "z has shape .*int.*floating point",
        ),
        (lambda: synthetic.renoised_latents(KEY, Z[0], low=0, high=1), r"z has shape \(3,\)"),
        (
            lambda: synthetic.interpolated_latents(KEY, Z, np.zeros(4, int), strength=1.1),
            "strength is 1.1; .*0 to 1",
        ),
        (
            lambda: synthetic.interpolated_latents(KEY, Z, np.zeros(5, int), strength=1),
            "labels",
        ),
        (lambda: synthetic.bounded_offset(Z, Z, radius=-1.0), "radius is -1.0; .*inf"),
        (lambda: synthetic.bounded_offset(Z, Z, radius=math.nan), "radius is nan"),
        (lambda: synthetic.bounded_offset(Z, Z[:2], radius=1.0), r"offset has shape \(2, 3\)"),
        (lambda: synthetic.restore_norm(Z, Z[:2]), r"moved has shape \(4, 3\)"),
        (lambda: synthetic.random_offset(KEY, Z, radius=math.inf), "radius is inf"),
        (lambda: synthetic.entropy_offset(lambda z: z, Z, radius=-0.1), "radius is -0.1"),
        (
            lambda: synthetic.entropy_offset(lambda z: z[:, 0], Z, radius=0.1),
            r"logits of shape \(4,\).*\[B, K\]",
        ),
        (
            lambda: synthetic.latent_diagnostics(Z, Z[:2], np.zeros(4, int)),
            r"found has shape \(2, 3\)",
        ),
        (lambda: synthetic.latent_diagnostics(Z, Z, np.zeros(4)), "labels has shape .*float"),
        (
            lambda: gr.Finder(radius=-0.5).init(jax.random.key(0), jnp.asarray(Z)),
            "radius is -0.5",
        ),
    ],
)
def test_wrong_arguments_are_named_with_their_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
