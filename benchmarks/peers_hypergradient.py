"""A hypergradient beside those of two PyTorch libraries: the same numbers, and at which price.

    python -m pip install higher torchopt torch
    python benchmarks/peers_hypergradient.py --output benchmarks/results/peers_hypergradient.json

A network of two layers on digits, K steps of SGD with momentum on batches of its own. Learned are a
weight of each example and the logarithm of a weight decay. Time is the median over interleaved
rounds, in multiples of a plain gradient of the same framework in the same round; the error is
relative, of the whole hypergradient, against ours in float64.
"""

import argparse
import importlib
import pathlib
import shlex
import statistics
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import ratio, rounds

import genreg_jax as gr
from genreg_jax.logs import provenance, write_json

WIDTH, BATCH, RATE, MOMENTUM = 512, 256, 0.1, 0.9


def problem(num_steps):
    """Arrays of the problem, float64: batches, an outer batch, parameters, meta-parameters."""
    rng = np.random.default_rng(0)
    data = gr.data.load("digits")
    images = data.train.images.reshape(len(data.train.labels), -1) / 255.0
    rows = rng.integers(0, len(images), (num_steps + 1, BATCH))
    x, y = images[rows], data.train.labels[rows].astype(np.int64)
    params = {
        "hidden": rng.normal(size=(64, WIDTH)) / 8,
        "head": rng.normal(size=(WIDTH, 10)) / np.sqrt(WIDTH),
    }
    meta = {"scores": 0.1 * rng.normal(size=BATCH), "log_decay": np.array(-5.0)}
    return (x[:-1], y[:-1]), (x[-1], y[-1]), params, meta


def ours(num_steps, dtype):
    """`(hypergradient, plain gradient)`, compiled programs without arguments."""
    batches, outer, params, meta = jax.tree.map(
        lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else jnp.int32), problem(num_steps)
    )

    def losses(params, x, y):
        logits = jnp.tanh(x @ params["hidden"]) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    def inner(params, meta, batch):
        weighted = jnp.mean(jax.nn.sigmoid(meta["scores"]) * losses(params, *batch))
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return weighted + jnp.exp(meta["log_decay"]) * squares / 2

    tx = optax.sgd(RATE, momentum=MOMENTUM)

    def hyper(params, meta, batches, outer):
        return gr.hypergradient(
            inner,
            lambda params: jnp.mean(losses(params, *outer)),
            params,
            meta,
            tx,
            tx.init(params),
            num_steps=num_steps,
            batches=batches,
            unroll=True,
        ).grads

    plain = lambda params, outer: jax.grad(lambda p: jnp.mean(losses(p, *outer)))(params)
    hyper, plain = jax.jit(hyper), jax.jit(plain)
    return (
        lambda: jax.block_until_ready(hyper(params, meta, batches, outer)),
        lambda: jax.block_until_ready(plain(params, outer)),
    )


def theirs(num_steps, threads):
    """Library to its hypergradient, and the plain gradient, functions without arguments."""
    # Of which the project knows nothing.
    torch, torchopt, higher = map(importlib.import_module, ("torch", "torchopt", "higher"))
    torch.set_num_threads(threads)
    (x, y), (x_outer, y_outer), start, meta = problem(num_steps)
    float32 = lambda a: torch.tensor(a, dtype=torch.float32)
    x, x_outer, y, y_outer = float32(x), float32(x_outer), torch.tensor(y), torch.tensor(y_outer)
    scores = float32(meta["scores"]).requires_grad_()
    log_decay = float32(meta["log_decay"]).requires_grad_()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = torch.nn.Parameter(float32(start["hidden"]))
            self.head = torch.nn.Parameter(float32(start["head"]))

        def forward(self, x):
            return torch.tanh(x @ self.hidden) @ self.head

    cross_entropy = torch.nn.functional.cross_entropy

    def inner(net, parameters, k):
        losses = cross_entropy(net(x[k]), y[k], reduction="none")
        squares = sum((p**2).sum() for p in parameters)
        return (torch.sigmoid(scores) * losses).mean() + torch.exp(log_decay) * squares / 2

    def result(net):
        grads = torch.autograd.grad(cross_entropy(net(x_outer), y_outer), (scores, log_decay))
        return {"scores": grads[0].numpy(), "log_decay": grads[1].numpy()}

    def with_higher():
        net = Net()
        sgd = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
        with higher.innerloop_ctx(net, sgd) as (functional, optimizer):
            for k in range(num_steps):
                optimizer.step(inner(functional, list(functional.parameters()), k))
            return result(functional)

    def with_torchopt():
        net = Net()
        optimizer = torchopt.MetaSGD(net, lr=RATE, momentum=MOMENTUM)
        for k in range(num_steps):
            optimizer.step(inner(net, [net.hidden, net.head], k))
        return result(net)

    fixed = Net()

    def plain():
        return torch.autograd.grad(cross_entropy(fixed(x_outer), y_outer), list(fixed.parameters()))

    versions = {name: metadata.version(name) for name in ("torch", "torchopt", "higher")}
    return {"higher": with_higher, "torchopt": with_torchopt}, plain, versions


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(tree[k], np.float64)) for k in sorted(tree)])


def measure(num_steps, repeats, threads):
    """Rows of the table for one K."""
    with jax.enable_x64(True):
        exact = flat(ours(num_steps, jnp.float64)[0]())
    hyper, plain = ours(num_steps, jnp.float32)
    libraries, torch_plain, versions = theirs(num_steps, threads)
    programs = {"genreg_jax": (hyper, plain)}
    programs |= {name: (run, torch_plain) for name, run in libraries.items()}
    errors = {}
    for name, (run, _) in programs.items():
        errors[name] = np.linalg.norm(flat(run()) - exact) / np.linalg.norm(exact)
    calls = {(name, i): run for name, both in programs.items() for i, run in enumerate(both)}
    seconds = rounds(calls, repeats)
    return versions, [
        {
            "library": name,
            "num_steps": num_steps,
            "plain_gradients": ratio(seconds, (name, 0), (name, 1)),
            "milliseconds": 1e3 * statistics.median(seconds[name, 0]),
            "relative_error": float(errors[name]),
            "repeats": repeats,
            "threads": threads,
        }
        for name in programs
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1, help="of torch; bind ours by taskset")
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rows = []
    print(f"{'library':12} {'K':>3} {'plain gradients':>16} {'ms':>8}  relative error")
    for num_steps in args.steps:
        versions, found = measure(num_steps, args.repeats, args.threads)
        rows += found
        for row in found:
            print(
                f"{row['library']:12} {row['num_steps']:3} {row['plain_gradients']:16.1f} "
                f"{row['milliseconds']:8.2f}  {row['relative_error']:.1e}",
                flush=True,
            )
    if args.output:
        command = shlex.join(["python", "benchmarks/peers_hypergradient.py", *sys.argv[1:]])
        write_json(
            args.output, {"command": command, "rows": rows, "peers": versions, **provenance()}
        )


if __name__ == "__main__":
    main()
