"""Finished runs beside each other."""

import csv
import io
import json
import shutil
import statistics

import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax import compare, logs
from genreg_jax.config import config_hash, from_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds at one learning rate, three at another; the summaries by folder."""
    folder, summaries = tmp_path_factory.mktemp("runs"), {}
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 100, (80, 4, 4, 1)).astype(np.uint8), np.arange(80) % 2
    images[labels == 1, :2] += 60
    dataset = gr.data.from_arrays(images[:40], labels[:40], images[40:], labels[40:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)
        for rate, seeds in ((0.01, (0, 1)), (0.125, (0, 1, 2))):
            for seed in seeds:
                config = {
                    "seed": seed, "model": {"widths": [4]}, "optimizer": {"learning_rate": rate},
                    "train": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 8,
                              "progress": False},
                }  # fmt: skip
                workdir = folder / f"{rate}-{seed}"
                summaries[workdir] = gr.train_and_evaluate(config, workdir, dataset=dataset)
    return summaries


def test_a_line_for_each_setting_with_mean_and_error_over_the_seeds(runs, capsys):
    assert compare.main([*map(str, runs), "--format=csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["optimizer.learning_rate"] for line in lines] == ["0.01", "0.125"]
    assert [line["n"] for line in lines] == ["2", "3"]
    assert set(lines[0]) == {
        "run", "optimizer.learning_rate", "n", "test accuracy, %", "validation accuracy, %",
        "seconds",
    }  # fmt: skip
    for line, rate in zip(lines, ("0.01", "0.125")):
        found = [100 * s["test_accuracy"] for w, s in runs.items() if w.name.startswith(rate + "-")]
        error = statistics.stdev(found) / len(found) ** 0.5
        assert line["test accuracy, %"] == f"{statistics.fmean(found):.2f} ± {error:.2f}"
    assert compare.main([*map(str, runs)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| run | optimizer.learning_rate | n |") and len(rows) == 4


def test_what_is_no_finished_run_is_named(runs, tmp_path, capsys):
    assert compare.main([str(next(iter(runs))), str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "no workdir of a finished run" in error
    assert error.count("\n") == 1


def _copy(run, folder, **changes):
    """A copy of a run whose summary, and with `config`, whose settings say something else."""
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.pop("config", {}).items():
        config[name] |= value
    (folder / "config.json").write_text(json.dumps(config))
    changes = {"config_hash": config_hash(from_config(config)), **changes}
    summary = json.loads((folder / "summary.json").read_text()) | changes
    summary.pop("checksum")
    (folder / "summary.json").write_text(json.dumps(summary | {"checksum": logs.checksum(summary)}))
    return folder


def test_runs_of_other_images_are_lines_of_their_own(runs, tmp_path, capsys):
    first = next(iter(runs))
    here = [
        _copy(first, tmp_path / f"{name}-{seed}", fingerprint=digest * 32, seed=seed,
              subset_hash=f"{name}{seed}", config={"data": {"dir": folder}})
        for name, digest, folder in (("a", "ab", ""), ("b", "cd", "pictures/b"))
        for seed in (0, 1)
    ]  # fmt: skip
    lines = compare.compare(here)
    assert [(line["n"], line["data"]) for line in lines] == [
        ("2", "abababab"), ("2", "pictures/b (cdcdcdcd)")
    ]  # fmt: skip
    # Where the folder of one data set has been moved, it is one still.
    moved = _copy(here[2], tmp_path / "moved", seed=7, subset_hash="b7")
    assert [line["n"] for line in compare.compare([*here, moved])] == ["2", "3"]
    # The data set's name is enough where it tells them apart.
    other = _copy(here[2], tmp_path / "other", dataset="birds")
    assert "data" not in compare.compare([here[0], other])[0]
    # A model of the caller's own, and a classifier to start from, are not in the config.
    own = _copy(first, tmp_path / "own", own=["model"])
    assert [line["own"] for line in compare.compare([first, own])] == ["", "model"]
    assert capsys.readouterr().err == ""


def test_a_run_that_is_given_twice_counts_once(runs, tmp_path, capsys):
    first, second = list(runs)[:2]
    copied = _copy(first, tmp_path / "copy")
    (line,) = compare.compare([first, second, first, copied])
    said = capsys.readouterr().err.splitlines()
    assert line == compare.compare([first, second])[0] and line["n"] == "2"
    assert len(said) == 2 and str(copied) in said[1] and str(first) in said[1]
    assert all("are the same run" in text for text in said)


def test_a_setting_that_a_run_does_not_have_shows_its_default(runs, tmp_path):
    first = next(iter(runs))
    other = _copy(first, tmp_path / "other", config={"synthetic": {"source": "renoised"}})
    lines = compare.compare([first, other])
    assert [line["synthetic.source"] for line in lines] == ["prior", "renoised"]
