"""The loop end to end: what it learns, how it stops, and that stopping it changes nothing."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax import build, epoch, logs, train
from genreg_jax.checkpoint import Checkpoints
from genreg_jax.compare import compare
from genreg_jax.compiled import kept_programs
from genreg_jax.config import from_config
from genreg_jax.contract import Model
from genreg_jax.devices import connect, data_mesh
from genreg_jax.errors import UserError, way_out
from genreg_jax.evaluate import calibration_error, make_evaluate, reliability
from genreg_jax.interrupt import Interrupted
from genreg_jax.state import Best
from genreg_jax.workdir import claim

ROOT = Path(__file__).parents[1]

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: (
        compilations.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
)


@pytest.fixture(autouse=True)
def no_report(monkeypatch, request):
    """Reports have tests of their own and take a second each."""
    if "reported" not in request.fixturenames:
        monkeypatch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)


class Perceptron(nn.Module):
    """One hidden layer: nothing to compile for long, and no running statistics."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, *, train):
        e = nn.tanh(nn.Dense(6)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="head")(e), e


def points(num=40, num_classes=2, seed=0, noise=30.0, test_shift=0, **options):
    """Images of 4x4 pixels, one bright quarter a class: separable by a line."""
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * num) % num_classes
    images = rng.normal(60, noise, (2 * num, 4, 4, 1))
    for i, label in enumerate(labels):
        images[i, 2 * (label // 2) :, 2 * (label % 2) :][:2, :2] += 120
    images = np.clip(images, 0, 255).astype(np.uint8)
    options = {"validation_fraction": 0.25, **options}
    test = np.roll(images[num:], test_shift, axis=1)
    return gr.data.from_arrays(
        images[:num], labels[:num], test, labels[num:], name="points", **options
    )


def small(**groups):
    """A config for `points`, with the settings of `groups` on top."""
    config = {
        "optimizer": {"learning_rate": 0.5},
        "train": {"epochs": 4, "steps_per_epoch": 3, "batch_size": 10, "progress": False},
    }
    for group, values in groups.items():
        config[group] = {**config.get(group, {}), **values} if isinstance(values, dict) else values
    return config


def run(workdir, config=None, *, dataset=None, model=None, **kwargs):
    dataset = dataset or points()
    model = model or gr.from_linen(Perceptron(dataset.num_classes))
    return gr.train_and_evaluate(config or small(), workdir, dataset=dataset, model=model, **kwargs)


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def metric_lines(workdir):
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def toy_generator():
    """Images as a smooth function of three numbers and the class."""
    rng = np.random.default_rng(5)
    params = {"w": jnp.asarray(rng.normal(size=(3, 16)), jnp.float32), "c": jnp.arange(20.0) / 10}

    def apply(params, z, y):
        return jax.nn.sigmoid(z @ params["w"] + params["c"][y][:, None]).reshape(-1, 4, 4, 1)

    return gr.Generator(apply, params, (3,))


# ---------------------------------------------------------------------------------------- learning


def test_forty_separable_points_are_learned_and_the_run_leaves_its_record(tmp_path, reported):
    summary = run(tmp_path / "new" / "folder", command="python -m here")
    assert summary["test_accuracy"] == summary["validation_accuracy"] == 1.0
    assert summary["train_examples"] == 30 and summary["validation_examples"] == 10
    assert summary["test_examples"] == 40 and summary["steps"] == 12 and summary["epochs"] == 4
    assert summary["parameters"] == 17 * 6 + 7 * 2 and summary["seed"] == 0
    assert summary["flow"] is None and len(summary["config_hash"]) == 12
    assert summary["seconds"] > 0 and summary["images_per_second"] > 0
    assert summary["device"]["platform"] == "cpu" and summary["versions"]["jax"] == jax.__version__
    workdir = tmp_path / "new" / "folder"
    assert json.loads((workdir / "summary.json").read_text()) == summary
    written = json.loads((workdir / "config.json").read_text())
    assert from_config(written) == from_config(small())
    for name in ("metrics.csv", "samples/1_real.png", "tensorboard", "checkpoints"):
        assert (workdir / name).exists()
    assert summary["test_intra_class_similarity"] > summary["test_inter_class_similarity"]
    assert "Embeddings of the test set" in (workdir / "report.html").read_text()
    assert "python -m here" in (workdir / "report.html").read_text()
    lines = metric_lines(workdir)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert set(lines[0]) == {
        "step", "train/loss", "train/cross_entropy", "train/accuracy", "train/gradient_norm",
        "train/learning_rate", "validation/accuracy", "validation/cross_entropy",
        "validation/intra_class_similarity", "validation/inter_class_similarity",
    }  # fmt: skip
    assert lines[-1]["train/loss"] < 0.5 * lines[0]["train/loss"]
    assert lines[0]["train/learning_rate"] > lines[-1]["train/learning_rate"] > 0


@pytest.fixture
def reported():
    """Asks for the report to be written."""


def test_the_model_that_is_tested_is_the_best_of_validation_not_the_last(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.9, 0.7])
    losses = iter([1.0, 1.0, 0.8, 0.1])
    seen = []

    def validate(evaluate, state, split):
        seen.append(jax.device_get(state.params))
        return {
            "validation/accuracy": next(accuracies),
            "validation/cross_entropy": next(losses),
        }

    monkeypatch.setattr(train, "validate", validate)
    dataset = points()
    model = gr.from_linen(Perceptron(2))
    summary = run(tmp_path, dataset=dataset, model=model)
    assert summary["best_step"] == 9
    assert summary["validation_accuracy"] == pytest.approx(0.9)
    images = dataset.test.images / np.float32(255)
    logits = model.apply(seen[2], {}, images, rng=None, train=False)[0].logits
    expected = np.mean(np.argmax(logits, 1) == dataset.test.labels)
    assert summary["test_accuracy"] == expected
    log_p = jax.nn.log_softmax(logits)[np.arange(40), dataset.test.labels]
    np.testing.assert_allclose(summary["test_loss"], -np.mean(log_p), rtol=1e-5)


@pytest.mark.parametrize("correct", range(0, 11))
def test_equal_accuracies_are_decided_by_the_loss(correct):
    # Tenths are not exact in binary, and a model that is kept is kept in float32.
    state = SimpleNamespace(params={}, model_state={})
    metrics = lambda loss: {"validation/accuracy": correct / 10, "validation/cross_entropy": loss}
    first = Best({}, {}, jnp.float32(-1), jnp.float32(np.inf), jnp.int32(0))
    best = epoch.better(first, state, metrics(0.7), 1)
    assert int(best.epoch) == 1
    assert int(epoch.better(best, state, metrics(0.7), 2).epoch) == 1, "a tie keeps the earlier"
    assert int(epoch.better(best, state, metrics(0.8), 2).epoch) == 1
    assert int(epoch.better(best, state, metrics(0.6), 2).epoch) == 2
    more = {"validation/accuracy": correct / 10 + 0.1, "validation/cross_entropy": 9.0}
    assert int(epoch.better(best, state, more, 2).epoch) == 2


def test_a_diverged_model_is_not_better_at_the_same_accuracy():
    state = SimpleNamespace(params={}, model_state={})
    best = Best({}, {}, jnp.float32(0.5), jnp.float32(2.0), jnp.int32(1))
    metrics = {"validation/accuracy": 0.5, "validation/cross_entropy": float("nan")}
    assert int(epoch.better(best, state, metrics, 2).epoch) == 1


def test_patience_stops_early(tmp_path):
    # Nothing is learned, so every validation after the first is a tie, at 7 of 10 and others.
    for seed in range(3):
        summary = run(
            tmp_path / str(seed),
            small(
                train={"patience": 2, "epochs": 9, "steps_per_epoch": 1},
                optimizer={"learning_rate": 0.0},
            ),
            dataset=points(num_classes=4, seed=seed),
        )
        assert summary["epochs"] == 3 and summary["steps"] == 3 and summary["best_step"] == 1


def test_without_validation_the_last_model_is_tested(tmp_path):
    config = small(train={"patience": 1, "epochs": 3})
    summary = run(tmp_path, config, dataset=points(validation_fraction=0.0))
    assert summary["validation_accuracy"] is None and summary["validation_examples"] == 0
    assert summary["train_examples"] == 40 and summary["best_step"] == summary["steps"] == 9
    assert summary["test_accuracy"] == 1.0
    assert not any("validation/accuracy" in line for line in metric_lines(tmp_path))


def test_a_tuning_run_does_not_read_the_test_set(tmp_path, monkeypatch):
    dataset = points()
    broken = dataclasses.replace(dataset.test, images=None)
    monkeypatch.setattr(gr.data.Split, "__len__", lambda self: len(self.labels))
    summary = run(
        tmp_path,
        small(train={"evaluate_test": False, "epochs": 1}),
        dataset=dataclasses.replace(dataset, test=broken),
    )
    assert summary["test_accuracy"] is None and summary["test_loss"] is None
    assert summary["validation_accuracy"] > 0.5


def test_the_seed_decides_everything(tmp_path):
    a = run(tmp_path / "a", small(seed=3, train={"epochs": 1}))
    b = run(tmp_path / "b", small(seed=3, train={"epochs": 1}))
    c = run(tmp_path / "c", small(seed=4, train={"epochs": 1}))
    assert metric_lines(tmp_path / "a") == metric_lines(tmp_path / "b")
    assert a["test_loss"] == b["test_loss"] != c["test_loss"]


@pytest.mark.parametrize("options", [{"mix": "mixup"}, {"mix": "cutmix", "label_smoothing": 0.1}])
def test_mixing_is_a_matter_of_config(tmp_path, options):
    summary = run(tmp_path, small(augment=options, train={"epochs": 2}))
    assert summary["test_accuracy"] > 0.9


# --------------------------------------------------------------------------------- synthetic data

MGR = {
    "synthetic": {"loss": "pcr", "strong": "shift(1)", "weight": 0.5},
    "meta": {"enabled": True, "hidden": [4], "learning_rate": 0.01},
}


def two_epochs(**groups):
    return small(**{**groups, "train": {**groups.get("train", {}), "epochs": 2}})


@pytest.mark.parametrize("outer", ["train", "holdout", "folds"])
def test_mgr_runs_with_an_own_model_data_and_generator(tmp_path, outer):
    summary = run(
        tmp_path,
        two_epochs(**{**MGR, "meta": {**MGR["meta"], "outer": outer, "folds": 3}}),
        generator=toy_generator(),
    )
    assert summary["test_accuracy"] > 0.8 and summary["flow"] is None
    assert summary["train_examples"] == {"train": 30, "holdout": 26, "folds": 30}[outer]
    for line in metric_lines(tmp_path):
        assert line["train/hypergradient_norm"] > 0 and line["train/outer_loss"] > 0
        total = line["train/cross_entropy"] + line["train/synthetic_loss"]
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names[-3:] == ["2_generated.png", "3_found.png", "4_views.png"]


def test_weight_zero_is_the_base_run_bit_for_bit(tmp_path):
    run(tmp_path / "base", two_epochs())
    zero = {
        "synthetic": {**MGR["synthetic"], "weight": 0.0},
        "meta": {**MGR["meta"], "outer": "train"},  # the others train on fewer images
    }
    run(tmp_path / "zero", two_epochs(**zero), generator=toy_generator())
    base, zero = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in ("base", "zero"))
    assert base == zero


