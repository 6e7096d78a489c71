"""Up to how many pixels is a convolution faster as a matrix product?

    python benchmarks/convolution.py                    # a minute on two cores

For 3x3 convolutions with few output pixels the median time of XLA's over that of a matrix product,
forward and with the gradients, rows interleaved: `genreg_jax.models.convolution` takes the product
up to `FEW_PIXELS`.
"""

import argparse
import pathlib

import jax
import timing

from genreg_jax.conv_layout import canonical
from genreg_jax.logs import provenance, write_json
from genreg_jax.models import convolution

SIDES, STRIDES, CHANNELS = (1, 2, 3, 4), (1, 2), (32, 64, 256)


def programs(side, stride, channels, batch):
    """Name to (function, arguments), with `side` pixels a side coming out."""
    x = jax.random.normal(jax.random.key(0), (batch, side * stride, side * stride, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels)) / 3
    made = {}
    for name, pixels in (("library", 0), ("product", side**2)):

        def forward(x, kernel, pixels=pixels):
            convolution.FEW_PIXELS = pixels
            return convolution.convolve(x, kernel, (stride, stride), "SAME")

        loss = lambda x, k, forward=forward: (forward(x, k) ** 2).sum()
        made[f"{name} forward"] = jax.jit(forward), (x, kernel)
        # As in a training step.
        made[f"{name} gradient"] = jax.jit(canonical(jax.grad(loss, (0, 1)))), (x, kernel)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    print(f"{'side':>5} {'stride':>7} {'channels':>9} {'forward':>8} {'gradient':>9}")
    for side in SIDES:
        for stride in STRIDES:
            for channels in CHANNELS:
                compiled = timing.compile_all(programs(side, stride, channels, args.batch))
                seconds = timing.interleaved(compiled, args.repeats)
                ratios = {
                    kind: timing.ratio(seconds, f"library {kind}", f"product {kind}")
                    for kind in ("forward", "gradient")
                }
                rows.append(
                    dict(side=side, stride=stride, channels=channels, **ratios)
                    | {"batch": args.batch, "repeats": args.repeats}
                )
                print(
                    f"{side:5} {stride:7} {channels:9} {ratios['forward']:8.2f} "
                    f"{ratios['gradient']:9.2f}",
                    flush=True,
                )
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
