"""Does a run survive what happens to runs? Counts over random trials.

    python benchmarks/faults.py --trials 50             # some 20 seconds a trial on one core

A small MGR run on digits, which trains a flow first, is made once without any fault. Then, with
times and places drawn at random:

  SIGKILL     it is killed, and started again until it ends
  SIGTERM     the same, with the signal of a scheduler
  bit flip    a bit of a file of the newest checkpoint is turned over, and the checkpoint restored
  truncation  such a file is cut off
  disk full   from a random moment on no file can grow beyond a kilobyte, as on a full disk; the
              run is then continued without that
  two writers the same command is started beside it; the second must be told so, and the first end
  reader      `predict`, `augment` or `flows.evaluate` is run beside it, and must end in words
  folder      the folder of its checkpoints cannot be made or filled: a file is in its place, it is
              immutable, its device is full of bytes or of names, or its path is too long; the run
              must end within 10 seconds of saying so
  every operation
              not at random: a smaller run is stopped before each of its operations on a file, and
              what lies in the workdir then, which is what a SIGKILL there leaves, is copied; every
              copy is gone on with, must say nothing of damage and leave no file behind that a run
              without a fault does not

A run passes if its last checkpoint, metrics and summary (times aside) are bit for bit those of the
run without a fault; a damaged checkpoint, if the one before it comes back bit for bit, or itself
where the damage does not reach what is stored. The exit status is 1 if anything failed.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from processes import Command
from syscalls import states

import genreg_jax as gr
from genreg_jax import data
from genreg_jax.checkpoint import Checkpoints
from genreg_jax.logs import provenance, write_json
from genreg_jax.report.images import save_png

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = [
    *("genreg_jax.main", "--config=configs/mgr_digits.py:runlocal"),
    *("--config.train.epochs=6", "--config.train.steps_per_epoch=4", "--config.flow.updates=40"),
    *("--config.flow.eval_every=10", "--config.synthetic.batch_size=16"),
]
SMALL = [
    *("--config.meta.enabled=False", "--config.model.widths=(4,8)", "--config.flow.levels=1"),
    *("--config.flow.steps=1", "--config.flow.width=4"),
]
TINY = {
    "data": {"name": "digits", "per_class": 8},
    "model": {"widths": [4, 8]},
    "synthetic": {"loss": "pcr", "strong": "none", "batch_size": 8},
    "flow": {"levels": 1, "steps": 1, "width": 4, "updates": 2, "eval_every": 1},
    "train": {"epochs": 3, "steps_per_epoch": 1, "batch_size": 16, "progress": False},
}
FAULTS = (
    *("SIGKILL", "SIGTERM", "bit flip", "truncation", "disk full", "two writers", "reader"),
    "folder",
)
TIMES = ("stages", "seconds", "images_per_second", "compile_seconds", "checksum")


def start(workdir):
    return Command(*COMMAND, f"--workdir={workdir}", cwd=ROOT)


def finish(workdir):
    """Runs to the end, however often a run has been started in that workdir before.

    Returns seconds from the first line, when the data are read, to the end.
    """
    process = start(workdir)
    process.stdout.readline()
    began = time.perf_counter()
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {text[-2000:]}")
    return time.perf_counter() - began


def digest(tree):
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        sha256.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return sha256.hexdigest()


def untimed(value):
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return value


def outcome(workdir):
    """All of a finished run that must not depend on what happened to it."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step, tree, _ = checkpoints.restore(None)
    return {
        "parameters, states and best model": (step, digest(tree)),
        "metrics": (workdir / "metrics.jsonl").read_bytes(),
        "summary": untimed(json.loads((workdir / "summary.json").read_text())),
    }


def different(found, whole):
    """Names of what differs, of the summary its entries."""
    wrong = [name for name, value in found.items() if value != whole[name]]
    summaries = found["summary"], whole["summary"]
    names = {**summaries[0], **summaries[1]}
    return wrong + [n for n in names if summaries[0].get(n) != summaries[1].get(n)]


def stage(workdir):
    """What the run was at when it stopped."""
    if (workdir / "summary.json").exists():
        return "at the end"
    if list(workdir.glob("checkpoints/*tmp*")) or list(workdir.glob("flow*/*tmp*")):
        return "while saving"
    if (workdir / "checkpoints").exists():
        return "training the classifier"
    if (workdir / "flow").exists():
        return "between flow and classifier"
    return "training the flow" if (workdir / "flow_training").exists() else "before training"


def interrupted(workdir, signum, delay):
    """Sends a signal that long after the first line; returns what was being done then."""
    process = start(workdir)
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signum)
    text, _ = process.communicate()
    allowed = {-signal.SIGKILL} if signum == signal.SIGKILL else {-signum, 128 + signum}
    if process.returncode not in allowed | {0} or "Traceback" in text:
        raise RuntimeError(f"exit status {process.returncode}: {text[-2000:]}")
    return stage(workdir)


