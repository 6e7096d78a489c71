"""A trained flow as a generator of synthetic samples."""

from typing import Any

from genreg_jax.bounds import clip
from genreg_jax.contract import Generator
from genreg_jax.flows.flow import Flow


def as_generator(flow: Flow, params: Any) -> Generator:
    """A flow as a generator of images in [0, 1], with its inverse.

    Args:
      flow: from `genreg_jax.flows`; a conditional one takes labels.
      params: trained parameters.

    Returns:
      A `Generator` whose `params` are the frozen flow. What is decoded is clipped to [0, 1], beyond
      which the bounds of the logit let a pixel go by a few per cent; no gradient flows to the
      flow's parameters that were given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax import flows
      >>> flow = flows.realnvp((4, 4, 1), levels=1, steps=2, width=4)
      >>> params = flow.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
      >>> generator = flows.as_generator(flow, params)
      >>> x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 1))
      >>> z = generator.encode(generator.params, x, jnp.zeros(2, int))
      >>> bool(abs(generator.apply(generator.params, z, None) - x).max() < 1e-4)
      True
    """
    conditional = flow.num_classes is not None

    def apply(frozen, z, y):
        return clip(frozen.decode(z, y if conditional else None), 0, 1)

    def encode(frozen, x, y):
        return frozen.encode(x, y if conditional else None)

    return Generator(
        apply, params=flow.freeze(params), latent_shape=tuple(flow.image_shape), encode=encode
    )
