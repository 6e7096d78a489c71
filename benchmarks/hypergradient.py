"""What a hypergradient costs, and how far finite differences are off.

    python benchmarks/hypergradient.py                    # both networks, minutes on 2 cores
    python benchmarks/hypergradient.py --model=convnet --batch=64 --repeats=9

For each network and mode: time (median over the repeats, modes interleaved), XLA's FLOPs and XLA's
temporary memory, each as a multiple of one plain gradient of the cross-entropy on a batch of the
same size, and the relative difference of the hypergradient from `reverse`, all in float32. The
inner objective is MGR's: cross-entropy plus PCR on samples of a frozen flow at found latents.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genreg_jax as gr
from genreg_jax.hypergradient import MODES
from genreg_jax.logs import provenance, write_json

# name: image shape, batch, repeats, options of the model
MODELS = {
    "convnet": ((28, 28, 1), 64, 7, {"widths": (32, 64, 128)}),
    "resnet18": ((32, 32, 3), 8, 3, {}),
}


def problem(name, batch):
    """The inner and outer losses of one MGR step with `name` as the classifier."""
    shape, _, _, options = MODELS[name]
    keys = iter(jax.random.split(jax.random.key(0), 16))
    model = gr.models.make(name, num_classes=10, **options)
    x, xv = (jax.random.uniform(next(keys), (batch, *shape)) for _ in range(2))
    y, yv, ys = (jax.random.randint(next(keys), (batch,), 0, 10) for _ in range(3))
    params, model_state = model.init(next(keys), x[:1])
    flow = gr.flows.glow(shape, levels=2, steps=4, width=32, num_classes=10)
    frozen = flow.freeze(flow.init(next(keys), x, y))
    finder = gr.Finder(num_classes=10)
    z = jax.random.normal(next(keys), x.shape)
    phi = finder.init(next(keys), z, ys)
    strong = gr.augment.make("flip+crop(2)+randaugment(2,9)", image_shape=shape)
    key = next(keys)

    def forward(params, x):
        return model.apply(params, model_state, x, rng=None, train=True)[0]

    def cross_entropy(params, x, y):
        logits = forward(params, x).logits
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, y))

    def inner(params, phi):
        images = frozen.decode(finder.apply(phi, z, ys), ys)
        views = jnp.concatenate([images, strong(key, images)])
        embeddings = jnp.split(forward(params, views).embedding, 2)
        return cross_entropy(params, x, y) + jnp.mean(gr.pcr_loss(*embeddings))

    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    opt_state = tx.init(params)
    programs = {"plain gradient": lambda p, m: jax.grad(cross_entropy)(p, x, y)}
    for mode in MODES:
        programs[mode] = lambda p, m, mode=mode: (
            gr.hypergradient(
                inner, lambda p: cross_entropy(p, xv, yv), p, m, tx, opt_state, mode=mode
            ).grads
        )
    return programs, params, phi


def measure(name, batch, repeats):
    """Rows of the table for one network."""
    programs, params, phi = problem(name, batch)
    compiled = {k: jax.jit(f).lower(params, phi).compile() for k, f in programs.items()}
    outputs = {k: jax.block_until_ready(f(params, phi)) for k, f in compiled.items()}
    seconds = {k: [] for k in compiled}
    for _ in range(repeats):  # interleaved, so that a slow moment of the machine hits all alike
        for k, f in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(f(params, phi))
            seconds[k].append(time.perf_counter() - start)

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    plain = seconds["plain gradient"]
    exact = flat(outputs["reverse"])
    rows = []
    for k, program in compiled.items():
        cost, memory = program.cost_analysis(), program.memory_analysis()
        if k == "plain gradient":
            base = cost["flops"], memory.temp_size_in_bytes
        rows.append(
            {
                "model": name,
                "batch": batch,
                "mode": k,
                "time": statistics.median(s / p for s, p in zip(seconds[k], plain)),
                "flops": cost["flops"] / base[0],
                "memory": memory.temp_size_in_bytes / base[1],
                "relative_error": None
                if k == "plain gradient"
                else float(np.linalg.norm(flat(outputs[k]) - exact) / np.linalg.norm(exact)),
                "repeats": repeats,
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="default: all")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    print(f"{'model':9} {'mode':21} {'time':>7} {'FLOPs':>7} {'memory':>7}  relative error")
    for name in [args.model] if args.model else MODELS:
        _, batch, repeats, _ = MODELS[name]
        for row in measure(name, args.batch or batch, args.repeats or repeats):
            rows.append(row)
            error = "" if row["relative_error"] is None else f"{row['relative_error']:.1e}"
            print(
                f"{row['model']:9} {row['mode']:21} {row['time']:7.2f} {row['flops']:7.2f} "
                f"{row['memory']:7.2f}  {error}",
                flush=True,
            )
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
