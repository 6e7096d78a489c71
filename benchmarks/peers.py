"""Flows, training steps, attacks and hypergradients beside other libraries', in one run.

    python -m pip install -e '.[bench]'
    python benchmarks/peers.py --output benchmarks/results/peers.json
    python benchmarks/peers.py --threads 1 --only flow --data_dir=DIR

Batches of 32 images 32 x 32 x 3. Beside each other, each library's own code, compiled or warmed up
before: a Glow of 3 levels of 8 steps, 64 channels wide, and the multi-scale Glow of `normflows`, a
training update and encode + decode; a training step of a ResNet-18, and that of `torchvision` with
the stem for small images; ten steps of PGD in the l2 ball on it, and those of `torchattacks`; and a
hypergradient through one step on digits, and those of `higher` and `torchopt`. Printed is the time
of ours in that of the other, the median over interleaved rounds, on one core and on two; then the
bits per dimension of both flows after the same number of updates on the same batches, by Adam with
the same rate, warm-up and clipping.
"""

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
from importlib import metadata

SHAPE, BATCH, CLASSES = (32, 32, 3), 32, 10
LEVELS, STEPS, WIDTH, RATE, WARMUP = 3, 8, 64, 1e-3, 50
PROGRAMS = ("flow", "classifier", "attack", "hypergradient")
PEERS = "torch torchvision normflows torchattacks higher torchopt".split()


