"""What flows cost: images per second in training, encoding and decoding, and what freezing saves.

    python benchmarks/flows.py                          # all sizes, minutes on 2 cores
    python benchmarks/flows.py --size=28x28x1 --batch=64 --repeats=21
    python benchmarks/flows.py --paper                  # compiles and runs one step at paper scale

For each size: images per second of a training update and of encode + decode through the frozen
flow (medians), how many times as fast the frozen flow is (median over the repeats, interleaved),
XLA's FLOPs per image of both, what part of the frozen flow's time its couplings' networks take on
their own, and the seconds it takes to compile the update.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genreg_jax import flows
from genreg_jax.flows import bijectors
from genreg_jax.logs import provenance

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


def build(kind, shape, batch, options):
    """A flow with parameters that are not those of its initialisation, and a batch of images."""
    flow = {"glow": flows.glow, "realnvp": flows.realnvp}[kind](shape, **options)
    x = jax.random.uniform(jax.random.key(0), (batch, *shape))
    params = flow.init(jax.random.key(1), x)
    rng = np.random.default_rng(0)
    draw = lambda leaf: leaf + 0.02 * jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
    return flow, jax.tree.map(draw, params), x


def training_step(flow, params):
    """One update with Adamax, and its optimiser's first state."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamax(5e-4))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, key, x):
        loss = lambda p: jnp.mean(flow.bits_per_dim(p, x, key=key))
        bits, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, bits

    return step, tx.init(params)


def networks(bijector, params, x):
    """What no form can skip: the couplings' networks, each on inputs of its shape."""
    if isinstance(bijector, bijectors.AffineCoupling):
        a, _, _ = bijector._split(x)
        scale_and_shift = bijector._scale_and_shift(params, a, None, None)
        return sum(jnp.sum(out) for out in scale_and_shift)
    if isinstance(bijector, bijectors.Repeat):
        body = lambda total, p: (total + networks(bijector.layer, p, x + total), None)
        return jax.lax.scan(body, jnp.zeros(()), params)[0]
    if isinstance(bijector, bijectors.Level):
        h = bijectors.squeeze(x)
        total = networks(bijector.body, params["body"], h)
        if bijector.inner is not None:
            total += networks(bijector.inner, params["inner"], jnp.split(h, 2, -1)[0])
        return total
    if isinstance(bijector, bijectors.Chain):
        total = jnp.zeros(())
        for name, layer in zip(bijector.names(), bijector.layers):
            total += networks(layer, params[name], x)
        return total
    return jnp.zeros(())


def compiled(function, *arguments):
    """The compiled program and the seconds that it took."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - start


def seconds(program, *arguments):
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - start


def measure(name, size, repeats):
    """The row of one size."""
    kind, shape, batch, options = size
    flow, params, x = build(*size)
    frozen = flow.freeze(params)

    def plain(params, x):
        return flow.decode(params, flow.encode(params, x)[0])

    def fast(frozen, x):
        return frozen.decode(frozen.encode(x))

    def floor(frozen, x):
        first = networks(frozen.bijector, frozen.params, x)
        return first + networks(frozen.bijector, frozen.params, x + first)

    plain, _ = compiled(plain, params, x)
    fast, _ = compiled(fast, frozen, x)
    floor, _ = compiled(floor, frozen, x)
    jax.block_until_ready((plain(params, x), fast(frozen, x), floor(frozen, x)))
    times = []
    for _ in range(repeats):  # interleaved, so that a slow moment of the machine hits all alike
        times.append(
            (seconds(plain, params, x), seconds(fast, frozen, x), seconds(floor, frozen, x))
        )
    error = float(jnp.abs(plain(params, x)[0] - fast(frozen, x)).max())
    row = {
        "size": name,
        "kind": kind,
        "image_shape": shape,
        "batch": batch,
        **options,
        "encode_decode_images_per_second": batch / statistics.median(t[1] for t in times),
        "frozen_speedup": statistics.median(t[0] / t[1] for t in times),
        "networks_share": statistics.median(t[2] / t[1] for t in times),
        "frozen_difference": error,
        "encode_decode_flops_per_image": plain.cost_analysis()["flops"] / batch,
        "frozen_flops_per_image": fast.cost_analysis()["flops"] / batch,
        "repeats": repeats,
    }
    return row | measure_training(flow, params, x, repeats)


def measure_training(flow, params, x, repeats):
    step, opt_state = training_step(flow, params)
    start = time.perf_counter()
    program = step.lower(params, opt_state, jax.random.key(0), x).compile()
    compile_seconds = time.perf_counter() - start
    cost, memory = program.cost_analysis(), program.memory_analysis()
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        params, opt_state, bits = program(params, opt_state, jax.random.key(i), x)
        jax.block_until_ready(bits)
        times.append(time.perf_counter() - start)
    return {
        "training_images_per_second": len(x) / statistics.median(times[1:]),
        "training_flops_per_image": cost["flops"] / len(x),
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
        flow, params, x = build(kind, shape, batch, options)
        repeats = min(args.repeats, 2) if jax.default_backend() == "cpu" else args.repeats
        row = {"size": "paper", "batch": batch, **options}
        row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params))
        rows.append(row | measure_training(flow, params, x, repeats))
        print(
            f"paper scale, {row['parameters']:,} parameters, batch {batch}: update compiled in "
            f"{rows[0]['training_compile_seconds']:.0f} s, "
            f"{rows[0]['training_images_per_second']:.2f} images/s, "
            f"{rows[0]['training_flops_per_image']:.3g} FLOPs per image"
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
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"rows": rows, **provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
