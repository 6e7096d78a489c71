"""Adapters from neural-network frameworks to the contract in `contract.py`.

NNX, Equinox and Haiku are imported when their adapter is called; Equinox and Haiku are no
dependencies of this library.
"""

import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genreg_jax.contract import Model, as_outputs


def from_linen(module: nn.Module) -> Model:
    """Adapts a Flax Linen module to the contract.

    Args:
      module: called as `module(x, train=bool)`, returns `(logits [B, K], embedding [B, D])`.
        Every collection but `params` is `model_state`; dropout draws from the rng `dropout`.

    Returns:
      A `Model`. With `train=True` all collections of `model_state` are mutable, with `train=False`
      none is.

    Raises:
      TypeError: `module` is not a Linen module instance.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> model = gr.from_linen(gr.models.ConvNet(num_classes=3, widths=(4, 8)))
      >>> x = jnp.zeros((2, 8, 8, 1))
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> outputs, model_state = model.apply(
      ...     params, model_state, x, rng=jax.random.key(1), train=True)
      >>> outputs.logits.shape, outputs.embedding.shape
      ((2, 3), (2, 8))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"from_linen: module must be an instance of flax.linen.Module, got "
            f"{module!r}; construct the module first, e.g. from_linen(ConvNet(num_classes=10))."
        )

    def init(key, x):
        model_state = dict(jax.jit(functools.partial(module.init, train=False))(key, x))
        params = model_state.pop("params", {})
        return params, model_state

    run: Any = module.apply

    def apply(params, model_state, x, *, rng, train):
        variables = {"params": params, **model_state}
        rngs = None if rng is None else {"dropout": rng}
        if not train:
            return as_outputs(run(variables, x, train=False, rngs=rngs)), model_state
        outputs, new_model_state = run(
            variables, x, train=True, rngs=rngs, mutable=list(model_state)
        )
        return as_outputs(outputs), dict(new_model_state)

    return Model(init, apply)


def from_nnx(module: Any) -> Model:
    """Adapts a Flax NNX module to the contract.

    Args:
      module: called as `module(x)`, returns `(logits [B, K], embedding [B, D])`. It is put into
        training or evaluation mode by `.train()` and `.eval()`. Its `nnx.Param` are `params`, its
        other variables (BatchNorm's statistics) `model_state`, each as a flat dict from path to
        array; its random streams start at the `rng` of every call. The module is not changed.

    Returns:
      A `Model`. `init` gives the values that the module was made with, whatever its key is: make
      the module anew, `Net(rngs=nnx.Rngs(seed))`, for others.

    Raises:
      TypeError: `module` is not an NNX module instance.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, *, rngs):
      ...         self.norm = nnx.BatchNorm(4, rngs=rngs)
      ...         self.head = nnx.Linear(4, 3, rngs=rngs)
      ...     def __call__(self, x):
      ...         embedding = self.norm(x.reshape(len(x), -1))
      ...         return self.head(embedding), embedding
      >>> model, x = gr.from_nnx(Net(rngs=nnx.Rngs(0))), jnp.ones((5, 2, 2, 1))
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> outputs, model_state = model.apply(
      ...     params, model_state, x, rng=jax.random.key(1), train=True)
      >>> outputs.logits.shape, outputs.embedding.shape
      ((5, 3), (5, 4))
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"from_nnx: module must be an instance of flax.nnx.Module, got {module!r}; construct "
            "the module first, e.g. from_nnx(Net(rngs=nnx.Rngs(0)))."
        )
    graph, *parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
    first_params, streams, first_state = map(_named, parts)
    like_params, like_streams, like_state = parts

    def init(key, x):
        del key, x
        return first_params, first_state

    def apply(params, model_state, x, *, rng, train):
        merged = nnx.merge(
            graph,
            _unnamed(params, like_params),
            _unnamed(streams if rng is None else _restarted(streams, rng), like_streams),
            _unnamed(model_state, like_state),
        )
        if not train:
            merged.eval()
            return as_outputs(merged(x)), model_state
        merged.train()
        outputs = as_outputs(merged(x))
        return outputs, _named(nnx.split(merged, nnx.Param, nnx.RngState, ...)[3])

    return Model(init, apply)


