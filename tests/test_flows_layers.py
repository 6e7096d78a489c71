"""Every bijector: round trip, log-determinants against autodiff, freezing, the identity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genreg_jax.flows import glow, realnvp
from genreg_jax.flows.chain import Chain, Level, Repeat
from genreg_jax.flows.convolution import _by_products, _by_products_of_planes
from genreg_jax.flows.layers import ActNorm, AffineCoupling, ClassAffine, InvertibleConv, Logit
from genreg_jax.flows.layout import from_planes, to_planes

KEY, HIGHEST = jax.random.key(2), jax.lax.Precision.HIGHEST
STEP = Chain((ActNorm(), InvertibleConv(4, seed=3), AffineCoupling(6)))

# name -> (bijector, image shape, number of classes); a new layer is one new line.
TABLE = {
    "logit": (Logit(), (2, 3, 2), None),
    "logit, 17 bins": (Logit(num_bins=17, bound=0.95), (2, 3, 1), None),
    "actnorm": (ActNorm(), (2, 3, 4), None),
    "invertible 1x1": (InvertibleConv(4, seed=1), (2, 3, 4), None),
    "channel coupling": (AffineCoupling(6), (2, 3, 4), None),
    "channel coupling, 3 channels, flip": (AffineCoupling(6, flip=True), (2, 3, 3), None),
    "channel coupling, classes": (AffineCoupling(6, num_classes=3), (2, 3, 4), 3),
    "checkerboard": (AffineCoupling(6, mask="checkerboard"), (4, 3, 1), None),
    "checkerboard, flip, classes": (
        AffineCoupling(6, mask="checkerboard", flip=True, num_classes=3),
        (2, 3, 2),
        3,
    ),
    "prior": (ClassAffine(), (2, 3, 2), None),
    "class prior": (ClassAffine(3), (2, 3, 2), 3),
    "chain": (STEP, (2, 3, 4), None),
    "repeat": (Repeat(STEP, 3), (2, 3, 4), None),
    "two levels": (Level(ActNorm(), Level(ActNorm())), (4, 8, 1), None),
}
for name, make, shape, classes, levels, steps in (
    ("glow 8x4x1, classes", glow, (8, 4, 1), 3, 2, 2),
    ("glow 4x8x3", glow, (4, 8, 3), None, 2, 1),
    ("realnvp 8x8x1", realnvp, (8, 8, 1), None, 1, 2),
    ("realnvp 4x6x2, classes", realnvp, (4, 6, 2), 3, 1, 1),
):
    flow = make(shape, levels=levels, steps=steps, width=6, num_classes=classes)
    TABLE[name] = flow.bijector, shape, classes


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def perturbed(params, scale=0.1):
    """Random and asymmetric parameters: at initialisation half of the mistakes are invisible."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: leaf + np.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)
    return jax.tree.map(draw, params)


LABELS = np.array([2, 0, 1], np.int32)


@functools.cache
def shapes_of(name):
    """The shapes of the parameters."""
    bijector, shape, classes = TABLE[name]
    x, y = np.ones((3, *shape), np.float32), None if classes is None else LABELS
    return jax.eval_shape(lambda: bijector.init(jax.random.key(0), x, y)[0])


def make(name, dtype):
    bijector, shape, classes = TABLE[name]
    x = np.random.default_rng(1).uniform(0.02, 0.98, (3, *shape)).astype(dtype)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), shapes_of(name))
    return bijector, perturbed(params, 0.2), x, None if classes is None else LABELS


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_jacobian(bijector, method, params, x, y):
    """The method on the batch `x`, and `log |det|` of the Jacobian at `x[0]` by autodiff.

    Examples are independent, so a batch of copies of `x[0]`, each with another basis vector as its
    tangent, gives the whole Jacobian in one pass.
    """
    size = x[0].size
    copies = jnp.concatenate((x, jnp.broadcast_to(x[:1], (size, *x.shape[1:]))))
    labels = None if y is None else jnp.concatenate((y, jnp.full(size, y[0])))
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])
    tangents = jnp.concatenate((jnp.zeros_like(x), basis))
    run = lambda v: getattr(bijector, method)(params, v, labels)
    (out, log_det), (columns, _) = jax.jvp(run, (copies,), (tangents,))
    jacobian = columns[len(x) :].reshape(size, size)
    return out[: len(x)], log_det[: len(x)], jnp.linalg.slogdet(jacobian)[1]


WHOLE = [name for name in TABLE if name.startswith(("glow", "realnvp"))]
PAIRS = [(name, "float64") for name in TABLE]
PAIRS += [(name, "float32") for name in TABLE if name not in WHOLE]  # those: test_flows.py


