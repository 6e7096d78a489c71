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

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(fit)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=3)[0])(params)


def compiled(inner, outer, params, phi, tx, **options):
    """A hypergradient in one program."""
    run = lambda t, m: gr.hypergradient(inner, outer, t, m, tx, tx.init(t), **options)
    return jax.jit(run)(params, phi)


def differences(loss, flat, eps=1e-3):
    """Central differences of fourth order."""
    moves = eps * np.concatenate([d * np.eye(flat.size) for d in (2, 1, -1, -2)])
    far, near, back, far_back = jax.vmap(lambda d: loss(flat + d))(moves).reshape(4, -1)
    return (8 * (near - back) - (far - far_back)) / (12 * eps)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.promotes) if "adam" in n else n for n in OPTIMIZERS],
)
def test_exact_modes_equal_central_differences(name):
    tx = OPTIMIZERS[name]
    params, phi, fit, regulariser, outer = problem()
    params, state = warmed_up(tx, params, fit)
    inner = lambda p, m: fit(p) + regulariser(p, m)
    flat, unravel = ravel_pytree(phi)

    @jax.jit
    def found(flat):
        def after_step(flat):
            grads = jax.grad(inner)(params, unravel(flat))
            updates, _ = tx.update(grads, state, params)
            return outer(optax.apply_updates(params, updates))

        run = functools.partial(gr.hypergradient, inner, outer, params, unravel(flat), tx, state)
        losses = after_step(flat), inner(params, unravel(flat))
        return losses, differences(after_step, flat), {mode: run(mode=mode) for mode in EXACT}

    (outer_loss, inner_loss), numerical, exact = found(flat)
    for mode, h in exact.items():
        np.testing.assert_allclose(h.outer_loss, outer_loss, rtol=1e-12)
        np.testing.assert_allclose(h.inner_loss, inner_loss, rtol=1e-12)
        exact[mode] = ravel_pytree(h.grads)[0]
        assert np.linalg.norm(exact[mode] - numerical) <= 1e-6 * np.linalg.norm(numerical)
    scale = np.linalg.norm(exact["reverse"])
    assert scale > 1e-6
    for mode in EXACT[1:]:
        assert np.linalg.norm(exact[mode] - exact["reverse"]) <= 1e-9 * scale


@pytest.mark.promotes
@pytest.mark.parametrize("mode", MODES)
def test_constant_grads_stand_for_the_part_without_phi(mode):
    tx, (params, phi, fit, regulariser, outer) = OPTIMIZERS["adamw"], problem(1)
    params, state = warmed_up(tx, params, fit)
    both = lambda p, m: fit(p) + regulariser(p, m)
    run = functools.partial(gr.hypergradient, outer_loss=outer, tx=tx, opt_state=state, mode=mode)
    of = lambda p, m: (run(both, params=p, meta_params=m), run(
        regulariser, params=p, meta_params=m, constant_grads=jax.grad(fit)(p)
    ))  # fmt: skip
    whole, split = jax.jit(of)(params, phi)
    tolerance = 1e-6 if mode == "finite_difference" else 1e-12
    chex.assert_trees_all_close(whole.grads, split.grads, rtol=tolerance, atol=1e-14)
    chex.assert_trees_all_close(whole.params, split.params, rtol=1e-12, atol=0)


def test_finite_difference_is_right_in_float64_only_to_its_step():
    tx = OPTIMIZERS["sgd"]
    params, phi, fit, regulariser, outer = problem()
    inner = lambda p, m: fit(p) + regulariser(p, m)
    run = lambda **kw: ravel_pytree(compiled(inner, outer, params, phi, tx, **kw).grads)[0]
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
    inner = lambda p, m: fit(p) + weight * regulariser(p, m)
    h = compiled(inner, outer, params, phi, tx, mode=mode)
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
    x, y, v = (rng.normal(size=s) for s in ((6, 4), (6,), (4,)))
    theta = {"w": rng.normal(size=4), "unused": np.ones((3, 2))}
    inner = lambda t, weights: jnp.sum(weights * (x @ t["w"] - y) ** 2)
    outer = lambda t: t["w"] @ v
    tx = optax.chain(CLIPPED[name], optax.sgd(0.1))
    h = compiled(inner, outer, theta, np.zeros(6), tx, mode=mode)
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


# ------------------------------------------------------------------ one step, as it was published


