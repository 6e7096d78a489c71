"""Up to how many pixels is a convolution faster as a matrix product?

    python benchmarks/convolution.py                    # a minute on two cores

For 3x3 convolutions with few output pixels the median time of XLA's over that of a matrix product,
forward and with the gradients, rows interleaved: `genreg_jax.models.convolution` takes the product
up to `FEW_PIXELS`.
"""

import argparse
import functools
import itertools
import pathlib

import jax
import timing
from jax import lax

from genreg_jax.conv_layout import canonical
from genreg_jax.logs import provenance, write_json
from genreg_jax.models import convolution

SIDES, STRIDES, CHANNELS = (1, 2, 3, 4), (1, 2), (32, 64, 256)


def programs(side, stride, channels, batch):
    """Of both forms, with `side` pixels a side coming out."""
    x = jax.random.normal(jax.random.key(0), (batch, side * stride, side * stride, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels)) / 3
    options = {"window_strides": (stride, stride), "padding": "SAME"}
    library = functools.partial(
        lax.conv_general_dilated, **options, dimension_numbers=convolution.NHWC
    )
    product = lambda x, kernel: convolution.convolve(x, kernel, (stride, stride), "SAME")
    forms = {"library": library, "product": product}
    return timing.form_programs(forms, x, kernel, canonical)  # as in a training step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    convolution.FEW_PIXELS = max(SIDES) ** 2  # the product everywhere
    cases = [
        {"side": side, "stride": stride, "channels": channels, "batch": args.batch}
        for side, stride, channels in itertools.product(SIDES, STRIDES, CHANNELS)
    ]
    rows = timing.form_rows(cases, programs, args.repeats)
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
