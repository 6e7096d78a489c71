"""Does every wrong invocation end in one paragraph? Counts over generated ones.

    python benchmarks/invocations.py --trials 500       # minutes on one core

Hypothesis draws command lines (overrides of any setting with values that fit and that do not,
unknown flags, wrong config files, used or impossible workdirs) and data folders (a prepared
CIFAR-10 of 60 images with files removed, cut off, emptied or with a bit turned over). Each must end
within 20 seconds with a X A process is
forked for each; what starts to train is not trained to the end.
"""

import argparse
import collections
import hashlib
import io
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import hypothesis
import numpy as np
from flax.traverse_util import flatten_dict
from hypothesis import strategies as st

import genreg_jax.train
from genreg_jax import main as command
from genreg_jax.config import default_config

ROOT = pathlib.Path(__file__).parents[1]
STARTED = 77  # exit status of a process that got as far as training
SECONDS = 20  # of processor time, which other programs on the machine do not change
PATIENCE = 120  # seconds of waiting
MEMORY = 24 * 2**30  # of a process's address space, so that none takes the machine down
SETTINGS = sorted(
    key for key in flatten_dict(default_config().to_dict(), sep=".") if key != "data.download"
)

VALUES = st.one_of(
    st.sampled_from("-1 0 1 2 3 7 100000 2147483648 99999999999999999999".split()),
    st.sampled_from("-1.0 -0.0 0.5 1.0 1e-30 1e30 nan inf -inf".split()),
    st.sampled_from(["", "none", "None", "True", "false", "mgr", "l2", "flip+crop(9)", "crop(99)"]),
    st.sampled_from(["[1,2]", "(4,)", "()", "{}", "'", '"', "../x", "/dev/null", "é", "a" * 300]),
    st.sampled_from(["cutout(-1)", "adversarial", "pgd", "attraction", "pcr", "adam", "resnet18"]),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
)
OVERRIDES = st.builds(
    lambda key, value: f"--config.{key}={value}", st.sampled_from(SETTINGS), VALUES
)
ODD = st.sampled_from(
    [
        "--config.data",
        "--config.nope=1",
        "--config.train.epoch=3",
        "--config.train=3",
        "--nope",
        "-x",
    ]
    + ["extra", "--config.seed", "--config.model.widths=[4,x]", "--config.=1", "--"]
    + ["--config.data.name=cifar", "--config.data.name=imagenet2012", "--config.data.dir=/nowhere"]
)
CONFIGS = st.sampled_from(
    ["configs/base_digits.py:runlocal"] * 9
    + ["configs/phantom_digits.py:runlocal", "configs/pgd_digits.py:runlocal"]
    + ["configs/base_digits.py:nope", "configs/nope.py", "configs", "README.md", ""]
    + ["{folder}/raises.py", "{folder}/empty.py", "{folder}/number.py", "{folder}/syntax.py"]
)
WORKDIRS = st.sampled_from(
    ["{folder}/new"] * 9
    + ["{folder}/file", "{folder}/other", "{folder}/used", "/proc/new", "a" * 300]
)
DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 99),
        st.sampled_from(["remove", "empty", "cut", "turn", "folder"]),
        st.integers(0, 10**6),
    ),
    max_size=3,
)
LINES = st.one_of(
    st.tuples(
        CONFIGS, WORKDIRS, st.lists(st.one_of(OVERRIDES, OVERRIDES, ODD), max_size=3), st.none()
    ),
    st.tuples(
        st.just("configs/base_cifar10.py:runlocal"), st.just("{folder}/new"), st.just([]), DAMAGE
    ),
)


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


def furnish(folder):
    """What the command lines refer to."""
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
    status, text, _ = invoke(folder, ("configs/base_digits.py:runlocal", "{folder}/used", [], None))
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


def invoke(folder, line):
    """Runs one command line in a process of its own: exit status, output and processor seconds."""
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
    arguments = [argument.replace("{folder}", str(folder)) for argument in arguments]
    with tempfile.TemporaryFile() as stream:
        child = os.fork()
        if child == 0:
            try:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
                run_in_child(arguments)
            finally:
                os._exit(76)
        status, seconds = wait(child)
        stream.seek(0)
        return status, stream.read().decode(errors="replace"), seconds


def run_in_child(arguments):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(ROOT)

    def started(*args, **kwargs):
        raise SystemExit(STARTED)

    genreg_jax.train.compile_epoch = started
    sys.argv = ["genreg_jax", *arguments]
    try:
        command.console()
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(76)


def wait(child):
    """Exit status, or minus the signal, and processor seconds; SIGKILL after some patience."""
    for _ in range(int(PATIENCE / 0.02)):
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def contents(folder):
    names = ("file", "other", "used")
    files = [p for n in names for p in [folder / n, *(folder / n).rglob("*")] if p.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check(folder, line, counts):
    before = contents(folder)
    shutil.rmtree(folder / "new", ignore_errors=True)
    status, text, seconds = invoke(folder, line)
    said = text.strip()
    assert "Traceback" not in text, text[-3000:]
    assert seconds < SECONDS, f"{seconds:.0f} seconds"
    if status == STARTED:
        counts["started to train"] += 1
    else:
        assert status == 1, f"exit status {status}: {text[-2000:]}"
        assert said and "\n\n" not in said, f"not one paragraph: {text[-2000:]}"
        assert contents(folder) == before, "an existing workdir was changed"
        counts["ended in a paragraph"] += 1


def run(trials, *, verbose=False, derandomize=True):
    """Runs so many generated invocations; raises at the smallest that misbehaves."""
    counts: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        furnish(folder)

        @hypothesis.settings(
            max_examples=trials,
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(LINES)
        def every(line):
            if verbose:
                print(line, flush=True)
            check(folder, line, counts)

        every()
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--verbose", action="store_true", help="print every invocation")
    args = parser.parse_args()
    counts = run(args.trials, verbose=args.verbose)
    print(
        f"{sum(counts.values())} invocations: " + ", ".join(f"{n} {k}" for k, n in counts.items())
    )


if __name__ == "__main__":
    main()
