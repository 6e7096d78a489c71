"""Adapters from neural-network frameworks to the contract in `contract.py`."""

from typing import Any

import flax.linen as nn

from genreg_jax.models.contract import Model, Outputs


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
        model_state = dict(module.init(key, x, train=False))
        params = model_state.pop("params", {})
        return params, model_state

    run: Any = module.apply

    def apply(params, model_state, x, *, rng, train):
        variables = {"params": params, **model_state}
        rngs = None if rng is None else {"dropout": rng}
        if not train:
            logits, embedding = run(variables, x, train=False, rngs=rngs)
            return Outputs(logits, embedding), model_state
        (logits, embedding), new_model_state = run(
            variables, x, train=True, rngs=rngs, mutable=list(model_state)
        )
        return Outputs(logits, embedding), dict(new_model_state)

    return Model(init, apply)
