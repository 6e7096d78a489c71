"""Hypergradients at a stationary point of the inner loss, by the implicit function theorem.

Where `d L_in(theta, phi) / d theta = 0`, theta is a function of phi, and

    h = d L_out(theta(phi)) / d phi = - d/d phi < d L_in(theta, phi) / d theta, v >,
    v = (H + damping I)^-1 d L_out / d theta,          H = d^2 L_in / d theta^2,

however many steps, of whatever optimiser, led there. H is never formed: v comes from its products
with vectors, by conjugate gradients (arXiv:1602.02355) or by the Neumann series

    v = step_size sum_{j < num_terms} (I - step_size (H + damping I))^j d L_out / d theta

(arXiv:1911.02590).

Reduction, a test: without damping, the series of K terms is `hypergradient` through K steps of
gradient descent of that step size from the stationary point.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from genreg_jax.checks import check_choice, check_number, is_number, short
from genreg_jax.hypergradient import Hypergradient, linearized_gradient


def implicit_hypergradient(
    inner_loss: Callable[[Any, Any], jax.Array],
    outer_loss: Callable[[Any], jax.Array],
    params: Any,
    meta_params: Any,
    *,
    solver: str = "cg",
    num_terms: int = 20,
    damping: float = 0.0,
    step_size: float = 0.1,
) -> Hypergradient:
    """Differentiates the outer loss through the minimum of the inner one.

    Time: a gradient of each loss, and a Hessian-vector product a term. Memory: as one such product,
    whatever the horizon; passes at `params` are made once and serve all terms.

    `params` must be stationary: elsewhere the result is no gradient, and off by what `inner_loss`
    still has to fall. Look at the norm of `jax.grad(inner_loss)(params, meta_params)`. All that
    holds `params` where they are has to be in `inner_loss`, weight decay of an optimiser too.

    Args:
      inner_loss: `(params, meta_params) -> scalar`, on all data that `params` were trained on.
      outer_loss: `(params) -> scalar`.
      params: pytree, a stationary point of `inner_loss`.
      meta_params: pytree to be differentiated, phi.
      solver: `cg`: conjugate gradients, for a minimum: exact after as many terms as there are
        parameters and close after far fewer, if H + damping I is positive definite.
        `neumann`: the Neumann series, that is `num_terms` steps of gradient descent seen backward;
        it does not mind directions in which H is 0.
      num_terms: Hessian-vector products at most; conjugate gradients stop before if the residual is
        down to rounding.
      damping: added to the diagonal of H, >= 0. It makes a flat or slightly indefinite H positive
        definite and biases the result towards 0.
      step_size: of the Neumann series, which converges for eigenvalues of H + damping I below
        `2 / step_size`; `cg` ignores it.

    Returns:
      A `Hypergradient`, with `params` as they were given.

    Raises:
      ValueError: unknown `solver`, `num_terms` below 1, negative `damping`, or `step_size` not
        positive.

    Gradients flow: the result is itself differentiable, with `params` held where they are.

    Example:
      The minimum of `theta^2 - theta phi` is `phi / 2`, and `(phi / 2)^2` has derivative `phi / 2`:

      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> phi = jnp.array(3.0)
      >>> h = gr.implicit_hypergradient(lambda t, p: t**2 - t * p, lambda t: t**2, phi / 2, phi)
      >>> float(h.grads)
      1.5

    Source: Pedregosa (arXiv:1602.02355); Lorraine, Vicol and Duvenaud (arXiv:1911.02590).
    """
    check_choice("solver", solver, ("cg", "neumann"))
    check_number("num_terms", num_terms, minimum=1, integer=True)
    check_number("damping", damping)
    if not (is_number(step_size) and step_size > 0):
        raise ValueError(f"step_size is {short(step_size)}; allowed: a number above 0.")

    inner_value, _, product = linearized_gradient(
        inner_loss, params, meta_params, mode="forward_over_reverse", argnums=(0, 1)
    )
    outer_value, outer_grads = jax.value_and_grad(outer_loss)(params)

    def damped(vector):
        return jax.tree.map(lambda h, v: h + damping * v, product(vector)[0], vector)

    if solver == "cg":
        # As one vector: the solver's transpose wants all leaves to depend on meta_params, or none.
        flat, unravel = ravel_pytree(outer_grads)
        solution, _ = jax.scipy.sparse.linalg.cg(
            lambda vector: ravel_pytree(damped(unravel(vector)))[0],
            flat,
            tol=float(jnp.finfo(flat.dtype).eps),
            maxiter=num_terms,
        )
        solution = unravel(solution)
    else:

        def next_term(carry, _):
            term, total = carry
            total = jax.tree.map(jnp.add, total, term)
            term = jax.tree.map(lambda t, h: t - step_size * h, term, damped(term))
            return (term, total), None

        start = outer_grads, jax.tree.map(jnp.zeros_like, outer_grads)
        (_, total), _ = jax.lax.scan(next_term, start, length=num_terms)
        solution = optax.tree.scale(step_size, total)

    grads = jax.tree.map(jnp.negative, product(solution)[1])
    return Hypergradient(grads, outer_value, inner_value, params)
