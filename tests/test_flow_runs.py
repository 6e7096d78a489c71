"""Runs that train a flow alone: their results, their resume, and the evaluation of a flow."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax import flow_run, flows
from genreg_jax.config import from_config
from genreg_jax.flows.evaluate import main
from genreg_jax.flows.measure import evaluate_flow
from genreg_jax.interrupt import Interrupted

CONFIG = {
    "name": "glow",
    "data": {"name": "digits", "per_class": 9},
    "model": {"name": "none"},
    "flow": {
        **dict(levels=1, steps=1, width=4, updates=6, eval_every=2, batch_size=16),
        **dict(optimizer="adamax", learning_rate=0.01, warmup=1, dropout=0.2),
    },
    "train": {"progress": False},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flow") / "run"
    return workdir, gr.train_and_evaluate(CONFIG, workdir, command="python -m ...")


def test_a_flow_run_leaves_everything(run):
    workdir, summary = run
    assert summary == json.loads((workdir / "summary.json").read_text())
    for split in ("train", "validation", "test"):
        assert 1 < summary[f"{split}_bits_per_dim"] < 12
    assert 0 < summary["reconstruction_error_median"] < summary["reconstruction_error_max"] < 1e-4
    for name in ("seconds", "compile_seconds", "images_per_second", "steps", "versions", "device"):
        assert summary[name]
    assert set(summary["stages"]) == {"data", "flow", "evaluation", "pictures"}
    assert summary["stages"]["flow"] >= summary["seconds"]
    assert "test_accuracy" not in summary and summary["train_examples"] == 90
    names = [path.name for path in sorted((workdir / "samples").iterdir())]
    assert names == [
        "1_real.png",
        *(f"2_temperature_{t}_samples.png" for t in (0.5, 0.7, 1.0)),
        "3_reconstructions.png",
        "4_interpolations.png",
    ]
    report = (workdir / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 6 and "flow/validation_bits_per_dim" in report
    assert "test bits per dimension" in report and "largest reconstruction error" in report
    assert not (workdir / "flow_training").exists()
    assert gr.train_and_evaluate(CONFIG, workdir) == summary


@pytest.mark.parametrize("change", [{}, {"model": {}, "latent": {"kind": "random"}}])
def test_images_that_the_flow_cannot_have_are_refused_before_anything_is_written(tmp_path, change):
    config = CONFIG | change
    config = config | {"flow": {**config["flow"], "levels": 4}}  # of images 8 x 8
    with pytest.raises(gr.UserError, match="levels=4 is too many .* At most levels=3 is allowed"):
        gr.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_killed_training_continues_to_the_same_end(run, tmp_path, monkeypatch):
    workdir, summary = run
    write = flow_run.MetricWriter.write

    def killed(self, step, metrics):
        if step == 6:
            raise KeyboardInterrupt
        write(self, step, metrics)

    monkeypatch.setattr(flow_run.MetricWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        gr.train_and_evaluate(CONFIG, tmp_path / "run")
    assert (tmp_path / "run" / "flow_training").exists()
    monkeypatch.undo()
    lines = []
    fit = flow_run.fit
    spy = lambda *args, on_progress, **kw: fit(
        *args, on_progress=lambda step, m: (lines.append(step), on_progress(step, m)), **kw
    )
    monkeypatch.setattr(flow_run, "fit", spy)
    again = gr.train_and_evaluate(CONFIG, tmp_path / "run")
    assert lines == [6]  # steps 1 to 4 are not repeated
    assert again["test_bits_per_dim"] == summary["test_bits_per_dim"]
    metrics = [(d / "metrics.jsonl").read_text() for d in (workdir, tmp_path / "run")]
    assert metrics[0] == metrics[1]
    # Killed before it has removed that folder, or in the middle of it.
    (tmp_path / "run" / "flow_training" / "4").mkdir(parents=True)
    (tmp_path / "run" / "summary.json").unlink()
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        with pytest.raises(gr.UserError, match="begun in another environment"):
            gr.train_and_evaluate(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run" / "flow_training").exists()


def test_a_signal_stops_the_training_after_the_update_at_hand(run, tmp_path, monkeypatch):
    """Before the first evaluation, and between two."""
    workdir, summary = run
    fit, asked = flow_run.fit, []

    def signalled(*args, stop, **kw):
        def stop_at(step):
            asked.append(step)
            if step in (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)
            return stop(step)

        return fit(*args, stop=stop_at, **kw)

    monkeypatch.setattr(flow_run, "fit", signalled)
    for at in (1, 3):
        stopped = rf"Stopped by SIGTERM after update {at} of 6 of the flow, which is saved"
        with pytest.raises(Interrupted, match=stopped) as error:
            gr.train_and_evaluate(CONFIG, tmp_path / "run")
        assert error.value.signum == signal.SIGTERM and asked == list(range(1, at + 1))
    again = gr.train_and_evaluate(CONFIG, tmp_path / "run")
    assert asked == list(range(1, 7)), "no update is made twice"
    for name in ("test_bits_per_dim", "validation_bits_per_dim", "reconstruction_error_max"):
        assert again[name] == summary[name]
    metrics = [(d / "metrics.jsonl").read_text() for d in (workdir, tmp_path / "run")]
    assert metrics[0] == metrics[1]


def test_a_training_killed_after_its_last_update_has_no_speed_rather_than_a_negative_one(
    run, tmp_path, monkeypatch
):
    save = flow_run.Checkpoints.save

    def killed(self, step, tree, extra):
        if "images" in extra:  # that of the finished flow
            raise KeyboardInterrupt
        save(self, step, tree, extra)

    with monkeypatch.context() as patch:
        patch.setattr(flow_run.Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            gr.train_and_evaluate(CONFIG, tmp_path / "run")
    again = gr.train_and_evaluate(CONFIG, tmp_path / "run")
    assert again["images_per_second"] == 0 and again["steps"] == 6
    assert again["test_bits_per_dim"] == run[1]["test_bits_per_dim"]


def test_only_the_first_process_shows_the_flow_s_progress(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run[0] / "flow", tmp_path / "flow")
    data = gr.data.load("digits", per_class=9)
    settings = from_config({**CONFIG, "train": {"progress": True}})
    shown = []

    def progress(*args, enabled, **options):
        shown.append(enabled)
        raise KeyboardInterrupt

    monkeypatch.setattr(flow_run, "Progress", progress)
    for first in (False, True):
        monkeypatch.setattr(flow_run, "is_first", lambda first=first: first)
        with pytest.raises(KeyboardInterrupt):
            flow_run.trained_flow(settings, data, tmp_path / str(first), augment=lambda key, x: x)
    assert shown == [False, True]
    # And the lines of a run that has nothing left to train.
    for first in (False, True):
        monkeypatch.setattr(flow_run, "is_first", lambda first=first: first)
        flow_run.train_flow(
            settings, data, tmp_path, augment=lambda key, x: x, stages=flow_run.Stages()
        )
        assert ("bits/dim (mean" in "".join(capsys.readouterr())) == first


def test_the_command_never_trains_a_flow(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "flow")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    monkeypatch.setattr(flow_run, "fit", None)
    assert main([f"--workdir={tmp_path / 'run'}"]) == 1
    assert "holds no trained flow" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_a_finished_run_knows_the_flow_it_used_by_its_hash(run, tmp_path):
    config = {
        **{name: CONFIG[name] for name in ("data", "train")},
        "model": {"widths": [4]},
        "train": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 16, "progress": False},
        "synthetic": {"loss": "cross_entropy", "batch_size": 4},
    }

    def with_flow(home):
        flow = {**CONFIG["flow"], "workdir": str(home)}
        return gr.train_and_evaluate({**config, "flow": flow}, tmp_path / "run")

    summary = with_flow(run[0])
    assert summary["flow"]["hash"] and summary["flow"]["bits_per_dim"] > 0
    shutil.copytree(run[0], tmp_path / "moved")
    assert with_flow(tmp_path / "moved") == summary
    flow = {**CONFIG["flow"], "learning_rate": 0.02}
    gr.train_and_evaluate({**CONFIG, "flow": flow}, tmp_path / "other")
    with pytest.raises(gr.UserError, match=f"used a flow with the hash {summary['flow']['hash']}"):
        with_flow(tmp_path / "other")
    with pytest.raises(gr.UserError, match=r"config\.flow\.workdir: 'another run' -> ''"):
        gr.train_and_evaluate({**config, "flow": CONFIG["flow"]}, tmp_path / "run")


def test_the_command_prints_what_the_run_measured(run, capsys, tmp_path):
    workdir, summary = run
    files = [path for path in workdir.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert main([f"--workdir={workdir}"]) == 0
    assert [path for path in workdir.rglob("*") if path.is_file()] == files
    assert before == {path: path.read_bytes() for path in files}, "a reader changes nothing"
    out = capsys.readouterr().out
    about = summary["generator"]
    assert f"Synthetic images are {about['distance_ratio']:.2f} times as far" in out
    assert f"500 images: {summary['test_bits_per_dim']:.4f}" in out
    assert f"flow: max {summary['reconstruction_error_max']:.2e}" in out
    assert f"frozen flow: max {summary['frozen_reconstruction_error_max']:.2e}" in out
    assert main([f"--workdir={tmp_path}"]) == 1
    err = capsys.readouterr().err
    assert "holds no trained flow" in err and err.count("\n") == 1


def test_the_evaluation_is_that_of_a_loop():
    flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4, num_classes=3)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (7, 4, 4, 1)).astype(np.uint8)
    y = np.arange(7) % 3
    params = flow.init(jax.random.key(0), x / np.float32(255), y)
    params = jax.tree.map(lambda a: a + np.float32(0.1) * rng.standard_normal(a.shape, "f"), params)
    key = jax.random.key(1)
    got = evaluate_flow(flow, params, x, y, key=key, batch_size=3)

    @jax.jit
    def one_batch(images, y, first):
        bits = flow.bits_per_dim(params, images, y, key=jax.random.fold_in(key, first))
        z, _ = flow.encode(params, images, y)
        return bits, jnp.abs(flow.decode(params, z, y)[0] - images)

    bits, errors = [], []
    for first in (0, 3, 6):
        rows = np.minimum(np.arange(first, first + 3), 6)
        here = slice(min(3, 7 - first))
        for found, of in zip((bits, errors), one_batch(x[rows] / np.float32(255), y[rows], first)):
            found.extend(np.asarray(of[here]))
    np.testing.assert_allclose(got["bits_per_dim"], np.mean(bits), rtol=1e-5)
    np.testing.assert_allclose(got["bits_per_dim_error"], np.std(bits) / np.sqrt(7), rtol=1e-4)
    np.testing.assert_allclose(got["reconstruction_error_max"], np.max(errors), atol=2e-7)
    np.testing.assert_allclose(got["reconstruction_error_median"], np.median(errors), atol=1e-7)
    with pytest.raises(ValueError, match="labels is None"):
        evaluate_flow(flow, params, x, key=key)


def test_adamax_is_optax_s():
    import optax

    flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4)
    x = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1)).astype(np.uint8)
    options = dict(batch_size=8, learning_rate=0.01, warmup=0, ema_decay=0.0, eval_every=1)
    states = []
    save = lambda step, tree, extra: states.append(jax.tree.map(np.array, tree[0]))
    flows.fit(jax.random.key(0), flow, x, steps=3, optimizer="adamax", save=save, **options)
    tx = optax.scale_by_adamax()
    state = tx.init(jnp.asarray(states[0].params))
    inner = next(s for s in states[0].opt_state if hasattr(s, "mu"))
    # The first moment after one step is a tenth of the gradient.
    direction, state = tx.update(10 * jnp.asarray(inner.mu), state)
    expected = jax.tree.leaves(state)
    for a, b in zip(jax.tree.leaves(inner), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert bool((jnp.abs(direction)[inner.mu != 0] > 0.9).all())
