"""Residual networks: ResNet-18 and ResNet-50 (post-activation) and WideResNet (pre-activation).

Sources: He et al., Deep Residual Learning, arXiv:1512.03385, with the CIFAR stem (3x3, no max-pool)
that the latent-perturbation paper's classifier uses, or with that of the paper (7x7, max-pool) for
ImageNet's weights, whose bottlenecks have their stride in the 3x3 convolution; Zagoruyko and
Komodakis, Wide Residual Networks, arXiv:1605.07146.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from genreg_jax.bounds import maximum
from genreg_jax.models.convolution import convolve

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def _conv(width, kernel, stride, dtype):
    return nn.Conv(
        width,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=he_normal,
        conv_general_dilated=convolve,
    )


def _max_pool(x):
    """The largest of each 3x3 square with its centre on an even row and column.

    As a maximum of shifted images, since the second derivative of a windowed reduction, which the
    hypergradient needs, is slow.
    """
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    shifted = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return functools.reduce(maximum, shifted)


class ResNet(nn.Module):
    """A ResNet; `ResNet(num_classes=K)` is the CIFAR ResNet-18.

    Attributes:
      num_classes: K, number of logits.
      stages: number of blocks in each stage; every stage but the first halves the resolution.
      width: channels of the first stage's 3x3 convolutions, doubled at each later one.
      stem: `cifar`, a 3x3 convolution, or `imagenet`, 7x7 with stride 2 and a max-pooling.
      bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, with four times the channels at their
        end, instead of two 3x3.
      dtype: computation dtype; parameters and logits stay float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> model = gr.from_linen(gr.models.ResNet(num_classes=3, stages=(1,), width=4))
      >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> params["head"]["kernel"].shape
      (4, 3)
    """

    num_classes: int
    stages: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Maps images `[B, H, W, C]` to `(logits [B, K], embedding [B, D])`."""
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        if self.stem == "cifar":
            x = nn.relu(norm()(_conv(self.width, 3, 1, self.dtype)(x)))
        elif self.stem == "imagenet":
            x = nn.relu(norm()(_conv(self.width, 7, 2, self.dtype)(x)))
            x = _max_pool(x)
        else:
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {self.stem!r}.")
        for stage, blocks in enumerate(self.stages):
            width = self.width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                if self.bottleneck:
                    y = nn.relu(norm()(_conv(width, 1, 1, self.dtype)(x)))
                    y = nn.relu(norm()(_conv(width, 3, stride, self.dtype)(y)))
                    y = norm()(_conv(4 * width, 1, 1, self.dtype)(y))
                else:
                    y = nn.relu(norm()(_conv(width, 3, stride, self.dtype)(x)))
                    y = norm()(_conv(width, 3, 1, self.dtype)(y))
                if x.shape != y.shape:
                    x = norm()(_conv(y.shape[-1], 1, stride, self.dtype)(x))
                x = nn.relu(x + y)
        embedding = jnp.mean(x, axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes, name="head")(embedding), embedding


class WideResNet(nn.Module):
    """WideResNet-`depth`-`width`: three stages of pre-activation blocks.

    Attributes:
      num_classes: K, number of logits.
      depth: total depth, 6n + 4.
      width: widening factor; the stages have 16, 32 and 64 times it channels.
      dtype: computation dtype; parameters and logits stay float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> model = gr.from_linen(gr.models.WideResNet(num_classes=3, depth=10, width=1))
      >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> params["head"]["kernel"].shape
      (64, 3)
    """

    num_classes: int
    depth: int = 28
    width: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Maps images `[B, H, W, C]` to `(logits [B, K], embedding [B, D])`."""
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(
                f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, ...), got {self.depth}."
            )
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        x = _conv(16, 3, 1, self.dtype)(x)
        for stage in range(3):
            width = 16 * self.width * 2**stage
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(x))
                if x.shape[-1] != width:
                    x = _conv(width, 1, stride, self.dtype)(y)
                y = nn.relu(norm()(_conv(width, 3, stride, self.dtype)(y)))
                x = x + _conv(width, 3, 1, self.dtype)(y)
        x = nn.relu(norm()(x))
        embedding = jnp.mean(x, axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes, name="head")(embedding), embedding
