"""What it costs to learn strengths: training steps with and without, and hypergradients of K steps.

    python benchmarks/strengths.py --output benchmarks/results/strengths.json

Steps are those of the shipped digits configs at ten labels per class, in multiples of a step of
`base`: time (median over interleaved rounds), XLA's FLOPs before it runs them and XLA's temporary
memory. Below them hypergradients of one weight through K steps of the same network, in plain
gradients of a batch.
"""

import argparse
import pathlib
import shlex
import sys

import jax
import jax.numpy as jnp
import optax
from timing import compile_all, cost_rows

import genreg_jax as gr
from experiments.study import shipped
from genreg_jax import build
from genreg_jax.batches import BatchPlan
from genreg_jax.config import from_config
from genreg_jax.logs import provenance, write_json

ALL = "phantom.weight,synthetic.weight,latent.epsilon,optimizer.weight_decay"
# Row to the shipped method and the strengths that are learned.
STEPS = {
    "base": ("base", ""),
    "weight decay learned": ("base", "optimizer.weight_decay"),
    "phantom": ("phantom", ""),
    "phantom, weight learned": ("phantom", "phantom.weight"),
    "phantom, ten weights learned": ("phantom", "phantom.weight[class]"),
    "latent": ("latent_random", ""),
    "latent, radius learned": ("latent_random", "latent.epsilon"),
    "mgr": ("mgr", ""),
    "mgr, weight learned": ("mgr", "synthetic.weight"),
    "all three": ("combined", ""),
    "all three, four learned": ("combined", ALL),
}
BATCH = 64


def step_of(method, learn):
    """A training step of a shipped config and its arguments; the flow is untrained."""
    config = shipped(method, "digits")
    config.data.per_class = 10
    config.tune.learn = learn
    settings = from_config(config)
    dataset = gr.data.from_settings(settings.data, 0)
    flow = build.flow_of(settings.flow, dataset.image_shape, dataset.num_classes)
    x = jnp.asarray(dataset.train.images[:BATCH]) / 255.0
    params = flow.init(jax.random.key(0), x, jnp.asarray(dataset.train.labels[:BATCH]))
    parts = build.parts(
        settings,
        dataset,
        plan=BatchPlan(settings, dataset.train.labels, dataset.validation.labels),
        views=build.views_of(settings, dataset.image_shape),
        generator=gr.flows.as_generator(flow, params),
        flow=flow.freeze(params),
    )
    real = jax.tree.map(lambda a: a[:BATCH], parts.train_data)
    outer = jax.tree.map(lambda a: a[-BATCH:], parts.train_data)
    return parts.step, (parts.state, real, outer, *parts.frozen)


def through(num_steps):
    """The hypergradient of one weight through K steps, or a plain gradient for K = 0."""
    model = gr.models.make("convnet", num_classes=10, widths=(32, 64))
    dataset = gr.data.load("digits")
    rows = jax.random.randint(jax.random.key(0), (num_steps + 1, BATCH), 0, 1000)
    x = jnp.asarray(dataset.train.images)[rows] / 255.0
    y = jnp.asarray(dataset.train.labels)[rows]
    params, model_state = model.init(jax.random.key(1), x[0])

    def losses(params, batch, weight):
        outputs, _ = model.apply(params, model_state, batch[0], rng=None, train=True)
        term = jnp.sum(outputs.embedding**2, axis=1)
        cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
            outputs.logits, batch[1]
        )
        return jnp.mean(cross_entropy + weight * term)

    tx = optax.sgd(0.05, momentum=0.9)
    outer = x[-1], y[-1]

    def hyper(params, weight):
        return gr.hypergradient(
            lambda params, weight, batch: losses(params, batch, weight),
            lambda p: losses(p, outer, 0.0),
            params,
            weight,
            tx,
            tx.init(params),
            num_steps=num_steps,
            batches=(x[:-1], y[:-1]),
            unroll=True,
        ).grads

    if not num_steps:
        return lambda params, weight: jax.grad(losses)(params, outer, weight), (params, 0.01)
    return hyper, (params, 0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    steps = {k: step_of(*v) for k, v in STEPS.items()}
    horizons = {"plain gradient": through(0), **{f"K = {k}": through(k) for k in (1, 5, 20)}}
    rows = []
    print(f"{'row':30} {'time':>7} {'FLOPs':>7} {'memory':>7}")
    for programs in (steps, horizons):
        for row in cost_rows(compile_all(programs), args.repeats):
            rows.append(row)
            print(
                f"{row['row']:30} {row['time']:7.2f} {row['flops']:7.2f} {row['memory']:7.2f}",
                flush=True,
            )
    if args.output:
        command = shlex.join(["python", "benchmarks/strengths.py", *sys.argv[1:]])
        write_json(args.output, {"command": command, "rows": rows, **provenance()})


if __name__ == "__main__":
    main()
