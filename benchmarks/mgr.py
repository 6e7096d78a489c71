"""What a training step with synthetic samples costs, in plain steps, beside its floor.

    python benchmarks/mgr.py                          # the configs of digits and FashionMNIST
    python benchmarks/mgr.py --setting=digits --repeats=9

For each method and source: time (median over the repeats, rows interleaved) and XLA's FLOPs of one
whole training step, as multiples of the plain step, and the FLOPs of its floor. With F one forward
pass of the classifier over a batch, of which a plain step is three, G one decoding of as many
samples, and E one encoding:

    gda               6F +  G       the plain step, and one over synthetic samples
    pcr               9F +  G       the plain step, and one over two views of them
    hard             12F + 4G       pcr, and one gradient of the entropy in the latents
    mgr              26F + 3G       a plain step, the inner and the outer gradient, the mixed
                                    derivative, and the gradient on the new samples
    renoised, interpolated          E more, unless the encodings are cached, as they are in a run

The synthetic batch has the size of the real one. The parts are counted by XLA in programs of their
own; the flow's steps are unrolled, since XLA counts the body of a loop once.
"""

import argparse
import pathlib

import jax
import optax
import timing

import genreg_jax as gr
from genreg_jax import build
from genreg_jax.config import from_config
from genreg_jax.logs import provenance, write_json

# name: image shape, batch, model and its options, levels, steps and width of the flow
SETTINGS = {
    "digits": ((8, 8, 1), 64, "convnet", {"widths": (32, 64, 64)}, (1, 4, 48)),
    "fashion_mnist": (
        (28, 28, 1),
        64,
        "convnet",
        {"widths": (16, 32, 64), "pooling": "max"},
        (2, 4, 32),
    ),
}
ROWS = {
    "plain": {"synthetic.loss": "none"},
    "gda": {"synthetic.loss": "cross_entropy"},
    "pcr": {},
    "pcr, renoised": {"synthetic.source": "renoised"},
    "pcr, renoised, cached": {"synthetic.source": "renoised"},
    "pcr, interpolated, cached": {"synthetic.source": "interpolated"},
    "random, interpolated, cached": {
        "synthetic.source": "interpolated",
        "meta.enabled": True,
        "meta.search": "random",
        "meta.radius": 0.3,
    },
    "hard, interpolated, cached": {
        "synthetic.source": "interpolated",
        "meta.enabled": True,
        "meta.search": "hard",
        "meta.radius": 0.3,
    },
    "mgr": {"meta.enabled": True, "meta.radius": 0.3},
    "mgr, interpolated, cached": {
        "synthetic.source": "interpolated",
        "meta.enabled": True,
        "meta.radius": 0.3,
    },
}


def programs(name):
    """Name to (function, arguments): the steps, and the parts that their floors consist of."""
    shape, size, model_name, options, (levels, steps, width) = SETTINGS[name]
    keys = iter(jax.random.split(jax.random.key(0), 8))
    model = gr.models.make(model_name, num_classes=10, **options)
    x = jax.random.uniform(next(keys), (size, *shape), minval=0.1, maxval=0.9)
    y = jax.random.randint(next(keys), (size,), 0, 10)
    params, model_state = model.init(next(keys), x[:1])
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    flow = gr.flows.glow(shape, levels=levels, steps=steps, width=width, scan=False, num_classes=10)
    generator = gr.flows.as_generator(flow, flow.init(next(keys), x, y))
    z = generator.encode(generator.params, x, y)
    key = next(keys)

    def step(changes, cached):
        config = gr.default_config()
        fixed = {"synthetic.loss": "pcr", "synthetic.strong": "none", "meta.outer": "train"}
        config.update_from_flattened_dict({**fixed, **changes})
        settings = from_config(config)
        views = build.views_of(settings, shape)
        meta, finder_params = None, ()
        if settings.uses_meta:
            meta, finder_params = build.meta_of(settings, views, 10, shape, key)
        uses = settings.uses_synthetic
        made = gr.make_train_step(
            model,
            tx,
            num_classes=10,
            augment=lambda key, x: x,
            synthetic=build.synthetic_of(settings, views) if uses else None,
            generator=generator if uses else None,
            meta=meta,
        )
        state = gr.TrainState.create(
            params,
            model_state,
            tx,
            key,
            finder_params=finder_params,
            finder_tx=meta.tx if meta else None,
        )
        batch = gr.Batch(x, y, encodings=z if cached else None)
        outer = gr.Batch(x[::-1], y[::-1]) if meta else None
        return made, (state, batch, outer, generator.params if uses else ())

    def predict(params, x):
        return model.apply(params, model_state, x, rng=None, train=True)[0].logits

    steps_of = {row: step(changes, row.endswith("cached")) for row, changes in ROWS.items()}
    parts = {
        "F": (predict, (params, x)),
        "G": (generator.apply, (generator.params, z, y)),
        "E": (generator.encode, (generator.params, x, y)),
    }
    return steps_of, parts


def floor_of(row, flops):
    """FLOPs of a row's floor from those of the plain step and of the parts."""
    passes = {"gda": (3, 1), "pcr": (6, 1), "random": (6, 1), "hard": (9, 4), "mgr": (23, 3)}
    f, g = passes.get(row.partition(",")[0], (0, 0))
    encoding = flops["E"] if row.endswith("renoised") else 0
    return flops["plain"] + f * flops["F"] + g * flops["G"] + encoding


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, help="default: all")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    print(timing.HEAD)
    for name in [args.setting] if args.setting else SETTINGS:
        for row in timing.step_rows(*programs(name), args.repeats, floor_of):
            rows.append({"setting": name, **row})
            print(timing.line(name, row), flush=True)
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
