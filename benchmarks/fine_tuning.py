"""How fast is fine-tuning beside torch, on the same network, images and machine?

    python benchmarks/fine_tuning.py                    # needs torch; EfficientNet-Lite0, 64 pixels
    taskset -c 0 python benchmarks/fine_tuning.py --batch=16

A training step of both: cross-entropy, the gradient in all parameters, SGD with Nesterov's
momentum, BatchNorm with fixed statistics, as `model.freeze = "statistics"` has it. Rounds are
interleaved. Both start from the same random weights and see the same images, and their losses in
the first steps are compared, so that it is the same work. torch's forward pass is that of
`tests/test_pretrained.py`.
"""

import argparse
import importlib
import importlib.util
import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from timing import ratio, rounds

import genreg_jax as gr
from genreg_jax.logs import provenance, write_json
from genreg_jax.models.frozen import frozen_statistics
from genreg_jax.models.pretrained import ORIGINS, _parameters

NAME, CLASSES, RATE, MOMENTUM = "efficientnet_lite0", 10, 1e-5, 0.9


def reference():
    """`tests/test_pretrained.py`, torch's network and random weights."""
    path = pathlib.Path(__file__).parents[1] / "tests" / "test_pretrained.py"
    spec = importlib.util.spec_from_file_location("test_pretrained", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_jax(tensors, x, y):
    """`() -> loss`, a step of this library's at each call."""
    model = frozen_statistics(gr.models.make(NAME, num_classes=CLASSES))
    flat = {"params": {}, "batch_stats": {}}
    for ours, theirs in ORIGINS[NAME].layers.items():
        for name_theirs, (group, name_ours) in _parameters(ours, theirs):
            value = tensors[name_theirs]
            axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, (0,))
            flat[group][ours, name_ours] = jnp.asarray(value.transpose(axes))
    params = unflatten_dict(flat["params"])
    state = {"batch_stats": unflatten_dict(flat["batch_stats"])}
    tx = optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)
    held = gr.TrainState.create(params, state, tx, jax.random.key(0))
    step = gr.make_train_step(model, tx, num_classes=CLASSES, augment=lambda key, x: x)
    step = jax.jit(step, donate_argnums=0)
    batch = gr.Batch(jnp.asarray(x), jnp.asarray(y))

    def run():
        nonlocal held
        held, metrics = step(held, batch)
        return float(metrics["train/loss"])

    return run


def in_torch(torch, forward, tensors, x, y):
    """The same in torch."""
    weights = {k: torch.tensor(v) for k, v in tensors.items()}
    trained = [v.requires_grad_() for k, v in weights.items() if "running" not in k]
    tx = torch.optim.SGD(trained, lr=RATE, momentum=MOMENTUM, nesterov=True)
    x, y = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(y)

    def run():
        tx.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(torch, weights, x), y)
        loss.backward()
        tx.step()
        return loss.item()

    return run


def main():
    torch = importlib.import_module("torch")  # of which the project knows nothing
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    tests = reference()
    tensors = tests.weights(NAME, num_classes=CLASSES)
    rng = np.random.default_rng(1)
    x = rng.random((args.batch, args.size, args.size, 3), np.float32)
    y = rng.integers(0, CLASSES, args.batch)
    steps = {
        "jax": in_jax(tensors, x, y),
        "torch": in_torch(torch, tests.efficientnet_in_torch, tensors, x, y),
    }
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    print("losses", losses)
    np.testing.assert_allclose(losses["jax"], losses["torch"], rtol=1e-3)
    seconds = rounds(steps, args.repeats)
    faster = ratio(seconds, "torch", "jax")
    speed = {k: args.batch / statistics.median(v) for k, v in seconds.items()}
    print(
        f"{args.size} x {args.size}, batch {args.batch}, {torch.get_num_threads()} threads: "
        + ", ".join(f"{name} {value:.1f} images/s" for name, value in speed.items())
        + f"; this library does {faster:.2f} times as many"
    )
    if args.output:
        row = {"size": args.size, "batch": args.batch, "repeats": args.repeats, "ratio": faster}
        row |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "images": speed}
        write_json(args.output, {**row, **provenance()})


if __name__ == "__main__":
    main()
