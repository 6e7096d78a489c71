"""Every bijector: round trip, log-determinants against autodiff, freezing, the identity."""

import contextlib
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
    "glow 8x8x1, classes": (
        glow((8, 8, 1), levels=2, steps=2, width=6, num_classes=3).bijector,
        (8, 8, 1),
        3,
    ),
    "glow 4x6x2": (glow((4, 6, 2), levels=1, steps=2, width=6).bijector, (4, 6, 2), None),
    "glow 8x8x3": (glow((8, 8, 3), levels=2, steps=1, width=6).bijector, (8, 8, 3), None),
    "realnvp 8x8x1": (realnvp((8, 8, 1), levels=1, steps=2, width=6).bijector, (8, 8, 1), None),
    "realnvp 4x6x2, classes": (
        realnvp((4, 6, 2), levels=1, steps=1, width=6, num_classes=3).bijector,
        (4, 6, 2),
        3,
    ),
}


def enable_x64():
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def perturbed(params, scale=0.1):
    """Random and asymmetric parameters: at initialisation half of the mistakes are invisible."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: leaf + scale * jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
    return jax.tree.map(draw, params)


def make(name, dtype):
    bijector, shape, classes = TABLE[name]
    x = jnp.asarray(np.random.default_rng(1).uniform(0.02, 0.98, (3, *shape)), dtype)
    y = None if classes is None else jnp.array([2, 0, 1])
    shapes = jax.eval_shape(lambda: bijector.init(jax.random.key(0), x, y)[0])
    params = perturbed(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), 0.2)
    return bijector, params, x, y


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


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bijector(name, dtype):
    with enable_x64() if dtype == "float64" else contextlib.nullcontext():
        bijector, params, x, y = make(name, dtype)
        forward = functools.partial(with_jacobian, bijector, "forward_and_log_det", params)
        inverse = functools.partial(with_jacobian, bijector, "inverse_and_log_det", params)
        z, log_det, log_abs_det = forward(x, y)
        back, inverse_log_det, inverse_log_abs_det = inverse(z, y)
        again, _, _ = forward(back, y)
        assert z.shape == x.shape and z.dtype == jnp.dtype(dtype)
        assert log_det.shape == inverse_log_det.shape == (3,)
        assert not bool((z == x).all()) or "levels" in name
        # A log-determinant is a sum over all dimensions; in float32 the bound is per dimension.
        per_dimension = max(1, x[0].size / 16)
        bound = 1e-5 * per_dimension if dtype == "float32" else 1e-10
        assert jnp.abs(back - x).max() < (1e-5 if dtype == "float32" else 1e-10)
        # A latent is a logit, and its slope at a dark pixel magnifies the pixel's rounding.
        assert jnp.abs(again - z).max() < (1e-4 if dtype == "float32" else 1e-10)
        assert jnp.abs(log_det[0] - log_abs_det) < bound
        assert jnp.abs(inverse_log_det[0] - inverse_log_abs_det) < bound
        assert jnp.abs(log_det + inverse_log_det).max() < bound


LAYERS = [name for name in TABLE if not name.startswith(("glow", "realnvp", "repeat"))]


@pytest.mark.parametrize("name", LAYERS)
def test_examples_are_independent_and_parameters_have_their_derivatives(name):
    with enable_x64():
        bijector, params, x, y = make(name, "float64")
        rng = np.random.default_rng(3)
        weights = jnp.asarray(rng.standard_normal(x.shape))
        direction = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)

        def loss(params):
            out = bijector.forward_and_log_det(params, x, y)
            return jnp.sum(weights * out[0]) + jnp.vdot(jnp.arange(1.0, 4.0), out[1]), out

        def one_by_one(x, y):
            z, log_det = bijector.forward_and_log_det(params, x[None], y)
            return z[0], log_det[0]

        @jax.jit
        def everything(params):
            (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
            at = lambda step: loss(jax.tree.map(lambda p, d: p + step * d, params, direction))[0]
            alone = jax.vmap(one_by_one)(x, None if y is None else y[:, None])
            return out, alone, grads, (at(1e-6) - at(-1e-6)) / 2e-6

        batch, alone, grads, slope = everything(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), alone, batch)
        along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction))))
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
    x = jax.random.normal(jax.random.key(0), (3, *shape))
    y = None if classes is None else jnp.array([2, 0, 1])
    params, z = bijector.init(jax.random.key(1), x, y)
    again, log_det = bijector.forward_and_log_det(params, x, y)
    assert (z == x).all() and (again == x).all() and (log_det == 0).all()


def test_actnorm_standardises_its_first_batch():
    x = 3 + 5 * jax.random.normal(jax.random.key(0), (20, 4, 4, 3))
    _, z = ActNorm().init(jax.random.key(1), x)
    np.testing.assert_allclose(jnp.mean(z, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(z, (0, 1, 2)), 1, atol=1e-5)


def test_a_constant_channel_is_only_centred():
    params, z = ActNorm().init(jax.random.key(0), jnp.full((1, 2, 2, 1), 7.0))
    assert float(params["log_scale"][0]) == 0 and bool((z == 0).all())


def test_the_invertible_convolution_starts_as_a_rotation():
    layer = InvertibleConv(8, seed=5)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    params, _ = layer.init(jax.random.key(1), x)
    matrix = layer.matrix(params)
    np.testing.assert_allclose(matrix @ matrix.T, jnp.eye(8), atol=1e-5)
    np.testing.assert_allclose(layer.inverse_matrix(params), matrix.T, atol=1e-5)


def test_permutations_and_masks_are_not_parameters():
    params = glow((8, 8, 1), levels=2, steps=1, width=4).bijector
    x = jnp.full((2, 8, 8, 1), 0.5)
    names = {
        path[-1].key
        for path, _ in jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(lambda: params.init(jax.random.key(0), x)[0])
        )
    }
    assert names == {
        *("log_scale", "bias", "lower", "upper", "log_diagonal"),
        *("w1", "b1", "w2", "b2", "w3", "b3", "class_mean", "class_log_scale"),
    }


@pytest.mark.parametrize("channels", [(2, 5), (5, 2)])
def test_the_convolution_by_products_is_the_library_s(channels):
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, channels[0]))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, *channels))
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    got = _by_products(x, kernel, jax.lax.Precision.HIGHEST)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    planes = _by_products_of_planes(x.transpose(3, 0, 1, 2), kernel, jax.lax.Precision.HIGHEST)
    np.testing.assert_allclose(planes.transpose(1, 2, 3, 0), expected, atol=1e-5)


@pytest.mark.parametrize("scan, remat", [(False, False), (True, True)])
def test_the_forms_of_repeat_agree(scan, remat):
    plain, other = Repeat(STEP, 3), Repeat(STEP, 3, scan=scan, remat=remat)
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 4))
    params = perturbed(plain.init(jax.random.key(1), x)[0])

    def value_and_grad(bijector):
        loss = lambda p: sum(jnp.sum(out**2) for out in bijector.forward_and_log_det(p, x))
        return jax.jit(jax.value_and_grad(loss))(params)

    jax.tree.map(
        lambda a, c: np.testing.assert_allclose(a, c, rtol=2e-4, atol=2e-4),
        value_and_grad(plain),
        value_and_grad(other),
    )


def test_dropout_needs_a_key():
    layer = AffineCoupling(32, dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 4))
    params = perturbed(layer.init(jax.random.key(1), x)[0])
    run = lambda key: layer.forward_and_log_det(params, x, None, key)[0]
    assert bool((run(None) == run(None)).all())
    assert not bool((run(jax.random.key(2)) == run(jax.random.key(3))).all())


def test_dropout_keeps_the_mean():
    # With a tiny scale the coupling adds what its network says, whose last layer is linear.
    layer = AffineCoupling(32, dropout=0.25, scale=1e-9)
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 4))
    params = perturbed(layer.init(jax.random.key(1), x)[0], 0.5)
    run = lambda key: layer.forward_and_log_det(params, x, None, key)[0]
    keys = jax.random.split(jax.random.key(2), 4000)
    draws = jax.jit(jax.vmap(run))(keys)
    error = jnp.std(draws, axis=0) / len(keys) ** 0.5
    assert bool((jnp.abs(jnp.mean(draws, axis=0) - run(None)) <= 5 * error + 1e-6).all())
    assert float(error.max()) > 0


@pytest.mark.parametrize("bijector", [Logit(), ActNorm(), AffineCoupling(4, "checkerboard")])
def test_densities_of_two_pixels_integrate_to_one(bijector):
    chain = Chain((Logit(), bijector if not isinstance(bijector, Logit) else ClassAffine()))
    edge = np.linspace(-0.0575, 1.0575, 402)
    centres = jnp.asarray((edge[1:] + edge[:-1]) / 2, jnp.float32)
    grid = jnp.stack(jnp.meshgrid(centres, centres), -1).reshape(-1, 1, 2, 1)
    params = chain.init(jax.random.key(0), jnp.linspace(0.1, 0.9, 10).reshape(5, 1, 2, 1))[0]
    z, log_det = chain.forward_and_log_det(perturbed(params), grid)
    inside = jnp.isfinite(log_det)
    log_p = jnp.sum(-0.5 * (z**2 + np.log(2 * np.pi)), (1, 2, 3)) + log_det
    total = float(jnp.where(inside, jnp.exp(log_p), 0).sum()) * float(centres[1] - centres[0]) ** 2
    assert abs(total - 1) < 2e-3
