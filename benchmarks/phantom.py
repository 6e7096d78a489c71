"""What a phantom term adds to a training step.

    python benchmarks/phantom.py                              # ResNet-18, batch 128; minutes on CPU
    python benchmarks/phantom.py --readings attraction        # one reading only
    python benchmarks/phantom.py --width=16 --repeats=15      # a quarter of the width

One step is that of `genreg_jax.objective.make_train_step` with flip and crop and Nesterov SGD. For
each reading: the time as a multiple of the plain step's (median over repeats of the ratio, steps
interleaved), XLA's count of FLOPs as a multiple of the plain step's, and the time of the term and
its gradient on their own as a share of the plain step's, in which the noise of a long step is not.
"""

import argparse
import pathlib
import statistics

import jax
import jax.numpy as jnp
import optax
from timing import compile_all, flops, interleaved, ratio, rounds

import genreg_jax as gr
from genreg_jax.logs import provenance, write_json
from genreg_jax.regularizers.phantom import READINGS, phantom_term

SHAPE = (32, 32, 3)


def alone(reading, batch_size, width):
    """Seconds of a term and its gradient for the embeddings and logits of a batch."""
    keys = jax.random.split(jax.random.key(0), 4)
    embedding = jax.random.normal(keys[0], (batch_size, 8 * width))
    logits = jax.random.normal(keys[1], (batch_size, 10))
    labels = jax.random.randint(keys[2], (batch_size,), 0, 10)
    losses = phantom_term(reading, num_classes=10)
    loss = lambda outputs: jnp.mean(losses(keys[3], outputs, labels))
    term = jax.jit(jax.value_and_grad(loss))
    outputs = gr.Outputs(logits, embedding)
    return statistics.median(rounds({"term": lambda: term(outputs)}, 50)["term"])


def problem(batch_size, width, dtype, readings):
    """The programs of the plain step and of the step with each reading, and their arguments."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = gr.models.make("resnet18", num_classes=10, width=width, dtype=dtype)
    batch = gr.Batch(
        jax.random.randint(keys[0], (batch_size, *SHAPE), 0, 256).astype(jnp.uint8),
        jax.random.randint(keys[1], (batch_size,), 0, 10),
    )
    params, model_state = model.init(keys[2], jnp.zeros((1, *SHAPE)))
    tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
    state = gr.TrainState.create(params, model_state, tx, keys[3])

    def program(reading):
        term = None
        if reading is not None:
            losses = phantom_term(reading, num_classes=10)
            term = lambda key, outputs, labels, step: losses(key, outputs, labels)
        step = gr.make_train_step(
            model,
            tx,
            num_classes=10,
            augment=gr.augment.make("flip+crop(4)", image_shape=SHAPE),
            embedding_term=term,
        )
        return lambda state, batch: step(state, batch, None, ())

    programs = {"base": program(None), **{reading: program(reading) for reading in readings}}
    return programs, (state, batch)


def measure(batch_size, width, dtype, readings, repeats):
    """Rows of the table."""
    programs, arguments = problem(batch_size, width, dtype, readings)
    compiled = compile_all({k: (f, arguments) for k, f in programs.items()})
    seconds, counts = interleaved(compiled, repeats), flops(compiled)
    base = statistics.median(seconds["base"])
    return [
        {
            "step": k,
            "seconds": statistics.median(seconds[k]),
            "time": ratio(seconds, k, "base"),
            "flops": counts[k] / counts["base"],
            "alone": alone(k, batch_size, width) / base if k in readings else 0.0,
        }
        for k in compiled
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64, help="of the first stage; 64 in ResNet-18")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--readings", nargs="+", choices=READINGS, default=READINGS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = measure(args.batch, args.width, args.dtype, args.readings, args.repeats)
    print(f"{'step':15} {'seconds':>9} {'time':>8} {'FLOPs':>9} {'alone':>9}")
    for row in rows:
        numbers = (
            f"{row['seconds']:9.4f} {row['time']:8.4f} {row['flops']:9.6f} {row['alone']:9.6f}"
        )
        print(f"{row['step']:15} {numbers}")
    if args.output:
        setting = {k: getattr(args, k) for k in ("batch", "width", "dtype", "repeats")}
        write_json(args.output, {"rows": rows, **setting, **provenance()})


if __name__ == "__main__":
    main()
