"""Finished runs beside each other."""

import csv
import io
import statistics

import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax import compare


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