def from_equinox(module: Any, *, state: Any = None) -> Model:
    """Adapts an Equinox module to the contract.

    Args:
      module: for one image, as is usual in Equinox: called as `module(x [H, W, C], state, key=key)`
        it returns `((logits [K], embedding [D]), state)`. The batch is mapped over it along an axis
        of the name `batch`, so that `eqx.nn.BatchNorm(width, axis_name="batch", mode="batch")`
        works. Inexact arrays are `params`, a flat dict from path to array.
      state: of `module, state = eqx.nn.make_with_state(Net)(key)`; None for a module made without
        it.

    Returns:
      A `Model`. `init` gives the values that the module was made with, whatever its key is: make
      the module anew, with another key, for others. With `train=False` the module is in inference
      mode, and its key is None where `rng` is None.

    Raises:
      TypeError: `module` is not an Equinox module instance.
      ValueError: the module was made with a state, which was not given.
      ImportError: Equinox is not installed.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> class Net(eqx.Module):
      ...     norm: eqx.nn.BatchNorm
      ...     head: eqx.nn.Linear
      ...     def __init__(self, key):
      ...         self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
      ...         self.head = eqx.nn.Linear(4, 3, key=key)
      ...     def __call__(self, x, state, *, key=None):
      ...         embedding, state = self.norm(x.ravel(), state)
      ...         return (self.head(embedding), embedding), state
      >>> module, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
      >>> model, x = gr.from_equinox(module, state=state), jnp.ones((5, 2, 2, 1))
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> outputs, model_state = model.apply(
      ...     params, model_state, x, rng=jax.random.key(1), train=True)
      >>> outputs.logits.shape, outputs.embedding.shape
      ((5, 3), (5, 4))
    """
    import equinox as eqx

    if not isinstance(module, eqx.Module):
        raise TypeError(
            f"from_equinox: module must be an instance of equinox.Module, got {module!r}; "
            "construct the module first, e.g. from_equinox(Net(key))."
        )
    if state is None:
        try:
            module, state = eqx.nn.make_with_state(lambda: module)()
        except ValueError:
            raise ValueError(
                "from_equinox: state must be given for a module that eqx.nn.make_with_state made, "
                "got None; use from_equinox(module, state=state)."
            ) from None
    like_params, static = eqx.partition(module, eqx.is_inexact_array)
    first_params, first_state = _named(like_params), _named(state)

    def init(key, x):
        del key, x
        return first_params, first_state

    def apply(params, model_state, x, *, rng, train):
        merged = eqx.combine(_unnamed(params, like_params), static)
        merged = eqx.nn.inference_mode(merged, value=not train)
        keys = None if rng is None else jax.random.split(rng, len(x))

        def one(x, state, key):
            return merged(x, state, key=key)

        mapped = jax.vmap(
            one,
            in_axes=(0, None, None if keys is None else 0),
            out_axes=(0, None),
            axis_name="batch",
        )
        outputs, new_state = mapped(x, _unnamed(model_state, state), keys)
        return as_outputs(outputs), _named(new_state) if train else model_state

    return Model(init, apply)


def from_haiku(fn: Any) -> Model:
    """Adapts a Haiku function to the contract.

    Args:
      fn: `fn(x, train=bool)`, which makes its Haiku modules inside and returns
        `(logits [B, K], embedding [B, D])`; or what `hk.transform_with_state` or `hk.transform`
        made of it. Haiku's parameters are `params` and its state is `model_state`.

    Returns:
      A `Model`.

    Raises:
      TypeError: `fn` is neither a function nor a transformed one.
      ImportError: Haiku is not installed.

    Example:
      >>> import haiku as hk, jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> def net(x, train):
      ...     norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
      ...     embedding = norm(x.reshape(len(x), -1), is_training=train)
      ...     return hk.Linear(3)(embedding), embedding
      >>> model, x = gr.from_haiku(net), jnp.ones((5, 2, 2, 1))
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> outputs, model_state = model.apply(
      ...     params, model_state, x, rng=jax.random.key(1), train=True)
      >>> outputs.logits.shape, outputs.embedding.shape
      ((5, 3), (5, 4))
    """
    import haiku as hk

    if isinstance(fn, hk.Transformed):
        transformed = hk.with_empty_state(fn)
    elif isinstance(fn, hk.TransformedWithState):
        transformed = fn
    elif inspect.isroutine(fn) or isinstance(fn, functools.partial):
        transformed = hk.transform_with_state(fn)
    else:
        raise TypeError(
            f"from_haiku: fn must be a function that makes its modules inside, or the result of "
            f"hk.transform_with_state, got {fn!r}."
        )

    def init(key, x):
        # In training mode: BatchNorm has no average to read yet.
        return transformed.init(key, x, train=True)

    def apply(params, model_state, x, *, rng, train):
        outputs, new_state = transformed.apply(params, model_state, rng, x, train=train)
        return as_outputs(outputs), new_state if train else model_state

    return Model(init, apply)


def _named(tree: Any) -> dict[str, jax.Array]:
    """The leaves of any pytree as a flat dict, which every optimiser and checkpoint takes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _unnamed(named: dict[str, jax.Array], like: Any) -> Any:
    """The pytree with the structure of `like` and these leaves."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    return structure.unflatten([named[jax.tree_util.keystr(path)] for path, _ in leaves])


def _restarted(streams: dict[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
    """NNX's random streams at the start of draws from `rng`."""

    def restart(i, leaf):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros_like(leaf)  # number of draws made
        return jax.random.split(jax.random.fold_in(rng, i), leaf.shape)

    return {name: restart(i, leaf) for i, (name, leaf) in enumerate(streams.items())}