@pytest.mark.parametrize("name, dtype", PAIRS)
def test_bijector(name, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("float64")
    bijector, params, x, y = make(name, dtype)
    run = lambda method, x: map(np.asarray, with_jacobian(bijector, method, params, x, y))
    z, log_det, log_abs_det = run("forward_and_log_det", x)
    back, inverse_log_det, inverse_log_abs_det = run("inverse_and_log_det", z)
    again, _, _ = run("forward_and_log_det", back)
    assert z.shape == x.shape and z.dtype == jnp.dtype(dtype)
    assert log_det.shape == inverse_log_det.shape == (3,)
    assert not (z == x).all() or "levels" in name
    # A log-determinant is a sum over all dimensions; in float32 the bound is per dimension.
    per_dimension = max(1, x[0].size / 16)
    bound = 1e-5 * per_dimension if dtype == "float32" else 1e-10
    assert np.abs(back - x).max() < (1e-5 if dtype == "float32" else 1e-10)
    # A latent is a logit, and its slope at a dark pixel magnifies the pixel's rounding.
    assert np.abs(again - z).max() < (1e-4 if dtype == "float32" else 1e-10)
    assert np.abs(log_det[0] - log_abs_det) < bound
    assert np.abs(inverse_log_det[0] - inverse_log_abs_det) < bound
    assert np.abs(log_det + inverse_log_det).max() < bound


LAYERS = [name for name in TABLE if name not in [*WHOLE, "repeat"]]


@pytest.mark.parametrize("name", LAYERS)
def test_examples_are_independent_and_parameters_have_their_derivatives(name, float64):
    bijector, params, x, y = make(name, "float64")
    rng = np.random.default_rng(3)
    weights = rng.standard_normal(x.shape)
    direction = jax.tree.map(lambda p: rng.standard_normal(p.shape), params)

    def loss(params):
        out = bijector.forward_and_log_det(params, x, y)
        return jnp.sum(weights * out[0]) + jnp.vdot(jnp.arange(1.0, 4.0), out[1]), out

    @jax.jit
    def everything(params, x, y):
        one = lambda x, y: bijector.forward_and_log_det(params, x, y)
        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        at = lambda step: loss(jax.tree.map(lambda p, d: p + step * d, params, direction))[0]
        alone = jax.vmap(one)(x[:, None], None if y is None else y[:, None])
        alone = jax.tree.map(lambda a: a[:, 0], alone)
        return out, alone, grads, (at(1e-6) - at(-1e-6)) / 2e-6

    batch, alone, grads, slope = everything(params, x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), alone, batch)
    along = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction))))
    np.testing.assert_allclose(along, slope, rtol=1e-5, atol=1e-7)
    assert along != 0 or not jax.tree.leaves(params)


@pytest.mark.parametrize("name", [*LAYERS, "repeat"])  # whole flows: test_flows.py
def test_a_frozen_bijector_is_the_bijector(name):
    bijector, params, x, y = make(name, "float32")

    @jax.jit
    def everything(params, x):
        frozen = bijector.freeze(params)
        run = lambda x, inverse: from_planes(
            bijector.apply_frozen(frozen, to_planes(x), y, inverse=inverse)
        )
        z = bijector.forward_and_log_det(params, x, y)[0]
        return z, run(x, False), bijector.inverse_and_log_det(params, z, y)[0], run(z, True)

    z, frozen_z, back, frozen_back = everything(params, x)
    np.testing.assert_allclose(frozen_z, z, atol=1e-4)
    np.testing.assert_allclose(frozen_back, back, atol=1e-5)


IDENTITIES = ["channel coupling", "checkerboard, flip, classes", "class prior", "prior"]


@pytest.mark.parametrize("name", IDENTITIES)
def test_starts_as_the_identity(name):
    bijector, shape, classes = TABLE[name]
    x, y = normal(0, 3, *shape), None if classes is None else LABELS

    @jax.jit
    def everything(x):
        params, z = bijector.init(jax.random.key(1), x, y)
        return z, *bijector.forward_and_log_det(params, x, y)

    z, again, log_det = map(np.asarray, everything(x))
    assert (z == x).all() and (again == x).all() and (log_det == 0).all()


def test_actnorm_standardises_its_first_batch():
    x = 3 + 5 * normal(0, 20, 4, 4, 3)
    z = np.asarray(jax.jit(lambda x: ActNorm().init(jax.random.key(1), x)[1])(x))
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-5)


def test_a_constant_channel_is_only_centred():
    init = jax.jit(lambda x: ActNorm().init(jax.random.key(0), x))
    params, z = init(np.full((1, 2, 2, 1), 7, np.float32))
    assert float(params["log_scale"][0]) == 0 and (np.asarray(z) == 0).all()


