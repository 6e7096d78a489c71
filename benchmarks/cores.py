"""Whether a CPU's second core is better used by splitting batches over two devices.

    python benchmarks/cores.py                                  # minutes on two idle cores
    python benchmarks/cores.py base_digits mgr_fashion_mnist    # these configs

One update of a shipped config on one device, where XLA spreads single operations over the cores,
and on two, between which the batch is split, as `--config.train.devices=2` does. Both in one
process on the same random images, interleaved; medians, and the second's time in the first's.
"""

import argparse
import importlib
import pathlib
import statistics
import time

import jax
import numpy as np
from timing import interleaved, ratio

from experiments.parts import parts_of
from genreg_jax.config import from_config
from genreg_jax.devices import replicate
from genreg_jax.epoch import update_of
from genreg_jax.logs import provenance, write_json

CONFIGS = (
    "base_digits", "base_fashion_mnist", "phantom_fashion_mnist", "mgr_fashion_mnist",
    "latent_adversarial_fashion_mnist", "base_photographs:folder,small", "base_cifar10",
)  # fmt: skip
SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
IMAGES, SECONDS = 400, 6


def settings_of(name, devices):
    module, _, option = name.partition(":")
    config = importlib.import_module(f"configs.{module}").get_config(option or None)
    config.train.devices = devices
    return from_config(config)


def update(settings):
    """The step of a run with an untrained flow: compiled, with its arguments."""
    side = settings.data.image_size
    shape = SHAPES.get(settings.data.name, (side, side, 3))
    parts, indices = parts_of(settings, shape, images=IMAGES, validation_fraction=0.2)
    indices = replicate(parts.mesh, indices)
    args = (parts.state, parts.train_data, indices, parts.frozen)
    sharding = parts.state.step.sharding
    program = jax.jit(update_of(parts.step, len(indices.inner)), out_shardings=sharding)
    return program.lower(*args).compile(), args


def measure(name):
    """One line."""
    programs = {count: update(settings_of(name, count)) for count in (1, 2)}
    program, args = programs[1]
    jax.block_until_ready(program(*args))
    start = time.perf_counter()
    jax.block_until_ready(program(*args))
    rounds = int(np.clip(SECONDS / (time.perf_counter() - start), 3, 40))
    seconds = interleaved(programs, rounds)
    return {
        "config": name,
        "batch_size": settings_of(name, 1).train.batch_size,
        "milliseconds": {count: 1e3 * statistics.median(s) for count, s in seconds.items()},
        "ratio": ratio(seconds, 2, 1),
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    print("| config | batch | ms on one device | on two | ratio |\n|---|---|---|---|---|")
    rows = []
    for name in args.configs:
        rows.append(row := measure(name))
        one, two = row["milliseconds"].values()
        print(
            f"| {name} | {row['batch_size']} | {one:.1f} | {two:.1f} | {row['ratio']:.2f} |",
            flush=True,
        )
    if args.output:
        write_json(args.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
