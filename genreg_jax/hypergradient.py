"""Exact hypergradients through K inner optimiser steps, for any differentiable optax optimiser.

    theta_0 = theta,    theta_{k+1} = theta_k + U(d L_in(theta_k, phi) / d theta)    U = tx.update
    h = d L_out(theta_K(phi)) / d phi

For one step, with `v = grad L_out(theta_1)` pulled back through the optimiser, `w = (dU/dg)^T v`,

    h = d/d phi < d L_in(theta, phi) / d theta, w >,

so the only second-order object is one mixed Hessian-vector product, and there are several ways to
compute it. They agree to rounding, except for the finite difference that much bilevel code uses
(DARTS, arXiv:1806.09055), which in float32 can be off by more than its own size while costing no
less: `benchmarks/hypergradient.py` measures both.

K steps are one such product each, from the last step to the first. It gives the derivatives of
`< d L_in / d theta, w >` in phi and in theta; the latter joins what the optimiser passes on to the
step before. The parameters and the optimiser's state that the way back needs are kept at about
sqrt(K) steps and computed again in between, one segment at a time (arXiv:1604.06174). For a horizon
too long for that there is `genreg_jax.implicit_hypergradient`.

Reductions, each a test: an inner learning rate of 0 gives exactly zero; an inner loss that does not
depend on `phi` gives exactly zero; K steps of gradient descent from a stationary point are K terms
of the Neumann series of the implicit hypergradient.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from genreg_jax.checks import check_number, check_opt_state, short

MODES = ("forward_over_reverse", "reverse_over_forward", "reverse", "finite_difference")


class Hypergradient(NamedTuple):
    """The result of `hypergradient` and of `implicit_hypergradient`.

    Attributes:
      grads: gradient of the outer loss in `meta_params`, shaped like it.
      outer_loss: scalar, at the parameters after the inner steps.
      inner_loss: scalar, at the parameters before them, on the first of the batches.
      params: parameters after the inner steps.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import genreg_jax as gr
      >>> tx, theta = optax.sgd(0.1), jnp.ones(2)
      >>> h = gr.hypergradient(lambda t, p: p * t.sum(), lambda t: t.sum(), theta, jnp.array(1.0),
      ...                      tx, tx.init(theta))
      >>> isinstance(h, gr.Hypergradient), round(float(h.grads), 6)
      (True, -0.2)
    """

    grads: Any
    outer_loss: jax.Array
    inner_loss: jax.Array
    params: Any


def hypergradient(
    inner_loss: Callable[..., jax.Array],
    outer_loss: Callable[[Any], jax.Array],
    params: Any,
    meta_params: Any,
    tx: optax.GradientTransformation | Callable[[Any], optax.GradientTransformation],
    opt_state: Any,
    *,
    mode: str = "forward_over_reverse",
    constant_grads: Any = None,
    epsilon: float = 0.01,
    num_steps: int = 1,
    batches: Any = None,
    unroll: bool = False,
) -> Hypergradient:
    """Differentiates the outer loss through one or several inner optimiser steps.

    Time: of `num_steps=K`, each step costs a hypergradient of one step and two plain gradients.
    Memory: beside one step's own, about `2 sqrt(K)` copies of `params` and `opt_state`.

    Args:
      inner_loss: `(params, meta_params) -> scalar`, what an inner step descends;
        `(params, meta_params, batch) -> scalar` if there are `batches`.
      outer_loss: `(params) -> scalar`, evaluated after the inner steps.
      params: pytree of the inner problem, theta.
      meta_params: pytree to be differentiated, phi.
      tx: any optax transformation whose update is differentiable in the gradient: sgd, momentum,
        Nesterov, weight decay, Adam, chains with clipping. A norm, as in clipping, and Adam's
        square root have no derivative where the gradient and the moments are exactly 0 (weights
        that start at 0, dead units). There it is taken right beside: for clipping that is the
        derivative in all directions, and for Adam 1 / eps, unless it has a small `eps_root`. The
        sign of `optax.lion` and `optax.sign_sgd` has a derivative of 0, so has the hypergradient
        through it. Line searches and others whose update takes more than `(grads, state, params)`
        are refused, and so is `optax.MultiSteps`.
        Or a function `meta_params -> transformation`, whose learning rate, weight decay or momentum
        are then differentiated too: `lambda m: optax.sgd(m["learning_rate"])`. Not with
        `optax.inject_hyperparams`, which takes its numbers from the state.
      opt_state: the state of `tx`, or of `tx(meta_params)`, before the first step; it is not
        advanced.
      mode: how the mixed product is computed.
        `forward_over_reverse` (default): derivative along `w` of the gradient in phi. Exact, and
        the cheapest on CPU.
        `reverse_over_forward`: gradient in phi of the derivative along `w`. Exact.
        `reverse`: reverse mode through the gradient. Exact, the reference, the dearest.
        `finite_difference`: two gradients in phi at `theta +- epsilon / |w| * w`. Inexact.
      constant_grads: gradient in `params` of a part of the inner objective that does not depend on
        `meta_params` (for MGR: of the cross-entropy), when it is at hand already. It is added to
        the inner gradient, and `inner_loss` is then only the rest. For one step only.
      epsilon: step of the finite difference, relative to |w|; other modes ignore it.
      num_steps: number of inner steps, K.
      batches: pytree of arrays [K, ...]; step k hands `inner_loss` its k-th entries.
      unroll: write the steps out one after another instead of as a loop. Faster where XLA is slow
        at what is inside a loop, as at convolutions on CPU, and slower to compile. XLA may then
        keep what it should compute again, so that memory grows with K.

    Returns:
      A `Hypergradient`.

    Raises:
      ValueError: unknown `mode`, `epsilon` not positive, `constant_grads` that are not like
        `params` or for several steps, `num_steps` below 1, `batches` whose leading axis is not K, a
        `tx` that is no transformation and returns none, whose update needs further arguments or
        passes no derivative from step to step (`optax.MultiSteps`, states of integers that are no
        counts), or `optax.inject_hyperparams` in a function `tx`.

    Gradients flow: to `meta_params` through every inner gradient and through `tx`, and from step to
    step through `params` and the optimiser's state, counts excepted; not to `outer_loss`'s own use
    of `meta_params`. The result is itself differentiable in the three exact modes.

    Example:
      One step of gradient descent on `(theta - phi)^2 / 2` from 0 with rate 0.5 gives
      `theta' = phi / 2`, and `theta'^2` has derivative `phi / 2`:

      >>> import jax.numpy as jnp, optax
      >>> import genreg_jax as gr
      >>> tx = optax.sgd(0.5)
      >>> theta, phi = jnp.array(0.0), jnp.array(3.0)
      >>> h = gr.hypergradient(lambda t, p: (t - p) ** 2 / 2, lambda t: t**2,
      ...                      theta, phi, tx, tx.init(theta))
      >>> float(h.grads), float(h.params), float(h.outer_loss)
      (1.5, 1.5, 2.25)

      Two steps with targets 1 and 2, and the learning rate as the meta-parameter:
      `theta_2 = 0.5 (1 - 0.5) + 0.5 * 2`, and its derivative in the rate is 2:

      >>> rate, targets = jnp.array(0.5), jnp.array([1.0, 2.0])
      >>> h = gr.hypergradient(lambda t, p, target: (t - target) ** 2 / 2, lambda t: t,
      ...                      theta, rate, optax.sgd, optax.sgd(rate).init(theta),
      ...                      num_steps=2, batches=targets)
      >>> float(h.params), float(h.grads)
      (1.25, 2.0)
    """
    if mode not in MODES:
        raise ValueError(
            f"mode must be one of {MODES}, got {mode!r}. At a stationary point of the inner loss "
            "there is implicit_hypergradient, a function of its own."
        )
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon!r}.")
    check_number("num_steps", num_steps, minimum=1, integer=True)
    if constant_grads is not None:
        if num_steps > 1:
            raise ValueError(
                f"constant_grads were given with num_steps={num_steps}; allowed for one step only: "
                "they are a gradient at params, which moves. Make that part of inner_loss."
            )
        _check_alike("constant_grads", constant_grads, params)
    _check_batches(batches, num_steps)
    learned = callable(tx) and not hasattr(tx, "update")
    optimizer: Any = tx if learned else lambda meta_params: tx
    first = optimizer(meta_params)
    _check_optimizer(first, opt_state, num_steps, learned)
    check_opt_state(first, opt_state, params, "opt_state")

    def inner_step(grads, params, opt_state, meta_params):
        if constant_grads is not None:
            grads = jax.tree.map(jnp.add, grads, constant_grads)
        step = functools.partial(_step, optimizer(meta_params), opt_state=opt_state, params=params)
        # The derivative is taken beside zero, where a norm, as in clipping, has none; the value is
        # that of the gradient as it is.
        beside = step(jax.tree.map(_beside_zero, grads))
        return jax.tree.map(_value_of, step(grads), beside)

    def loss_on(batch):
        if batches is None:
            return inner_loss
        return lambda params, meta_params: inner_loss(params, meta_params, batch)

    def linearized(params, batch, argnums):
        return linearized_gradient(
            loss_on(batch), params, meta_params, mode=mode, epsilon=epsilon, argnums=argnums
        )

    if num_steps == 1:  # one mixed product, and no loop: XLA's convolutions are slow in one on CPU
        batch = jax.tree.map(lambda x: x[0], batches)
        inner_value, inner_grads, product = linearized(params, batch, (1,))
        new_params, pull_back = jax.vjp(
            lambda grads, meta_params: inner_step(grads, params, opt_state, meta_params)[0],
            inner_grads,
            meta_params,
        )
        outer_value, outer_grads = jax.value_and_grad(outer_loss)(new_params)
        direction, through_tx = pull_back(outer_grads)
        (grads,) = product(direction)
        if learned:
            grads = jax.tree.map(jnp.add, grads, through_tx)
        return Hypergradient(grads, outer_value, inner_value, new_params)

    def step(carry, batch):
        params, opt_state = carry
        inner_value, grads = jax.value_and_grad(loss_on(batch))(params, meta_params)
        return inner_step(grads, params, opt_state, meta_params), (carry, inner_value)

    def step_back(cotangents, at):
        """From the cotangents after a step to those before it; the third is the hypergradient."""
        (params, opt_state), batch = at
        floats, others = _split(opt_state)

        def floating_step(grads, params, floats, meta_params):
            new_params, state = inner_step(grads, params, _merge(floats, others), meta_params)
            return new_params, _split(state)[0]

        _, grads, product = linearized(params, batch, (0, 1))
        _, pull_back = jax.vjp(floating_step, grads, params, floats, meta_params)
        *cotangents, so_far = cotangents
        direction, in_params, in_state, in_meta = pull_back(tuple(cotangents))
        through_params, through_meta = product(direction)
        add = functools.partial(jax.tree.map, jnp.add)
        in_meta = add(so_far, add(in_meta, through_meta))
        return (add(in_params, through_params), in_state, in_meta), None

    scan = functools.partial(_scan, unroll=unroll)
    # Segments of about sqrt(K) steps, of which the first state is kept; of the last, all are.
    length = math.isqrt(num_steps - 1) + 1
    segments = (num_steps - 1) // length
    steps = jnp.arange(num_steps) if batches is None else batches
    late = jax.tree.map(lambda x: x[segments * length :], steps)
    early = jax.tree.map(
        lambda x: x[: segments * length].reshape(segments, length, *x.shape[1:]), steps
    )

    def segment(start, batches):
        end, (_, inner_values) = scan(step, start, batches)
        return end, (start, inner_values[0])

    def segment_back(cotangents, at):
        start, batches = at
        _, (states, _) = scan(step, start, batches)
        return scan(step_back, cotangents, (states, batches), reverse=True)

    middle, (starts, firsts) = scan(segment, (params, opt_state), early)
    (new_params, state), (states, inner_values) = scan(step, middle, late)
    outer_value, outer_grads = jax.value_and_grad(outer_loss)(new_params)
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    cotangents = outer_grads, zeros(_split(state)[0]), zeros(meta_params)
    cotangents, _ = scan(step_back, cotangents, (states, late), reverse=True)
    (*_, grads), _ = scan(segment_back, cotangents, (starts, early), reverse=True)
    inner_value = jnp.concatenate([firsts, inner_values])[0]
    return Hypergradient(grads, outer_value, inner_value, new_params)


def linearized_gradient(inner_loss, params, meta_params, *, mode, argnums, epsilon=0.01):
    """The inner loss, its gradient in `params`, and that gradient's product.

    Args:
      inner_loss: `(params, meta_params) -> scalar`.
      params: pytree, where it is linearised.
      meta_params: pytree.
      mode: one of `MODES`.
      argnums: `(1,)`, or `(0, 1)`: what the product is differentiated in.
      epsilon: as in `hypergradient`.

    Returns:
      `(value, grads, product)`. `product(w)`, with `w` like `params`, is the tuple of the gradients
      of `<d inner_loss / d params, w>` in the arguments of `argnums`.
    """
    args = (params, meta_params)
    if mode == "forward_over_reverse":
        # One linearisation gives the inner gradient and, once the direction is known, the mixed
        # product: the forward and backward passes at `params` are made once.
        def gradients(params):
            value, both = jax.value_and_grad(inner_loss, argnums=(0, 1))(params, meta_params)
            return tuple(both[i] for i in argnums), (value, both[0])

        _, derivative_along, (value, grads) = jax.linearize(gradients, params, has_aux=True)
        return value, grads, derivative_along

    if mode == "reverse":

        def gradient(*args):
            value, grads = jax.value_and_grad(inner_loss)(*args)
            return grads, value

        first = argnums[0]
        gradient = functools.partial(gradient, *args[:first])
        grads, product, value = jax.vjp(gradient, *args[first:], has_aux=True)
        return value, grads, product

    value, grads = jax.value_and_grad(inner_loss)(*args)

    def reverse_over_forward(direction):
        def directional_derivative(params, meta_params):
            return jax.jvp(lambda p: inner_loss(p, meta_params), (params,), (direction,))[1]

        return jax.grad(directional_derivative, argnums)(*args)

    def finite_difference(direction):
        norm = optax.tree.norm(direction)
        step = epsilon / jnp.where(norm > 0, norm, 1.0)

        def gradients_at(distance):
            moved = jax.tree.map(lambda p, d: p + distance * d, params, direction)
            return jax.grad(inner_loss, argnums)(moved, meta_params)

        forward, backward = gradients_at(step), gradients_at(-step)
        return jax.tree.map(lambda f, b: (f - b) / (2 * step), forward, backward)

    return value, grads, finite_difference if mode == "finite_difference" else reverse_over_forward


def _scan(body, carry, rows, *, unroll, reverse=False):
    """`jax.lax.scan`; without a loop where it is not wanted, or has one turn."""
    length = len(jax.tree.leaves(rows)[0])
    if length == 0 or (length > 1 and not unroll):
        return jax.lax.scan(body, carry, rows, reverse=reverse)
    found = []
    for i in reversed(range(length)) if reverse else range(length):
        carry, one = body(carry, jax.tree.map(lambda x: x[i], rows))  # noqa: B023
        found.append(one)
    return carry, jax.tree.map(lambda *ones: jnp.stack(ones), *(found[::-1] if reverse else found))


def _step(tx, grads, opt_state, params):
    try:
        updates, opt_state = tx.update(grads, opt_state, params)
    except TypeError as error:
        if "required keyword-only" not in str(error):
            raise
        raise ValueError(
            "tx must be an optimiser whose update takes (grads, state, params) alone, got one "
            f"that needs more: {error}. There is no inner step to differentiate without them."
        ) from None
    return optax.apply_updates(params, updates), opt_state


def _beside_zero(g):
    """The gradient, with a tiny number in the place of zeros; the derivative is 1."""
    tiny = jnp.asarray(float(jnp.finfo(g.dtype).tiny) ** 0.4, g.dtype)  # its square can be summed
    return g + jax.lax.stop_gradient(jnp.where(g == 0, tiny, jnp.zeros_like(g)))


def _value_of(a, beside):
    """The value of `a` with the derivative of `beside`."""
    return beside + jax.lax.stop_gradient(a - beside) if _is_float(a) else a


def _is_float(x):
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)


def _split(tree):
    """The floating point leaves of a tree, and the others; None in the place of each other's."""
    return (
        jax.tree.map(lambda x: x if _is_float(x) else None, tree),
        jax.tree.map(lambda x: None if _is_float(x) else x, tree),
    )


