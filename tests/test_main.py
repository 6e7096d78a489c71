"""The command line: what it prints, and that all a user can get wrong ends in a paragraph."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from genreg_jax import build, main, train

ROOT = Path(__file__).parents[1]
TINY = (
    "--config=configs/base_digits.py:runlocal",
    "--config.data.per_class=4",
    "--config.model.widths=(4,)",
    "--config.train.epochs=1",
    "--config.train.steps_per_epoch=2",
    "--config.train.batch_size=8",
    "--config.train.progress=False",
)


def forget_flags():
    """Takes back what parsing added, so that the next command starts as a new process does."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command in this process: `cli(*arguments) -> (exit status, stdout, stderr)`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    for hook in ("excepthook", "unraisablehook"):  # which are put back with the others
        monkeypatch.setattr(sys, hook, getattr(sys, hook))
    handler = signal.getsignal(signal.SIGINT)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["genreg_jax.main", *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as stopped:
                main.console()
        finally:
            forget_flags()
            signal.signal(signal.SIGINT, handler)
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def hashes(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


WRONG = {
    "unknown key": (
        ["--config=configs/mgr_digits.py", "--config.train.epchs=3"],
        ["epchs", "Did you mean", "epochs"],
    ),
    "wrong type": (
        ["--config=configs/mgr_digits.py", "--config.train.epochs=many"],
        ["config.train.epochs", "many"],
    ),
    "out of range": (
        ["--config=configs/mgr_digits.py", "--config.train.epochs=0"],
        ["config.train.epochs must be at least 1, got 0", "given as --config.train.epochs"],
    ),
    "out of range in the file": (
        ["--config=WRONG.py"],
        ["config.optimizer.momentum must be at least 0 and below 1, got 1.5", "set by", "WRONG.py"],
    ),
    "no config": ([], ["--config=<name>", "base_digits", "mgr_cifar10"]),
    "no such config": (
        ["--config=configs/mgr_digit.py"],
        ["configs/mgr_digit.py", "Did you mean mgr_digits", "base_digits"],
    ),
    "not a config": (["--config=README.md"], ["README.md"]),
    "unknown option": (
        ["--config=configs/mgr_digits.py:runlocl"],
        ["unknown config option 'runlocl'", "runlocal"],
    ),
    "unknown flag": (["--config=configs/mgr_digits.py", "--wrokdir=a"], ["wrokdir", "workdir"]),
    "stray argument": (
        ["--config=configs/mgr_digits.py", "config.train.epochs=3"],
        ["config.train.epochs=3", "--config.key=value"],
    ),
    "absent data": (
        ["--config=configs/mgr_cifar10.py", "--config.data.dir=/no/such/folder",
         "--config.data.download=False"],
        ["/no/such/folder", "config.data.dir", "genreg_jax.data.prepare"],
    ),
    "unknown data": (
        ["--config=configs/base_digits.py", "--config.data.name=digit"],
        ["'digit'", "digits"],
    ),
    "too many per class": (
        ["--config=configs/base_digits.py", "--config.data.per_class=2000"],
        ["per_class=2000", "at most"],
    ),
    "batch too large": (
        ["--config=configs/base_digits.py", "--config.train.batch_size=201"],
        ["config.train.batch_size = 201", "200"],
    ),
    "unknown augmentation": (
        ["--config=configs/base_digits.py", "--config.augment.train=flop"],
        ["'flop'", "flip"],
    ),
    "impossible model": (
        ["--config=configs/base_digits.py", "--config.model.name=wide_resnet",
         "--config.model.depth=27"],
        ["depth", "27", "28"],
    ),
    "impossible flow": (
        ["--config=configs/mgr_digits.py", "--config.flow.levels=5"],
        ["levels=5", "levels=3"],
    ),
    "a flow alone with a term on a classifier": (
        ["--config=configs/glow_digits.py", "--config.synthetic.loss=pcr"],
        ["config.model.name = 'none'", "config.synthetic.loss = 'pcr'"],
    ),
    "no such flow": (
        ["--config=configs/mgr_digits.py", "--config.flow.workdir=/no/such/run"],
        ["config.flow.workdir = '/no/such/run'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_a_user_can_get_wrong_ends_in_one_paragraph(what, cli, tmp_path):
    arguments, words = WRONG[what]
    if arguments == ["--config=WRONG.py"]:
        text = "from configs import base_digits\n\n\ndef get_config():\n"
        text += "    config = base_digits.get_config()\n"
        text += "    config.optimizer.momentum = 1.5\n    return config\n"
        (tmp_path / "WRONG.py").write_text(text)
        arguments = [f"--config={tmp_path / 'WRONG.py'}"]
    start = time.perf_counter()
    status, _, err = cli(*arguments, f"--workdir={tmp_path / 'run'}")
    assert time.perf_counter() - start < 30
    assert status == 1
    assert err.count("\n") == 1 and err.strip(), err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


def test_a_shipped_config_does_not_take_a_package_of_ones_own_for_its_own(
    cli, tmp_path, monkeypatch
):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    (tmp_path / "configs" / "common.py").write_text("LARGE = 203\n")
    text = "from genreg_jax import default_config\n\n\ndef get_config():\n"
    text += "    from configs.common import LARGE\n\n    config = default_config()\n"
    text += "    config.data.per_class, config.train.batch_size = 20, LARGE\n    return config\n"
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name[:7] == "configs"}
    try:
        for config, size in (("mine.py", 203), ("base_digits", 202)):
            large = [f"--config.train.batch_size={size}"] * config.startswith("base")
            status, _, err = cli(f"--config={config}", *large, f"--workdir={tmp_path / 'run'}")
            assert status == 1 and f"config.train.batch_size = {size}" in err, err
    finally:
        for name in [name for name in sys.modules if name[:7] == "configs"]:
            del sys.modules[name]
        sys.modules.update(kept)


def test_a_run_prints_its_accuracy_last_and_is_not_repeated(cli, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    status, out, err = cli(*TINY, f"--workdir={workdir}")
    assert status == 0 and err == ""
    lines = out.strip().splitlines()
    assert lines[-1].startswith("test accuracy: ") and lines[-1].endswith(" %")
    assert str(workdir / "report.html") in lines[-2]
    report = (workdir / "report.html").read_text()
    assert "python -m genreg_jax.main" in report and "config.train.epochs=1" in report

    before = hashes(workdir)
    monkeypatch.setattr(build, "make_train_step", None)
    assert cli(*TINY, f"--workdir={workdir}")[1].strip().splitlines()[-1] == lines[-1]
    status, _, err = cli(*TINY, "--config.seed=1", f"--workdir={workdir}")
    assert status == 1 and err.count("\n") == 1
    assert "config.seed: 0 -> 1" in err and str(workdir) in err
    assert hashes(workdir) == before


def test_an_interrupt_says_how_to_continue(cli, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_and_evaluate", interrupt)
    status, _, err = cli(*TINY, f"--workdir={tmp_path}")
    assert status == 130 and "same command continues" in err and str(tmp_path) in err


def test_too_large_a_model_ends_in_a_paragraph(cli, tmp_path):
    widths = "--config.model.widths=(200000,200000)"  # a kernel of 1.4 TB
    status, out, err = cli(*TINY, widths, f"--workdir={tmp_path / 'new'}")
    assert status == 1 and out == ""
    assert err.startswith("Out of memory") and "width of the model" in err
    assert err.count("\n") == 1


def test_the_workdir_is_named_after_the_config_and_a_tuning_run_says_so(cli, monkeypatch):
    called = []

    def record(config, workdir, *, command):
        called.append((config, workdir, command))
        return {"test_accuracy": None}

    monkeypatch.setattr(train, "train_and_evaluate", record)
    status, out, _ = cli(*TINY, "--config.train.evaluate_test=False")
    ((config, workdir, command),) = called
    assert status == 0 and workdir == Path("runs/base_digits")
    assert config.train.epochs == 1 and config.model.widths == (4,)
    assert command == (
        "python -m genreg_jax.main --config=configs/base_digits.py:runlocal "
        "--config.data.per_class=4 '--config.model.widths=(4,)' --config.train.epochs=1 "
        "--config.train.steps_per_epoch=2 --config.train.batch_size=8 "
        "--config.train.progress=False --config.train.evaluate_test=False"
    )
    assert "test accuracy: not read" in out.strip().splitlines()[-1]


def test_a_flow_run_prints_its_bits_per_dimension_last(cli, monkeypatch):
    for bits, line in ((3.14159, "test bits/dim: 3.1416"), (None, "test bits/dim: not read")):
        result = {"test_bits_per_dim": bits}
        monkeypatch.setattr(train, "train_and_evaluate", lambda *_, result=result, **__: result)
        status, out, _ = cli("--config=configs/glow_digits.py:runlocal")
        assert status == 0 and out.strip().splitlines()[-1].startswith(line)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "genreg_jax.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_a_process_of_its_own_says_the_same_of_a_wrong_key(tmp_path):
    done = command(
        "--config=configs/mgr_digits.py", "--config.train.epchs=3", f"--workdir={tmp_path / 'run'}"
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Did you mean" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_process_of_its_own_trains_and_keeps_its_programs_for_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    programs = []
    for run in ("first", "second"):
        done = command(*TINY, f"--workdir={tmp_path / run}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("test accuracy: ")
        assert (tmp_path / run / "summary.json").exists()
        kept = (tmp_path / "cache").glob("programs/*/*-cache.*")
        programs.append({path.stat().st_ino for path in kept})
    assert len(programs[0]) > 3 and programs[1] == programs[0]  # nothing was compiled again
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("first", "second")]
    assert metrics[0] == metrics[1]


def test_which_process_this_is_says_the_environment_or_a_flag(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    run = ("--config=configs/base_digits.py", f"--workdir={tmp_path / 'run'}")
    status, _, err = cli(*run)
    assert status == 1 and "JAX_NUM_PROCESSES='two', not a whole number" in err
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    status, _, err = cli(*run, "--process_id=2")  # the flag counts
    assert status == 1 and "--process_id=2 and --num_processes=2 do not fit" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--help", "-h", "-help"])
def test_help_lists_every_shipped_config_and_every_flag(cli, flag):
    status, out, err = cli("--config=mgr_digits", flag)
    assert status == 0 and err == ""
    assert all(f"--{name}: " in out for name in ("config", "workdir", "coordinator"))
    listed = {
        f"{method}_{data}"
        for method, names in re.findall(r"^  (\w+)_\{([\w,]+)\}$", out, re.MULTILINE)
        for data in names.split(",")
    }
    assert listed == {path.stem for path in (ROOT / "configs").glob("[!_]*_*.py")}
    assert "Naive generative data augmentation" in out and max(map(len, out.splitlines())) < 100


def test_a_config_of_ones_own_imports_the_shipped_ones_wherever_it_lies(cli, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import common\n\n\ndef get_config(arg=None):\n"
        "    config = common.new('mine')\n    common.digits(config)\n"
        "    config.train.epochs = 0\n    return common.with_options(config, arg)\n"
    )
    for name in (path, os.path.relpath(path, ROOT)):
        status, _, err = cli(f"--config={name}", f"--workdir={tmp_path / 'run'}")
        assert status == 1 and err.startswith("config.train.epochs must be at least 1, got 0.")
        assert err.strip().endswith(f"It is set by {name}.")
    path.write_text("def get_config():\n    x = 1\n    return {}['a']\n")
    assert "(line 3)." in cli(f"--config={path}")[2]
    path.write_text("def get_config():\n    pass\n")
    assert "returned None; it must return a config" in cli(f"--config={path}")[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.epochs=1.5", "config.train.epochs must be a whole number, got '1.5'."),
        ("--config.meta.enabled=yes", "config.meta.enabled must be True or False, got 'yes'."),
        ("--config.meta.radius=far", "config.meta.radius must be a number, got 'far'."),
        ("--config.train=3", "config.train is a group of settings, balanced, "),
        ("--config.name.x=1", "config.name has no setting 'x'; it is no group."),
        ("--config.nope=1", "config has no setting 'nope'; it has augment, data, "),
        ("--config.meta.search=hard", "at least 0 for the search hard, got -1.0. That is its"),
        ("--config.synthetic.strong=flipp", "config.synthetic.strong: Unknown term 'flipp'"),
        ("--config.data.per_class=1000", "config.data: per_class=1000, but class "),
    ],
)
def test_an_override_is_refused_with_its_name_and_what_is_allowed(cli, tmp_path, override, message):
    given = ("--config=pcr_digits", "--config.meta.enabled=True", override)
    status, _, err = cli(*given, f"--workdir={tmp_path / 'run'}")
    assert status == 1 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
