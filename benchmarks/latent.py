"""What a training step with a latent perturbation costs, in plain steps, beside its floor.

    python benchmarks/latent.py                       # the configs of digits and FashionMNIST
    python benchmarks/latent.py --setting=digits --repeats=9

For each kind: time (median over the repeats, kinds interleaved) and XLA's FLOPs of one whole
training step, as multiples of the plain step, and the FLOPs of its floor: the plain step and, for

    random, away      encode + decode
    adversarial       encode + (n + 1) decodes + n decode-gradients
                      + n input-gradients of the classifier + one prediction
    pgd               n input-gradients of the classifier + one prediction

each counted by XLA in a program of its own. Cached encodings leave out the encoding. The flow's
steps are unrolled, since XLA counts the body of a loop once; time is measured with them too.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import optax
import timing

import genreg_jax as gr
from genreg_jax.logs import provenance, write_json
from genreg_jax.regularizers.latent import perturbation
from genreg_jax.regularizers.latent_training import Latent

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
    "cifar10": ((32, 32, 3), 128, "resnet18", {}, (3, 32, 512)),
}
STEPS = 3


def training_step(model, tx, kind=None, num_steps=STEPS):
    """A step on perturbed images, on plain ones without a kind, of a state, a batch and a flow."""
    latent = None
    if kind is not None:
        perturb = perturbation(kind, epsilon=1.0, num_steps=num_steps)
        labels = "predicted" if kind in ("adversarial", "pgd") else "true"
        latent = Latent(perturb, labels, 0.0, lambda key, x: x)
    made = gr.make_train_step(model, tx, num_classes=10, augment=lambda key, x: x, latent=latent)
    return lambda state, batch, frozen: made(state, batch, None, (), frozen)


def programs(name):
    """Name to (function, arguments): the steps, and the parts that their floors consist of."""
    shape, size, model_name, options, (levels, steps, width) = SETTINGS[name]
    keys = iter(jax.random.split(jax.random.key(0), 8))
    model = gr.models.make(model_name, num_classes=10, **options)
    x = jax.random.uniform(next(keys), (size, *shape), minval=0.1, maxval=0.9)
    y = jax.random.randint(next(keys), (size,), 0, 10)
    params, model_state = model.init(next(keys), x[:1])
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    state = gr.TrainState.create(params, model_state, tx, next(keys))
    flow = gr.flows.glow(shape, levels=levels, steps=steps, width=width, scan=False)
    frozen = flow.freeze(flow.init(next(keys), x))
    z = frozen.encode(x)

    def losses(x, params):
        logits = model.apply(params, model_state, x, rng=None, train=True)[0].logits
        labels = jnp.argmax(jax.lax.stop_gradient(logits), -1)
        return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))

    def predict(x, params):
        outputs, _ = model.apply(params, model_state, x, rng=None, train=True)
        return jnp.argmax(outputs.logits, -1)

    def decode_gradient(z, v, frozen):
        return jax.vjp(frozen.decode, z)[1](v)[0]

    batch, cached = gr.Batch(x, y), gr.Batch(x, y, z)
    steps_of = {"plain": (training_step(model, tx), (state, batch, frozen))}
    for kind in ("random", "away", "adversarial", "pgd"):
        step = training_step(model, tx, kind)
        steps_of[kind] = (step, (state, batch, frozen))
        if kind != "pgd":
            steps_of[f"{kind}, cached"] = (step, (state, cached, frozen))
    parts = {
        "encode": (lambda x, frozen: frozen.encode(x), (x, frozen)),
        "decode": (lambda z, frozen: frozen.decode(z), (z, frozen)),
        # A pullback needs its forward pass, which is counted as a decode of its own.
        "decode and gradient": (decode_gradient, (z, x, frozen)),
        "input gradient": (jax.grad(losses), (x, params)),
        "prediction": (predict, (x, params)),
    }
    return steps_of, parts


def floor_of(kind, flops):
    """FLOPs of a kind's floor from those of the plain step and of the parts."""
    plain, encode, decode = flops["plain"], flops["encode"], flops["decode"]
    attack = STEPS * flops["input gradient"] + flops["prediction"]
    noise = plain + decode
    ascent = plain + decode + STEPS * flops["decode and gradient"] + attack
    return {
        "plain": plain,
        "random": noise + encode,
        "random, cached": noise,
        "away": noise + encode,
        "away, cached": noise,
        "adversarial": ascent + encode,
        "adversarial, cached": ascent,
        "pgd": plain + attack,
    }[kind]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, help="default: digits and fashion_mnist")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    print(timing.HEAD)
    for name in [args.setting] if args.setting else ["digits", "fashion_mnist"]:
        for row in timing.step_rows(*programs(name), args.repeats, floor_of):
            rows.append({"setting": name, **row})
            print(timing.line(name, row), flush=True)
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
