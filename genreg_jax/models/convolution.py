"""The convolution of the shipped networks, by whichever of two forms is fast where it runs."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
FEW_PIXELS = 4  # of the output, up to which XLA's own is slow on CPU


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = NHWC,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of images, for `nn.Conv(conv_general_dilated=convolve)`.

    On CPUs XLA's convolution and its derivatives are slow where few pixels come out: for 2x2 they
    take two to sixteen times as long as a matrix product (`benchmarks/convolution.py`), which they
    are here up to `FEW_PIXELS`. Elsewhere, and with dilation, groups or another layout, it is
    XLA's. Both agree to rounding.

    Args:
      x: images, `[B, H, W, C]` unless `dimension_numbers` say otherwise.
      kernel: `[k, l, C, O]`.
      strides: of both axes.
      padding: `SAME`, `VALID`, or the rows before and after and the columns before and after.
      lhs_dilation: of the images.
      rhs_dilation: of the kernel.
      dimension_numbers: the layout.
      feature_group_count: groups of channels.
      precision: of the products.

    Returns:
      `[B, H', W', O]`. Gradients flow to both arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> from genreg_jax.models.convolution import convolve
      >>> out = convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)), (2, 2), "SAME")
      >>> out[0, ..., 0].tolist()
      [[18.0, 12.0], [12.0, 8.0]]
    """
    layouts = [
        lax.conv_dimension_numbers(x.shape, kernel.shape, n) for n in (dimension_numbers, NHWC)
    ]
    plain = layouts[0] == layouts[1] and {*lhs_dilation, *rhs_dilation, feature_group_count} == {1}
    if plain and jax.default_backend() == "cpu":
        pads = (
            lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
            if isinstance(padding, str)
            else padding
        )
        sides = [
            (side + sum(pad) - size) // stride + 1
            for side, pad, size, stride in zip(x.shape[1:3], pads, kernel.shape, strides)
        ]
        if min(sides) > 0 and math.prod(sides) <= FEW_PIXELS:
            return _product(x, kernel, strides, pads, sides, precision)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )


def _product(x, kernel, strides, pads, sides, precision):
    """What each output pixel sees, side by side, times the kernel."""
    frame = [(0, 0), *pads, (0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(*pad, 0) for pad in frame])
    ends = [(side - 1) * stride + 1 for side, stride in zip(sides, strides)]
    seen = [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return jnp.matmul(jnp.concatenate(seen, axis=-1), kernel, precision=precision)