def as_published(inner, outer, params, phi, tx, state, *, mode, constant_grads, epsilon=0.01):
    """One step of the four modes, written out before there were several."""

    def beside_zero(g):
        tiny = jnp.asarray(float(jnp.finfo(g.dtype).tiny) ** 0.4, g.dtype)
        return g + jax.lax.stop_gradient(jnp.where(g == 0, tiny, jnp.zeros_like(g)))

    def descend(grads):
        return optax.apply_updates(params, tx.update(grads, state, params)[0])

    def inner_step(grads):
        grads = jax.tree.map(jnp.add, grads, constant_grads)
        beside = descend(jax.tree.map(beside_zero, grads))
        back = jax.tree.map(lambda a, b: jax.lax.stop_gradient(a - b), descend(grads), beside)
        return jax.tree.map(jnp.add, beside, back)

    if mode == "reverse":

        def outer_of_meta(phi):
            value, grads = jax.value_and_grad(inner)(params, phi)
            moved = inner_step(grads)
            return outer(moved), (value, moved)

        (outer_value, (value, moved)), grads = jax.value_and_grad(outer_of_meta, has_aux=True)(phi)
        return grads, outer_value, value, moved
    if mode == "forward_over_reverse":

        def both(params):
            value, (grads, meta) = jax.value_and_grad(inner, (0, 1))(params, phi)
            return meta, (value, grads)

        _, along, (value, grads) = jax.linearize(both, params, has_aux=True)
    else:
        value, grads = jax.value_and_grad(inner)(params, phi)
    moved, pull_back = jax.vjp(inner_step, grads)
    outer_value, outer_grads = jax.value_and_grad(outer)(moved)
    (w,) = pull_back(outer_grads)
    if mode == "forward_over_reverse":
        grads = along(w)
    elif mode == "reverse_over_forward":
        grads = jax.grad(lambda m: jax.jvp(lambda p: inner(p, m), (params,), (w,))[1])(phi)
    else:
        norm = optax.tree.norm(w)
        step = epsilon / jnp.where(norm > 0, norm, 1.0)
        at = lambda s: jax.grad(inner, 1)(jax.tree.map(lambda p, d: p + s * d, params, w), phi)
        forward, backward = at(step), at(-step)
        grads = jax.tree.map(lambda f, b: (f - b) / (2 * step), forward, backward)
    return grads, outer_value, value, moved


@pytest.mark.promotes
@pytest.mark.parametrize("mode", MODES)
def test_one_step_is_bit_for_bit_what_it_was(mode):
    tx = OPTIMIZERS["clipped_scheduled_adam"]
    params, phi, fit, regulariser, outer = single(problem(3))
    params, state = warmed_up(tx, params, fit)
    run = lambda f: jax.jit(
        lambda p, m, s: tuple(
            f(regulariser, outer, p, m, tx, s, mode=mode, constant_grads=jax.grad(fit)(p))
        )
    )
    new, old = (run(f)(params, phi, state) for f in (gr.hypergradient, as_published))
    assert new[1].dtype == jnp.float32
    chex.assert_trees_all_equal(new, old)


def single(problem):
    """The problem in float32."""
    params, phi, *losses = problem
    cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    to_float32 = lambda loss: lambda *args: loss(*args).astype(jnp.float32)
    return cast(params), cast(phi), *map(to_float32, losses)


# ------------------------------------------------------------------------------------- K steps

STEPPED = {  # of phi, as learned strengths; the same with the numbers of `STRENGTHS` fixed
    "sgd": lambda m: optax.chain(
        optax.add_decayed_weights(m["decay"]), optax.sgd(m["rate"], momentum=m["momentum"])
    ),
    "adam": lambda m: optax.adamw(m["rate"], b1=m["momentum"], weight_decay=m["decay"]),
    "clipped": lambda m: optax.chain(
        optax.clip_by_global_norm(0.1), optax.sgd(m["rate"], momentum=m["momentum"], nesterov=True)
    ),
}
STRENGTHS = {"rate": 0.05, "decay": 0.03, "momentum": 0.8}


