"""Does every wrong invocation end in one paragraph? Counts over generated ones.

    python benchmarks/invocations.py --trials 500       # minutes on one core

Hypothesis draws command lines (of `main`: overrides of any setting with values that fit and that do
not, unknown flags, wrong config files, used or impossible workdirs; of the other commands: right
and wrong folders and options), data folders (a prepared CIFAR-10 of 60 images with files removed,
cut off, emptied or with a bit turned over), and the manner of the call: streams that are closed,
full, left by their reader or of another encoding; environment variables; SIGINT or SIGTERM at a
random moment. Each must end within 20 seconds of processor time, 60 seconds and 2 GB, without a
traceback; with status 1 and one paragraph, with that of the signal, with 0, or having got as far
as training, which is not made. A process is forked for each; one in 25 is a process of its own, in
some locale, so that the imports are met too.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import os
import pathlib
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st
from lines import LINES, MANNERS, ODD_AT_IMPORT, OTHERS

import genreg_jax.flows.evaluate
import genreg_jax.predict
import genreg_jax.train
from genreg_jax.door import answer_interrupts
from genreg_jax.logs import provenance, write_json

ROOT = pathlib.Path(__file__).parents[1]
STARTED = 77  # exit status of a process that got as far as training
SECONDS = 60  # of processor time, which other programs on the machine do not change
PATIENCE = 60  # seconds of waiting, where the machine has nothing else to do
MEMORY = 2 * 2**30  # bytes in use at most
ADDRESSES = 24 * 2**30  # of a process, so that none takes the machine down


def fake_cifar10(path):
    """An archive in CIFAR-10's format with 40 training and 20 test images."""
    rows = np.random.default_rng(0).integers(0, 256, (60, 3073), np.uint8)
    rows[:, 0] = np.arange(60) % 10
    members = {f"data_batch_{k + 1}.bin": rows[8 * k : 8 * k + 8].tobytes() for k in range(5)}
    members["test_batch.bin"] = rows[40:].tobytes()
    members["batches.meta.txt"] = "\n".join(f"class {c}" for c in range(10)).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def furnish(folder, trained):
    """What the command lines refer to; a finished run, which takes a minute, if `trained`."""
    (folder / "raises.py").write_text("def get_config():\n    raise RuntimeError('no')\n")
    (folder / "empty.py").write_text("")
    (folder / "number.py").write_text("def get_config():\n    return 3\n")
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "file").write_text("mine")
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("mine")
    fake_cifar10(folder / "archive.tar.gz")
    sha256 = hashlib.sha256((folder / "archive.tar.gz").read_bytes()).hexdigest()
    # In a process of its own, for array_record's threads would not survive the forks.
    options = [f"--data_dir={folder / 'data'}", f"--archive={folder / 'archive.tar.gz'}"]
    subprocess.run(
        [sys.executable, "-m", "genreg_jax.data.prepare", "--dataset=cifar10"]
        + [*options, f"--sha256={sha256}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    if trained:
        subprocess.run(
            [sys.executable, "-m", "genreg_jax.main", f"--workdir={folder / 'run'}"]
            + ["--config=configs/latent_random_digits.py:runlocal", "--config.train.epochs=1"]
            + ["--config.flow.updates=2", "--config.train.steps_per_epoch=2"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
        )
    status, text, *_ = invoke(
        folder, ("configs/base_digits.py:runlocal", "{folder}/used", [], None)
    )
    assert status == STARTED and (folder / "used" / "config.json").exists(), text


def damaged(folder, damage):
    """A copy of the prepared data with some files damaged."""
    target = folder / "damaged"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "data", target)
    for which, how, place in damage:
        files = sorted(p for p in target.rglob("*") if p.is_file())
        if not files:
            break
        path = files[which % len(files)]
        content = path.read_bytes()
        path.unlink()
        if how == "cut":
            path.write_bytes(content[: place % (len(content) + 1)])
        elif how == "turn" and content:
            turned = bytearray(content)
            turned[place % len(content)] ^= 1 << place % 8
            path.write_bytes(turned)
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "folder":
            path.mkdir()
    return target


def arguments_of(folder, line):
    """The module of a command line and its arguments."""
    if len(line) == 2:
        module, text = line
        return f"genreg_jax.{module}", [a.replace("{folder}", str(folder)) for a in text.split(" ")]
    config, workdir, rest, damage = line
    arguments = [
        f"--config={config}",
        f"--workdir={workdir}",
        "--config.train.progress=False",
        *rest,
    ]
    if damage is not None:
        arguments.append(f"--config.data.dir={damaged(folder, damage)}")
        arguments += ["--config.data.per_class=0", "--config.train.batch_size=4"]
    arguments.append("--config.data.download=False")
    return "genreg_jax.main", [a.replace("{folder}", str(folder)) for a in arguments]


def invoke(folder, line, manner=("plain", {}, None)):
    """Runs one command line in a fork.

    Returns:
      Its exit status, output, processor seconds, seconds and bytes.
    """
    module, arguments = arguments_of(folder, line)
    stream, environment, sent = manner
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                redirect(file, stream)
                run_in_child(module, arguments, environment)
            finally:
                os._exit(76)
        status, *used = wait(child, sent)
        file.seek(0)
        return status, file.read().decode(errors="replace"), *used


def redirect(file, stream):
    """Makes the streams of this process what they are said to be; `file` gets what is written."""
    targets = {1: file.fileno(), 2: file.fileno()}
    which, _, how = stream.partition(" ")
    number = {"stdout": 1, "stderr": 2}.get(which)
    if how == "full":
        targets[number] = os.open("/dev/full", os.O_WRONLY)
    if how == "left":
        reader, targets[number] = os.pipe()
        os.close(reader)
    for place, target in targets.items():
        os.dup2(target, place)
    encoding = "utf-8" if how or stream == "plain" else stream
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
    if how == "closed":
        os.close(number)
        setattr(sys, which, None)


def run_in_child(module, arguments, environment):
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    os.chdir(ROOT)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
        if name.startswith("JAX_"):  # which have been read
            kind = type(getattr(jax.config, name.lower()))
            jax.config.update(name.lower(), bool(int(value)) if kind is bool else value)

    def started(*args, **kwargs):
        raise SystemExit(STARTED)

    genreg_jax.train.compile_epoch = started
    sys.argv = [module, *arguments]
    answer_interrupts()  # as importing the package does for `python -m`
    warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, that it is imported already
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):
                stream.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1 if stop.code else 0)
    except KeyboardInterrupt as error:
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(130)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(76)


