"""Exact hypergradients through one inner optimiser step, for any differentiable optax optimiser.

    theta'(phi) = theta + U(d L_in(theta, phi) / d theta)      one optimiser step, U = tx.update
    h           = d L_out(theta'(phi)) / d phi

With `v = grad L_out(theta')`, pulled back through the optimiser to `w = (dU/dg)^T v`,

    h = d/d phi < d L_in(theta, phi) / d theta, w >,

so the only second-order object is one mixed Hessian-vector product, and there are several ways to
compute it. They agree to rounding, except for the finite difference that much bilevel code uses
(DARTS, arXiv:1806.09055), which in float32 can be off by more than its own size while costing no
less: `benchmarks/hypergradient.py` measures both.

Reductions, each a test: an inner learning rate of 0 gives exactly zero; an inner loss that does not
depend on `phi` gives exactly zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MODES = ("forward_over_reverse", "reverse_over_forward", "reverse", "finite_difference")


class Hypergradient(NamedTuple):
    """The result of `hypergradient`.

    Attributes:
      grads: gradient of the outer loss in `meta_params`, shaped like it.
      outer_loss: scalar, at the parameters after the inner step.
      inner_loss: scalar, at the parameters before it.
      params: parameters after the inner step.

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
    inner_loss: Callable[[Any, Any], jax.Array],
    outer_loss: Callable[[Any], jax.Array],
    params: Any,
    meta_params: Any,
    tx: optax.GradientTransformation,
    opt_state: Any,
    *,
    mode: str = "forward_over_reverse",
    constant_grads: Any = None,
    epsilon: float = 0.01,
) -> Hypergradient:
    """Differentiates the outer loss through one inner optimiser step.

    Args:
      inner_loss: `(params, meta_params) -> scalar`, what the inner step descends.
      outer_loss: `(params) -> scalar`, evaluated after the inner step.
      params: pytree of the inner problem, theta.
      meta_params: pytree to be differentiated, phi.
      tx: any optax transformation whose update is differentiable in the gradient: sgd, momentum,
        Nesterov, weight decay, Adam, chains with clipping. A norm, as in clipping, and Adam's
        square root have no derivative where the gradient and the moments are exactly 0 (weights
        that start at 0, dead units). There it is taken right beside: for clipping that is the
        derivative in all directions, and for Adam 1 / eps, unless it has a small `eps_root`. The
        sign of `optax.lion` and `optax.sign_sgd` has a derivative of 0, so has the hypergradient
        through it. Line searches and others whose update takes more than `(grads, state, params)`
        are refused.
      opt_state: the state of `tx` before the step; it is not advanced.
      mode: how the mixed product is computed.
        `forward_over_reverse` (default): derivative along `w` of the gradient in phi. Exact, and
        the cheapest on CPU.
        `reverse_over_forward`: gradient in phi of the derivative along `w`. Exact.
        `reverse`: `jax.grad` through the whole step. Exact, the reference, the dearest.
        `finite_difference`: two gradients in phi at `theta +- epsilon / |w| * w`. Inexact.
      constant_grads: gradient in `params` of a part of the inner objective that does not depend on
        `meta_params` (for MGR: of the cross-entropy), when it is at hand already. It is added to
        the inner gradient, and `inner_loss` is then only the rest.
      epsilon: step of the finite difference, relative to |w|; other modes ignore it.

    Returns:
      A `Hypergradient`.

    Raises:
      ValueError: unknown `mode`, `epsilon` not positive, `constant_grads` that are not like
        `params`, or a `tx` whose update needs further arguments.

    Gradients flow: the result is itself differentiable in the three exact modes.

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
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}.")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon!r}.")

    if constant_grads is not None:
        _check_alike("constant_grads", constant_grads, params)

    def descend(grads):
        try:
            updates, _ = tx.update(grads, opt_state, params)
        except TypeError as error:
            if "required keyword-only" not in str(error):
                raise
            raise ValueError(
                "tx must be an optimiser whose update takes (grads, state, params) alone, got one "
                f"that needs more: {error}. There is no inner step to differentiate without them."
            ) from None
        return optax.apply_updates(params, updates)

    def inner_step(grads):
        if constant_grads is not None:
            grads = jax.tree.map(jnp.add, grads, constant_grads)
        # The derivative is taken beside zero, where a norm, as in clipping, has none; the value is
        # that of the gradient as it is.
        beside = descend(jax.tree.map(_beside_zero, grads))
        back = jax.tree.map(lambda a, b: jax.lax.stop_gradient(a - b), descend(grads), beside)
        return jax.tree.map(jnp.add, beside, back)

    inner_value_and_grad = jax.value_and_grad(inner_loss)

    if mode == "reverse":

        def outer_of_meta(meta_params):
            inner_value, inner_grads = inner_value_and_grad(params, meta_params)
            new_params = inner_step(inner_grads)
            return outer_loss(new_params), (inner_value, new_params)

        (outer_value, (inner_value, new_params)), grads = jax.value_and_grad(
            outer_of_meta, has_aux=True
        )(meta_params)
        return Hypergradient(grads, outer_value, inner_value, new_params)

    if mode == "forward_over_reverse":
        # One linearisation gives the inner gradient and, once the direction is known, the mixed
        # product: the forward and backward passes at `params` are made once.
        def meta_grad_and_inner(params):
            inner_value, (inner_grads, meta_grads) = jax.value_and_grad(inner_loss, argnums=(0, 1))(
                params, meta_params
            )
            return meta_grads, (inner_value, inner_grads)

        _, derivative_along, (inner_value, inner_grads) = jax.linearize(
            meta_grad_and_inner, params, has_aux=True
        )
    else:
        inner_value, inner_grads = inner_value_and_grad(params, meta_params)
    new_params, pull_back = jax.vjp(inner_step, inner_grads)
    outer_value, outer_grads = jax.value_and_grad(outer_loss)(new_params)
    (direction,) = pull_back(outer_grads)

    meta_grad = jax.grad(inner_loss, argnums=1)
    if mode == "forward_over_reverse":
        grads = derivative_along(direction)
    elif mode == "reverse_over_forward":

        def directional_derivative(meta_params):
            return jax.jvp(lambda p: inner_loss(p, meta_params), (params,), (direction,))[1]

        grads = jax.grad(directional_derivative)(meta_params)
    else:
        norm = optax.tree.norm(direction)
        step = epsilon / jnp.where(norm > 0, norm, 1.0)

        def meta_grad_at(distance):
            moved = jax.tree.map(lambda p, d: p + distance * d, params, direction)
            return meta_grad(moved, meta_params)

        forward, backward = meta_grad_at(step), meta_grad_at(-step)
        grads = jax.tree.map(lambda f, b: (f - b) / (2 * step), forward, backward)
    return Hypergradient(grads, outer_value, inner_value, new_params)


def _beside_zero(g):
    """The gradient, with a tiny number in the place of zeros; the derivative is 1."""
    tiny = jnp.asarray(float(jnp.finfo(g.dtype).tiny) ** 0.4, g.dtype)  # its square can be summed
    return g + jax.lax.stop_gradient(jnp.where(g == 0, tiny, jnp.zeros_like(g)))


def _check_alike(name, tree, params):
    shapes = jax.tree.map(jnp.shape, tree), jax.tree.map(jnp.shape, params)
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} must be like params, of shapes {shapes[1]}, got {shapes[0]}.")
