"""Maximum, minimum and clip: the values of `jnp`, and derivatives that rounding does not lose."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from jax.interpreters import partial_eval as pe

import genreg_jax as gr
from genreg_jax import bounds
from genreg_jax.augment import kernels
from genreg_jax.models import resnet
from genreg_jax.models.convnet import max_pool
from genreg_jax.models.efficientnet import relu6

ROOT = Path(__file__).parents[1]
PAIRS = [(bounds.maximum, jnp.maximum), (bounds.minimum, jnp.minimum)]
ODD = np.float32([-np.inf, -2.5, -0.0, 0.0, 1e-30, 1.0, 3.0, np.inf, np.nan])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_values_are_those_of_jnp(ours, theirs, dtype):
    a, b = (x.astype(dtype) for x in jnp.meshgrid(ODD, ODD))
    assert ours(a, b).dtype == a.dtype == ours(a, 0.5).dtype
    for other in (b, 0.5):
        found, expected = (np.asarray(f(a, other), np.float32) for f in (ours, theirs))
        np.testing.assert_array_equal(found, expected)


def test_relu6_is_that_of_jax():
    x = 9 * jax.random.normal(jax.random.key(0), (50,))
    for f in (lambda f: f(x), lambda f: jax.grad(lambda x: jnp.vdot(x, f(x)))(x)):
        np.testing.assert_array_equal(f(relu6), f(jax.nn.relu6))


def test_at_a_tie_one_argument_has_the_gradient():
    both = lambda f: [float(g) for g in jax.grad(f, (0, 1))(1.0, 1.0)]
    assert both(bounds.maximum) == both(bounds.minimum) == [1.0, 0.0]
    ends = jax.grad(lambda x: relu6(x).sum())(jnp.array([0.0, 6.0]))
    assert ends.tolist() == [0.0, 1.0]
    ends = jax.grad(lambda x: bounds.clip(x, 0, 1).sum())(jnp.array([0.0, 1.0]))
    assert ends.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("step", "steps"), [(0.25, 1), (0.125, 2), (0.3, 1)])
def test_a_radius_has_the_gradient_of_a_change_on_its_boundary(step, steps):
    def moved(radius):
        x = jnp.full((1, 2, 2, 1), 0.5)
        return gr.image_pgd(
            jax.random.key(0), lambda images: images.sum((1, 2, 3)), x, epsilon=radius,
            step_size=step, num_steps=steps, norm="linf", random_start=False,
        ).sum()  # fmt: skip

    assert float(jax.grad(moved)(0.25)) == 4.0


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0, 1), (2.0, -1.0)])
def test_a_clip_is_that_of_jnp(low, high):
    np.testing.assert_array_equal(bounds.clip(ODD, low, high), jnp.clip(ODD, low, high))


BETWEEN = [(lambda a, b, f=f: f(a, b, b + 1)) for f in (bounds.clip, jnp.clip)]


@pytest.mark.parametrize(("ours", "theirs"), [*PAIRS, BETWEEN])
def test_derivatives_are_those_of_jnp_where_nothing_is_equal(ours, theirs):
    a, b = jax.random.normal(jax.random.key(0), (2, 50))
    grads = lambda f: jax.grad(lambda a, b: jnp.vdot(a, f(a, b)), (0, 1))(a, b)
    np.testing.assert_array_equal(np.stack(grads(ours)), np.stack(grads(theirs)))


# ------------------------------------------------------------------- no derivative compares floats


inner = runpy.run_path(str(ROOT / "benchmarks" / "timing.py"))["inner"]


def comparisons(program):
    """The equalities of two computed floats that a program's results depend on."""
    program, _ = pe.dce_jaxpr(program, [True] * len(program.outvars))
    for equation in program.eqns:
        floats = [
            jnp.issubdtype(v.aval.dtype, jnp.floating) and not isinstance(v, Literal)
            for v in equation.invars
        ]
        if equation.primitive.name == "eq" and all(floats):
            yield str(equation)
        # But for `relu`: in a loop JAX forgets its rule at second order.
        for part in inner(equation) * (equation.params.get("name") != "relu"):
            yield from comparisons(part)


def generator(flow, params, x):
    made = gr.flows.as_generator(flow, params)
    return lambda z: made.apply(made.params, z, None), flow.encode(params, x)[0]