def wait(child, sent=None):
    """Exit status, or minus the signal, processor seconds, seconds and bytes.

    `sent` is a signal and after how many seconds it is sent.
    """
    began = time.monotonic()
    while time.monotonic() - began < 3 * PATIENCE:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if sent and time.monotonic() - began > sent[1]:
            os.kill(child, sent[0])
            sent = None
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    took = time.monotonic() - began
    return os.waitstatus_to_exitcode(status), seconds, took, usage.ru_maxrss * 1024


def process(folder, line, environment, sent):
    """`invoke` as a process of its own, which imports everything."""
    module, arguments = arguments_of(folder, line)
    whole = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as file:
        started = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=whole,
            stdout=file,
            stderr=file,
        )
        status, *used = wait(started.pid, sent)
        started.returncode = status
        file.seek(0)
        return status, file.read().decode(errors="replace"), *used


def contents(folder):
    names = ("file", "other", "used")
    files = [p for n in names for p in [folder / n, *(folder / n).rglob("*")] if p.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check(folder, line, manner, counts):
    stream, environment, sent = manner
    before = contents(folder)
    shutil.rmtree(folder / "new", ignore_errors=True)
    if sum(counts.values()) % 25 == 24 and "train.epochs" not in str(line):
        odd = ODD_AT_IMPORT[sum(counts.values()) // 25 % len(ODD_AT_IMPORT)]
        # Imports take long; what would start to train is stopped there.
        sent = (signal.SIGINT, 20 * sent[1] if sent else 20)
        status, text, seconds, took, memory = process(folder, line, odd, sent)
        stream = "plain"
    else:
        status, text, seconds, took, memory = invoke(folder, line, manner)
    said = text.strip()
    assert "Traceback" not in text, text[-3000:]
    assert "Exception ignored" not in text, text[-3000:]
    assert seconds < SECONDS, f"{seconds:.0f} seconds of a processor"
    assert took < PATIENCE or took < 20 * seconds, f"{took:.0f} seconds"
    assert memory < MEMORY, f"{memory / 2**30:.1f} GB"
    stopped = {sent[0] + 128, -sent[0]} if sent else set()
    if status == STARTED:
        counts["started to train"] += 1
    elif status in stopped:
        counts["stopped by the signal"] += 1
    elif status == 0 and (sent or line[0] != "configs/base_digits.py:runlocal"):
        counts["ended well"] += 1
    else:
        usage = status == 2 and "usage:" in text.replace("\0", "")  # argparse's, maybe in UTF-16
        quiet = stream.startswith("stderr")
        assert status == 1 or usage or quiet, f"status {status}: {said[-2000:]}"
        heard = not quiet and stream != "utf-16"
        if heard and not usage:
            assert said and "\n\n" not in said, f"not one paragraph: {text[-2000:]}"
        assert contents(folder) == before, "an existing workdir was changed"
        counts["ended in a paragraph"] += 1


def run(trials, *, verbose=False, derandomize=True):
    """Runs so many generated invocations; raises at the smallest that misbehaves.

    Returns:
      Counts of how they ended, and what misbehaved, where there are hundreds of trials.
    """
    counts: collections.Counter = collections.Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        furnish(folder, trained=trials >= 100)

        @hypothesis.settings(
            max_examples=trials,
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(st.one_of(LINES, LINES, OTHERS), MANNERS)
        def every(line, manner):
            if verbose:
                print(line, manner, flush=True)
            try:
                check(folder, line, manner, counts)
            except AssertionError as error:
                if trials < 100:
                    raise
                counts["misbehaved"] += 1
                failures.append(f"{line} {manner}: {error}".replace(str(folder), "FOLDER"))
                print(failures[-1], flush=True)

        every()
    return counts, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--verbose", action="store_true", help="print every invocation")
    parser.add_argument("--output", type=pathlib.Path, help="write JSON here")
    args = parser.parse_args()
    counts, failures = run(args.trials, verbose=args.verbose)
    print(
        f"{sum(counts.values())} invocations: " + ", ".join(f"{n} {k}" for k, n in counts.items())
    )
    if args.output:
        command = shlex.join(["python", "benchmarks/invocations.py", *sys.argv[1:]])
        rows = {"command": command, "counts": counts, "failures": failures}
        write_json(args.output, {**rows, **provenance()})
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
