"""A small convolutional network for images of 8 to 32 pixels a side."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genreg_jax.bounds import maximum
from genreg_jax.models.convolution import convolve


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 square of `[B, H, W, C]`; an odd last row or column is left out.

    The values of `flax.linen.max_pool`, without its windows: the second derivative of those, which
    the hypergradient needs, is slow on every backend.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = [maximum(x[:, i::2, 0::2], x[:, i::2, 1::2]) for i in (0, 1)]
    return maximum(*rows)


class ConvNet(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, the resolution halved in between, a linear head.

    The embedding is the global average. With few labels `max` is several points better on 28x28
    clothes; on 8x8 digits the two are alike (`experiments/pooling`).

    Attributes:
      num_classes: K, number of logits.
      widths: output channels of the convolutions; the last one is the embedding's width D.
      pooling: `stride`, every convolution but the first has stride 2; or `max`, 2x2 max-pooling
        after each, down to one pixel at most.
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
    pooling: Literal["stride", "max"] = "stride"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Maps images `[B, H, W, C]` to `(logits [B, K], embedding [B, D])`."""
        if self.pooling not in ("stride", "max"):
            raise ValueError(f"pooling must be 'stride' or 'max', got {self.pooling!r}.")
        for i, width in enumerate(self.widths):
            stride = 2 if self.pooling == "stride" and i > 0 else 1
            x = nn.Conv(
                width,
                (3, 3),
                strides=stride,
                use_bias=False,
                dtype=self.dtype,
                conv_general_dilated=convolve,
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
            x = nn.relu(x)
            if self.pooling == "max" and min(x.shape[1:3]) > 1:
                x = max_pool(x)
        embedding = jnp.mean(x, axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes, name="head")(embedding), embedding
