"""What an update at the papers' scale needs of a device's memory, from XLA's analysis.

    python benchmarks/memory.py                       # a quarter of an hour on two cores
    python benchmarks/memory.py --only=mgr

Each program is the one that accelerators run, compiled for the CPU of this machine and not run:
what its arguments, results and temporaries take at the config's batch, against the 16 GB of a T4 or
of a TPU v5e. A GPU's convolutions have work spaces of their own on top, and its compiler fuses
otherwise; the data set, which a run keeps on the device, is not in it (CIFAR-10: 0.15 GB).
"""

import argparse
import importlib
import pathlib
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.parts import CLASSES, parts_of
from genreg_jax import build
from genreg_jax.config import from_config
from genreg_jax.devices import data_mesh
from genreg_jax.epoch import loop_on_device
from genreg_jax.flows import training
from genreg_jax.logs import provenance, write_json

SHAPE, IMAGES, GB = (32, 32, 3), 400, 1e9
ROWS = {
    "base": ("base", {}),
    "phantom": ("phantom", {}),
    "mgr": ("mgr", {}),
    "latent adversarial": ("latent_adversarial", {}),
    "combined": ("combined", {}),
    "combined, bfloat16 classifier": ("combined", {"model.dtype": "bfloat16"}),
    "flow's update": ("glow", {}),
    "flow's update, nothing recomputed": ("glow", {"flow.remat": False}),
}


def settings_of(method, changes):
    config = importlib.import_module(f"configs.{method}_cifar10").get_config()
    config.update_from_flattened_dict(changes)
    return from_config(config)


def classifier_update(settings):
    """The step of a run, and its arguments."""
    parts, indices = parts_of(settings, SHAPE, images=IMAGES, validation_fraction=0.1)
    args = (parts.state, parts.train_data, indices, parts.frozen, jnp.int32(1))
    step = loop_on_device(parts.step, len(indices.inner))
    return jax.jit(step, donate_argnums=0), args, parts.state.params


def flow_update(settings):
    """The update of `genreg_jax.flows.fit`, and its arguments."""
    s, key = settings.flow, jax.random.key(0)
    flow = build.flow_of(s, SHAPE, CLASSES)
    options = (s.updates, s.optimizer, s.learning_rate, s.weight_decay, s.warmup, s.grad_clip)
    mesh = data_mesh(1, s.batch_size)
    augment = build.views_of(settings, SHAPE)["flow"]
    tx, _, _, step, _ = training._compiled(flow, (*options, s.ema_decay), augment, mesh)
    x = jax.ShapeDtypeStruct((s.batch_size, *SHAPE), jnp.float32)
    params = jax.eval_shape(lambda x: ravel_pytree(flow.init(key, x))[0], x)
    state = training._State(
        params, params, jax.eval_shape(tx.init, params), jnp.zeros(()), jnp.int32(0)
    )
    images = np.zeros((IMAGES, *SHAPE), np.uint8)
    return step, (state, key, 0, images, None, np.arange(s.batch_size)), params


def measure(row):
    """One line."""
    method, changes = ROWS[row]
    settings = settings_of(method, changes)
    make = flow_update if settings.flow_only else classifier_update
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        program, args, params = make(settings)
        start = time.perf_counter()
        found = program.lower(*args).compile().memory_analysis()
    needed = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )
    batch = settings.flow.batch_size if settings.flow_only else settings.train.batch_size
    return {
        "row": row,
        "config": f"{method}_cifar10",
        "changes": changes,
        "batch_size": batch,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "gigabytes": needed / GB,
        "of_them_temporary": found.temp_size_in_bytes / GB,
        "compile_seconds": time.perf_counter() - start,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose names hold this")
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    print("| update | batch | parameters | GB | of them temporary |\n|---|---|---|---|---|")
    rows = []
    for row in (row for row in ROWS if args.only in row):
        rows.append(line := measure(row))
        print(
            f"| {row} | {line['batch_size']} | {line['parameters']:,} | {line['gigabytes']:.2f} | "
            f"{line['of_them_temporary']:.2f} |",
            flush=True,
        )
        if args.output:
            write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