def test_phantoms_are_a_matter_of_config_and_weight_zero_is_the_base_run_bit_for_bit(tmp_path):
    run(tmp_path / "base", two_epochs())
    run(tmp_path / "zero", two_epochs(phantom={"loss": "attraction", "weight": 0.0}))
    base, zero = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in ("base", "zero"))
    assert base == zero
    changes = {"phantom": {"loss": "separation", "warmup": 0.5}, "train": {"balanced": True}}
    summary = run(tmp_path / "on", two_epochs(**MGR, **changes), generator=toy_generator())
    assert summary["test_accuracy"] > 0.8
    for line in metric_lines(tmp_path / "on"):
        parts = ("cross_entropy", "embedding_loss", "synthetic_loss")
        assert all(line[f"train/{part}"] > 0 for part in parts)
        total = sum(line[f"train/{part}"] for part in parts)
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)


def test_the_synthetic_batch_has_its_own_size_and_naive_augmentation_needs_no_finder(tmp_path):
    shapes = []

    def recording(params, z, y):
        shapes.append(z.shape)
        return toy_generator().apply(params, z, y)

    summary = run(
        tmp_path,
        two_epochs(synthetic={"loss": "cross_entropy", "batch_size": 6, "weight": 0.1}),
        generator=toy_generator()._replace(apply=recording),
    )
    # Two latents show whether its images are those of the data set.
    assert shapes[:2] == [(2, 3), (6, 3)] and summary["test_accuracy"] > 0.8
    assert not (tmp_path / "samples" / "3_found.png").exists()


# ----------------------------------------------------------------------------------------- devices

PHANTOM = {"phantom": {"loss": "attraction", "weight": 1.0}}
PARTS = {
    "base": {},
    "phantom": PHANTOM,
    "all": {
        **PHANTOM,
        "latent": {"kind": "adversarial", "epsilon": 0.5, "step_size": 0.3, "num_steps": 2},
        "synthetic": {"loss": "pcr", "batch_size": 16, "strong": "shift(1)"},
        "meta": {"enabled": True, "hidden": [8]},
    },
}


def eight_by_eight(part, devices, **options):
    return {
        "data": {"name": "digits", "per_class": 8, "validation_fraction": 0.1},
        "model": {"widths": [4, 8]},
        "augment": {"train": "shift(1)"},
        "optimizer": {"learning_rate": 0.01},
        "flow": {"levels": 1, "steps": 1, "width": 4, "updates": 4, "eval_every": 2},
        **PARTS[part],
        "train": {
            "epochs": 4, "steps_per_epoch": 5, "batch_size": 16, "progress": False,
            "devices": devices, **options,
        },
    }  # fmt: skip


@pytest.mark.parametrize("part", ["base", "all"])
def test_eight_devices_compute_what_one_computes(tmp_path, part, monkeypatch):
    shapes, make = [], build.make_train_step

    def recording(*args, constrain, **kwargs):
        def recorded(tree):
            jax.debug.inspect_array_sharding(
                jax.tree.leaves(constrain(tree))[0],
                callback=lambda sharding: shapes.append(sharding.shard_shape((16, 4))),
            )
            return constrain(tree)

        return make(*args, constrain=recorded, **kwargs)

    one = gr.train_and_evaluate(eight_by_eight(part, 1), tmp_path / "1")
    monkeypatch.setattr(build, "make_train_step", recording)
    eight = gr.train_and_evaluate(eight_by_eight(part, 8), tmp_path / "8")
    assert shapes and {shape[0] for shape in shapes} <= {2, 16} and 2 in {s[0] for s in shapes}
    losses = [m["train/loss"] for m in metric_lines(tmp_path / "1") if "train/loss" in m]
    assert len(losses) == 4 and losses[0] != losses[3]
    same_losses(tmp_path / "1", tmp_path / "8")
    np.testing.assert_allclose(one["test_loss"], eight["test_loss"], rtol=1e-4)


