"""Hypergradients against central differences of the whole inner-outer computation, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import genreg_jax as gr
from genreg_jax.hypergradient import MODES

EXACT = ("reverse", "forward_over_reverse", "reverse_over_forward")

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov_weight_decay": optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9)),
    "clipped_scheduled_adam": optax.chain(
        optax.clip_by_global_norm(0.1), optax.adam(optax.cosine_decay_schedule(0.05, 100))
    ),
}


pytestmark = pytest.mark.usefixtures("float64")


def problem(seed=0):
    """A two-layer network with a consistency term on inputs made by phi; nothing symmetric."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    params = {"w": draw(4, 5), "v": draw(5, 3), "b": draw(3)}
    phi = {"a": draw(4, 4), "c": draw(4)}
    x, y, z, xv, yv = draw(6, 4), draw(6, 3), draw(7, 4), draw(8, 4), draw(8, 3)
    embed = lambda p, x: jnp.tanh(x @ p["w"])
    squared = lambda p, x, y: jnp.mean((embed(p, x) @ p["v"] + p["b"][None] - y) ** 2)

    def regulariser(p, phi):
        synthetic = z @ phi["a"] + jnp.sin(phi["c"])[None]
        return 0.3 * jnp.mean((embed(p, synthetic) - embed(p, 0.7 * synthetic + 0.1)) ** 2)

    fit = lambda p: squared(p, x, y)
    outer = lambda p: squared(p, xv, yv)
    return params, phi, fit, regulariser, outer


def warmed_up(tx, params, fit):
    """An optimiser state that is not the initial one, so that momentum terms matter."""
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.grad(fit)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.promotes) if "adam" in n else n for n in OPTIMIZERS],
)
def test_exact_modes_equal_central_differences(name):
    tx = OPTIMIZERS[name]
    params, phi, fit, regulariser, outer = problem()
    params, state = warmed_up(tx, params, fit)
    inner = lambda p, m: fit(p) + regulariser(p, m)
    flat_phi, unravel = ravel_pytree(phi)

    @jax.jit
    def outer_after_step(flat):
        grads = jax.grad(inner)(params, unravel(flat))
        updates, _ = tx.update(grads, state, params)
        return outer(optax.apply_updates(params, updates))

    eps = 1e-3
    difference = lambda e, h: (
        outer_after_step(flat_phi + h * e) - outer_after_step(flat_phi - h * e)
    )
    numerical = np.array(  # central differences of fourth order
        [
            (8 * difference(e, eps) - difference(e, 2 * eps)) / (12 * eps)
            for e in jnp.eye(flat_phi.size)
        ]
    )
    exact = {}
    for mode in EXACT:
        h = jax.jit(functools.partial(gr.hypergradient, inner, outer, tx=tx, mode=mode))(
            params=params, meta_params=phi, opt_state=state
        )
        exact[mode] = ravel_pytree(h.grads)[0]
        np.testing.assert_allclose(h.outer_loss, outer_after_step(flat_phi), rtol=1e-12)
        np.testing.assert_allclose(h.inner_loss, inner(params, phi), rtol=1e-12)
        assert np.linalg.norm(exact[mode] - numerical) <= 1e-6 * np.linalg.norm(numerical)
    scale = np.linalg.norm(exact["reverse"])
    assert scale > 1e-6
    for mode in EXACT[1:]:
        assert np.linalg.norm(exact[mode] - exact["reverse"]) <= 1e-9 * scale


@pytest.mark.promotes
@pytest.mark.parametrize("mode", MODES)
def test_constant_grads_stand_for_the_part_without_phi(mode):
    tx = OPTIMIZERS["adamw"]
    params, phi, fit, regulariser, outer = problem(1)
    params, state = warmed_up(tx, params, fit)
    whole = gr.hypergradient(
        lambda p, m: fit(p) + regulariser(p, m), outer, params, phi, tx, state, mode=mode
    )
    split = gr.hypergradient(
        regulariser, outer, params, phi, tx, state, mode=mode, constant_grads=jax.grad(fit)(params)
    )
    tolerance = 1e-6 if mode == "finite_difference" else 1e-12
    chex.assert_trees_all_close(whole.grads, split.grads, rtol=tolerance, atol=1e-14)
    chex.assert_trees_all_close(whole.params, split.params, rtol=1e-12, atol=0)


