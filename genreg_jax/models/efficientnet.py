"""EfficientNet-Lite0, the EfficientNet without squeeze and excitation and with ReLU6.

Source: Tan and Le, EfficientNet, arXiv:1905.11946, in the form called Lite of TensorFlow's TPU
models. Names of the layers are those under which its ImageNet weights are found, see
`genreg_jax.models.pretrained`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from genreg_jax.bounds import minimum
from genreg_jax.models.depthwise import DepthwiseConv
from genreg_jax.models.resnet import he_normal

_EPSILON = 1e-3


class Stage(NamedTuple):
    """Inverted bottlenecks: their number, kernel, first stride, expansion and output channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def relu6(x):
    """`jax.nn.relu6`, whose derivative is that of two maxima; see `bounds`."""
    return minimum(nn.relu(x), 6.0)


class EfficientNet(nn.Module):
    """EfficientNet-Lite; `EfficientNet(num_classes=K)` is Lite0, with an embedding of 1280.

    Attributes:
      num_classes: K, number of logits.
      stages: from the stem to the head.
      stem: channels of the first convolution, which has stride 2.
      width: channels of the last convolution; the embedding is its global average.
      dtype: computation dtype; parameters and logits stay float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> from genreg_jax.models.efficientnet import Stage
      >>> model = gr.from_linen(gr.models.EfficientNet(
      ...     num_classes=3, stages=(Stage(1, 3, 2, 2, 4),), stem=4, width=8))
      >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> params["head"]["kernel"].shape
      (8, 3)
    """

    num_classes: int
    stages: tuple[Stage, ...] = LITE0
    stem: int = 32
    width: int = 1280
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Maps images `[B, H, W, C]` to `(logits [B, K], embedding [B, D])`."""

        def norm(x, name):
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=_EPSILON,
                dtype=self.dtype,
                name=name,
            )(x)

        def conv(x, width, name):
            return PointwiseConv(width, self.dtype, name=name)(x)

        x = nn.Conv(
            self.stem,
            (3, 3),
            strides=2,
            padding="SAME",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_normal,
            name="conv_stem",
        )(x)
        x = relu6(norm(x, "norm_stem"))
        number = 0
        for stage in self.stages:
            for block in range(stage.blocks):
                name, entering = f"block{number}", x
                if stage.expansion > 1:
                    x = conv(x, stage.expansion * x.shape[-1], f"{name}_expand")
                    x = relu6(norm(x, f"{name}_expand_norm"))
                stride = stage.stride if block == 0 else 1
                x = DepthwiseConv(stage.kernel, stride, self.dtype, name=f"{name}_depthwise")(x)
                x = relu6(norm(x, f"{name}_depthwise_norm"))
                x = norm(conv(x, stage.width, f"{name}_project"), f"{name}_project_norm")
                if stride == 1 and x.shape == entering.shape:
                    x = x + entering
                number += 1
        x = relu6(norm(conv(x, self.width, "conv_head"), "norm_head"))
        embedding = jnp.mean(x, axis=(1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes, name="head")(embedding), embedding


class PointwiseConv(nn.Module):
    """A 1x1 convolution without bias.

    On CPU, where XLA's gradients of the convolution are slow, it is a matrix product. On GPUs a
    library has the convolution, while of a product XLA compiles and times one tiling after another,
    which for the hundred of a training step takes minutes on a few cores.

    Attributes:
      features: output channels.
      dtype: computation dtype.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if jax.default_backend() == "cpu":
            return x @ kernel[0, 0]
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)