def test_a_run_on_eight_devices_continues_on_one(tmp_path, monkeypatch):
    validate, calls = train.validate, []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gr.train_and_evaluate(eight_by_eight("phantom", 8), tmp_path / "moved")
    gr.train_and_evaluate(eight_by_eight("phantom", 1), tmp_path / "moved")
    gr.train_and_evaluate(eight_by_eight("phantom", 1), tmp_path / "stayed")
    a, b = metric_lines(tmp_path / "moved"), metric_lines(tmp_path / "stayed")
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x["train/loss"], y["train/loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (9, "devices = 9, but JAX sees 8"),
        (5, "batch_size = 16 does not divide evenly over config.train.devices = 5"),
    ],
)
def test_a_number_of_devices_that_does_not_fit_is_refused(tmp_path, devices, message):
    with pytest.raises(gr.UserError, match=message):
        gr.train_and_evaluate(eight_by_eight("base", devices), tmp_path)


def test_as_many_accelerators_are_used_as_divide_the_batches(monkeypatch):
    assert data_mesh(0, 64).size == 1  # on CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [data_mesh(0, size).size for size in (64, 12, 50, 11)] == [8, 6, 5, 1]


OVERRIDES = "train.epochs=3 train.steps_per_epoch=2 model.widths=(4,8)".split()


