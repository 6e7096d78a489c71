"""Convolutions in the layout that is fast in loops on CPU: the same values, slopes and programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import genreg_jax as gr
from genreg_jax.conv_layout import _has_others, canonical
from genreg_jax.devices import data_mesh

KEY = jax.random.key(3)


def convolution(layout, **options):
    """A convolution of what is drawn here, in a layout such as NCHW,OIHW,NCHW; its image."""
    images, kernel, _ = layout.split(",")
    sizes = dict(N=3, C=4, H=7, W=5, D=6)
    window = dict(O=6, I=4 // options.get("feature_group_count", 1), H=3, W=2, D=2)
    x = jax.random.normal(KEY, [sizes[axis] for axis in images])
    w = jax.random.normal(jax.random.key(4), [window[axis] for axis in kernel])
    given = dict(window_strides=(1,) * (len(images) - 2), padding="SAME") | options
    numbers = tuple(layout.split(","))
    apply = lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=numbers, **given)
    return apply, x, w


def others(fn, *args):
    return _has_others(jax.make_jaxpr(fn)(*args).jaxpr)


CASES = {
    "channels last": ("NHWC,HWIO,NHWC", {}),
    "channels first": ("NCHW,OIHW,NCHW", {}),
    "mixed": ("HNCW,WIHO,CWNH", {"padding": ((1, 0), (2, 1))}),
    "strided": ("NHWC,HWIO,NHWC", {"window_strides": (2, 3)}),
    "dilated": (
        "NHWC,HWIO,NHWC",
        {"rhs_dilation": (2, 1), "lhs_dilation": (1, 2), "padding": ((2, 2), (1, 0))},
    ),
    "grouped": ("NCHW,HWIO,NHWC", {"feature_group_count": 2}),
    "one axis": ("NCW,OIW,NWC", {}),
    "three axes": ("NCHWD,OIHWD,NCHWD", {"window_strides": (1, 2, 1)}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_slopes_are_those_of_the_function(case):
    layout, options = CASES[case]
    apply, x, w = convolution(layout, **options)
    weights = jax.random.normal(jax.random.key(5), apply(x, w).shape)

    def slopes(x, w):
        return jax.value_and_grad(lambda x, w: jnp.sum(weights * apply(x, w) ** 2), (0, 1))(x, w)

    expected = jax.jit(slopes)(x, w)
    assert others(slopes, x, w), "the derivative in the input is in another layout"
    assert not others(canonical(slopes), x, w)
    got = jax.jit(canonical(slopes))(x, w)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4)
    # What is differentiated after the change is as it was too.
    after = jax.grad(lambda x, w: jnp.sum(weights * canonical(apply)(x, w) ** 2))(x, w)
    np.testing.assert_allclose(after, expected[1][0], rtol=2e-5, atol=2e-4)


@jax.custom_jvp
def doubled(x):
    """Has a slope of its own, 3, by which it is told whether its rule is kept."""
    return 2 * x


doubled.defjvp(lambda x, t: (doubled(x[0]), 3 * t[0]))
LAYOUT = "NCHW,OIHW,NCHW"


def wrapped(kind):
    """A function with convolutions in something else."""
    apply, x, w = convolution(LAYOUT)
    w = w[:4]  # as many channels as there were
    step = lambda x: jnp.tanh(apply(x, w))
    if kind == "jit":
        return jax.jit(step), x
    if kind == "remat":
        return jax.grad(lambda x: jnp.sum(jax.checkpoint(step)(x) ** 2)), x
    if kind == "scan":
        return lambda x: lax.scan(lambda x, _: (step(x), x), x, length=2), x
    if kind == "while":
        return lambda x: lax.fori_loop(0, 2, lambda _, x: step(x), x), x
    if kind == "cond":
        return lambda x: lax.cond(jnp.sum(x) > 1e9, lambda x: x, step, x), x
    if kind == "vmap":
        return lambda x: jax.vmap(step)(jnp.stack([x, 2 * x])), x
    return lambda x: {"a": doubled(step(x)), "b": (x, None)}, x


@pytest.mark.parametrize("kind", ["jit", "remat", "scan", "while", "cond", "vmap", "tree"])
def test_convolutions_inside_calls_and_loops_are_found(kind):
    fn, x = wrapped(kind)
    assert others(fn, x) and not others(canonical(fn), x)
    expected, got = fn(x), canonical(fn)(x)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_rules_of_ones_own_and_what_is_closed_over_stay():
    fn, x = wrapped("tree")
    weights = jax.random.normal(jax.random.key(6), x.shape)
    slope = lambda f: jax.grad(lambda x: jnp.sum(weights * f(x)["a"]))(x)
    np.testing.assert_allclose(slope(canonical(fn)), slope(fn), rtol=1e-4, atol=1e-5)
    closed_over = lambda x: canonical(lambda one: fn(one * x))(1.0)
    np.testing.assert_allclose(slope(closed_over), slope(fn), rtol=1e-4, atol=1e-5)


def test_a_program_without_such_convolutions_is_left_as_it_is():
    apply, x, w = convolution("NHWC,HWIO,NHWC")
    fn = lambda x: jax.jit(apply)(jnp.sin(x), w)
    before, after = (str(jax.make_jaxpr(f)(x)) for f in (fn, canonical(fn)))
    assert after == before


def test_names_and_settings_of_a_program_stay():
    apply, x, w = convolution(LAYOUT)

    def fn(x):
        with jax.named_scope("here"), jax.threefry_partitionable(False):
            noise = jax.random.uniform(KEY, x.shape)
            return jnp.sum(apply(x, w)) * noise

    np.testing.assert_allclose(canonical(fn)(x), fn(x), rtol=1e-4, atol=1e-5)
    text = jax.jit(canonical(fn)).lower(x).as_text(debug_info=True)
    assert "here/conv_general_dilated" in text


@pytest.mark.parametrize("kind", ["jit", "remat", "scan", "cond", "tree", "collective"])
def test_an_attack_inside_shard_map_is_that_of_each_part(kind):
    """A loop's body is traced again, with what shard_map knows of its arrays."""
    mesh = data_mesh(2, 2)
    if kind == "collective":  # outside there is no axis, so shard_map is in the loss
        apply, x, w = convolution(LAYOUT)
        net = lambda x: apply(x, w) - jax.lax.pmean(jnp.mean(apply(x, w)), "data")
        net = jax.shard_map(net, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    else:
        fn, x = wrapped(kind)
        net = lambda x: jax.tree.leaves(fn(x))[0]
    x = jax.random.uniform(KEY, (4, *x.shape[1:]), minval=0.3, maxval=0.7)
    options = dict(epsilon=0.2, step_size=0.07, random_start=False)
    loss = lambda x: jnp.sum(net(x) ** 2, (1, 2, 3))
    attack = lambda x, steps: gr.image_pgd(KEY, loss, x, num_steps=steps, **options)
    expected = x
    for _ in range(3):
        moved = expected + 0.07 * jnp.sign(jax.grad(lambda x: jnp.sum(loss(x)))(expected))
        expected = jnp.clip(moved, x - 0.2, x + 0.2)
    run = lambda x: attack(x, 3)
    if kind != "collective":
        run = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    options["norm"] = "linf"
    np.testing.assert_allclose(jax.jit(run)(x), expected, atol=1e-5)


def test_an_attack_outside_jit_may_read_values():
    apply, x, w = convolution(LAYOUT)
    x, seen = jax.random.uniform(KEY, x.shape), []

    def loss(x):
        seen.append(float(jax.lax.stop_gradient(jnp.sum(x))))  # a value, which `jit` has not
        return jnp.sum(apply(x, w) ** 2, (1, 2, 3))

    gr.image_pgd(KEY, loss, x, epsilon=0.1, step_size=0.05, num_steps=3)
    assert len(set(seen)) == 3