def steps_problem(name, num_steps, learned):
    """K steps on K batches, and the outer loss after them in a plain loop."""
    params, phi, fit, regulariser, outer = problem(4)
    rng = np.random.default_rng(5)
    batches = {"x": jnp.asarray(rng.normal(size=(num_steps, 6, 4)))}
    tx = STEPPED[name]
    params, state = warmed_up(tx(STRENGTHS), params, fit)
    if learned:
        phi |= jax.tree.map(jnp.asarray, STRENGTHS)
    else:
        tx = tx(STRENGTHS)

    def inner(params, phi, batch):
        return fit(params) + regulariser(params, phi) + jnp.mean(batch["x"] @ params["w"]) ** 2

    def outer_of(phi):
        def step(carry, batch):
            theta, at = carry
            grads = jax.grad(inner)(theta, phi, batch)
            updates, at = (tx(phi) if learned else tx).update(grads, at, theta)
            return (optax.apply_updates(theta, updates), at), None

        return outer(jax.lax.scan(step, (params, state), batches)[0][0])

    run = functools.partial(
        gr.hypergradient, inner, outer, params, tx=tx, opt_state=state, num_steps=num_steps,
        batches=batches,
    )  # fmt: skip
    return run, outer_of, phi


@pytest.mark.promotes
@pytest.mark.parametrize(
    "name, num_steps, learned",
    [("sgd", 5, False), ("adam", 2, False), ("clipped", 5, False)]
    + [("sgd", 1, True), ("clipped", 1, True), ("adam", 5, True)],
)
def test_several_steps_equal_central_differences_and_a_plain_loop(name, num_steps, learned):
    run, outer_of, phi = steps_problem(name, num_steps, learned)
    flat, unravel = ravel_pytree(phi)

    @jax.jit
    def found(flat):
        value, grads = jax.value_and_grad(outer_of)(unravel(flat))
        numerical = differences(lambda flat: outer_of(unravel(flat)), flat)
        return value, ravel_pytree(grads)[0], numerical, run(meta_params=unravel(flat))

    value, looped, numerical, h = found(flat)
    grads, _ = ravel_pytree(h.grads)
    np.testing.assert_allclose(h.outer_loss, value, rtol=1e-12)
    assert np.linalg.norm(grads - looped) <= 1e-10 * np.linalg.norm(looped)
    assert np.linalg.norm(grads - numerical) <= 1e-6 * np.linalg.norm(numerical)
    if learned:  # each of them by itself: they are few among many
        expected = unravel(numerical)
        for strength in STRENGTHS:
            unused = (name, strength) == ("clipped", "decay")
            wanted = expected[strength] * (not unused)
            np.testing.assert_allclose(h.grads[strength], wanted, rtol=1e-6)
            assert (h.grads[strength] == 0) == unused


@pytest.mark.promotes
def test_the_modes_agree_over_several_steps_written_out_or_not():
    run, outer_of, phi = steps_problem("adam", 3, learned=True)
    options = {mode: {"mode": mode} for mode in MODES}
    options["finite_difference"]["epsilon"] = 1e-5
    options["written out"] = {"mode": "forward_over_reverse", "unroll": True}
    of = lambda phi: {name: run(meta_params=phi, **kw).grads for name, kw in options.items()}
    expected, modes = jax.jit(lambda phi: (jax.grad(outer_of)(phi), of(phi)))(phi)
    expected = ravel_pytree(expected)[0]
    for mode, grads in modes.items():
        error = np.linalg.norm(ravel_pytree(grads)[0] - expected) / np.linalg.norm(expected)
        assert error <= (1e-6 if mode == "finite_difference" else 1e-10), mode


def quadratic():
    """The inner loss `theta A theta / 2 - theta (B phi)` of a positive definite A; an outer one."""
    rng = np.random.default_rng(6)
    a, b, target = (rng.normal(size=s) for s in ((5, 5), (5, 3), (5,)))
    a = a @ a.T / 5 + 0.3 * np.eye(5)
    theta, phi = rng.normal(size=5), rng.normal(size=3)
    inner = lambda t, m: t @ a @ t / 2 - t @ (b @ m)
    outer = lambda t: jnp.sum((t - target) ** 2) / 2
    return a, b, target, theta, phi, inner, outer


@pytest.mark.parametrize("num_steps", [1, 2, 7, 16])
def test_descent_on_quadratics_is_the_formula_of_matrix_products(num_steps):
    """One quadratic a step; their matrices do not commute, so the order of all steps matters."""
    _, b, target, theta, phi, _, outer = quadratic()
    rate, tx = 0.2, optax.sgd(0.2)
    a = np.random.default_rng(8).normal(size=(num_steps, 5, 5))
    a = a @ a.transpose(0, 2, 1) / 5
    inner = lambda t, m, a: t @ a @ t / 2 - t @ (b @ m)
    h = compiled(inner, outer, theta, phi, tx, num_steps=num_steps, batches=jnp.asarray(a))
    after, slope = theta, np.zeros((5, 3))
    for a_k in a:
        after = after - rate * (a_k @ after - b @ phi)
        slope = slope - rate * (a_k @ slope - b)
    np.testing.assert_allclose(h.params, after, rtol=1e-12)
    np.testing.assert_allclose(h.inner_loss, inner(theta, phi, a[0]), rtol=1e-12)
    np.testing.assert_allclose(h.grads, slope.T @ (after - target), rtol=1e-10)