def test_finite_difference_is_right_in_float64_only_to_its_step():
    tx = OPTIMIZERS["sgd"]
    params, phi, fit, regulariser, outer = problem()
    inner = lambda p, m: fit(p) + regulariser(p, m)
    run = lambda **kw: ravel_pytree(
        gr.hypergradient(inner, outer, params, phi, tx, tx.init(params), **kw).grads
    )[0]
    exact = run()
    coarse, fine = (
        np.linalg.norm(run(mode="finite_difference", epsilon=e) - exact) for e in (1e-1, 1e-3)
    )
    # The error of a central difference falls with the square of its step.
    np.testing.assert_allclose(coarse / fine, 1e4, rtol=0.05)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["rate", "weight"])
def test_zero_inner_rate_and_zero_weight_give_exactly_zero(mode, what):
    params, phi, fit, regulariser, outer = problem()
    rate, weight = (0.0, 1.0) if what == "rate" else (0.1, 0.0)
    tx = optax.sgd(rate, momentum=0.9)
    h = gr.hypergradient(
        lambda p, m: fit(p) + weight * regulariser(p, m),
        outer, params, phi, tx, tx.init(params), mode=mode,
    )  # fmt: skip
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(h.grads))


@pytest.mark.parametrize("kwargs", [{"mode": "backward"}, {"epsilon": 0.0}])
def test_bad_arguments_are_named(kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"{name} must be .*{value!r}"):
        gr.hypergradient(
            lambda p, m: p * m, lambda p: p, 1.0, 1.0, optax.sgd(0.1), optax.sgd(0.1).init(1.0),
            **kwargs,
        )  # fmt: skip


CLIPPED = {
    "global norm": optax.clip_by_global_norm(0.5),
    "block rms": optax.clip_by_block_rms(0.5),
    "adaptive": optax.adaptive_grad_clip(0.5),
    "none": optax.identity(),
}


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", CLIPPED)
def test_an_inner_gradient_of_zero_is_differentiated_through_clipping(name, mode):
    """Example weights that start at 0, the usual recipe of reweighting; a closed form."""
    rng = np.random.default_rng(2)
    x, y, v = (jnp.asarray(rng.normal(size=s)) for s in ((6, 4), (6,), (4,)))
    theta = {"w": jnp.asarray(rng.normal(size=4)), "unused": jnp.ones((3, 2))}
    inner = lambda t, weights: jnp.sum(weights * (x @ t["w"] - y) ** 2)
    outer = lambda t: t["w"] @ v
    tx = optax.chain(CLIPPED[name], optax.sgd(0.1))
    h = gr.hypergradient(inner, outer, theta, jnp.zeros(6), tx, tx.init(theta), mode=mode)
    expected = -0.1 * 2 * (x @ theta["w"] - y) * (x @ v)
    np.testing.assert_allclose(h.grads, expected, rtol=1e-12)
    np.testing.assert_array_equal(h.params["w"], theta["w"])


def test_optimisers_that_need_more_than_gradients_are_refused():
    theta = jnp.ones(3)
    tx = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5))
    with pytest.raises(ValueError, match=r"takes \(grads, state, params\) alone.*value"):
        gr.hypergradient(lambda t, p: p * t.sum(), jnp.sum, theta, 1.0, tx, tx.init(theta))


def test_constant_grads_do_not_broadcast():
    theta, tx = jnp.ones(3), optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"constant_grads must be like params.*\(3,\).*\(3, 1\)"):
        gr.hypergradient(
            lambda t, p: p * t.sum(), jnp.sum, theta, 1.0, tx, tx.init(theta),
            constant_grads=jnp.ones((3, 1)),
        )  # fmt: skip
