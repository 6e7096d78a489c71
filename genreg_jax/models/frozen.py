"""Classifiers of which a part is held fixed."""

from typing import Any

import jax

from genreg_jax.contract import Model

HEAD = "head"  # the last layer of every network of `genreg_jax.models`


def frozen_statistics(model: Model) -> Model:
    """The model with its running statistics held fixed: it is always applied as in evaluation.

    With few images BatchNorm's statistics of a small batch are poor, and those of the images that
    the network was trained on before are kept. Dropout is off too.

    Args:
      model: any.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> model = frozen_statistics(gr.models.make("convnet", num_classes=3, widths=(4,)))
      >>> params, state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> _, after = model.apply(params, state, jnp.ones((2, 8, 8, 1)), rng=None, train=True)
      >>> after is state
      True
    """

    def apply(params, model_state, x, *, rng, train):
        del rng, train
        return model.apply(params, model_state, x, rng=None, train=False)

    return Model(model.init, apply)


def frozen_trunk(model: Model) -> Model:
    """The model with all but its head held fixed; no gradient reaches the other parameters.

    Gradients still flow to the image. The optimiser must leave the parameters alone, which weight
    decay would move: see `head_only`.

    Args:
      model: whose parameters are a dict with the head under `head`.
    """

    def apply(params, model_state, x, *, rng, train):
        del rng, train
        fixed = {**jax.lax.stop_gradient(params), HEAD: params[HEAD]}
        return model.apply(fixed, model_state, x, rng=None, train=False)

    return Model(model.init, apply)


def head_only(params: Any) -> Any:
    """A tree like the parameters: True for those of the head.

    Example:
      >>> head_only({"trunk": {"kernel": 0}, "head": {"bias": 1}})
      {'head': {'bias': True}, 'trunk': {'kernel': False}}
    """
    of_head = lambda path, _: getattr(path[0], "key", None) == HEAD
    return jax.tree.map_with_path(of_head, params)
