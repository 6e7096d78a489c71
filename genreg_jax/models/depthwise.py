"""Depthwise convolution, by whichever of two forms is fast where it runs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

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
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[1:] != (len(kernel), 1, x.shape[3]):
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shifted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The sum of shifted images, whose derivative is written so that its transpose is fast too.

    That of a slice is an image in a frame of zeros, and that of a row of the kernel a sum over
    images and pixels, which XLA makes 20 times as slow as the convolution itself.
    """
    size = kernel.shape[0]
    x = _framed(x, size, stride)
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    terms = [
        _window(x, i, j, stride, height, width) * kernel[i : i + 1, j : j + 1]
        for i, j in _places(size)
    ]
    return sum(terms[1:], terms[0])


def _shifted_jvp(stride, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    out = _shifted(x, kernel, stride)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        tangent += _along_x(dx, kernel, stride, out.shape)
    if not isinstance(dkernel, SymbolicZero):
        tangent += _along_kernel(x, dkernel, stride, out.shape)
    return out, tangent


_shifted.defjvp(_shifted_jvp, symbolic_zeros=True)


def _along_x(dx, kernel, stride, shape):
    """The convolution of `dx`, whose transpose is a sum of slices."""
    size = kernel.shape[0]
    pads = lax.padtype_to_pads(dx.shape[1:3], (size, size), (stride, stride), "SAME")

    def moved(i, j):
        sides = []
        for (before, _), n, count, place in zip(pads, dx.shape[1:3], shape[1:3], (i, j)):
            low = before - place
            sides.append((low, (count - 1) * stride + 1 - n - low, 0))
        term = dx * kernel[i : i + 1, j : j + 1]
        zero = jnp.zeros((), term.dtype)
        return lax.pad(term, zero, ((0, 0, 0), *sides, (0, 0, 0)))[:, ::stride, ::stride]

    terms = [moved(i, j) for i, j in _places(size)]
    return sum(terms[1:], terms[0])


def _along_kernel(x, dkernel, stride, shape):
    """The convolution with `dkernel`, whose transpose adds up the images, and then their pixels."""
    size, (height, width, channels) = dkernel.shape[0], shape[1:]
    rows = [jnp.broadcast_to(dkernel[i, j], (height, width, channels)) for i, j in _places(size)]

    # Else the slices of all images would be kept for the transpose.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def of_image(rows, image):
        terms = [
            row * _window(image, i, j, stride, height, width)
            for row, (i, j) in zip(rows, _places(size))
        ]
        return sum(terms[1:], terms[0])

    def of_images(rows):
        return lax.scan(lambda _, image: (None, of_image(rows, image)), None, framed)[1]

    # It is linear in the rows. JAX before 0.8 transposes only loops that it has differentiated.
    framed = _framed(x, size, stride)
    return jax.jvp(of_images, ([jnp.zeros_like(row) for row in rows],), (rows,))[1]


def _places(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(size)]


def _framed(x: jax.Array, size: int, stride: int) -> jax.Array:
    pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _window(x: jax.Array, i: int, j: int, stride: int, height: int, width: int) -> jax.Array:
    """What a kernel's place `(i, j)` sees of framed images `[..., H, W, C]`."""
    rows, columns = i + (height - 1) * stride + 1, j + (width - 1) * stride + 1
    return x[..., i:rows:stride, j:columns:stride, :]


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
