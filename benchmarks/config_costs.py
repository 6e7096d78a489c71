"""What the shipped configs cost: parameters, and the FLOPs of training classifier and flow.

    python benchmarks/config_costs.py                   # CIFAR-10's, into the results file
    python benchmarks/config_costs.py mgr_digits glow_cifar10:middle       # others, printed only

FLOPs are XLA's count for one update (loss, gradient and the optimiser's step at the config's batch)
times the number of updates. The classifier's is the plain update, cross-entropy on the real batch;
what a regulariser adds comes on top, and `decode` says what the flow's part in one synthetic image
costs. The flow is counted with its steps unrolled, since XLA counts the body of a loop once. The
program is counted before XLA's optimisations, so the numbers do not depend on the machine; nothing
is compiled or run, and no images are read.
"""

import argparse
import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genreg_jax import flows, models
from genreg_jax.batches import BatchPlan
from genreg_jax.config import from_config
from genreg_jax.logs import provenance, write_json
from genreg_jax.optimizers import make_optimizer

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "config_costs.json"
CLASSES = 10
# Images of the training split, before those for validation are held out, and their shape.
SPLITS = {
    "digits": (1297, (8, 8, 1)),
    "fashion_mnist": (60_000, (28, 28, 1)),
    "cifar10": (50_000, (32, 32, 3)),
}


def flops(function, *arguments):
    """XLA's count for one call; `arguments` may be shapes."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def batch_of(batch_size, image_shape):
    return (
        jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    )


@functools.cache
def classifier(model_settings, optimizer_settings, batch_size, image_shape):
    """Parameters, and FLOPs of one plain update."""
    s = model_settings
    options = {
        argument: getattr(s, name) for argument, name in models.MODELS[s.name].options.items()
    }
    model = models.make(s.name, num_classes=CLASSES, dtype=s.dtype, **options)
    x, y = batch_of(batch_size, image_shape)
    key = jax.random.key(0)
    params, state = jax.eval_shape(model.init, key, x)
    tx = make_optimizer(optimizer_settings, optax.constant_schedule(0.1))

    def update(params, state, opt_state, x, y):
        def loss(params):
            outputs, new_state = model.apply(params, state, x, rng=key, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, y)
            return jnp.mean(losses), new_state

        grads, state = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    opt_state = jax.eval_shape(tx.init, params)
    return {"parameters": size(params), "update": flops(update, params, state, opt_state, x, y)}


@functools.cache
def flow(settings, image_shape):
    """Parameters, and FLOPs of one update and of decoding one image."""
    make = {"glow": flows.glow, "realnvp": flows.realnvp}[settings.kind]
    flow = make(
        image_shape,
        levels=settings.levels,
        steps=settings.steps,
        width=settings.width,
        dropout=settings.dropout,
        num_classes=CLASSES if settings.conditional else None,
        scan=False,
        remat=settings.remat,
    )
    x, y = batch_of(settings.batch_size, image_shape)
    y = y if settings.conditional else None
    key = jax.random.key(0)
    params = jax.eval_shape(flow.init, key, x, y)
    tx = {"adam": optax.adam, "adamax": optax.adamax}[settings.optimizer](settings.learning_rate)

    def update(params, opt_state, x, y):
        loss = lambda params: jnp.mean(flow.bits_per_dim(params, x, y, key=key))
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    decode = lambda params, z, y: flow.decode(params, z, y)[0]
    return {
        "parameters": size(params),
        "update": flops(update, params, jax.eval_shape(tx.init, params), x, y),
        "decode": flops(decode, params, x, y) / settings.batch_size,
    }


def costs(settings):
    """The figures of one config."""
    total, image_shape = SPLITS[settings.data.name]
    per_class = settings.data.per_class
    images = per_class * CLASSES or round(total * (1 - settings.data.validation_fraction))
    row = {"train_images": images}
    if not settings.flow_only:
        labels = np.arange(images) % CLASSES
        updates = settings.train.epochs * BatchPlan(settings, labels).steps_per_epoch
        batch = settings.train.batch_size
        one = classifier(settings.model, settings.optimizer, batch, image_shape)
        row["classifier"] = {
            **one, "updates": updates, "batch_size": batch, "training": updates * one["update"]
        }  # fmt: skip
    if settings.uses_flow or settings.flow_only:
        s = settings.flow
        one = flow(s, image_shape)
        row["flow"] = {
            **one, "updates": s.updates, "batch_size": s.batch_size,
            "passes": s.updates * s.batch_size / images, "training": s.updates * one["update"],
        }  # fmt: skip
    return row


def sentence(row):
    """The figures as the headers of the configs have them."""
    parts = []
    if "classifier" in row:
        c = row["classifier"]
        parts.append(
            f"classifier {c['parameters']:,} parameters, {c['training']:.1e} FLOPs in "
            f"{c['updates']:,} plain updates"
        )
    if "flow" in row:
        f = row["flow"]
        parts.append(
            f"flow {f['parameters']:,} parameters, {f['training']:.1e} FLOPs in "
            f"{f['updates']:,} updates"
        )
    return "; ".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="*", help="such as mgr_digits or glow_cifar10:middle")
    args = parser.parse_args()
    rows = {}
    for name in args.configs or sorted(p.stem for p in ROOT.glob("configs/*_cifar10.py")):
        module, _, option = name.partition(":")
        config = importlib.import_module(f"configs.{module}").get_config(option or None)
        if config.data.name not in SPLITS:
            parser.error(f"{name} is for {config.data.name}; known are {', '.join(SPLITS)}")
        rows[name] = costs(from_config(config))
        print(f"{name}: {sentence(rows[name])}", flush=True)
    if not args.configs:
        write_json(RESULTS, {"configs": rows, **provenance()})


if __name__ == "__main__":
    main()
