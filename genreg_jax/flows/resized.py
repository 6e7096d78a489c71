"""A flow of one image size for images of another."""

import dataclasses
from typing import Any

import jax

from genreg_jax import bounds, checks


@dataclasses.dataclass(frozen=True)
class ResizedFlow:
    """A frozen flow that takes and gives images of another size than its own; see `resized`.

    A pytree whose leaves are those of `flow`.

    Attributes:
      flow: the frozen flow.
      image_shape: `(H, W, C)` of the images that it takes and gives.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax import flows
      >>> flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> frozen = flow.freeze(flow.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1))))
      >>> flows.resized(frozen, (8, 8, 1)).latent_shape
      (4, 4, 1)
    """

    flow: Any
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the flow, or None."""
        return self.flow.num_classes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of a latent, that of the flow's own images."""
        return self.flow.image_shape

    def encode(self, x, y=None) -> jax.Array:
        """The latents `[B, *latent_shape]` of images `[B, H, W, C]` in [0, 1] at the flow's size.

        What is made smaller is averaged first, so that no detail turns into noise.

        Raises:
          ValueError: on a wrong shape, dtype, range or label.

        Gradients flow to `x`, and to the flow.
        """
        x = checks.as_images(x, self.image_shape)
        return self.flow.encode(bounds.clip(_resize(x, self.latent_shape), 0, 1), y)

    def decode(self, z, y=None) -> jax.Array:
        """What the flow decodes, resized: `[B, H, W, C]`, not clipped.

        Raises:
          ValueError: on a wrong shape, dtype or label, or latents that are not finite.

        Gradients flow to `z`, and to the flow.
        """
        return _resize(self.flow.decode(z, y), self.image_shape)


jax.tree_util.register_dataclass(ResizedFlow, data_fields=["flow"], meta_fields=["image_shape"])


def resized(frozen: Any, image_shape: tuple[int, int, int]) -> Any:
    """A frozen flow for images of another size, resized by a cubic filter in between.

    A classifier may want images of 224 x 224, where an exact flow of 32 x 32 or 64 x 64 is all that
    can be trained. What is decoded has the flow's resolution; `difference=True` of the latent
    perturbations adds only what they change, so that an image keeps its detail.

    Args:
      frozen: `flow.freeze(params)`.
      image_shape: `(H, W, C)` that it is to take and give; the channels are the flow's.

    Returns:
      A `ResizedFlow`, or `frozen` itself where it has the shape.

    Raises:
      ValueError: the shape is none, or its channels are not the flow's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax import flows
      >>> flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (2, 12, 8, 1))
      >>> frozen = flow.freeze(flow.init(jax.random.key(1), x[:, :4, :4]))
      >>> larger = flows.resized(frozen, (12, 8, 1))
      >>> z = larger.encode(x)
      >>> z.shape, larger.decode(z).shape
      ((2, 4, 4, 1), (2, 12, 8, 1))
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or shape[-1] != frozen.image_shape[-1]:
        raise ValueError(
            f"image_shape is {checks.short(image_shape)}; allowed: (height, width, "
            f"{frozen.image_shape[-1]}), with the channels of the flow."
        )
    checks.check_positive(height=shape[0], width=shape[1])
    return frozen if shape == tuple(frozen.image_shape) else ResizedFlow(frozen, shape)


def _resize(x: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], *image_shape), "cubic", antialias=True)
