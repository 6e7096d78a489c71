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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import compile_all, cost_rows

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
    compiled = compile_all({k: (f, (params, phi)) for k, f in programs.items()})
    outputs = {k: program(*args) for k, (program, args) in compiled.items()}

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    exact = flat(outputs["reverse"])
    error = lambda k: float(np.linalg.norm(flat(outputs[k]) - exact) / np.linalg.norm(exact))
    rows = cost_rows(compiled, repeats)
    return [
        {
            "model": name,
            "batch": batch,
            "mode": (mode := row.pop("row")),
            **row,
            "relative_error": None if mode == "plain gradient" else error(mode),
        }
        for row in rows
    ]


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