def processes(count, folder, *arguments):
    """Starts `python *arguments`, as one of several processes as the environment says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if count > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
        environment |= {"JAX_NUM_PROCESSES": str(count)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    return [
        subprocess.Popen(
            [sys.executable, *arguments], env=environment | {"JAX_PROCESS_ID": str(i)}, **pipes
        )
        for i in range(count)
    ]


def same_losses(one, other):
    """Of two workdirs, to float32's rounding."""
    lines = [metric_lines(workdir) for workdir in (one, other)]
    for x, y in zip(*lines, strict=True):
        for name in x:
            if name.startswith(("train/", "flow/")) and name.endswith(("loss", "entropy", "dim")):
                np.testing.assert_allclose(x[name], y[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_two_processes_stop_together_continue_and_compute_what_one_computes(tmp_path):
    def start(workdir, count):
        overrides = [f"--config.{override}" for override in OVERRIDES]
        config = "--config=configs/phantom_digits.py:runlocal"
        command = ("-m", "genreg_jax.main", config, *overrides)
        return processes(count, tmp_path, *command, f"--workdir={tmp_path / workdir}")

    two = start("two", 2)
    for line in two[0].stdout:  # the signal goes to the second process alone
        if "train  step 1/6" in line:
            two[1].send_signal(signal.SIGTERM)
            break
    outputs = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [143, 143], outputs
    assert "Stopped by SIGTERM after update" in outputs[0], outputs[0]
    both = [*start("two", 2), *start("one", 1)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], outputs
    assert "continuing after update" in outputs[0] and "test accuracy" in outputs[0]
    assert "test accuracy" not in outputs[1]
    same_losses(tmp_path / "one", tmp_path / "two")
    files = [sorted(p.name for p in (tmp_path / n).rglob("*.png")) for n in ("one", "two")]
    assert files[0] == files[1] and "1_real.png" in files[0]


def test_two_processes_compute_what_one_computes_in_every_part(tmp_path):
    program = """
import json, os, sys
import genreg_jax as gr
from genreg_jax.devices import connect
connect(os.environ["JAX_COORDINATOR_ADDRESS"], 2, int(os.environ["JAX_PROCESS_ID"]))
gr.train_and_evaluate(json.loads(sys.argv[1]), sys.argv[2])
"""
    config = json.dumps(eight_by_eight("all", 0))
    two = processes(2, tmp_path, "-c", program, config, str(tmp_path / "two"))
    gr.train_and_evaluate(eight_by_eight("all", 1), tmp_path / "one")
    outputs = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    same_losses(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("error", ["UserError", "ValueError"])
def test_a_process_that_fails_does_not_wait_for_the_others_nor_they_for_it(error, tmp_path):
    program = f"""
import os
from genreg_jax.devices import agreed, connect
from genreg_jax.door import leave, through
from genreg_jax.errors import UserError

def command():
    me = int(os.environ["JAX_PROCESS_ID"])
    connect(os.environ["JAX_COORDINATOR_ADDRESS"], 2, me)
    agreed("ready")
    if me == 1:
        raise {error}("its own reason")
    agreed("never")

leave(through(command))
"""
    two = processes(2, tmp_path, "-c", program)
    outputs = [process.communicate(timeout=100)[0] for process in two]  # JAX itself waits 300 s
    assert [process.returncode for process in two] == [1, 1], outputs
    assert "its own reason" in outputs[1]
    assert ("Traceback" in outputs[1]) == (error == "ValueError")
    assert "Another process has ended" in outputs[0] and "Traceback" not in outputs[0]


def test_processes_that_cannot_connect_are_told_how():
    with pytest.raises(gr.UserError, match="counted from 0 to --num_processes - 1"):
        connect("localhost:1", 2, 2)


# ---------------------------------------------------------------------------------------- resuming

DIGITS = {
    "data": {"name": "digits", "per_class": 8, "validation_fraction": 0.1},
    "model": {"widths": [4, 8]},
    "augment": {"train": "shift(1)"},
    "train": {"epochs": 3, "steps_per_epoch": 2, "batch_size": 16, "progress": False},
}
METHODS = {
    "base": DIGITS,
    "mgr": {
        **DIGITS,
        "synthetic": {"loss": "pcr", "strong": "shift(1)", "batch_size": 6},
        "meta": {"enabled": True, "hidden": [8]},
        "flow": {"levels": 1, "steps": 1, "width": 4, "updates": 4, "eval_every": 2},
    },
}


def as_numpy(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(
        lambda leaf: np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree
    )


@pytest.fixture(scope="module", params=METHODS)
def uninterrupted(request, tmp_path_factory):
    """One whole run, with what was seen on the way."""
    workdir = tmp_path_factory.mktemp(request.param)
    seen = SimpleNamespace(
        method=request.param, config=METHODS[request.param], workdir=workdir,
        compiled=[], saved=None, jaxpr="",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, seen)
        start = len(compilations)
        seen.summary = gr.train_and_evaluate(seen.config, workdir)
        seen.compiled.append(len(compilations))
        seen.programs = seen.compiled[-1] - start
    return seen


def watch(patch, seen):
    """Records compilations by epoch, the last saved state, and runs the epochs under a guard."""
    epoch, save, compile_epoch = train.BatchPlan.epoch, train.Checkpoints.save, train.compile_epoch

    def counted_epoch(self, number):
        seen.compiled.append(len(compilations))
        return epoch(self, number)

    def kept_save(self, step, tree, extra):
        if "trained_with" not in extra:  # not the flow's own
            seen.saved = as_numpy(tree)
        save(self, step, tree, extra)

    def guarded_compile(step, state, train_data, indices, frozen):
        rows = lambda i: None if i is None else jax.tree.map(lambda a: a[i[0]], train_data)
        seen.jaxpr = str(
            jax.make_jaxpr(step)(state, rows(indices.inner), rows(indices.outer), *frozen)
        )
        run_epoch = compile_epoch(step, state, train_data, indices, frozen)

        def guarded(*args, **kwargs):
            with jax.transfer_guard("disallow"):
                return run_epoch(*args, **kwargs)

        return guarded

    patch.setattr(train.BatchPlan, "epoch", counted_epoch)
    patch.setattr(train.Checkpoints, "save", kept_save)
    patch.setattr(train, "compile_epoch", guarded_compile)
    patch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)


def test_nothing_is_compiled_after_the_first_epoch(uninterrupted):
    before, first, second, third, end = uninterrupted.compiled
    assert first > before, "the step itself must have been counted"
    assert second > first, "so must the evaluation at the end of the first epoch"
    assert third == second
    # The end of the last epoch is followed by the pictures, whose programs are their own; without
    # a generator there are none, and all that came after the first epoch compiled nothing.
    if uninterrupted.method == "base":
        assert end == second


def test_a_run_compiles_few_programs(uninterrupted):
    # An operation outside of a program is a program of its own, a tenth of a second of a user's.
    assert uninterrupted.programs <= {"base": 65, "mgr": 155}[uninterrupted.method]


def test_the_step_neither_calls_back_nor_moves_data_to_the_host(uninterrupted):
    # The epochs above ran under a transfer guard; here is what shows that it was watching.
    with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):
        with jax.transfer_guard("disallow"):
            jax.jit(lambda x: x + 1)(np.ones(3))
    assert "conv_general_dilated" in uninterrupted.jaxpr
    for word in ("callback", "infeed", "outfeed"):
        assert word not in uninterrupted.jaxpr


@pytest.fixture(scope="module")
def interrupted(uninterrupted, tmp_path_factory):
    """The same run, stopped in its second epoch and started again."""
    workdir = tmp_path_factory.mktemp("interrupted")
    seen = SimpleNamespace(compiled=[], saved=None, workdir=workdir)
    if uninterrupted.method == "mgr":  # stopped once before, when the flow had been trained
        for name in ("config.json", "metrics.jsonl"):
            shutil.copy(uninterrupted.workdir / name, workdir)
        shutil.copytree(uninterrupted.workdir / "flow", workdir / "flow")
    validate, calls = train.validate, []

    def stop_in_the_second_epoch(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*args)

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, seen)
        patch.setattr("genreg_jax.flow_run.fit", None)  # the flow must not be trained again
        patch.setattr(train, "validate", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            gr.train_and_evaluate(uninterrupted.config, workdir)
        assert not (workdir / "summary.json").exists()
        seen.compiled.clear()
        seen.summary = gr.train_and_evaluate(uninterrupted.config, workdir)
    return seen


def test_a_run_that_was_stopped_and_continued_is_the_same_run_bit_for_bit(
    uninterrupted, interrupted
):
    assert len(interrupted.compiled) == 1 + 2, "one call to compile, then the two epochs left"
    jax.tree.map(np.testing.assert_array_equal, interrupted.saved, uninterrupted.saved)
    state, best = interrupted.saved
    assert int(state.step) == 6
    a, b = ((seen.workdir / "metrics.jsonl").read_bytes() for seen in (interrupted, uninterrupted))
    assert a == b and len(a) > 0
    timing = {"seconds", "stages", "images_per_second", "flow", "checksum"}
    a, b = (
        {k: v for k, v in seen.summary.items() if k not in timing}
        for seen in (interrupted, uninterrupted)
    )
    assert a == b
    if uninterrupted.method == "mgr":
        bits = [seen.summary["flow"]["bits_per_dim"] for seen in (interrupted, uninterrupted)]
        assert bits[0] == bits[1]


@pytest.mark.parametrize("at", ["train.validate", "train.write_samples", "workdir.write_report"])
def test_a_disk_that_fills_ends_in_a_paragraph_and_the_run_continues(tmp_path, monkeypatch, at):
    """A limit on the size of files stands for the full disk."""
    module, _, name = at.partition(".")
    step = getattr(sys.modules[f"genreg_jax.{module}"], name)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*args, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
        return step(*args, **options)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(f"genreg_jax.{at}", fill)
            with pytest.raises(gr.UserError, match="make room"):
                run(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / "full" / "summary.json").exists()
    full, whole = run(tmp_path / "full"), run(tmp_path / "whole")
    assert full["test_loss"] == whole["test_loss"]
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("full", "whole")]
    assert files[0] == files[1]


def fragile():
    """A perceptron that gives NaN in training for any batch with a certain image in it."""
    inner = gr.from_linen(Perceptron(2))

    def apply(params, model_state, x, *, rng, train):
        outputs, model_state = inner.apply(params, model_state, x, rng=rng, train=train)
        marked = jnp.any(x[:, 0, 0, 0] == 1.0) & train
        return outputs._replace(
            logits=outputs.logits * jnp.where(marked, jnp.nan, 1.0)
        ), model_state

    return Model(inner.init, apply)


def with_one_bad_image():
    dataset = points(noise=5.0)
    dataset.train.images[7, 0, 0] = 255
    return dataset


def test_an_update_that_is_not_finite_stops_the_run_or_is_skipped_and_counted(tmp_path):
    dataset, model = with_one_bad_image(), fragile()
    stopping, skipping = small(), small(train={"nonfinite": "skip"})
    with pytest.raises(gr.UserError, match=r"Update \d+ was not made: the cross-entropy is not f"):
        run(tmp_path / "a", stopping, dataset=dataset, model=model)
    with Checkpoints(tmp_path / "a" / "postmortem") as checkpoints:
        made, (state, best), extra = checkpoints.restore(None)
    assert 0 <= made < 3 and extra == {"failed": "the cross-entropy"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))

    # The same workdir goes on, and ends as a run that skipped from the start.
    summaries = [
        run(tmp_path / name, skipping, dataset=dataset, model=model) for name in ("a", "b")
    ]
    timing = {"seconds", "stages", "images_per_second", "checksum"}
    a, b = ({k: v for k, v in s.items() if k not in timing} for s in summaries)
    assert a == b
    assert a["skipped_updates"] == 4 and a["steps"] == 12  # once an epoch
    assert a["test_accuracy"] == 1.0
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (
        tmp_path / "b" / "metrics.jsonl"
    ).read_bytes()
    for line in metric_lines(tmp_path / "b"):
        assert line["train/skipped_updates"] == 1 and np.isfinite(line["train/loss"])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_within_an_epoch_and_the_run_continues_bit_for_bit(
    tmp_path, monkeypatch, signum
):
    saved, save = {}, train.Checkpoints.save

    def kept_save(self, step, tree, extra):
        saved[step] = as_numpy(tree)
        if step == 5:  # as if the process that is stopped had taken its time
            extra["stages"] = {**extra["stages"], "data": 500.0, "training": 1000.0}
        save(self, step, tree, extra)

    monkeypatch.setattr(train.Checkpoints, "save", kept_save)
    whole = run(tmp_path / "whole")
    expected = saved.pop(12)
    saved.clear()
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        update = train.Progress.update

        def killed_in_the_second_epoch(self, step, **metrics):
            if step == 5:
                os.kill(os.getpid(), signum)
            update(self, step, **metrics)

        patch.setattr(train.Progress, "update", killed_in_the_second_epoch)
        with pytest.raises(Interrupted, match="after update 5 of 12, which is saved") as stopped:
            run(tmp_path / "stopped")
    assert stopped.value.signum == signum and signal.getsignal(signum) == before
    assert sorted(saved) == [3, 5] and not (tmp_path / "stopped" / "summary.json").exists()
    summary = run(tmp_path / "stopped")
    assert set(summary["stages"]) == set(whole["stages"]) == {
        "data", "compilation", "training", "validation", "checkpoints", "evaluation", "pictures"
    }  # fmt: skip
    assert 500 < summary["stages"]["data"] < 600 and 1000 < summary["stages"]["training"] < 1100
    assert sum(whole["stages"].values()) >= whole["seconds"] - 0.1
    jax.tree.map(np.testing.assert_array_equal, saved[12], expected)
    assert metric_lines(tmp_path / "stopped") == metric_lines(tmp_path / "whole")
    timing = {"seconds", "stages", "images_per_second", "checksum"}
    assert {k: summary[k] for k in summary.keys() - timing} == {
        k: whole[k] for k in whole.keys() - timing
    }


