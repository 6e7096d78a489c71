"""Does a long life cost memory, files or threads? One long run, and many in one process.

    python benchmarks/lives.py                          # some two minutes on one core

A tiny classifier is trained for 5,000 updates, with a checkpoint an epoch, and a tiny run with a
flow is made 30 times in one process. Resident memory (after a garbage collection, the allocator's
free memory given back), open files and threads are read after a warm-up and at the end. Files and
threads must not grow, memory by no more than 20 MB over the long run and by no more than 1 MB a
repeated run. They are also read after `jax.clear_caches()`, which says what of it is JAX's compiled
programs. The exit status is 1 if anything grew beyond that.
"""

import argparse
import ctypes
import gc
import os
import pathlib
import shlex
import sys
import tempfile

import jax

import genreg_jax as gr
from genreg_jax.logs import provenance, write_json

TINY = {
    "data": {"name": "digits", "per_class": 8},
    "model": {"widths": [4, 8]},
    "train": {"epochs": 50, "steps_per_epoch": 100, "batch_size": 16, "progress": False},
}
WITH_FLOW = {
    **TINY,
    "synthetic": {"loss": "pcr", "strong": "none", "batch_size": 8},
    "flow": {"levels": 1, "steps": 1, "width": 4, "updates": 2, "eval_every": 1},
    "train": {"epochs": 2, "steps_per_epoch": 2, "batch_size": 16, "progress": False},
}
LONG, REPEATED = 20.0, 1.0  # megabytes of growth that are allowed, in all and a run


def usage():
    """Megabytes of resident memory, open files and threads of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {
        "megabytes": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def long_run(folder):
    """Usage after the fifth epoch and after the last one."""
    seen = []

    def callback(step, metrics):
        if step in (500, 5000):
            seen.append(usage())

    gr.train_and_evaluate(TINY, folder / "long", callbacks=[callback])
    return seen


def repeated_runs(folder, runs, warm_up):
    """Usage after the warm-up, after the last run, and then without JAX's caches."""
    seen = []
    for i in range(runs):
        gr.train_and_evaluate(WITH_FLOW, folder / str(i))
        if i + 1 in (warm_up, runs):
            seen.append(usage())
    jax.clear_caches()
    return [*seen, usage()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    warm_up = args.runs // 3
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = {
            "5,000 updates": long_run(folder),
            f"{args.runs - warm_up} runs": repeated_runs(folder, args.runs, warm_up),
        }
    grown = []
    for (name, seen), allowed in zip(rows.items(), (LONG, REPEATED * (args.runs - warm_up))):
        print(f"{name}:")
        for what, usage_then in zip(("warm", "at the end", "without JAX's caches"), seen):
            print(f"  {what:20} " + ", ".join(f"{n} {k}" for k, n in usage_then.items()))
        warm, end = seen[:2]
        limits = {"megabytes": allowed, "files": 0, "threads": 0}
        grown += [f"{name}: {k}" for k, limit in limits.items() if end[k] - warm[k] > limit]
    print("grown beyond what is allowed: " + ("; ".join(grown) or "nothing"))
    if args.output:
        command = shlex.join(["python", "benchmarks/lives.py", *sys.argv[1:]])
        write_json(args.output, {"command": command, "rows": rows, "grown": grown, **provenance()})
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
