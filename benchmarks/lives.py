"""Does a long life cost memory, files or threads? One long run, and many in one process.

    python benchmarks/lives.py                          # some five minutes on one core

A tiny classifier is trained for 5,000 updates, with a checkpoint an epoch, and a tiny run with a
flow is made 30 times in one process. Read are resident memory (after a garbage collection, the
allocator's free memory given back), open files, Python's threads and all threads, those of the
pools of C++ among them, after a warm-up and at the end. Files and Python's threads must not grow;
all threads by no more than the pools have places, which they fill when they need to; memory
by no more than 20 MB over the long run and, without what JAX keeps of its compiled programs, by no
more than 1 MB a repeated run. What it keeps is printed too. The exit status is 1 if anything grew
beyond that.
"""

import argparse
import ctypes
import gc
import os
import pathlib
import shlex
import sys
import tempfile
import threading

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
POOLS = 8  # places of the pools of threads that JAX and tensorstore have on a machine of few cores


def usage():
    """Megabytes of resident memory, open files and threads of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {
        "megabytes": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "files": len(os.listdir("/proc/self/fd")),
        "Python threads": threading.active_count(),
        "threads": len(os.listdir("/proc/self/task")),
    }


def long_run(folder):
    """Usage of a long run: memory after ten epochs and the last one, the rest beside a short one.

    In the middle of a run a checkpoint may be on its way to the disk, with files and threads.
    """
    seen = []
    short = {**TINY, "train": {**TINY["train"], "epochs": 2}}
    gr.train_and_evaluate(short, folder / "short")
    before = usage()
    gr.train_and_evaluate(TINY, folder / "long", callbacks=[lambda *_: seen.append(usage())])
    warm, end = seen[9]["megabytes"], seen[-1]["megabytes"]
    return {
        "warm": {**before, "megabytes": warm},
        "at the end": {**usage(), "megabytes": end},
    }


def repeated_runs(folder, runs, warm_up):
    """Usage after the warm-up and after the last run, with and without JAX's caches."""
    seen = {}
    for i in range(runs):
        gr.train_and_evaluate(WITH_FLOW, folder / str(i))
        if i + 1 in (warm_up, runs):
            name = "warm" if i + 1 == warm_up else "at the end"
            seen[f"{name}, with JAX's caches"] = usage()
            jax.clear_caches()
            seen[name] = usage()
    return seen


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
        for what, reading in seen.items():
            print(f"  {what:30} " + ", ".join(f"{n} {k}" for k, n in reading.items()))
        limits = {"megabytes": allowed, "files": 0, "Python threads": 0, "threads": POOLS}
        for what, limit in limits.items():
            if seen["at the end"][what] - seen["warm"][what] > limit:
                grown.append(f"{name}: {what}")
    print("grown beyond what is allowed: " + ("; ".join(grown) or "nothing"))
    if args.output:
        command = shlex.join(["python", "benchmarks/lives.py", *sys.argv[1:]])
        write_json(args.output, {"command": command, "rows": rows, "grown": grown, **provenance()})
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
