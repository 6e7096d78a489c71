"""Which of the two depthwise convolutions is fast here, forward and with the gradient?

    python benchmarks/depthwise.py                    # EfficientNet-Lite0's layers, 64 pixels
    python benchmarks/depthwise.py --size=224 --batch=8

For each layer the median time of XLA's grouped convolution over that of the sum of shifted images,
rows interleaved: above 1, `genreg_jax.models.depthwise` is right to take the latter.
"""

import argparse
import pathlib
import statistics

import jax
import timing

from genreg_jax.logs import provenance, write_json
from genreg_jax.models import depthwise
from genreg_jax.models.efficientnet import LITE0

FORMS = {"grouped": depthwise._grouped, "shifted": depthwise._shifted}


def layers(size):
    """(side, channels, kernel, stride) of every different depthwise layer, for images of a size."""
    found, side, width = {}, -(-size // 2), 32
    for stage in LITE0:
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            found[side, stage.expansion * width, stage.kernel, stride] = None
            side, width = -(-side // stride), stage.width
    return list(found)


def programs(layer, batch):
    """Name to (function, arguments)."""
    side, channels, size, stride = layer
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, channels))
    made = {}
    for name, form in FORMS.items():
        forward = lambda x, k, form=form: form(x, k, stride)
        loss = lambda x, k, form=form: (form(x, k, stride) ** 2).sum()
        made[f"{name} forward"] = jax.jit(forward), (x, kernel)
        made[f"{name} gradient"] = jax.jit(jax.grad(loss, (0, 1))), (x, kernel)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    print(f"{'side':>5} {'channels':>9} {'kernel':>7} {'stride':>7} {'forward':>8} {'gradient':>9}")
    for layer in layers(args.size):
        compiled = timing.compile_all(programs(layer, args.batch))
        seconds = timing.interleaved(compiled, args.repeats)
        ratios = {
            kind: statistics.median(
                a / b for a, b in zip(seconds[f"grouped {kind}"], seconds[f"shifted {kind}"])
            )
            for kind in ("forward", "gradient")
        }
        side, channels, size, stride = layer
        rows.append(
            dict(side=side, channels=channels, kernel=size, stride=stride, **ratios)
            | {"batch": args.batch, "repeats": args.repeats}
        )
        print(
            f"{side:5} {channels:9} {size:7} {stride:7} {ratios['forward']:8.2f} "
            f"{ratios['gradient']:9.2f}",
            flush=True,
        )
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