def _merge(floats, others):
    return jax.tree.map(
        lambda f, o: o if f is None else f, floats, others, is_leaf=lambda x: x is None
    )


def _check_alike(name, tree, params):
    shapes = jax.tree.map(jnp.shape, tree), jax.tree.map(jnp.shape, params)
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} must be like params, of shapes {shapes[1]}, got {shapes[0]}.")


def _check_batches(batches, num_steps):
    for path, leaf in jax.tree.leaves_with_path(batches):
        if jnp.shape(leaf)[:1] != (num_steps,):
            raise ValueError(
                f"batches{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}; allowed with "
                f"num_steps={num_steps}: [{num_steps}, ...], one entry an inner step."
            )


def _check_optimizer(tx, opt_state, num_steps, learned):
    if isinstance(tx, optax.MultiSteps) or _has(opt_state, "mini_step"):
        raise ValueError(
            "tx is optax.MultiSteps, which moves params in one of several calls; allowed is an "
            "optimiser that does in each. Give its inner one, and take the mean over the "
            "mini-batches in inner_loss, as one inner step."
        )
    if not hasattr(tx, "update"):
        given = f"tx(meta_params) returned {short(tx)}" if learned else f"tx is {short(tx)}"
        raise ValueError(
            f"{given}; allowed is an optax.GradientTransformation, or for tx a function that takes "
            "meta_params and returns one, such as lambda m: optax.sgd(m['learning_rate'])."
        )
    if learned and _has(opt_state, "hyperparams"):
        raise ValueError(
            "opt_state is of optax.inject_hyperparams, whose update takes its numbers from there "
            "and not from meta_params; allowed in a function tx are the plain optimisers, such as "
            "lambda m: optax.sgd(m['learning_rate'])."
        )
    for path, leaf in jax.tree.leaves_with_path(opt_state) if num_steps > 1 else ():
        leaf = jnp.asarray(leaf)
        if leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.dtype != jnp.uint32:
            raise ValueError(
                f"opt_state{jax.tree_util.keystr(path)} is {short(leaf)}, through which no "
                "derivative passes to the next step; allowed are floating point states, and "
                "integers as counts and keys. Keep moments in floating point, or num_steps=1."
            )


def _has(state, field):
    """Whether a part of an optimiser's state has such a field."""
    found = lambda x: hasattr(x, field)
    return any(map(found, jax.tree.leaves(state, is_leaf=found)))
