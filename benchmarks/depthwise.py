"""Which of the two depthwise convolutions is fast here, forward and with the gradient?

    python benchmarks/depthwise.py                    # EfficientNet-Lite0's layers, 64 pixels
    python benchmarks/depthwise.py --size=224 --batch=8

For each layer the median time of XLA's grouped convolution over that of the sum of shifted images,
rows interleaved: above 1, `genreg_jax.models.depthwise` is right to take the latter.
"""

import argparse
import pathlib

import jax
import timing

from genreg_jax.logs import provenance, write_json
from genreg_jax.models import depthwise
from genreg_jax.models.efficientnet import LITE0


def layers(size):
    """(side, channels, kernel, stride) of every different depthwise layer, for images of a size."""
    found, side, width = {}, -(-size // 2), 32
    for stage in LITE0:
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            found[side, stage.expansion * width, stage.kernel, stride] = None
            side, width = -(-side // stride), stage.width
    return list(found)


def programs(side, channels, kernel, stride, batch):
    """Of both forms."""
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
    weights = jax.random.normal(jax.random.key(1), (kernel, kernel, 1, channels))
    forms = {
        name: lambda x, k, form=form: form(x, k, stride)
        for name, form in {"grouped": depthwise._grouped, "shifted": depthwise._shifted}.items()
    }
    return timing.form_programs(forms, x, weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    names = ("side", "channels", "kernel", "stride")
    cases = [dict(zip(names, layer)) | {"batch": args.batch} for layer in layers(args.size)]
    rows = timing.form_rows(cases, programs, args.repeats)
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
