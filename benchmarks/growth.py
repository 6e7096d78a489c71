"""What a training step costs as the work grows, and by which power.

    python benchmarks/growth.py --output benchmarks/results/growth.json   # a quarter of an hour
    python benchmarks/growth.py --only classes depth
    python benchmarks/growth.py --draw benchmarks/results/growth.json --plot docs/growth.png

One thing grows and the rest stays: images in a batch, their side, classes, steps of a flow's level,
devices. For each size seconds a call (medians of interleaved rounds), XLA's count of temporary
bytes, and the seconds to compile. The power is the slope of log seconds, or bytes, over the largest
three sizes; on a CPU of two cores, where small programs are all overhead.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import time

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import rounds

import genreg_jax as gr
from experiments.parts import parts_of
from genreg_jax.config import from_config
from genreg_jax.devices import replicate
from genreg_jax.epoch import update_of
from genreg_jax.logs import provenance, write_json
from genreg_jax.regularizers.phantom import phantom_term

BASE = {
    "model": {"widths": [32, 64]},
    "augment": {"train": "flip+shift(1)"},
    "flow": {"levels": 2, "steps": 4, "width": 32},
    "train": {"epochs": 1, "steps_per_epoch": 1, "devices": 1},
}
METHODS = {
    "base": {},
    "phantom": {"phantom": {"loss": "attraction", "weight": 1.0}},
    "adversarial": {"latent": {"kind": "adversarial", "epsilon": 1.0, "num_steps": 3}},
    "mgr": {
        "synthetic": {"loss": "pcr", "weight": 1.0, "source": "prior"},
        "meta": {"enabled": True, "outer": "train"},
    },
}


def step_of(method, *, side=16, batch=64, devices=1):
    """An update of a run on random images: `(function, arguments)`."""
    config = {**BASE, **METHODS[method]}
    config["train"] = BASE["train"] | {"batch_size": batch, "devices": devices}
    settings = from_config(config)
    images = max(160, 2 * batch)
    parts, indices = parts_of(settings, (side, side, 1), images=images, validation_fraction=0.1)
    indices = replicate(parts.mesh, indices)
    return update_of(parts.step, len(indices.inner)), (
        parts.state, parts.train_data, indices, parts.frozen
    )  # fmt: skip


def term_of(reading, classes, batch=128, width=128):
    """A phantom term and its gradient for random embeddings of so many classes."""
    keys = jax.random.split(jax.random.key(0), 4)
    outputs = gr.Outputs(
        jax.random.normal(keys[1], (batch, classes)), jax.random.normal(keys[0], (batch, width))
    )
    labels = jax.random.randint(keys[2], (batch,), 0, classes)
    losses = phantom_term(reading, num_classes=classes)
    loss = lambda outputs, labels: jnp.mean(losses(keys[3], outputs, labels))
    return jax.value_and_grad(loss), (outputs, labels)


def flow_of(what, depth, side=16, batch=32):
    """An update of a Glow of `depth` steps a level, or a way through it and back."""
    flow = gr.flows.glow((side, side, 1), levels=2, steps=depth, width=32, remat=what == "remat")
    x = jax.random.uniform(jax.random.key(0), (batch, side, side, 1))
    params = flow.init(jax.random.key(1), x)
    if what == "encode and decode":
        return lambda fast, x: fast.decode(fast.encode(x)), (flow.freeze(params), x)
    tx = optax.adam(1e-3)

    def update(params, opt_state, x):
        loss = lambda params: jnp.mean(flow.bits_per_dim(params, x, key=jax.random.key(2)))
        bits, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, bits

    return update, (params, tx.init(params), x)


AXES = {
    "batch": (
        (16, 32, 64, 128, 256, 512),
        {m: (lambda n, m=m: step_of(m, batch=n)) for m in METHODS},
    ),
    "image side": (
        (8, 16, 32, 64),
        {m: (lambda n, m=m: step_of(m, side=n, batch=16)) for m in METHODS},
    ),
    "classes": (
        (2, 10, 32, 100, 320, 1000),
        {r: (lambda n, r=r: term_of(r, n)) for r in ("attraction", "separation")},
    ),
    "depth": (
        (2, 4, 8, 16, 32),
        {w: (lambda n, w=w: flow_of(w, n)) for w in ("update", "remat", "encode and decode")},
    ),
    "devices": (
        (1, 2, 4, 8),
        {m: (lambda n, m=m: step_of(m, devices=n)) for m in ("base", "mgr")},
    ),
}


def measure(axis, repeats):
    """Rows of one axis: program, size, seconds, bytes, seconds to compile."""
    sizes, programs = AXES[axis]
    for name, make in programs.items():
        compiled, rows = {}, []
        for size in sizes:
            function, arguments = make(size)
            start = time.perf_counter()
            program = jax.jit(function).lower(*arguments).compile()
            rows.append(
                {
                    "axis": axis,
                    "program": name,
                    "size": size,
                    "compile_seconds": time.perf_counter() - start,
                    "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
                }
            )
            compiled[size] = lambda program=program, arguments=arguments: program(*arguments)
        seconds = rounds(compiled, repeats)
        for row in rows:
            row["seconds"] = statistics.median(seconds[row["size"]])
            yield row


def power(rows, value):
    """The slope over the three largest sizes."""
    last = sorted(rows, key=lambda row: row["size"])[-3:]
    sizes, values = (np.log([max(row[k], 1e-12) for row in last]) for k in ("size", value))
    return float(np.polyfit(sizes, values, 1)[0])


def groups(rows):
    """`{axis: {program: rows}}`."""
    found = {}
    for row in rows:
        found.setdefault(row["axis"], {}).setdefault(row["program"], []).append(row)
    return found


def table(rows):
    """Markdown: the powers of time and memory, and what the largest size takes."""
    lines = [
        "| what grows | from, to | program | power of time | power of memory | "
        "largest: ms | MB | compiled in s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for axis, programs in groups(rows).items():
        for name, found in programs.items():
            last = found[-1]
            lines.append(
                f"| {axis} | {found[0]['size']}, {last['size']} | {name} | "
                f"{power(found, 'seconds'):.2f} | {power(found, 'temporary_bytes'):.2f} | "
                f"{1e3 * last['seconds']:.1f} | {last['temporary_bytes'] / 1e6:.1f} | "
                f"{last['compile_seconds']:.1f} |"
            )
    return "\n".join(lines)


def draw(rows, path):
    """A plot for each axis, seconds against size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = groups(rows)
    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.4), squeeze=False)
    for plot, (axis, programs) in zip(axes[0], found.items()):
        for name, lines in programs.items():
            label = f"{name}, {power(lines, 'seconds'):.2f}"
            plot.loglog(
                [row["size"] for row in lines],
                [1e3 * row["seconds"] for row in lines],
                "o-",
                label=label,
                markersize=4,
            )
        sizes = sorted({row["size"] for lines in programs.values() for row in lines})
        plot.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
        plot.set_xticks([], minor=True)
        plot.set(xlabel=axis, title=f"{axis}: ms a call, power")
        plot.legend(fontsize=7)
        plot.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    parser.add_argument("--draw", type=pathlib.Path, help="measure nothing; rows of such JSON")
    parser.add_argument("--plot", type=pathlib.Path, help="write a picture here")
    args = parser.parse_args()
    if args.draw:
        rows = json.loads(args.draw.read_text())["rows"]
    else:
        rows = []
        for axis in args.only:
            for row in measure(axis, args.repeats):
                rows.append(row)
                print(
                    f"{axis} {row['size']}, {row['program']}: {1e3 * row['seconds']:.1f} ms, "
                    f"{row['temporary_bytes'] / 1e6:.1f} MB, compiled in "
                    f"{row['compile_seconds']:.1f} s",
                    flush=True,
                )
    print(table(rows))
    if args.output:
        command = shlex.join(["python", "benchmarks/growth.py", *sys.argv[1:]])
        write_json(args.output, {"command": command, "rows": rows, **provenance()})
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