@pytest.mark.parametrize("num_steps", [2, 16])
def test_descent_on_one_quadratic_is_the_formula_of_matrix_powers(num_steps):
    a, b, target, theta, phi, inner, outer = quadratic()
    rate, tx = 0.2, optax.sgd(0.2)
    h = compiled(inner, outer, theta, phi, tx, num_steps=num_steps)
    power = np.linalg.matrix_power(np.eye(5) - rate * a, num_steps)
    series = np.linalg.solve(a, np.eye(5) - power)  # that of rate (I - rate A)^j
    after = power @ theta + series @ b @ phi
    np.testing.assert_allclose(h.params, after, rtol=1e-12)
    np.testing.assert_allclose(h.grads, b.T @ series @ (after - target), rtol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_what_cannot_matter_is_exactly_zero_over_several_steps(num_steps):
    _, _, _, theta, phi, inner, outer = quadratic()
    apart = lambda t, m: inner(t, jax.lax.stop_gradient(m))
    for loss, rate in ((inner, 0.0), (apart, 0.1)):
        tx = optax.sgd(rate, momentum=0.9)
        h = compiled(loss, outer, theta, phi, tx, num_steps=num_steps)
        np.testing.assert_array_equal(h.grads, 0)


def test_memory_grows_far_slower_than_the_number_of_steps():
    theta = jnp.zeros((64, 64))
    tx = optax.sgd(0.1, momentum=0.9)
    inner = lambda t, m: jnp.sum((jnp.sin(t) - m) ** 2)
    outer = lambda t: jnp.sum(t**2)

    def memory(num_steps):
        run = lambda t, m: (
            gr.hypergradient(inner, outer, t, m, tx, tx.init(t), num_steps=num_steps).grads
        )
        program = jax.jit(run).lower(theta, jnp.float64(1)).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = memory(4), memory(64)
    # The states of 15 of 64 steps (7 segments and the last 8), of 3 or 4 out of 4.
    assert few < many < 5 * few
    assert many < 64 * 2 * theta.nbytes / 2


@pytest.mark.promotes
def test_several_steps_batch_and_differentiate_again():
    run, outer_of, phi = steps_problem("sgd", 2, learned=True)
    many = jax.tree.map(lambda x: jnp.stack([x, 0.7 * x]), phi)
    grads = lambda phi: run(meta_params=phi).grads
    batched, expected = (jax.jit(jax.vmap(f))(many) for f in (grads, jax.grad(outer_of)))
    chex.assert_trees_all_close(batched, expected, rtol=1e-9, atol=1e-12)
    along = jax.tree.map(jnp.cos, phi)
    second = lambda f: jax.jit(
        jax.grad(lambda phi: sum(map(jnp.vdot, *map(jax.tree.leaves, (f(phi), along)))))
    )(phi)
    chex.assert_trees_all_close(second(grads), second(jax.grad(outer_of)), rtol=1e-8, atol=1e-12)


@pytest.mark.promotes
def test_units_that_are_dead_stay_finite_through_several_steps_of_adam():
    theta = {"used": jnp.array([0.3, -0.2]), "dead": jnp.ones(3)}
    inner = lambda t, m: jnp.sum((t["used"] - m) ** 2) + 0.0 * jnp.sum(t["dead"])
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    outer = lambda t: jnp.sum(t["used"] * t["dead"][:2])
    h = compiled(inner, outer, theta, jnp.array(0.5), tx, num_steps=3)
    assert np.isfinite(h.grads) and h.grads != 0
    np.testing.assert_array_equal(h.params["dead"], 1)


QUANTISED = optax.GradientTransformation(
    lambda params: {"moment": jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int8), params)},
    lambda grads, state, params=None: (grads, state),
)
BAD = {  # given: what the paragraph says
    "no step": ({"num_steps": 0}, r"num_steps is 0; allowed: an integer >= 1"),
    "half a step": ({"num_steps": 1.5}, r"num_steps is 1.5; allowed: an integer >= 1"),
    "batches": (
        {"num_steps": 3, "batches": {"x": np.ones((2, 5))}},
        r"batches\['x'\] has shape \(2, 5\); allowed with num_steps=3: \[3, \.\.\.\]",
    ),
    "one batch": ({"batches": np.ones(2)}, r"batches has shape \(2,\).*num_steps=1"),
    "constant_grads": (
        {"num_steps": 2, "constant_grads": np.ones(3)},
        r"constant_grads were given with num_steps=2; allowed for one step only",
    ),
    "MultiSteps": ({"tx": optax.MultiSteps(optax.sgd(0.1), 2)}, r"is optax.MultiSteps.*inner_loss"),
    "MultiSteps inside": (
        {"tx": optax.chain(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())},
        r"tx is optax.MultiSteps",
    ),
    "integers": (
        {"tx": QUANTISED, "num_steps": 2},
        r"opt_state\['moment'\] is an array of shape \(3,\) and dtype int8.*num_steps=1",
    ),
    "no transformation": ({"tx": lambda m: 0.1}, r"tx\(meta_params\) returned 0.1; allowed is an"),
    "no function": ({"tx": 0.1}, r"tx is 0.1; allowed is an optax.GradientTransformation"),
    "injected": (
        {"tx": lambda m: optax.inject_hyperparams(optax.sgd)(m)},
        r"optax.inject_hyperparams, whose update takes its numbers from there",
    ),
    "implicit": ({"mode": "implicit"}, r"mode must be one of .*'implicit'.*implicit_hypergradient"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_differentiated_is_refused_in_words(name):
    given, words = BAD[name]
    theta, phi = jnp.ones(3), jnp.array(0.5)
    tx = given.get("tx", optax.sgd(0.1))
    made = tx(phi) if callable(tx) else tx
    state = made.init(theta) if hasattr(made, "init") else ()
    with pytest.raises(ValueError, match=words):
        gr.hypergradient(
            lambda t, m: m * t.sum(), jnp.sum, theta, phi, opt_state=state, **{"tx": tx, **given}
        )


def test_integers_in_a_state_do_not_matter_to_one_step():
    theta = jnp.ones(3)
    h = gr.hypergradient(
        lambda t, m: m * t.sum(), jnp.sum, theta, 1.0, QUANTISED, QUANTISED.init(theta)
    )
    np.testing.assert_allclose(h.grads, 3)


# ------------------------------------------------------------------------------------- implicit


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_the_implicit_hypergradient_of_a_quadratic_is_its_formula(solver, damping):
    a, b, target, _, phi, inner, outer = quadratic()
    theta = jnp.asarray(np.linalg.solve(a, b @ phi))
    run = functools.partial(
        gr.implicit_hypergradient, solver=solver, damping=damping, step_size=0.4
    )
    h = jax.jit(lambda phi: run(inner, outer, theta, phi, num_terms=5 if solver == "cg" else 300))(
        phi
    )
    expected = b.T @ np.linalg.solve(a + damping * np.eye(5), theta - target)
    np.testing.assert_allclose(h.grads, expected, rtol=1e-9)
    np.testing.assert_allclose(h.outer_loss, outer(theta), rtol=1e-12)
    np.testing.assert_allclose(h.inner_loss, inner(theta, phi), rtol=1e-12)
    np.testing.assert_array_equal(h.params, theta)


def ridge():
    """Logistic regression with a learned weight decay, one a feature, at its minimum by Newton."""
    rng = np.random.default_rng(7)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    x, y, xv, yv = draw(20, 4), jnp.sign(draw(20)), draw(30, 4), jnp.sign(draw(30))
    fit = lambda t, x, y: jnp.mean(jax.nn.softplus(-y * (x @ t["w"] + t["b"])))
    inner = lambda t, m: fit(t, x, y) + jnp.sum(jnp.exp(m) * t["w"] ** 2) + 0.05 * t["b"] ** 2
    outer = lambda t: fit(t, xv, yv)
    phi = jnp.asarray([-2.0, -1.0, -2.5, -1.5])
    theta = {"w": jnp.zeros(4), "b": jnp.array(0.1)}
    flat, unravel = ravel_pytree(theta)
    loss = lambda flat, m: inner(unravel(flat), m)

    def minimum(m):
        newton = lambda f, _: (
            f - jnp.linalg.solve(jax.hessian(loss)(f, m), jax.grad(loss)(f, m)),
            None,
        )
        return unravel(jax.lax.scan(newton, flat, length=8)[0])

    return inner, outer, phi, jax.jit(minimum)


@pytest.mark.promotes
def test_implicit_and_unrolled_agree_where_the_inner_problem_has_converged():
    inner, outer, phi, minimum = ridge()
    theta = minimum(phi)
    assert optax.tree.norm(jax.jit(jax.grad(inner))(theta, phi)) < 1e-12
    run = functools.partial(gr.implicit_hypergradient, inner, outer, num_terms=10)
    implicit = jax.jit(run)(theta, phi).grads
    eps = 1e-4
    at = phi[None] + eps * np.concatenate([np.eye(4), -np.eye(4)])
    moved = jax.jit(jax.vmap(lambda m: outer(minimum(m))))(at).reshape(2, 4)
    np.testing.assert_allclose(implicit, np.subtract(*moved) / (2 * eps), rtol=1e-6)
    start = jax.tree.map(lambda x: x + 0.5, theta)
    tx = optax.sgd(0.5, momentum=0.5)
    run = functools.partial(gr.hypergradient, inner, outer, tx=tx, num_steps=400)
    h = jax.jit(lambda m: run(start, m, opt_state=tx.init(start)))(phi)
    chex.assert_trees_all_close(h.params, theta, rtol=1e-6)
    np.testing.assert_allclose(h.grads, implicit, rtol=1e-6)


def test_terms_of_the_series_are_steps_of_descent():
    inner, outer, phi, minimum = ridge()
    theta, tx = minimum(phi), optax.sgd(0.3)
    options = {"solver": "neumann", "num_terms": 6, "step_size": 0.3}
    run = functools.partial(gr.implicit_hypergradient, inner, outer, **options)
    unrolled = compiled(inner, outer, theta, phi, tx, num_steps=6)
    np.testing.assert_allclose(unrolled.grads, jax.jit(run)(theta, phi).grads, rtol=1e-9)


def test_the_implicit_hypergradient_batches_and_differentiates_again():
    inner, outer, phi, minimum = ridge()
    theta = minimum(phi)
    run = functools.partial(gr.implicit_hypergradient, inner, outer, theta)
    for solver in ("cg", "neumann"):
        grads = jax.jit(lambda m: run(m, solver=solver).grads)  # noqa: B023
        many = phi[None] + np.array([[0.0], [0.3], [1e-4], [-1e-4]])
        _, batched, ahead, behind = jax.jit(jax.vmap(grads))(many)
        slope = jax.jit(jax.grad(lambda s: grads(phi + s)[1]))(0.0)  # noqa: B023
        np.testing.assert_allclose(batched, grads(many[1]), rtol=1e-8)
        np.testing.assert_allclose(slope, (ahead - behind)[1] / 2e-4, rtol=1e-5)


def test_a_flat_direction_takes_no_part_and_an_outer_minimum_gives_zero():
    inner = lambda t, m: (t[0] - m) ** 2  # flat in t[1]
    theta = jnp.array([2.0, 5.0])
    for solver in ("cg", "neumann"):
        run = functools.partial(gr.implicit_hypergradient, inner, params=theta, solver=solver)
        h = jax.jit(lambda m: run(lambda t: t[0] ** 2, meta_params=m, num_terms=100))(2.0)  # noqa: B023
        np.testing.assert_allclose(h.grads, 4.0, rtol=1e-9)
        h = jax.jit(lambda m: run(lambda t: 0 * t[0], meta_params=m))(2.0)  # noqa: B023
        assert h.grads == 0


@pytest.mark.parametrize(
    "given, words",
    [
        ({"solver": "lu"}, r"solver must be one of \('cg', 'neumann'\), got 'lu'"),
        ({"num_terms": 0}, "num_terms is 0; allowed: an integer >= 1"),
        ({"damping": -0.1}, "damping is -0.1; allowed: a number >= 0"),
        ({"damping": float("nan")}, "damping is nan; allowed: a number >= 0"),
        ({"step_size": 0.0}, "step_size is 0.0; allowed: a number above 0"),
        ({"step_size": -1}, "step_size is -1; allowed: a number"),
    ],
)
def test_bad_arguments_of_the_implicit_one_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        gr.implicit_hypergradient(lambda t, m: (t - m) ** 2, jnp.square, 1.0, 1.0, **given)
