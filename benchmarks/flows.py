"""What flows cost: images per second in training, encoding and decoding, and what freezing saves.

    python benchmarks/flows.py                          # all sizes, minutes on 2 cores
    python benchmarks/flows.py --size=28x28x1 --batch=64 --repeats=21
    python benchmarks/flows.py --paper                  # compiles and runs one step at paper scale

For each size: images per second of a training update and of encode + decode through the frozen
flow (medians), how many times as fast the frozen flow is (median over the repeats, interleaved),
what part of the frozen flow's time the couplings' networks take on their own, XLA's FLOPs per image
of the frozen flow (the JSON has all), and the seconds it takes to compile the update.
"""

import argparse
import functools
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import interleaved, ratio, rounds

from genreg_jax import flows
from genreg_jax.flows.chain import Chain, Level, Repeat
from genreg_jax.flows.layers import AffineCoupling
from genreg_jax.flows.layout import squeeze_planes, to_planes
from genreg_jax.logs import provenance, write_json

# name: kind, image shape, batch, options of the flow
SIZES = {
    "8x8x1": ("glow", (8, 8, 1), 64, dict(levels=1, steps=4, width=48)),
    "28x28x1 small": ("glow", (28, 28, 1), 64, dict(levels=2, steps=4, width=32)),
    "28x28x1": ("glow", (28, 28, 1), 64, dict(levels=2, steps=8, width=64)),
    "28x28x1, batch 1": ("glow", (28, 28, 1), 1, dict(levels=2, steps=8, width=64)),
    "28x28x1 realnvp": ("realnvp", (28, 28, 1), 64, dict(levels=2, steps=3, width=48)),
    "32x32x3": ("glow", (32, 32, 3), 32, dict(levels=3, steps=6, width=48)),
}
PAPER = ("glow", (32, 32, 3), 64, dict(levels=3, steps=32, width=512, remat=True))


def make(kind, shape, options):
    return {"glow": flows.glow, "realnvp": flows.realnvp}[kind](shape, **options)


def build(kind, shape, batch, options, *, moved=True):
    """A flow, with parameters moved away from their initialisation, and a batch of images."""
    flow = make(kind, shape, options)
    x = jax.random.uniform(jax.random.key(0), (batch, *shape))
    params = flow.init(jax.random.key(1), x)
    if not moved:
        return flow, params, x
    rng = np.random.default_rng(0)
    draw = lambda leaf: leaf + 0.002 * jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
    return flow, jax.tree.map(draw, params), x


# The first rate of the papers' warm-up; at the full one a flow diverges on two images.
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamax(5e-4 / 7800))


def value_and_grad(flow, params, key, x):
    return jax.value_and_grad(lambda p: jnp.mean(flow.bits_per_dim(p, x, key=key)))(params)


def update(flow, params, opt_state, key, x):
    """One training update."""
    bits, grads = value_and_grad(flow, params, key, x)
    updates, opt_state = TX.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, bits


def encode_decode(flow, params, x):
    return flow.decode(params, flow.encode(params, x)[0])


def frozen_encode_decode(flow, params, x):
    fast = flow.freeze(params)
    return fast.decode(fast.encode(x))