def samples(flow, params, x):
    sample = lambda temperature: flow.sample(params, jax.random.key(0), 3, temperature=temperature)
    return sample, jnp.float32(0.9)


def attack(norm, **bound):
    def use(flow, params, x):
        frozen, loss = flow.freeze(params), lambda images: jnp.sum(images**2, (1, 2, 3))
        attacked = lambda radius: gr.adversarial_latent_perturbation(
            jax.random.key(0), frozen, loss, x, epsilon=radius, step_size=0.1, num_steps=2,
            norm=norm, **bound,
        )  # fmt: skip
        return attacked, jnp.float32(0.3)

    return use


def pgd(norm):
    def use(flow, params, x):
        loss = lambda images: jnp.sum(images**2, (1, 2, 3))
        attacked = lambda radius: gr.image_pgd(
            jax.random.key(0), loss, x, epsilon=radius, step_size=0.1, num_steps=2, norm=norm
        )
        return attacked, jnp.float32(0.3)

    return use


def separation(flow, params, x):
    labels = jnp.array([0, 1, 0, 1])
    loss = lambda e: gr.separation_loss(jax.random.key(0), e, labels, num_classes=2)
    return loss, x[:, 0, :, 0]


USES = {
    "max_pool": lambda flow, params, x: (max_pool, x),
    "relu6": lambda flow, params, x: (lambda x: relu6(9 * x - 2), x),
    "autocontrast": lambda flow, params, x: (kernels.autocontrast, x),
    "generator": generator,
    "samples": samples,
    "interpolation": lambda flow, params, x: (lambda y: flow.interpolate(params, x, y), x[::-1]),
    "latent, l2": attack("l2"),
    "latent, linf": attack("linf"),
    "latent, bounded": attack("l2", clip=0.1, clip_norm="l2"),
    "pgd, l2": pgd("l2"),
    "pgd, linf": pgd("linf"),
    "attraction": lambda flow, params, x: (
        lambda e: gr.attraction_loss(e, x[:, 0, :, 0]), x[:, 1, :, 0],
    ),
    "separation": separation,
    "phantom cosine": lambda flow, params, x: (
        lambda e: gr.attraction_loss(e, x[:, 0, :, 0], distance="cosine"), x[:, 1, :, 0],
    ),
    "pcr cosine": lambda flow, params, x: (lambda e: gr.pcr_loss(e, x[:, 0, :, 0]), x[:, 1, :, 0]),
    "interpolated": lambda flow, params, x: (
        lambda z: gr.interpolated_latents(
            jax.random.key(0), z, jnp.array([0, 1, 0, 1]), strength=0.5
        ), x,
    ),
    "resized": lambda flow, params, x: (
        gr.flows.resized(flow.freeze(params), (6, 6, 1)).encode, jnp.full((4, 6, 6, 1), 0.4),
    ),
    "max_pool of ImageNet's stem": lambda flow, params, x: (resnet._max_pool, x),
    "restored norm": lambda flow, params, x: (lambda z: gr.restore_norm(2 * z, z), x),
    "bounded offset": lambda flow, params, x: (lambda z: gr.bounded_offset(x, z, radius=0.3), x),
    "share": lambda flow, params, x: (gr.Strength(0.1, upper=1.0).value, jnp.float32(0.2)),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_no_derivative_depends_on_the_equality_of_two_computed_floats(name):
    flow = gr.flows.glow((4, 4, 1), levels=1, steps=1, width=4)
    images = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1))
    f, x = USES[name](flow, flow.init(jax.random.key(1), images), images)
    first = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(f(x) ** 2)))(x)
    mixed = jax.make_jaxpr(lambda x: jax.jvp(jax.grad(lambda x: jnp.sum(f(x) ** 2)), (x,), (x,)))(x)
    assert len(first.eqns) > 1
    assert list(comparisons(first.jaxpr)) == list(comparisons(mixed.jaxpr)) == []


def test_the_search_for_comparisons_finds_those_of_jnp():
    for f in (jnp.max, lambda x: jnp.clip(x * 2, 0, 1), lambda x: jnp.maximum(x, x[::-1])):
        grad = jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))
        assert list(comparisons(jax.make_jaxpr(jax.jit(grad))(jnp.ones(3)).jaxpr))