def images_of(data_dir, count):
    """Images uint8 `[N, 32, 32, 3]` of CIFAR-10, or coloured patterns where there is no folder."""
    import numpy as np

    import genreg_jax as gr

    if data_dir:
        return gr.data.load("cifar10", data_dir=data_dir).train.images[:count]
    small = gr.data.load("synthetic").train.images
    return np.tile(small, (-(-count // len(small)), 2, 2, 1))[:count]


# ------------------------------------------------------------------------------------------- flows


def our_flow(images):
    """`(update, encode and decode, bits per dimension of other images, parameters)`."""
    import jax
    import jax.numpy as jnp
    import optax

    import genreg_jax as gr

    flow = gr.flows.glow(SHAPE, levels=LEVELS, steps=STEPS, width=WIDTH)
    as_floats = lambda i: jnp.asarray(images[i * BATCH : (i + 1) * BATCH], jnp.float32) / 255
    params = flow.init(jax.random.key(0), as_floats(0))
    rate = optax.schedules.linear_schedule(RATE / WARMUP, RATE, WARMUP)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    held = [params, tx.init(params)]

    @jax.jit
    def update(params, opt_state, key, x):
        loss = lambda params: jnp.mean(flow.bits_per_dim(params, x, key=key))
        bits, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, bits

    there_and_back = jax.jit(lambda fast, x: fast.decode(fast.encode(x)))
    bits = jax.jit(lambda params, x, key: jnp.mean(flow.bits_per_dim(params, x, key=key)))

    def one(i=0):
        *held[:], loss = update(*held, jax.random.key(i), as_floats(i))
        return loss

    def test(batches):
        return statistics.fmean(
            float(bits(held[0], as_floats(i), jax.random.key(i))) for i in batches
        )

    fast, x = flow.freeze(params), as_floats(0)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return one, lambda: there_and_back(fast, x), test, count


def their_flow(images):
    """The same of `normflows`, with the likelihood of the same dequantised images."""
    import numpy as np

    torch, nf = map(importlib.import_module, ("torch", "normflows"))
    torch.manual_seed(0)
    height, _, channels = SHAPE
    bases, flows, merges = [], [], []
    for i in range(LEVELS):
        width = channels * 2 ** (LEVELS + 1 - i)
        blocks = [
            nf.flows.GlowBlock(width, WIDTH, split_mode="channel", scale=True) for _ in range(STEPS)
        ]
        flows.append([*blocks, nf.flows.Squeeze()])
        if i > 0:
            merges.append(nf.flows.Merge())
        deepest = channels * 2 ** (LEVELS + 1), height // 2**LEVELS
        depth, side = (channels * 2 ** (LEVELS - i), height // 2 ** (LEVELS - i)) if i else deepest
        bases.append(nf.distributions.DiagGaussian((depth, side, side)))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    tx = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(tx, lambda i: min((i + 1) / WARMUP, 1.0))
    pixels = float(np.prod(SHAPE))

    def batch(i):
        x = images[i * BATCH : (i + 1) * BATCH].transpose(0, 3, 1, 2)
        return torch.tensor(np.ascontiguousarray(x), dtype=torch.float32)

    def loss_of(i):
        """Of whole numbers 0 to 255 with uniform noise, on the scale of a pixel."""
        x = batch(i)
        nats = model.forward_kld((x + torch.rand_like(x)) / 255)
        return nats / np.log(2) / pixels + np.log2(255)

    def one(i=0):
        tx.zero_grad()
        loss = loss_of(i)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tx.step()
        rate.step()
        return loss.item()

    first = batch(0) / 255

    def there_and_back():
        with torch.no_grad():
            z, _ = model.inverse_and_log_det(first)
            x, _ = model.forward_and_log_det(z)
            return x.numpy()

    def test(batches):
        with torch.no_grad():
            return statistics.fmean(loss_of(i).item() for i in batches)

    one()  # activation normalisation takes its scales from the first batch
    back = there_and_back()
    np.testing.assert_allclose(back, first.numpy(), atol=1e-3)
    return one, there_and_back, test, sum(p.numel() for p in model.parameters())


# -------------------------------------------------------------------------------------- classifiers


def our_classifier():
    """`(training step, attack)`."""
    import jax
    import jax.numpy as jnp
    import optax

    import genreg_jax as gr
    from genreg_jax.regularizers.pgd import image_pgd

    keys = jax.random.split(jax.random.key(0), 3)
    model = gr.models.make("resnet18", num_classes=CLASSES)
    x = jax.random.uniform(keys[0], (BATCH, *SHAPE))
    labels = jnp.arange(BATCH) % CLASSES
    params, state = model.init(keys[1], x[:1])
    tx = optax.sgd(1e-3, momentum=0.9, nesterov=True)
    step = gr.make_train_step(model, tx, num_classes=CLASSES, augment=lambda key, x: x)
    step = jax.jit(step, donate_argnums=0)
    held = gr.TrainState.create(*jax.tree.map(jnp.copy, (params, state)), tx, keys[2])
    batch = gr.Batch((255 * x).astype(jnp.uint8), labels)

    def train():
        nonlocal held
        held, metrics = step(held, batch)
        return metrics["train/loss"]

    @jax.jit
    def attack(params, state, x, labels):
        def losses(x):
            outputs, _ = model.apply(params, state, x, rng=None, train=False)
            return optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, labels)

        return image_pgd(
            jax.random.key(1), losses, x, epsilon=1.0, step_size=0.2, num_steps=10, clip=None
        )

    return train, lambda: attack(params, state, x, labels)


def their_classifier():
    """The same of `torchvision` and `torchattacks`."""
    torch, torchvision, torchattacks = map(
        importlib.import_module, ("torch", "torchvision", "torchattacks")
    )
    torch.manual_seed(0)
    make = lambda: torchvision.models.resnet18(num_classes=CLASSES)
    networks = [make(), make()]
    for network in networks:
        network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    trained, attacked = networks
    attacked.eval()
    tx = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    x = torch.rand(BATCH, SHAPE[2], *SHAPE[:2])
    labels = torch.arange(BATCH) % CLASSES

    def train():
        tx.zero_grad()
        loss = torch.nn.functional.cross_entropy(trained(x), labels)
        loss.backward()
        tx.step()
        return loss.item()

    pgd = torchattacks.PGDL2(attacked, eps=1.0, alpha=0.2, steps=10, random_start=True)
    return train, lambda: pgd(x, labels).numpy()


# ------------------------------------------------------------------------------------------ one run


def calls_of(name, threads, images):
    """`{program: {library: call}}` of a group of programs; and the flows, for their quality."""
    if name == "flow":
        ours, theirs = our_flow(images), their_flow(images)
        parameters = {"genreg_jax": ours[3], "normflows": theirs[3]}
        return {
            f"flow, {what}": {"genreg_jax": ours[i], "normflows": theirs[i]}
            for i, what in enumerate(("training update", "encode and decode"))
        }, (ours, theirs, parameters)
    if name == "hypergradient":
        from peers_hypergradient import ours, theirs

        libraries, _, _ = theirs(1, threads)
        import jax.numpy as jnp

        calls = {"genreg_jax": ours(1, jnp.float32)[0], **libraries}
        return {"hypergradient of one step": calls}, None
    ours, theirs = our_classifier(), their_classifier()
    if name == "classifier":
        return {"ResNet-18, training step": {"genreg_jax": ours[0], "torchvision": theirs[0]}}, None
    return {"PGD, 10 steps": {"genreg_jax": ours[1], "torchattacks": theirs[1]}}, None


def child(args):
    """Prints a line of JSON for each program, and one for the flows' quality."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.child])
    importlib.import_module("torch").set_num_threads(args.child)
    from timing import ratio, rounds

    images = images_of(args.data_dir, BATCH * (args.updates + 10))
    for name in args.only:
        programs, flows = calls_of(name, args.child, images)
        for program, calls in programs.items():
            seconds = rounds(calls, args.repeats)
            for peer in list(calls)[1:]:
                row = {
                    "program": program,
                    "peer": peer,
                    "threads": args.child,
                    "ratio": ratio(seconds, "genreg_jax", peer),
                    "milliseconds": {k: 1e3 * statistics.median(s) for k, s in seconds.items()},
                    "repeats": args.repeats,
                }
                print(json.dumps(row), flush=True)
        if flows and args.updates:
            ours, theirs, parameters = flows
            held_out = range(args.updates, args.updates + 10)
            bits = {}
            for library, (update, _, test, _) in {"genreg_jax": ours, "normflows": theirs}.items():
                for i in range(args.updates):
                    update(i)
                bits[library] = test(held_out)
            row = {"bits_per_dim": bits, "updates": args.updates, "parameters": parameters}
            print(json.dumps({**row, "threads": args.child}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--updates", type=int, default=300, help="of the flows whose bits count")
    parser.add_argument("--data_dir", default="", help="TFDS's folder with CIFAR-10, for the flows")
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}; pip install -e '.[bench]'")
    here, rows, quality = pathlib.Path(__file__).resolve(), [], []
    print(f"{'program':28} {'beside':13} {'threads':>7} {'time of ours in theirs':>23}")
    for threads in args.threads:
        command = [sys.executable, str(here), f"--child={threads}", "--only", *args.only]
        command += [f"--repeats={args.repeats}", f"--data_dir={args.data_dir}"]
        # Quality does not depend on the threads.
        command += [f"--updates={args.updates if threads == args.threads[-1] else 0}"]
        path = os.pathsep.join(filter(None, [str(here.parent), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
            for line in run.stdout:
                row = json.loads(line)
                if "bits_per_dim" in row:
                    quality.append(row)
                    continue
                rows.append(row)
                print(
                    f"{row['program']:28} {row['peer']:13} {threads:7} {row['ratio']:23.2f}",
                    flush=True,
                )
        if run.returncode:
            raise SystemExit(f"The run on {threads} threads ended with status {run.returncode}.")
    for row in quality:
        bits = ", ".join(f"{name} {value:.3f}" for name, value in row["bits_per_dim"].items())
        print(f"bits/dim after {row['updates']} updates of {BATCH} images: {bits}")
    if args.output:
        from genreg_jax.logs import provenance, write_json

        command = shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])
        versions = {name: metadata.version(name) for name in PEERS}
        content = {"command": command, "rows": rows, "quality": quality, "peers": versions}
        write_json(args.output, {**content, **provenance()})
    return None


if __name__ == "__main__":
    main()