def test_the_invertible_convolution_starts_as_a_rotation():
    layer = InvertibleConv(8, seed=5)

    @jax.jit
    def matrices(x):
        params, _ = layer.init(jax.random.key(1), x)
        return layer.matrix(params), layer.inverse_matrix(params)

    matrix, inverse = map(np.asarray, matrices(normal(0, 2, 3, 3, 8)))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(inverse, matrix.T, atol=1e-5)


def test_permutations_and_masks_are_not_parameters():
    leaves = jax.tree_util.tree_leaves_with_path(shapes_of("glow 4x8x3"))
    names = {path[-1].key for path, _ in leaves}
    assert names == {
        *("log_scale", "bias", "lower", "upper", "log_diagonal"),
        *("w1", "b1", "w2", "b2", "w3", "b3", "class_mean", "class_log_scale"),
    }


@pytest.mark.parametrize("channels", [(2, 5), (5, 2)])
def test_the_convolution_by_products_is_the_library_s(channels):
    x, kernel = normal(0, 2, 4, 5, channels[0]), normal(1, 3, 3, *channels)

    @jax.jit
    def everything(x, kernel):
        expected = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        planes = _by_products_of_planes(x.transpose(3, 0, 1, 2), kernel, HIGHEST)
        return expected, _by_products(x, kernel, HIGHEST), planes.transpose(1, 2, 3, 0)

    expected, got, of_planes = everything(x, kernel)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(of_planes, expected, atol=1e-5)


def test_the_forms_of_repeat_agree():
    _, params, x, _ = make("repeat", "float32")

    def value_and_grad(**form):
        run = Repeat(STEP, 3, **form).forward_and_log_det
        loss = lambda p: sum(jnp.sum(out**2) for out in run(p, x))
        return jax.jit(jax.value_and_grad(loss))(params)

    plain = value_and_grad()
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, value_and_grad(scan=False), plain)
    jax.tree.map(close, value_and_grad(scan=True, remat=True), plain)


def test_a_likelihood_s_activations_are_recomputed_on_cpu_to_the_same_gradient(monkeypatch):
    _, params, x, _ = make("repeat", "float32")
    loss = lambda p: sum(jnp.sum(out**2) for out in Repeat(STEP, 3).forward_and_log_det(p, x))
    stored_of = lambda: sum(
        leaf.size for leaf in jax.tree.leaves(jax.vjp(loss, params)[1]) if hasattr(leaf, "size")
    )
    here, stored_here = jax.jit(jax.value_and_grad(loss))(params), stored_of()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = jax.jit(jax.value_and_grad(lambda p: loss(p)))(params)
    assert stored_here < stored_of() / 2
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, here, there)


def test_dropout_needs_a_key_and_keeps_the_mean():
    # With a tiny scale the coupling adds what its network says, whose last layer is linear.
    layer, x = AffineCoupling(32, dropout=0.25, scale=1e-9), normal(0, 2, 2, 2, 4)
    params = perturbed(jax.jit(lambda: layer.init(jax.random.key(1), x)[0])(), 0.5)
    run = jax.jit(lambda key: layer.forward_and_log_det(params, x, None, key)[0])
    whole = np.asarray(run(None))
    assert (run(None) == whole).all()
    draws = np.asarray(jax.vmap(run)(jax.random.split(KEY, 4000)), np.float64)
    assert not (draws[0] == draws[1]).all()
    error = draws.std(axis=0) / len(draws) ** 0.5
    assert (np.abs(draws.mean(axis=0) - whole) <= 5 * error + 1e-6).all()
    assert error.max() > 0


@pytest.mark.parametrize("bijector", [ClassAffine(), ActNorm(), AffineCoupling(4, "checkerboard")])
def test_densities_of_two_pixels_integrate_to_one(bijector):
    chain = Chain((Logit(), bijector))
    edge = np.linspace(-0.0575, 1.0575, 402)
    centres = ((edge[1:] + edge[:-1]) / 2).astype(np.float32)
    grid = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 1, 2, 1)
    start = np.linspace(0.1, 0.9, 10, dtype=np.float32).reshape(5, 1, 2, 1)
    params = jax.jit(lambda x: chain.init(jax.random.key(0), x)[0])(start)
    run = jax.jit(chain.forward_and_log_det)
    z, log_det = map(np.asarray, run(perturbed(params), grid))
    log_p = np.sum(-0.5 * (z**2 + np.log(2 * np.pi)), (1, 2, 3)) + log_det
    total = np.exp(log_p[np.isfinite(log_det)]).sum() * float(centres[1] - centres[0]) ** 2
    assert abs(total - 1) < 2e-3
