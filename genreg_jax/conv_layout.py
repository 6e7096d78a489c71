"""Convolutions in loops, fast on CPU.

XLA's fast CPU convolution wants NHWC images, an HWIO kernel and no flip. A pass brings the others
to that form, such as the derivatives in the input, but only those outside loops: inside, a
derivative takes three times as long. `canonical` does in the jaxpr what that pass does.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend import core


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, each of its convolutions with images `[N, ..., C]` and a kernel `[..., I, O]`.

    What was in another layout is transposed before and after; the values are those of `fn` but for
    the order of sums. Convolutions inside jitted functions, rematerialised blocks and loops of `fn`
    are found as well, those inside `shard_map` are left as they are.

    Args:
      fn: a traceable function of pytrees of arrays, as positional arguments.

    Returns:
      The function, of positional arguments; its results are arrays.

    Gradients flow as in `fn`.

    Example:
      >>> import jax.numpy as jnp
      >>> numbers = ("NHWC", "HWIO", "NHWC")
      >>> conv = lambda x: jax.lax.conv_general_dilated(
      ...     x, jnp.ones((3, 3, 2, 4)), (1, 1), "SAME", dimension_numbers=numbers)
      >>> slope = jax.grad(lambda x: (conv(x) ** 2).sum())
      >>> x = jnp.ones((1, 5, 5, 2))
      >>> bool(jnp.allclose(canonical(slope)(x), slope(x)))
      True
    """

    def changed(*args):
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        flat = _evaluate(closed, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    return changed


def _evaluate(closed: core.ClosedJaxpr, *args: Any) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args]))
    read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
    for equation in jaxpr.eqns:
        # Under the name and the settings that it was traced with.
        name = str(equation.source_info.name_stack)
        scope = jax.named_scope(name) if name else contextlib.nullcontext()
        with scope, equation.ctx.manager:
            found = _apply(equation, [read(v) for v in equation.invars])
        outputs = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, outputs))
    return [read(v) for v in jaxpr.outvars]


def _apply(equation: core.JaxprEqn, args: list[Any]) -> Any:
    if equation.primitive is lax.conv_general_dilated_p:
        return _convolution(*args, **equation.params)
    params = equation.params
    if equation.primitive.name != "shard_map":  # whose program is of an axis that is not here
        params = jax.tree.map(_changed, params, is_leaf=_is_jaxpr)
    bound = equation.primitive.get_bind_params(params)  # functions beside them before JAX 0.10
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    return equation.primitive.bind(*functions, *args, **params)


def _convolution(
    images: Any, kernel: Any, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any
) -> jax.Array:
    (batch, features, *space), kernel_axes, out_axes = dimension_numbers
    out_channels, in_channels, *window = kernel_axes
    numbers = _numbers(images.ndim)
    out = lax.conv_general_dilated_p.bind(
        lax.transpose(images, (batch, *space, features)),
        lax.transpose(kernel, (*window, in_channels, out_channels)),
        dimension_numbers=numbers,
        **params,
    )
    # Axis `out_axes[i]` of what was asked for is axis `numbers.out_spec[i]` of this.
    return lax.transpose(out, [axis for _, axis in sorted(zip(out_axes, numbers.out_spec))])


def _numbers(rank: int) -> lax.ConvDimensionNumbers:
    """Images `[N, ..., C]`, a kernel `[..., I, O]`."""
    images = (0, rank - 1, *range(1, rank - 1))
    return lax.ConvDimensionNumbers(images, (rank - 1, rank - 2, *range(rank - 2)), images)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _changed(value: Any) -> Any:
    """A parameter of an equation; if it is a program, with its convolutions changed."""
    if not _is_jaxpr(value):
        return value
    closed = value if isinstance(value, core.ClosedJaxpr) else core.ClosedJaxpr(value, ())
    if not _has_others(closed.jaxpr):
        return value
    changed = jax.make_jaxpr(partial(_evaluate, closed))(*closed.in_avals)
    if closed is value:
        return changed
    return value if changed.consts else changed.jaxpr  # an open program has no place for them


def _has_others(jaxpr: core.Jaxpr) -> bool:
    """Whether a program, or one in it, has a convolution in another layout."""
    for equation in jaxpr.eqns:
        if equation.primitive is lax.conv_general_dilated_p:
            if (numbers := equation.params["dimension_numbers"]) != _numbers(len(numbers.lhs_spec)):
                return True
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(inner) and _has_others(getattr(inner, "jaxpr", inner)):
                return True
    return False
