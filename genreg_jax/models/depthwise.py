"""Depthwise convolution, by whichever of two forms is fast where it runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from genreg_jax.models.resnet import he_normal


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Convolves each channel with a kernel of its own, with the padding called SAME.

    On CPUs, where XLA's grouped convolution is slow, it is the sum of shifted images, each times
    its row of the kernel: `benchmarks/depthwise.py` has the figures. Elsewhere it is XLA's.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[k, k, 1, C]`, as a Flax convolution with C groups has it.
      stride: of both axes.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), C]`. Gradients flow to both arguments.

    Raises:
      ValueError: the shapes do not fit, or the stride is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from genreg_jax.models.depthwise import depthwise_conv
      >>> depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)), stride=2)[0, ..., 0]
      Array([[9., 6.],
             [6., 4.]], dtype=float32)

    Source: Howard et al., MobileNets, arXiv:1704.04861; the padding is TensorFlow's, which puts
    the odd row at the end.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[3]):
        raise ValueError(
            f"x has the shape {x.shape} and kernel {kernel.shape}; they must be [B, H, W, C] and "
            "[k, k, 1, C]."
        )
    if stride < 1:
        raise ValueError(f"stride is {stride}; it must be at least 1.")
    if jax.default_backend() == "cpu":
        return _shifted(x, kernel, stride)
    return _grouped(x, kernel, stride)


def _grouped(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    sizes, strides = kernel.shape[:2], (stride, stride)
    pads = lax.padtype_to_pads(x.shape[1:3], sizes, strides, "SAME")
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], sizes))

    def shifted(i: int, j: int) -> jax.Array:
        rows, columns = i + (height - 1) * stride + 1, j + (width - 1) * stride + 1
        return x[:, i:rows:stride, j:columns:stride] * kernel[i : i + 1, j : j + 1]

    return sum(
        (shifted(i, j) for i in range(sizes[0]) for j in range(sizes[1]) if (i, j) != (0, 0)),
        shifted(0, 0),
    )


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with a kernel of its own; no bias.

    Attributes:
      size: k, of the kernel's sides.
      stride: of both axes.
      dtype: computation dtype.
    """

    size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), C]`."""
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", he_normal, shape, jnp.float32)
        return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride)
