"""A small convolutional network for images of 8 to 32 pixels a side."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class ConvNet(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, strided instead of pooled, then a linear head.

    The first convolution keeps the resolution, each later one halves it; the embedding is the
    global average. Strides rather than max-pooling because the second derivative of max-pooling,
    which the hypergradient needs, is slow on every backend.

    Attributes:
      num_classes: K, number of logits.
      widths: output channels of the convolutions; the last one is the embedding's width D.
      dtype: computation dtype; parameters and logits stay float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> model = gr.from_linen(gr.models.ConvNet(num_classes=3, widths=(4, 8)))
      >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> params["head"]["kernel"].shape
      (8, 3)
    """

    num_classes: int
    widths: Sequence[int] = (32, 64, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Maps images `[B, H, W, C]` to `(logits [B, K], embedding [B, D])`."""
        for i, width in enumerate(self.widths):
            x = nn.Conv(
                width, (3, 3), strides=1 if i == 0 else 2, use_bias=False, dtype=self.dtype
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
            x = nn.relu(x)
        embedding = jnp.mean(x, axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes, name="head")(embedding), embedding
