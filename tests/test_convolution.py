"""The convolution of the shipped networks beside a sum in float64 and XLA's derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from genreg_jax.models.convolution import NHWC, convolve

CASES = [  # shape of images, of the kernel, strides, padding, pixels that come out
    ((3, 4, 4, 5), (3, 3, 5, 2), (2, 2), "SAME", (2, 2)),
    ((2, 2, 2, 3), (3, 3, 3, 4), (1, 1), "SAME", (2, 2)),
    ((2, 1, 1, 3), (3, 3, 3, 4), (2, 2), "SAME", (1, 1)),
    ((2, 3, 5, 3), (1, 1, 3, 4), (2, 3), "SAME", (2, 2)),
    ((2, 7, 8, 2), (7, 7, 2, 3), (2, 2), "VALID", (1, 1)),
    ((2, 5, 4, 2), (3, 2, 2, 3), (4, 2), ((0, 1), (2, 0)), (1, 3)),
    ((2, 5, 4, 2), (3, 2, 2, 3), (2, 2), ((1, -1), (0, 0)), (2, 2)),
    ((2, 6, 6, 3), (3, 3, 3, 2), (2, 2), "SAME", (3, 3)),
]


PADS = ((0, 0), (0, 0))


def arrays(shape, kernel):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, kernel))


def summed(x, kernel, strides, padding):
    """In float64, a term at a time."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    height = (x.shape[1] + top + bottom - kernel.shape[0]) // strides[0] + 1
    width = (x.shape[2] + left + right - kernel.shape[1]) // strides[1] + 1
    out = np.zeros((len(x), height, width, kernel.shape[3]))
    for r, c in np.ndindex(height, width):
        for i, j in np.ndindex(*kernel.shape[:2]):
            row, column = r * strides[0] + i - top, c * strides[1] + j - left
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                out[:, r, c] += x[:, row, column] @ kernel[i, j]
    return out


@pytest.mark.parametrize("shape, kernel, strides, padding, sides", CASES)
def test_a_convolution_is_the_sum_and_has_its_derivatives(shape, kernel, strides, padding, sides):
    x, kernel = arrays(shape, kernel)
    out = convolve(x, kernel, strides, padding)
    assert out.shape[1:3] == sides
    np.testing.assert_allclose(out, summed(x, kernel, strides, padding), atol=2e-5)

    def library(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)

    def mixed(form):
        """The derivative in the images of the gradient's norm in the kernel."""
        loss = lambda x, kernel: jnp.sum(jnp.tanh(form(x, kernel)))
        norm = lambda x: jnp.sum(jax.grad(loss, 1)(x, kernel) ** 2)
        return *jax.grad(loss, (0, 1))(x, kernel), jax.grad(norm)(x)

    ours = mixed(lambda x, kernel: convolve(x, kernel, strides, padding))
    for a, b in zip(ours, mixed(library)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("shape, kernel, strides, padding, sides", CASES)
def test_few_pixels_are_a_product_on_cpu(shape, kernel, strides, padding, sides):
    program = jax.make_jaxpr(lambda *args: convolve(*args, strides, padding))
    names = {e.primitive.name for e in program(*arrays(shape, kernel)).eqns}
    few = jax.default_backend() == "cpu" and sides != (3, 3)
    assert ("dot_general" in names) == few
    assert ("conv_general_dilated" in names) != few


def test_dilation_groups_and_other_layouts_are_the_library_s():
    x, kernel = arrays((2, 4, 4, 4), (2, 2, 4, 4))
    with_options = [
        (kernel, {"rhs_dilation": (2, 2)}),
        (kernel, {"lhs_dilation": (2, 1)}),
        (kernel[:, :, :2], {"feature_group_count": 2}),
        (kernel, {"dimension_numbers": ("NCHW", "HWIO", "NCHW")}),
    ]
    for kernel, options in with_options:
        out = convolve(x, kernel, (2, 2), PADS, **options)
        options = {"dimension_numbers": NHWC} | options
        expected = lax.conv_general_dilated(x, kernel, (2, 2), PADS, **options)
        np.testing.assert_array_equal(out, expected)


def test_precision_and_dtype_are_kept():
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((2, 2, 2, 3), (3, 3, 3, 4)))
    assert convolve(x, kernel, (1, 1), "SAME").dtype == jnp.bfloat16
    program = jax.make_jaxpr(lambda *args: convolve(*args, (1, 1), "SAME", precision="highest"))
    assert "HIGHEST" in str(program(x, kernel))