def networks(bijector, params, h):
    """What no form can skip: the couplings' networks, each on planes of its inputs' shape."""
    if isinstance(bijector, AffineCoupling):
        a = h if bijector.mask == "checkerboard" else h[: len(h) // 2]
        return sum(jnp.sum(out) for out in bijector.scale_and_shift_planes(params, a))
    if isinstance(bijector, Repeat):
        body = lambda total, p: (total + networks(bijector.layer, p, h + total), None)
        return jax.lax.scan(body, jnp.zeros(()), params)[0]
    if isinstance(bijector, Level):
        h = squeeze_planes(h)
        total = networks(bijector.body, params["body"], h)
        if bijector.inner is not None:
            total += networks(bijector.inner, params["inner"], h[: len(h) // 2])
        return total
    if isinstance(bijector, Chain):
        steps = bijector.frozen_steps()
        return sum(networks(step, params[names[0]], h) for names, step in steps)
    return jnp.zeros(())


def flops(function, flow, *arguments):
    """XLA's count for `function(flow, ...)`; of the unrolled form, since it counts a loop once."""
    return jax.jit(functools.partial(function, flow)).lower(*arguments).cost_analysis()["flops"]


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def measure(name, size, repeats):
    """The row of one size."""
    kind, shape, batch, options = size
    flow, params, x = build(*size)
    unrolled = make(kind, shape, options | {"scan": False})
    frozen_flow = flow.freeze(params)

    def floor(fast, x):
        h = to_planes(x)
        first = networks(fast.bijector, fast.params, h)
        return first + networks(fast.bijector, fast.params, h + first)

    plain = compiled(functools.partial(encode_decode, flow), params, x)
    fast = compiled(lambda fast, x: fast.decode(fast.encode(x)), frozen_flow, x)
    floor = compiled(floor, frozen_flow, x)
    programs = {
        "plain": (plain, (params, x)),
        "frozen": (fast, (frozen_flow, x)),
        "networks": (floor, (frozen_flow, x)),
    }
    seconds = interleaved(programs, repeats)
    error = float(jnp.abs(plain(params, x)[0] - fast(frozen_flow, x)).max())
    row = {
        "size": name,
        "kind": kind,
        "image_shape": shape,
        "batch": batch,
        **options,
        "encode_decode_images_per_second": batch / statistics.median(seconds["frozen"]),
        "frozen_speedup": ratio(seconds, "plain", "frozen"),
        "networks_share": ratio(seconds, "networks", "frozen"),
        "frozen_difference": error,
        "encode_decode_flops_per_image": flops(encode_decode, unrolled, params, x) / batch,
        "frozen_flops_per_image": flops(frozen_encode_decode, unrolled, params, x) / batch,
        "repeats": repeats,
    }
    return row | measure_training(flow, unrolled, params, x, repeats)


def measure_training(flow, unrolled, params, x, repeats):
    """Speed, FLOPs, memory and compile time of the update; the last bits per dimension."""
    key, n, opt_state, bits = jax.random.key(0), len(x), TX.init(params), None
    count = flops(value_and_grad, unrolled, params, key, x)
    step = jax.jit(functools.partial(update, flow), donate_argnums=(0, 1))
    start = time.perf_counter()
    program = step.lower(params, opt_state, key, x).compile()
    compile_seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    made = 0

    def one():
        nonlocal params, opt_state, bits, made
        key = jax.random.key(made)
        params, opt_state, bits = program(params, opt_state, key, x)
        made += 1
        return bits

    seconds = rounds({"update": one}, repeats)["update"]
    return {
        "training_images_per_second": n / statistics.median(seconds),
        "training_flops_per_image": count / n,
        "training_temporary_bytes": memory.temp_size_in_bytes,
        "training_compile_seconds": compile_seconds,
        "bits_per_dim": float(bits),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="default: all")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--paper", action="store_true", help="only a training step at paper scale")
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    if args.paper:
        kind, shape, batch, options = PAPER
        batch = args.batch or (64 if jax.default_backend() != "cpu" else 2)
        flow, params, x = build(kind, shape, batch, options, moved=False)
        unrolled = make(kind, shape, options | {"scan": False})
        repeats = min(args.repeats, 2) if jax.default_backend() == "cpu" else args.repeats
        row = {"size": "paper", "batch": batch, **options}
        row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params))
        rows.append(row | measure_training(flow, unrolled, params, x, repeats))
        print(
            f"paper scale, {row['parameters']:,} parameters, batch {batch}: update compiled in "
            f"{rows[0]['training_compile_seconds']:.0f} s, "
            f"{rows[0]['training_images_per_second']:.2f} images/s, "
            f"{rows[0]['training_flops_per_image']:.3g} FLOPs per image, "
            f"{rows[0]['bits_per_dim']:.2f} bits/dim"
        )
    else:
        print(
            f"{'size':17} {'batch':>5} {'train':>9} {'compile':>8} {'enc+dec':>9} {'frozen':>7} "
            f"{'networks':>8} {'FLOPs/image':>12}"
        )
        for name in [args.size] if args.size else SIZES:
            kind, shape, batch, options = SIZES[name]
            row = measure(name, (kind, shape, args.batch or batch, options), args.repeats)
            rows.append(row)
            print(
                f"{name:17} {row['batch']:5} {row['training_images_per_second']:7.0f}/s "
                f"{row['training_compile_seconds']:6.1f} s "
                f"{row['encode_decode_images_per_second']:7.0f}/s {row['frozen_speedup']:6.2f}x "
                f"{100 * row['networks_share']:6.0f} % {row['frozen_flops_per_image']:12.3g}",
                flush=True,
            )
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