def with_full_disk(workdir, delay):
    """Runs, with a full disk that long after the first line; returns what was being done then."""
    process = start(workdir)
    process.stdout.readline()
    time.sleep(delay)
    if process.poll() is None:  # Python ignores SIGXFSZ, so that writing fails as on a full disk
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    text, _ = process.communicate()
    paragraph = process.returncode == 1 and "run the same command again" in text.splitlines()[-1]
    if "Traceback" in text or not (paragraph or process.returncode == 0):
        raise RuntimeError(text[-2000:])
    return stage(workdir)


def beside(workdir, delay, command):
    """Runs a command that long after the first line of a run; its exit status and output.

    The run must end as if nothing had been there.
    """
    process = start(workdir)
    process.stdout.readline()
    time.sleep(delay)
    other = Command(*command, cwd=ROOT)
    said, _ = other.communicate()
    text, _ = process.communicate()
    if process.returncode or "Traceback" in said:
        raise RuntimeError(f"exit status {process.returncode}: {text[-1000:]} {said[-1000:]}")
    return other.returncode, said.strip()


def second_writer(workdir, delay):
    """Starts the same command beside a run."""
    status, said = beside(workdir, delay, [*COMMAND, f"--workdir={workdir}"])
    if status == 0:
        return "came after the end"
    if status != 1 or "Another program" not in said.splitlines()[-1]:
        raise RuntimeError(f"exit status {status}: {said[-1000:]}")
    return "refused"


def reader(workdir, delay, rng):
    """Runs a command that reads the workdir beside a run."""
    images, output = workdir.parent / "images", workdir.parent / "output"
    shutil.rmtree(output, ignore_errors=True)
    module, *options = rng.choice(
        [
            ["predict", f"--workdir={workdir}", f"--input={images}"],
            ["augment", f"--flow={workdir}", f"--input={images}", f"--output={output}"],
            ["flows.evaluate", f"--workdir={workdir}"],
        ]
    )
    status, said = beside(workdir, delay, [f"genreg_jax.{module}", *options])
    if status not in (0, 1) or (status and not said):
        raise RuntimeError(f"{module}: exit status {status}: {said[-1000:]}")
    return f"{module} {'had its answer' if status == 0 else 'was told that it is too early'}"