def test_a_second_interrupt_ends_the_process_at_once():
    program = """
import os, signal, time
from genreg_jax.interrupt import Interruption
with Interruption() as interruption:
    os.kill(os.getpid(), signal.SIGINT)
    print(interruption.signum == signal.SIGINT, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert done.returncode == 130 and done.stdout == b"True\n", done.stderr


def test_a_finished_run_gives_its_summary_without_training(uninterrupted, monkeypatch):
    before = hashes(uninterrupted.workdir)
    monkeypatch.setattr(train.data, "load", None)
    monkeypatch.setattr(build, "make_train_step", None)
    assert gr.train_and_evaluate(uninterrupted.config, uninterrupted.workdir) == (
        uninterrupted.summary
    )
    # Where the data lie and whether progress is shown do not make it another run.
    moved = {**uninterrupted.config, "data": {**DIGITS["data"], "dir": "/elsewhere"}}
    assert gr.train_and_evaluate(moved, uninterrupted.workdir) == uninterrupted.summary
    assert hashes(uninterrupted.workdir) == before


def test_a_finished_run_is_not_the_result_for_other_images(uninterrupted):
    before = hashes(uninterrupted.workdir)
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
    other = gr.data.from_arrays(images, np.arange(100) % 10, images, np.arange(100) % 10)
    with pytest.raises(gr.UserError, match="is of other images: its training"):
        gr.train_and_evaluate(uninterrupted.config, uninterrupted.workdir, dataset=other)
    s = from_config(uninterrupted.config)
    same = gr.data.from_settings(s.data, s.seed)
    summary = gr.train_and_evaluate(uninterrupted.config, uninterrupted.workdir, dataset=same)
    assert summary == uninterrupted.summary and hashes(uninterrupted.workdir) == before


def test_a_finished_run_of_pictures_or_arrays_is_not_the_result_for_others(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=images[::-1] // 2, labels=labels)
    shutil.copy(tmp_path / "a.npz", tmp_path / "copy.npz")

    def config(name, source="folder"):
        config = gr.default_config()
        config.data.name, config.data.dir = source, str(tmp_path / name)
        config.model.widths = (4,)
        config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 1, 1, 8
        return config

    summary = gr.train_and_evaluate(config("a.npz"), tmp_path / "run")
    assert "2 classes (0, 1)" in capsys.readouterr().out
    before = hashes(tmp_path / "run")
    for same in ("a.npz", "copy.npz"):
        assert gr.train_and_evaluate(config(same), tmp_path / "run") == summary
        assert "is finished: this is its result, nothing was trained" in capsys.readouterr().out
    with pytest.raises(gr.UserError, match="is of other images"):
        gr.train_and_evaluate(config("b.npz"), tmp_path / "run")
    with pytest.raises(gr.UserError, match=r"There is no .*none"):
        gr.train_and_evaluate(config("none"), tmp_path / "run")
    assert hashes(tmp_path / "run") == before
    given = gr.data.from_arrays(images, labels, images, labels)
    of_arrays = config("", "digits")
    gr.train_and_evaluate(of_arrays, tmp_path / "arrays", dataset=given)
    with pytest.raises(gr.UserError, match="was given its images, 'arrays', and is finished"):
        gr.train_and_evaluate(of_arrays, tmp_path / "arrays")


def test_another_config_is_refused_with_all_that_differs_and_changes_nothing(uninterrupted):
    before = hashes(uninterrupted.workdir)
    other = {
        **uninterrupted.config,
        "seed": 5,
        "optimizer": {"learning_rate": 0.125},
        "augment": {"train": "none"},
    }
    with pytest.raises(gr.UserError) as error:
        gr.train_and_evaluate(other, uninterrupted.workdir)
    for line in (
        "config.seed: 0 -> 5",
        "config.optimizer.learning_rate: 0.05 -> 0.125",
        "config.augment.train: 'shift(1)' -> 'none'",
        str(uninterrupted.workdir),
    ):
        assert line in str(error.value)
    assert "epochs" not in str(error.value)
    assert hashes(uninterrupted.workdir) == before


def test_a_trained_flow_is_taken_from_another_run_and_only_where_it_fits(
    uninterrupted, tmp_path, monkeypatch
):
    if uninterrupted.method != "mgr":
        pytest.skip("needs the run that trained a flow")
    config = {
        **uninterrupted.config,
        "meta": {"enabled": False},
        "train": {**DIGITS["train"], "epochs": 1},
    }
    config["flow"] = {**config["flow"], "workdir": str(uninterrupted.workdir)}
    monkeypatch.setattr("genreg_jax.flow_run.fit", None)
    summary = gr.train_and_evaluate(config, tmp_path / "pcr")
    assert summary["flow"] == uninterrupted.summary["flow"]
    assert not (tmp_path / "pcr" / "flow").exists()
    wider = {**config, "flow": {**config["flow"], "width": 5}}
    with pytest.raises(gr.UserError, match=r"flow\.settings\.width: 4 -> 5"):
        gr.train_and_evaluate(wider, tmp_path / "wider")
    with pytest.raises(gr.UserError, match=r"flow\.subset_hash: "):
        gr.train_and_evaluate({**config, "seed": 9}, tmp_path / "seed")


# --------------------------------------------------------------------------- networks of one's own


class OnlyLogits(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (gr.from_linen(OnlyLogits()), r"returns \w+ of shape \(2, 2\); it must return the pair"),
        (gr.from_linen(Perceptron(3)), r"logits of shape \(2, 3\) .* needed are \(2, 2\)"),
        (
            gr.Model(lambda key, x: ({}, {}), lambda p, s, x, *, rng, train: (x[:, 0, :, 0], s)),
            r"must return \(Outputs\(logits",
        ),
    ],
)
def test_a_network_that_returns_something_else_is_told_what_to_return(tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "new", model=model)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_goes_on_with_the_parts_of_the_caller_that_it_was_begun_with(tmp_path, finished):
    def stop(step, metrics):
        if not finished and step == 6:
            raise KeyboardInterrupt

    term = lambda key, outputs, labels, step: jnp.mean(outputs.embedding**2, axis=1)
    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path, embedding_term=term, callbacks=[stop])
    with pytest.raises(gr.UserError, match="begun with embedding_term, model, and now .* model\\."):
        run(tmp_path)
    with pytest.raises(gr.UserError, match="given no part of its caller's own|of another model"):
        gr.train_and_evaluate(small(), tmp_path, dataset=points())
    summary = run(tmp_path, embedding_term=term)
    assert summary["steps"] == 12 and summary["own"] == ["embedding_term", "model"]


@pytest.mark.parametrize("finished", [True, False])
def test_another_generator_of_the_same_kind_is_not_taken_for_the_first(tmp_path, finished):
    def stop(step, metrics):
        if not finished and step == 6:
            raise KeyboardInterrupt

    config, generator = two_epochs(synthetic=MGR["synthetic"]), toy_generator()
    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path, config, generator=generator, callbacks=[stop])
    other = generator._replace(params=jax.tree.map(lambda a: 2 * a, generator.params))
    with pytest.raises(gr.UserError, match="begun with another generator: its arrays have"):
        run(tmp_path, config, generator=other)
    assert run(tmp_path, config, generator=toy_generator())["own_hashes"].keys() == {"generator"}


# ----------------------------------------------------------------------- callbacks and more epochs


def test_the_environment_of_the_flow_counts_too(uninterrupted, tmp_path):
    if uninterrupted.method == "base":
        pytest.skip("it has no flow")
    for name in ("config.json", "flow"):
        source = uninterrupted.workdir / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        with pytest.raises(gr.UserError, match=r"begun in another environment.*partitionable"):
            gr.train_and_evaluate(uninterrupted.config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_callback_gets_what_is_written_after_every_epoch(tmp_path):
    seen = []
    run(tmp_path, callbacks=[lambda step, metrics: seen.append({"step": step, **metrics})])
    assert seen == metric_lines(tmp_path) and len(seen) == 4


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_last_update_is_shown_once_and_all_images_count(tmp_path, monkeypatch, capsys, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr("genreg_jax.logs.progress._LINE_INTERVAL", 0.0)
    counted = []
    update = train.Progress.update

    def counting(self, step, *, images=0, **more):
        counted.append(images)
        update(self, step, images=images, **more)

    monkeypatch.setattr(train.Progress, "update", counting)
    config = small(train={"progress": True, "epochs": 2})
    summary = run(tmp_path, config)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    shown = {
        int(words[2].split("/")[0]): words for words in lines if words[:2] == ["train", "step"]
    }
    assert len(shown) == sum(words[:2] == ["train", "step"] for words in lines), "each step once"
    last = metric_lines(tmp_path)
    assert {line["step"] for line in last} == {3, 6} <= set(shown)
    for line in last:
        words = shown[line["step"]]
        assert words[words.index("loss") + 1] == f"{line['train/loss']:.4g}"
    assert sum(counted) == summary["steps"] * config["train"]["batch_size"]


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("callbacks", [5], r"callbacks is \[5\]; it must be a list of functions"),
        ("callbacks", print, "callbacks is <built-in function print>; it must be a list"),
        ("callbacks", None, "callbacks is None"),
        ("dataset", (np.zeros((4, 2, 2, 1), np.uint8), [0, 1, 0, 1]), r"gr\.data\.from_arrays"),
        ("workdir", None, "workdir is None; it must be the folder"),
    ],
)
def test_arguments_of_another_type_are_named_before_anything_is_made(
    tmp_path, argument, value, words
):
    given = {"workdir": tmp_path / "run", "dataset": points(), argument: value}
    with pytest.raises(TypeError, match=words) as raised:
        gr.train_and_evaluate(small(), **given)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="workdir is None; it must be the folder of a run"):
        gr.load(None)


def test_what_a_callback_raises_ends_the_run_and_it_continues(tmp_path):
    def full(step, metrics):
        if step == 6:
            raise RuntimeError("no space at the other side")

    with pytest.raises(RuntimeError, match="other side"):
        run(tmp_path / "a", callbacks=[full])
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert metric_lines(tmp_path / "a") == metric_lines(tmp_path / "b")


def test_a_callback_may_go_to_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    run("here", callbacks=[lambda *_: os.chdir(tmp_path / "elsewhere")])
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "here" / "summary.json").exists()


def test_a_workdir_that_is_removed_or_moved_meanwhile_is_not_made_again(tmp_path):
    with pytest.raises(gr.UserError, match="was removed, moved or replaced while a run wrote"):
        run(tmp_path / "a", callbacks=[lambda *_: shutil.rmtree(tmp_path / "a")])
    assert not (tmp_path / "a").exists()


def test_a_config_file_that_was_changed_makes_no_other_run_of_it(tmp_path, monkeypatch):
    other = small(optimizer={"learning_rate": 0.25})
    interrupted_points(tmp_path / "a", monkeypatch)
    run(tmp_path / "b")
    for workdir in (tmp_path / "a", tmp_path / "b"):
        there = json.loads((workdir / "config.json").read_text())
        there["optimizer"]["learning_rate"] = 0.25
        logs.write_json(workdir / "config.json", there)
        before = {name: value for name, value in hashes(workdir).items() if name != ".lock"}
        with pytest.raises(gr.UserError, match=r"config\.json is not the config that the r"):
            run(workdir, other)
        assert before.items() <= hashes(workdir).items()
    with pytest.raises(gr.UserError, match="config.json is not the config that the result"):
        compare([tmp_path / "b"])


def epochs(number):
    return small(train={"epochs": number}, optimizer={"schedule": "constant"})


def test_a_finished_run_with_more_epochs_is_the_longer_run(tmp_path):
    first = run(tmp_path / "a", epochs(2))
    more = run(tmp_path / "a", epochs(4))
    whole = run(tmp_path / "b", epochs(4))
    assert metric_lines(tmp_path / "a") == metric_lines(tmp_path / "b")
    assert more["extended"] == [{"step": 6, "epochs_before": 2}] and whole["extended"] == []
    same = ("test_accuracy", "test_loss", "best_step", "steps", "epochs", "config_hash")
    assert {n: more[n] for n in same} == {n: whole[n] for n in same}
    assert json.loads((tmp_path / "a" / "summary-6.json").read_text()) == first
    assert run(tmp_path / "a", epochs(4)) == more, "and it is finished"
    with pytest.raises(gr.UserError, match=r"config\.train\.epochs: 4 -> 3"):
        run(tmp_path / "a", epochs(3))


def test_more_epochs_survive_a_kill_and_can_be_read_meanwhile(tmp_path):
    def stop(step, metrics):
        raise KeyboardInterrupt

    model = gr.from_linen(Perceptron(2))
    run(tmp_path / "a", epochs(2), model=model)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", epochs(4), callbacks=[stop])
    assert gr.load(tmp_path / "a", model=model).summary is None
    assert run(tmp_path / "a", epochs(4))["extended"] == [{"step": 6, "epochs_before": 2}]
    # A kill between the two files of a start.
    run(tmp_path / "b", epochs(2))
    (tmp_path / "b" / "summary.json").rename(tmp_path / "b" / "summary-6.json")
    assert run(tmp_path / "b", epochs(4))["steps"] == 12
    assert metric_lines(tmp_path / "a") == metric_lines(tmp_path / "b")


@pytest.mark.parametrize("what", ["environment", "data", "model"])
def test_more_epochs_that_are_refused_leave_the_finished_run_as_it_was(tmp_path, monkeypatch, what):
    run(tmp_path / "a", epochs(2))
    before = {name: value for name, value in hashes(tmp_path / "a").items() if name != ".lock"}
    own = {}
    if what == "environment":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    elif what == "data":
        own["dataset"] = points(seed=1)
    else:
        own["embedding_term"] = lambda key, outputs, labels, step: jnp.zeros(len(labels))
    with pytest.raises(gr.UserError, match="Nothing"):
        run(tmp_path / "a", epochs(4), **own)
    assert before.items() <= hashes(tmp_path / "a").items()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert run(tmp_path / "a", epochs(2))["steps"] == 6, "it is the finished run still"


# --------------------------------------------------------------------------------------- warm start


def own_network(**model):
    return small(model={"widths": [4], **model}, train={"epochs": 1})


def start(workdir, config, **kwargs):
    """A run of a network of this library."""
    return gr.train_and_evaluate(config, workdir, dataset=points(**kwargs))


def test_a_warm_start_begins_with_the_other_runs_classifier(tmp_path):
    start(tmp_path / "a", own_network())
    config = own_network(init_from=str(tmp_path / "a"))
    config["optimizer"]["learning_rate"] = 0.0
    warm = start(tmp_path / "b", config)
    a, b = (gr.load(tmp_path / name) for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert warm["init_hash"] and start(tmp_path / "b", config) == warm
    # Other classes: all but the head is the same.
    config = own_network(init_from=str(tmp_path / "a"))
    config["optimizer"]["learning_rate"] = 0.0
    start(tmp_path / "c", config, num_classes=4)
    c = dict(jax.tree_util.tree_leaves_with_path(gr.load(tmp_path / "c").params))
    equal = [
        np.array_equal(leaf, c[path])
        for path, leaf in jax.tree_util.tree_leaves_with_path(a.params)
    ]
    assert sum(not same for same in equal) == 2, "kernel and bias of the head"


def test_a_warm_start_needs_the_same_network_and_the_same_run(tmp_path):
    start(tmp_path / "a", own_network())
    with pytest.raises(gr.UserError, match=r"init_from = .*/a' is a run of another network"):
        start(tmp_path / "b", own_network(widths=[5], init_from=str(tmp_path / "a")))
    with pytest.raises(gr.UserError, match="holds no trained classifier"):
        start(tmp_path / "c", own_network(init_from=str(tmp_path / "nothing")))
    config = own_network(init_from=str(tmp_path / "a"))
    start(tmp_path / "d", config)
    shutil.rmtree(tmp_path / "a")
    start(tmp_path / "a", {**own_network(), "seed": 1})
    with pytest.raises(gr.UserError, match="used a classifier with the hash"):
        start(tmp_path / "d", config)


# ----------------------------------------------------------------------------------------- refusals


def interrupted_points(workdir, monkeypatch, **kwargs):
    with monkeypatch.context() as patch:
        better, calls = epoch.better, []

        def stop(*args):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return better(*args)

        patch.setattr(train, "better", stop)
        with pytest.raises(KeyboardInterrupt):
            run(workdir, **kwargs)


def test_changed_data_are_refused_and_the_run_can_still_continue(tmp_path, monkeypatch):
    interrupted_points(tmp_path, monkeypatch)
    before = hashes(tmp_path)
    with pytest.raises(gr.UserError, match="is of other images: its training"):
        run(tmp_path, dataset=points(seed=1))
    other = points(test_shift=1)  # the same training and validation images
    assert other.subset_hash == points().subset_hash
    with pytest.raises(gr.UserError, match="those of the test set among them"):
        run(tmp_path, dataset=other)
    # A refusal does not leave its own settings behind either.
    longer = small(train={"epochs": 9}, data={"dir": "/elsewhere"})
    with pytest.raises(gr.UserError, match="is of other images: its training"):
        run(tmp_path, longer, dataset=points(seed=1))
    assert hashes(tmp_path) == before
    run(tmp_path, small(data={"dir": "/elsewhere"}))
    assert json.loads((tmp_path / "config.json").read_text())["data"]["dir"] == "/elsewhere"
    assert run(tmp_path)["steps"] == 12


def test_another_environment_is_refused_or_said_and_recorded(tmp_path, monkeypatch, capsys):
    interrupted_points(tmp_path, monkeypatch)
    before = hashes(tmp_path)
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        with pytest.raises(gr.UserError, match=r"jax_threefry_partitionable: \w+ -> \w+\. Nothing"):
            run(tmp_path)
        assert hashes(tmp_path) == before
        summary = run(tmp_path, small(train={"environment": "any"}))
    assert "goes on in another environment: jax_threefry" in capsys.readouterr().err
    first, second = summary["processes"]
    assert first["step"] == 0 and second["step"] == 3
    name = "jax_threefry_partitionable"
    assert first["numerics"].pop(name) is not second["numerics"].pop(name)
    assert {**first, "step": 3} == second
    assert len(run(tmp_path / "whole")["processes"]) == 1


def test_metrics_that_were_lost_and_checkpoints_that_are_damaged_are_said(
    tmp_path, monkeypatch, capsys
):
    interrupted_points(tmp_path, monkeypatch)
    (tmp_path / "metrics.jsonl").write_text("")
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    whole = run(tmp_path / "whole")
    capsys.readouterr()
    summary = run(tmp_path)
    assert "is damaged" in capsys.readouterr().err  # and progress is not shown
    assert summary["test_loss"] == whole["test_loss"] and summary["metrics_lost"] == 0

    interrupted_points(tmp_path / "other", monkeypatch)
    (tmp_path / "other" / "metrics.jsonl").write_text("")
    summary = run(tmp_path / "other")
    assert summary["metrics_lost"] == 1 and summary["test_loss"] == whole["test_loss"]
    assert "has lost 1 of the lines of 4 epochs" in capsys.readouterr().err


def test_two_runs_in_threads_of_one_process_are_those_alone(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        names = [f"thread {i}" for i in range(4)]
        threaded = list(pool.map(lambda name: run(tmp_path / name, small(seed=len(name))), names))
    alone = run(tmp_path / "alone", small(seed=8))
    assert [summary["test_loss"] for summary in threaded] == [alone["test_loss"]] * 4
    for name in names:
        assert metric_lines(tmp_path / name) == metric_lines(tmp_path / "alone")


def test_a_folder_that_is_not_a_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(gr.UserError, match="not the workdir of a run.*new or empty folder"):
        run(tmp_path)
    with pytest.raises(gr.UserError, match="not the workdir of a run"):
        run(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_damaged_config_file_is_refused_and_left_alone(tmp_path):
    for text in ("{", '{"seed": "a"}', "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(gr.UserError, match="cannot be read as the config of a run"):
            run(tmp_path)
        assert (tmp_path / "config.json").read_text() == text


NEEDS_FLOW = {
    **DIGITS,
    "synthetic": {"loss": "pcr", "strong": "none"},
    "flow": {"levels": 1, "steps": 1, "width": 4, "updates": 2},
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"data": {"per_class": 5000}}, "per_class"),
        ({"data": {"name": "digit", "download": False}}, "digits"),
        ({"train": {"batch_size": 81}}, "config.train.batch_size = 81"),
        ({"augment": {"train": "flop"}}, "flop"),
        ({"model": {"name": "wide_resnet", "depth": 27}}, "27"),
        ({"flow": {"levels": 5}}, "levels"),
        ({"flow": {"workdir": "/no/such/run"}}, "config.flow.workdir = '/no/such/run'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_after_a_start_that_was_refused_the_workdir_is_free_for_the_corrected_config(
    tmp_path, config, words
):
    merged = {
        group: {**NEEDS_FLOW.get(group, {}), **config.get(group, {})}
        for group in {*NEEDS_FLOW, *config}
    }
    with pytest.raises(gr.UserError) as error:
        gr.train_and_evaluate(merged, tmp_path / "run")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert claim(tmp_path / "run", from_config(NEEDS_FLOW)) is None


# --------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_evaluation_equals_numpy_and_does_not_count_padding(batch_size):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(4, 3)).astype(np.float32), np.array([5.0, 0, -5], np.float32)

    def apply(params, model_state, x, *, rng, train):
        assert rng is None and not train
        e = x.reshape(len(x), -1)
        return gr.Outputs(e @ params["w"] + params["b"][None], 2 * e), model_state

    images = rng.integers(0, 256, (11, 2, 2, 1), np.uint8)
    labels = rng.integers(0, 3, 11).astype(np.int32)
    evaluate = make_evaluate(Model(lambda key, x: None, apply), batch_size=batch_size)
    result = evaluate({"w": w, "b": b}, {}, images, labels)
    x = images.reshape(11, 4) / 255
    logits = x @ w + b
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(result["loss"], -log_p[np.arange(11), labels].mean(), rtol=1e-5)
    np.testing.assert_array_equal(result["predictions"], logits.argmax(1))
    np.testing.assert_allclose(result["confidences"], np.exp(log_p).max(1), rtol=1e-5)
    correct = logits.argmax(1) == labels
    expected = calibration_error(reliability(np.exp(log_p).max(1), correct))
    assert result["calibration_error"] == pytest.approx(expected, rel=1e-5)
    assert result["accuracy"] == np.mean(logits.argmax(1) == labels)
    np.testing.assert_allclose(result["embeddings"], 2 * x, rtol=1e-5, atol=1e-6)


def test_splits_of_all_sizes_share_one_program():
    model = gr.from_linen(Perceptron(2))
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    evaluate = make_evaluate(model, batch_size=8)
    images, labels = np.zeros((20, 4, 4, 1), np.uint8), np.zeros(20, np.int32)
    evaluate(params, state, images[:3], labels[:3])
    before = len(compilations)
    for size in (1, 8, 13, 20):
        evaluate(params, state, images[:size], labels[:size])
    assert len(compilations) == before


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_any_number_of_channels_train_without_augmentation(tmp_path, channels):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 100, (80, 4, 4, channels)).astype(np.uint8), np.arange(80) % 2
    images[labels == 1, ..., 0] += 150
    dataset = gr.data.from_arrays(images[:40], labels[:40], images[40:], labels[40:])
    config = small(name="any", train={"epochs": 2})
    assert run(tmp_path / "a", config, dataset=dataset)["test_accuracy"] > 0.9
    config["augment"] = {"train": "flip"}
    with pytest.raises(gr.UserError, match="or any number of them with the augmentation 'none'"):
        run(tmp_path / "b", config, dataset=dataset)


def test_a_run_says_that_it_is_compiled_where_compilation_is_off(tmp_path):
    with jax.disable_jit(), pytest.raises(gr.UserError, match="JAX_DISABLE_JIT is set"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "context"),
    [
        ("jax_numpy_dtype_promotion", "strict", jax.numpy_dtype_promotion),
        ("jax_transfer_guard_host_to_device", "disallow", jax.transfer_guard_host_to_device),
    ],
)
def test_a_run_is_not_begun_where_jax_would_stop_it(tmp_path, name, value, context):
    dataset, model = points(), gr.from_linen(Perceptron())
    with context(value), pytest.raises(gr.UserError, match=f"{name} is '{value}', with which JAX"):
        run(tmp_path, dataset=dataset, model=model)
    assert not list(tmp_path.iterdir())


def test_a_run_refuses_keys_whose_draws_depend_on_what_is_drawn_beside(tmp_path):
    """And they do."""
    key = jax.random.key(0, impl="rbg")
    draw = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))
    assert (draw(jnp.arange(4))[2:] != draw(jnp.arange(2, 4))).all()
    with jax.default_prng_impl("rbg"), pytest.raises(gr.UserError, match="is 'rbg'.*threefry2x32"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_page_of_thousands_of_classes_stays_small(tmp_path, reported):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (600, 4, 4, 1)).astype(np.uint8), np.arange(600) % 300
    dataset = gr.data.from_arrays(images, labels, images, labels, validation_fraction=0.0)
    run(tmp_path, small(train={"epochs": 1}), dataset=dataset)
    page = (tmp_path / "report.html").read_text()
    assert "With 300 classes there is no confusion matrix" in page and len(page) < 1_000_000


def test_advice_about_the_disk_is_for_files_of_the_run_alone(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    mine = OSError(errno.ENOSPC, "No space", str(tmp_path / "run" / "metrics.jsonl"))
    other = FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/weights.npz")
    for error, words in ((full, "make room"), (mine, "make room"), (other, "not of the run")):
        assert words in way_out(error, tmp_path / "run")


def test_another_seed_has_the_programs_of_the_first(tmp_path, monkeypatch):
    """Of training, its pictures and the flow: a key or a subset in one would be compiled again."""
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "kept"))
    config = small(
        synthetic={"loss": "pcr"},
        meta={"enabled": True},
        phantom={"loss": "attraction"},
        latent={"kind": "adversarial", "num_steps": 1},
        flow={"levels": 1, "steps": 1, "width": 4, "updates": 2, "eval_every": 2},
        train={"epochs": 1},
    )
    entries = []
    for seed in (0, 1):
        jax.clear_caches()
        with kept_programs():
            run(tmp_path / str(seed), config | {"seed": seed}, dataset=points(seed=seed))
        entries.append({path.name for path in tmp_path.glob("kept/programs/*/*")})
    assert {"jit_make", "jit_update", "jit_train_step"} <= {e.partition("-")[0] for e in entries[0]}
    assert entries[1] == entries[0]


def test_what_is_no_file_s_error_is_left_as_it_is(tmp_path):
    def callback(step, metrics):
        raise ConnectionResetError(errno.ECONNRESET, "the tracker is away")

    with pytest.raises(ConnectionResetError, match="the tracker is away"):
        run(tmp_path, small(), callbacks=[callback])


UNFROZEN = gr.flows.glow((8, 8, 1), levels=1, steps=1, width=4)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"model": "convnet"}, "model is 'convnet'; it must be a gr.Model"),
        ({"flow": UNFROZEN}, "flow is .* must be a frozen one"),
        ({"embedding_term": "phantom"}, "embedding_term is 'phantom'; it must be a function"),
        ({"generator": UNFROZEN}, "generator is .* must be a gr.Generator"),
        (
            {"generator": gr.Generator(lambda p, z, y: z.reshape(-1, 4, 4, 1), (), (16,))},
            r"the generator returns .*; needed are images of shape \(2, 8, 8, 1\)",
        ),
    ],
)
def test_a_part_of_ones_own_of_another_kind_is_refused_before_anything_is_written(
    tmp_path, part, words
):
    config = {"data": {"name": "digits"}}
    config |= {"latent": {"kind": "random"}} if "flow" in part else {"synthetic": {"loss": "pcr"}}
    with pytest.raises(UserError, match=words):
        gr.train_and_evaluate(config, tmp_path / "run", **part)
    assert not (tmp_path / "run").exists()
