"""What it takes to compile a program, and what that grows with.

    python benchmarks/compile.py                        # a minute or two on two cores
    python benchmarks/compile.py --only=adversarial --rounds=3

The Glow has 3 levels of 8 steps, 64 channels wide, and the classifier is a ResNet-18, on batches of
32 images 32 x 32 x 3. Of each program: equations after tracing, seconds to trace and lower it,
seconds that XLA compiles (the least of the rounds, with an empty cache), and the median time of one
call. The rows that follow a program change one thing about it.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import optax
from latent import training_step
from timing import equations, interleaved

import genreg_jax as gr
from genreg_jax.logs import provenance, write_json

SHAPE, BATCH = (32, 32, 3), 32
GLOW = {"levels": 3, "steps": 8, "width": 64}
CALLS = 5


def flow_of(**changes):
    """A flow, its parameters and a batch."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.uniform(keys[0], (BATCH, *SHAPE), minval=0.1, maxval=0.9)
    flow = gr.flows.glow(SHAPE, **{**GLOW, **changes})
    return flow, flow.init(keys[1], x), x


def encode_decode(frozen, **changes):
    """Through a flow and back."""
    flow, params, x = flow_of(**changes)
    if frozen:
        return lambda fast, x: fast.decode(fast.encode(x)), (flow.freeze(params), x)
    return lambda params, x: flow.decode(params, flow.encode(params, x)[0])[0], (params, x)


def update():
    """One update of a flow."""
    flow, params, x = flow_of()
    tx = optax.adam(1e-3)

    def step(params, opt_state, x):
        loss, gradient = jax.value_and_grad(
            lambda params: jnp.mean(flow.bits_per_dim(params, x, key=jax.random.key(0)))
        )(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step, (params, tx.init(params), x)


def step(kind=None, model="resnet18", **options):
    """One update of a classifier, on latent perturbations of one kind if one is given."""
    flow, params, x = flow_of()
    frozen = flow.freeze(params)
    keys = jax.random.split(jax.random.key(1), 3)
    y = jax.random.randint(keys[0], (BATCH,), 0, 10)
    classifier = gr.models.make(model, num_classes=10)
    params, model_state = classifier.init(keys[1], x[:1])
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    state = gr.TrainState.create(params, model_state, tx, keys[2])
    run = training_step(classifier, tx, kind, **options)
    return run, (state, gr.Batch(x, y), frozen)


ROWS = {
    "encode and decode, frozen": lambda: encode_decode(True),
    "encode and decode, frozen, 4 steps": lambda: encode_decode(True, steps=4),
    "encode and decode, frozen, 16 steps": lambda: encode_decode(True, steps=16),
    "encode and decode, frozen, 2 levels": lambda: encode_decode(True, levels=2),
    "encode and decode": lambda: encode_decode(False),
    "update of the flow": update,
    "plain step": step,
    "random step": lambda: step("random"),
    "adversarial step": lambda: step("adversarial"),
    "adversarial step, 1 step": lambda: step("adversarial", num_steps=1),
    "adversarial step, 6 steps": lambda: step("adversarial", num_steps=6),
    "adversarial step, convnet": lambda: step("adversarial", model="convnet"),
}


def measure(row, rounds):
    """One line."""
    function, arguments = ROWS[row]()
    tracing, compiling = [], []
    for _ in range(rounds):
        jax.clear_caches()
        start = time.perf_counter()
        traced = jax.jit(function).trace(*arguments)
        lowered = traced.lower()
        middle = time.perf_counter()
        program = lowered.compile()
        tracing.append(middle - start)
        compiling.append(time.perf_counter() - middle)
    seconds = interleaved({row: (program, arguments)}, CALLS)[row]
    return {
        "row": row,
        "equations": equations(traced.jaxpr.jaxpr),
        "trace_seconds": min(tracing),
        "compile_seconds": min(compiling),
        "call_milliseconds": 1e3 * statistics.median(seconds),
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose names hold this")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    print(f"{'row':38} {'equations':>9} {'trace':>7} {'compile':>8} {'ms a call':>10}")
    rows = []
    for row in (row for row in ROWS if args.only in row):
        rows.append(measure(row, args.rounds))
        print(
            f"{row:38} {rows[-1]['equations']:9} {rows[-1]['trace_seconds']:6.1f}s "
            f"{rows[-1]['compile_seconds']:7.1f}s {rows[-1]['call_milliseconds']:10.1f}",
            flush=True,
        )
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