@contextlib.contextmanager
def obstructed(base, rng):
    """A workdir where some checkpoint cannot be written, and why."""
    above = base / "obstructed"
    shutil.rmtree(above, ignore_errors=True)
    above.mkdir()
    workdir, why = above / "run", rng.choice(("file", "immutable", "bytes", "names", "path"))
    if why == "path":  # that of the workdir is possible, those of a checkpoint's parts are not
        left = rng.randrange(3900, 4080) - len(str(above))
        yield above.joinpath(*["x" * 199] * (left // 200), "y" * (left % 200 or 1)), why
    elif why in ("bytes", "names"):
        limit = {
            "bytes": f"size={rng.randrange(5, 80) * 4}k",
            "names": f"nr_inodes={rng.randrange(5, 90)}",
        }
        subprocess.run(["mount", "-t", "tmpfs", "-o", limit[why], "tmpfs", above], check=True)
        try:
            yield workdir, why
        finally:
            subprocess.run(["umount", above], check=True)
    else:
        folder = workdir / rng.choice(("checkpoints", "flow", "flow_training"))
        workdir.mkdir()
        shutil.copy(base / "whole" / "config.json", workdir)
        if why == "file":
            folder.write_text("mine")
            yield workdir, f"{folder.name} is a file"
        else:
            folder.mkdir()
            subprocess.run(["chattr", "+i", folder], check=True)
            try:
                yield workdir, f"{folder.name} is immutable"
            finally:
                subprocess.run(["chattr", "-i", folder], check=True)


def unwritable(base, rng):
    """Runs in such a workdir; says what became of it."""
    with obstructed(base, rng) as (workdir, why):
        process, lines, said = start(workdir), [], time.perf_counter()
        for line in process.stdout:
            lines.append(line)
            said = time.perf_counter()
        process.communicate()
        seconds = time.perf_counter() - said
        if process.returncode == 0:
            return f"{why}: there was enough after all"
        text = "".join(lines)
        if process.returncode != 1 or seconds > 10 or "Traceback" in text:
            raise RuntimeError(
                f"{why}: status {process.returncode}, {seconds:.0f} s: {text[-2000:]}"
            )
        return why


def names(workdir):
    """Of the files of a run, but for those that carry chance or the time in their names."""
    files = [path.relative_to(workdir) for path in workdir.rglob("*")]
    return {str(p) for p in files if p.parent.name != "d" and "tensorboard" not in p.parts}


def every_operation(base, most):
    """The row of that fault; at most so many states, evenly over the run."""
    train = functools.partial(gr.train_and_evaluate, TINY)
    traced, run = base / "traced", base / "continued"
    operations, found = states(lambda: train(traced), traced, base / "states")
    whole, files = outcome(traced), names(traced)
    where, failures = collections.Counter(), []
    print(f"{sum(operations.values())} operations, {len(found)} states", flush=True)
    tried = found[:: -(-len(found) // most)] if most else found
    for name, path, copy in tried:
        shutil.rmtree(run, ignore_errors=True)
        if copy.exists():
            shutil.copytree(copy, run)
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                train(run)
            wrong = different(outcome(run), whole)
            wrong += sorted(names(run) ^ files) + said.getvalue().splitlines()
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if wrong:
            failures.append(f"before {name} {path}: {'; '.join(wrong)}")
            print(f"every operation: {failures[-1]}", flush=True)
        else:
            where[name] += 1
    return {
        "fault": "every operation", "trials": len(tried), "passed": len(tried) - len(failures),
        "operations": operations, "states": len(found), "where": where, "failures": failures,
    }  # fmt: skip


def damage(folder, rng, kind):
    """Flips a bit of, or cuts off, a random file that is not empty."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if kind == "bit flip":
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[:place])


def restored(workdir, scratch, rng, kind, expected, like):
    """Damages a copy of the newest checkpoint; says which one came back, or fails."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(workdir / "checkpoints", scratch / "checkpoints")
    newest = max(expected)
    damage(scratch / "checkpoints" / str(newest), rng, kind)
    with Checkpoints(scratch / "checkpoints", note=lambda text: None) as checkpoints:
        found = checkpoints.restore(like)
    if found is None or expected.get(found[0]) != digest(found[1]):
        raise RuntimeError(f"{None if found is None else found[0]} came back, or wrongly")
    return "the one before came back" if found[0] != newest else "no harm done"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="FAULT", help="such as SIGKILL")
    parser.add_argument(
        "--small", action="store_true", help="no finder, small networks: half the time"
    )
    parser.add_argument("--most", type=int, default=0, help="states of `every operation`; 0 is all")
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows, wanted = [], list(args.only or ["every operation", *FAULTS])
    COMMAND.extend(SMALL if args.small else [])
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        for name, value in {  # for the processes to come, and for this one
            "jax_compilation_cache_dir": str(base / "compiled"),
            "jax_persistent_cache_min_compile_time_secs": 0,
        }.items():
            os.environ[name.upper()] = str(value)
            jax.config.update(name, value)
        # Before anything else, for it forks this process, which must have no threads yet.
        if "every operation" in wanted:
            rows.append(every_operation(base, args.most))
            wanted.remove("every operation")
        if not wanted:
            finished(rows, args.output)
        finish(base / "compiling")  # fills the cache of compiled programs
        seconds = finish(base / "whole")
        test = data.load("digits").test
        for i, (image, label) in enumerate(zip(test.images[:20], test.labels)):
            save_png(base / "images" / str(label) / f"{i}.png", image)
        whole = outcome(base / "whole")
        with Checkpoints(base / "whole" / "checkpoints") as checkpoints:
            newest, like, _ = checkpoints.restore(None)
        like[0]["key"] = jax.random.wrap_key_data(like[0]["key"])
        shutil.copytree(base / "whole" / "checkpoints", base / "before" / "checkpoints")
        shutil.rmtree(base / "before" / "checkpoints" / str(newest))
        with Checkpoints(base / "before" / "checkpoints") as checkpoints:
            before, tree, _ = checkpoints.restore(like)
        expected = {newest: digest(like), before: digest(tree)}

        def continued(fault):
            workdir = base / "run"
            shutil.rmtree(workdir, ignore_errors=True)
            delay = rng.uniform(0, seconds)
            if fault == "disk full":
                where = with_full_disk(workdir, delay)
            elif fault == "two writers":
                where = second_writer(workdir, delay)
            elif fault == "reader":
                where = reader(workdir, delay, rng)
            else:
                where = interrupted(workdir, signal.Signals[fault], delay)
            finish(workdir)
            wrong = different(outcome(workdir), whole)
            if wrong:
                raise RuntimeError(f"after {fault} {where}: {', '.join(wrong)} differ")
            return where

        def trial(fault):
            if fault in ("bit flip", "truncation"):
                scratch = base / "scratch"
                return restored(base / "whole", scratch, rng, fault, expected, like)
            return unwritable(base, rng) if fault == "folder" else continued(fault)

        print(f"a run takes {seconds:.1f} s from its first line, without a fault", flush=True)
        for fault in wanted:
            where: collections.Counter = collections.Counter()
            failures = []
            for _ in range(args.trials):
                try:
                    where[trial(fault)] += 1
                except Exception as error:
                    failures.append(str(error))
                    print(f"{fault}: {error}", flush=True)
            passed = args.trials - len(failures)
            details = ", ".join(f"{count} {what}" for what, count in where.most_common())
            print(f"{fault:11} {passed} of {args.trials} passed: {details}", flush=True)
            rows.append(
                {"fault": fault, "trials": args.trials, "passed": passed, "where": where,
                 "failures": failures}
            )  # fmt: skip
    finished(rows, args.output)


def finished(rows, output):
    for row in rows:
        print(f"{row['fault']}: {row['passed']} of {row['trials']} passed")
    if output:
        command = shlex.join(["python", "benchmarks/faults.py", *sys.argv[1:]])
        write_json(output, {"command": command, "rows": rows, **provenance()})
    sys.exit(any(row["passed"] < row["trials"] for row in rows))


if __name__ == "__main__":
    main()
