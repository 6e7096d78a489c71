"""The runner of studies: which lines count, in tuning and in the table. `run` is a fake."""

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

import genreg_jax as gr
from genreg_jax.batches import BatchPlan
from genreg_jax.config import config_hash, default_config, from_config
from genreg_jax.errors import BusyError, UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
runner = importlib.import_module("experiments.runner")
runs = importlib.import_module("experiments.runs")
tuning = importlib.import_module("experiments.tuning")
store = importlib.import_module("experiments.store")
written = importlib.import_module("experiments.lines")
Study = importlib.import_module("experiments.study").Study
settings_of = importlib.import_module("experiments.study").settings_of

RATES = (0.1, 0.2, 0.3)


def study(rates=RATES, rows=("base", "other"), **changes):
    """Rows that differ in label smoothing, candidates that differ in the learning rate."""

    def config():
        config = default_config()
        config.update_from_flattened_dict(changes)
        return config

    smoothing = {"base": 0.0, "other": 0.1, "third": 0.2}
    return Study(
        config=config,
        rows={row: {"augment.label_smoothing": smoothing[row]} for row in rows},
        candidates={row: [{"optimizer.learning_rate": r} for r in rates] for row in rows},
        sizes=(10,),
        seeds=range(3),
        tuning_size=10,
        tuning_seeds=(100, 101),
    )


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Calls the command line on a study; `command.accuracy` is what a run of settings reaches."""
    cache = jax.config.jax_compilation_cache_dir

    def call(study, *args):
        monkeypatch.setattr(sys, "argv", ["run", f"--runs={tmp_path / 'runs'}", *map(str, args)])
        runner.main(study, tmp_path)
        return tmp_path / "results"

    def run(folder, settings):
        accuracy = call.accuracy(from_config(settings))
        return {
            "validation_accuracy": accuracy, "test_accuracy": accuracy, "seed": settings.seed,
            "seconds": 1.0, "commit": call.commit,
            "subset_hash": f"{call.data}{settings.seed}", "device": {"kind": "cpu"},
            "versions": {"jax": "0"}, "parameters": 7, "steps": 5, "train_examples": 3,
        }  # fmt: skip

    call.accuracy = lambda settings: settings.optimizer.learning_rate
    call.commit, call.data = "a", "s"
    monkeypatch.setattr(runs, "run", run)
    yield call
    jax.config.update("jax_compilation_cache_dir", cache)


def tuned(results):
    choice = json.loads((results / "tuned.json").read_text())
    return {row: changes["optimizer.learning_rate"] for row, changes in choice.items()}


def lines(results, pattern):
    return [
        json.loads(line)
        for path in sorted(results.glob(pattern))
        for line in path.read_text().splitlines()
    ]


def worse(settings):
    """The opposite of what a run reaches by default."""
    return 1 - settings.optimizer.learning_rate


def test_the_last_shard_chooses_the_best_candidate_of_each_row(command, capsys):
    command.accuracy = lambda s: (
        worse(s) if s.augment.label_smoothing else s.optimizer.learning_rate
    )
    results = command(study(), "--stage=tune", "--shard=1/2")
    assert not (results / "tuned.json").exists() and "6 of 12 runs" in capsys.readouterr().out
    command(study(), "--stage=tune", "--shard=0/2")
    assert tuned(results) == {"base": 0.3, "other": 0.1}
    assert len(lines(results, "tuning-*.jsonl")) == 12


def test_shards_of_an_earlier_sharding_are_not_averaged_in(command, capsys):
    command(study(), "--stage=tune", "--shard=0/2")
    command(study(), "--stage=tune", "--shard=1/2")
    command.accuracy = worse
    capsys.readouterr()
    results = command(study(), "--stage=tune", "--shard=0/1", "--again")
    assert tuned(results) == {"base": 0.1, "other": 0.1}
    out = capsys.readouterr().out
    assert out.count("| 2 |") == 6  # two seeds a candidate
    assert "tuning-1.jsonl is of another sharding" in out
    # And the other way round: what one process left does not stand in for two.
    (results / "tuned.json").unlink()
    (results / "tuning-1.jsonl").unlink()
    command(study(), "--stage=tune", "--shard=0/2")
    assert not (results / "tuned.json").exists()
    command(study(), "--stage=tune", "--shard=1/2")
    assert tuned(results) == {"base": 0.1, "other": 0.1}


def test_tuning_repeats_no_run_whose_line_is_there(command, capsys):
    """Runs may have been made on another machine, whose folders are not here."""
    results = command(study(), "--stage=tune")
    before = tuned(results)

    def never(settings):
        raise AssertionError("its line is there")

    command.accuracy = never
    (results / "tuned.json").unlink()
    command(study(), "--stage=tune")
    assert tuned(results) == before


def test_a_new_choice_of_the_first_row_drops_what_was_tuned_on_the_old(command):
    on_first = functools.partial(dataclasses.replace, on_first=True, halving=(0.5, 1.0))
    results = command(on_first(study(rates=(0.1, 0.2))), "--stage=tune")
    assert set(json.loads((results / "tuned.json").read_text())) == {"base", "other"}
    command(on_first(study(rates=(0.1, 0.2))), "--stage=tune", "--rows", "base")
    assert set(json.loads((results / "tuned.json").read_text())) == {"base", "other"}
    command(on_first(study(rates=(0.1, 0.2, 0.9))), "--stage=tune", "--rows", "base")
    choice = json.loads((results / "tuned.json").read_text())
    assert choice == {"base": {"optimizer.learning_rate": 0.9}}


def test_what_is_best_counts_the_lines_of_every_sharding(command):
    rows = ("base", "other", "third")
    best = dataclasses.replace(study(rows=rows), best={"better": ("other", "third")})
    command.accuracy = lambda s: s.augment.label_smoothing + 0.1 * s.optimizer.learning_rate
    for part in range(4):
        results = command(best, "--stage=tune", f"--shard={part}/4")
    assert json.loads((results / "tuned.json").read_text())["better"] == {
        "augment.label_smoothing": 0.2, "optimizer.learning_rate": 0.3,
    }  # fmt: skip
    command.accuracy = worse
    changed = dataclasses.replace(best, candidates={**best.candidates, "third": [{}]})
    results = command(changed, "--stage=tune", "--rows", "third")
    # `third` is at 0.9 with its own rate now, `other` at 0.13 by the lines of four shards.
    choice = json.loads((results / "tuned.json").read_text())
    assert choice["third"] == {} and choice["better"] == {"augment.label_smoothing": 0.2}


def test_a_candidate_that_is_gone_and_one_that_is_new(command, capsys):
    command(study(rates=(0.1, 0.2, 0.9)), "--stage=tune", "--shard=0/2")
    command(study(rates=(0.1, 0.2, 0.9)), "--stage=tune", "--shard=1/2")
    (folder := command(study(), "--stage=tune", "--shard=0/2") / "tuned.json").unlink()
    assert "runs are there" in capsys.readouterr().out  # of 0.3, not those of 0.9
    command(study(), "--stage=tune", "--shard=1/2")
    assert json.loads(folder.read_text())["base"] == {"optimizer.learning_rate": 0.3}
    # Nothing is lost, should it come back.
    rates = {r["changes"]["optimizer.learning_rate"] for r in lines(folder.parent, "tuning-*")}
    assert rates == {*RATES, 0.9}


def test_tuning_lines_of_other_settings_do_not_count(command, capsys):
    results = command(study(), "--stage=tune", "--shard=0/2")
    command(study(), "--stage=tune", "--shard=1/2")
    (results / "tuned.json").unlink()
    command.commit = "b"
    capsys.readouterr()
    changed = study(**{"train.epochs": 7})
    command(changed, "--stage=tune", "--shard=0/2")
    assert "6 of 12 runs" in capsys.readouterr().out
    assert not (results / "tuned.json").exists()
    command.commit = "c"
    command(changed, "--stage=tune", "--shard=1/2")
    assert tuned(results) == {"base": 0.3, "other": 0.3}
    assert "of 2 commits: b, c" in capsys.readouterr().out


def test_a_tuning_run_that_is_stopped_keeps_the_lines_it_had(command, capsys):
    results = command(study(), "--stage=tune")
    before = (results / "tuning-0.jsonl").read_text()

    def stop(settings):
        raise KeyboardInterrupt

    command.accuracy = stop
    with pytest.raises(SystemExit) as stopped:
        command(study(), "--stage=tune", "--again")
    assert stopped.value.code == 130 and capsys.readouterr().err == "Interrupted.\n"
    assert (results / "tuning-0.jsonl").read_text() == before


def test_the_table_drops_rows_that_the_study_no_longer_has(command, capsys):
    old = study(rows=("base", "other", "third"))
    command(old, "--stage=tune")
    results = command(old)
    assert len(lines(results, "table.jsonl")) == 9
    capsys.readouterr()
    command(study())
    assert {line["row"] for line in lines(results, "table.jsonl")} == {"base", "other"}
    assert "3 lines do not count" in capsys.readouterr().out
    assert "third" not in (results / "table.md").read_text()


def test_the_table_does_not_mix_old_settings_with_new(command, capsys):
    command(study(), "--stage=tune")
    results = command(study())
    command.accuracy = worse
    command(study(), "--stage=tune", "--again")  # chooses 0.1 in place of 0.3
    command(study(), "--seeds=1")
    found = lines(results, "table.jsonl")
    assert [line["seed"] for line in found] == [0, 0]
    assert all(line["changes"]["optimizer.learning_rate"] == 0.1 for line in found)
    command(study(), "--seeds=2", "--rows", "base")
    assert len(lines(results, "table.jsonl")) == 3
    command(study(**{"train.epochs": 7}), "--seeds=1")
    assert len(lines(results, "table.jsonl")) == 2


def test_lines_that_do_not_count_now_are_kept_and_count_again(command, capsys, tmp_path):
    command(study(), "--stage=tune")
    results = command(study())
    before, choice = (results / "table.jsonl").read_bytes(), (results / "tuned.json").read_text()
    other = json.loads(choice) | {"other": {"optimizer.learning_rate": 0.1}}
    (results / "tuned.json").write_text(json.dumps(other))
    for args in (["--merge", tmp_path / "missing.jsonl"], ["--stage=plan", "--rows", "base"]):
        with contextlib.suppress(SystemExit):
            command(study(), *args)
        assert (results / "table.jsonl").read_bytes() == before
    assert "3 lines do not count" in capsys.readouterr().out
    command.commit = "b"
    command(study(), "--rows", "other", "--seeds=1")
    assert [line["commit"] for line in lines(results, "table.jsonl")] == ["a", "b", "a", "a"]
    assert len(lines(results, "left_out.jsonl")) == 3
    command(study(), "--rows", "base")  # twice is once
    assert len(lines(results, "left_out.jsonl")) == 3
    (results / "tuned.json").write_text(choice)
    command(study(), "--rows", "base")
    assert (results / "table.jsonl").read_bytes() == before
    assert [line["commit"] for line in lines(results, "left_out.jsonl")] == ["b"]


def test_two_programs_tune_rows_beside_each_other(command):
    command(study(rows=("base",)), "--stage=tune")
    three, inner = study(rows=("base", "other", "third")), []

    def with_another(settings):
        if not inner:
            inner.append(settings)
            command(three, "--stage=tune", "--rows", "third")
        return settings.optimizer.learning_rate

    command.accuracy = with_another
    results = command(three, "--stage=tune", "--rows", "other")
    assert tuned(results) == {"base": 0.3, "other": 0.3, "third": 0.3}
    rows = [line["row"] for line in lines(results, "tuning-0.jsonl")]
    assert {row: rows.count(row) for row in rows} == {"base": 6, "other": 6, "third": 6}


def test_rows_that_were_tuned_on_an_older_choice_of_the_first_are_not_chosen(command, capsys):
    first = dataclasses.replace(study(), on_first=True, halving=(0.5, 1.0))
    results = command(first, "--stage=tune")
    choice = (results / "tuned.json").read_text()

    def meanwhile(settings):
        changed = {"base": {"optimizer.learning_rate": 0.1}}
        (results / "tuned.json").write_text(json.dumps(changed))
        return 0.5

    command.accuracy = meanwhile
    with pytest.raises(SystemExit):
        command(first, "--stage=tune", "--rows", "other", "--again")
    assert "base has another choice" in capsys.readouterr().err
    assert tuned(results) == {"base": 0.1} and choice != (results / "tuned.json").read_text()


def test_another_sharding_and_damaged_lines_take_nothing_away(command, capsys):
    rows = ("base", "other", "third")
    best = dataclasses.replace(study(rows=rows), best={"better": ("other", "third")})
    command.accuracy = lambda s: s.augment.label_smoothing + 0.1 * s.optimizer.learning_rate
    results = command(best, "--stage=tune")
    path, choice = results / "tuning-0.jsonl", (results / "tuned.json").read_text()
    whole = path.read_text().splitlines(keepends=True)
    assert len(whole) == 18
    path.write_text("".join(whole[1:]))
    command(best, "--stage=tune", "--rows", "base", "--shard=0/2")
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(whole)
    path.write_text("".join(whole[:-1]) + whole[-1][:40])  # of what is best
    for args in (["--rows", "other"], ["--rows", "base"]):
        capsys.readouterr()
        command(best, "--stage=tune", *args)
        assert "better stays third: no tuning lines of third" in capsys.readouterr().out
        assert (results / "tuned.json").read_text() == choice
    edited = json.loads(choice) | {"better": {"synthetic.weight": 99.0}}
    (results / "tuned.json").write_text(json.dumps(edited))
    assert "better" not in tuning.chosen(best, results / "tuned.json", (), pytest.fail)


def test_rows_can_be_tuned_alone_and_the_others_keep_their_choice_and_lines(command):
    command(study(rows=("base",)), "--stage=tune")
    command.accuracy = worse
    results = command(study(), "--stage=tune", "--rows", "other")
    assert tuned(results) == {"base": 0.3, "other": 0.1}
    assert [line["row"] for line in lines(results, "tuning-0.jsonl")] == 6 * ["base"] + 6 * [
        "other"
    ]


def test_a_table_goes_on_from_its_lines_and_repeats_them_when_asked(command):
    command(study(), "--stage=tune")
    results = command(study(), "--seeds=1")
    command.commit = "b"
    command(study(), "--seeds=2")
    commits = lambda: [line["commit"] for line in lines(results, "table.jsonl")]
    assert commits() == ["a", "a", "b", "b"]
    command(study(), "--seeds=1", "--rows", "base", "--again")
    assert commits() == ["b", "a", "b", "b"]


def test_a_table_has_each_line_as_soon_as_its_run_is_done(command):
    command(study(), "--stage=tune")

    def stop_at_the_third(settings):
        if settings.seed == 1:
            raise KeyboardInterrupt
        return 0.5

    command.accuracy = stop_at_the_third
    with pytest.raises(SystemExit):
        command(study())
    results = command(study(), "--rows", "base", "--seeds=1")
    assert [line["row"] for line in lines(results, "table.jsonl")] == ["base", "other"]


@pytest.fixture
def shards(command, tmp_path):
    """The table of one seed, and the lines of another seed from elsewhere."""
    results = command(study(), "--stage=tune")
    command(study(), "--shard=1/3")
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text((results / "table.jsonl").read_text())
    (results / "table.jsonl").unlink()
    command(study(), "--shard=0/3")
    return results, elsewhere


def test_shards_of_two_machines_are_merged_once(shards, command, capsys):
    results, elsewhere = shards
    half = elsewhere.read_text() + '{"row": "base", "se'
    elsewhere.write_text(half)
    for _ in range(2):
        capsys.readouterr()
        command(study(), "--merge", elsewhere)
        found = [(line["seed"], line["row"]) for line in lines(results, "table.jsonl")]
        assert found == [(0, "base"), (0, "other"), (1, "base"), (1, "other")]
        out = capsys.readouterr().out
        assert "Line 3 of elsewhere.jsonl is no whole record" in out and "| 10 | base | 2 |" in out


def refused(command, capsys, results, file):
    """The status and the words with which a merge is refused; the table stays as it is."""
    before = (results / "table.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        command(study(), "--merge", file)
    assert (results / "table.jsonl").read_bytes() == before
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return stopped.value.code, out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"commit": "b"}, "has lines of commit b, and the table those of a"),
        ({"row": "fourth"}, "seed 1 is of no row of this study; it has 'base', 'other'"),
        ({"settings_hash": "0"}, r"other settings \(those of all rows\)"),
        (
            {"changes": {"augment.label_smoothing": 0.0, "optimizer.learning_rate": 0.7}},
            r"row 'base', seed 1 was run with other settings \(optimizer.learning_rate = 0.7, here",
        ),
    ],
)
def test_a_shard_that_does_not_fit_is_refused_with_what_differs(
    shards, command, capsys, change, message
):
    results, elsewhere = shards
    first, *rest = map(json.loads, elsewhere.read_text().splitlines())
    store.write_lines(elsewhere, [first | change, *rest])
    assert re.search(message, refused(command, capsys, results, elsewhere)[1].err)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({"test_accuracy": v}, f"test_accuracy is {v!r}") for v in (None, math.nan, "0.3", 30.0)],
        *[({"seconds": v}, f"seconds is {v!r}") for v in (None, math.inf)],
        *[({"seed": v}, f"seed {v} with 10 labels per class is no run") for v in (77, -1)],
        ({"labels_per_class": 7}, "with 7 labels per class is no run of this study, which has 10"),
        ({"settings_hash": ...}, "lacks its settings_hash"),
        ({"commit": ...}, "lacks its commit"),
        ({"test_accuracy": True}, "test_accuracy is True"),
        ({"settings_hash": None}, "lacks its settings_hash"),
        ({"commit": None}, "lacks its commit"),
        ({"commit": "b-dirty"}, "with code that is not committed"),
        ({"device": ...}, "lacks its device"),
        ({"members": 2}, r"other settings \(members = 2, here 1\)"),
        (
            {"subset_hash": "zz"},
            r"Row 'other', seed 1 has other labelled images than row 'base' .* s1, there zz",
        ),
        *[({key: ...}, "Line 1 of elsewhere.jsonl is no whole record") for key in ("row", "seed")],
    ],
)
def test_a_line_that_is_not_whole_or_is_there_otherwise_is_refused(
    shards, command, capsys, change, message
):
    results, elsewhere = shards
    first, *rest = map(json.loads, elsewhere.read_text().splitlines())
    first = {k: v for k, v in (first | change).items() if v is not ...}
    store.write_lines(elsewhere, [first, *(rest if "subset_hash" in change else [])])
    _, out = refused(command, capsys, results, elsewhere)
    assert re.search(message, out.out + out.err)


def test_another_result_of_the_same_run_is_refused(shards, command, capsys):
    results, _ = shards
    before = (results / "table.jsonl").read_bytes()
    first, *_ = store.read_lines(results / "table.jsonl")
    store.write_lines(results / "other.jsonl", [first | {"test_accuracy": 0.1}])
    _, out = refused(command, capsys, results, results / "other.jsonl")
    assert "with another result (test_accuracy = 0.1, here 0.3)" in out.err
    command(study(), "--merge", results / "table.jsonl")
    assert (results / "table.jsonl").read_bytes() == before


def test_what_is_no_table_is_refused(shards, command, capsys, tmp_path):
    results, _ = shards
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "other.jsonl").write_text("{}\n5\nnull\n[1, 2]\n")
    for name, message in (
        ("missing.jsonl", "is no file"),
        (".", "is no file"),
        ("empty.jsonl", "has no line to merge"),
        ("binary.jsonl", "has no line to merge"),
        ("other.jsonl", "has no line to merge"),
    ):
        status, out = refused(command, capsys, results, tmp_path / name)
        assert status == 1 and message in out.err


def test_an_empty_table_takes_a_table_of_several_commits_and_not_two_of_one_each(
    shards, command, capsys, tmp_path
):
    results, one = shards
    other, both = tmp_path / "other.jsonl", tmp_path / "both.jsonl"
    second = [line | {"commit": "b", "seed": 2} for line in store.read_lines(one)]
    for line in second:
        changes = line["changes"]
        line["settings_hash"] = config_hash(settings_of(study(), changes, 10, 2, ""))
        line["subset_hash"] = "s2"
    store.write_lines(other, second)
    store.write_lines(both, [*store.read_lines(one), *second])
    (results / "table.jsonl").unlink()
    with pytest.raises(SystemExit):
        command(study(), "--merge", one, other)
    assert "has lines of commit b, and the table those of a" in capsys.readouterr().err
    assert not (results / "table.jsonl").exists()
    command(study(), "--merge", both)
    assert len(lines(results, "table.jsonl")) == 4


def test_a_plan_scales_a_few_updates_to_what_is_left(command, capsys, monkeypatch):
    def brief(folder, settings):
        assert settings.train.epochs * settings.train.steps_per_epoch == 8
        flow = {"images_per_second": 50.0} if settings.augment.label_smoothing else None
        stages = {"training": 16.0, "validation": 8.0, "data": 3.0, "compilation": 1800.0}
        return {"stages": stages, "steps": 8, "flow": flow}

    changed = study(**{"train.epochs": 20, "train.steps_per_epoch": 5, "flow.updates": 9000})
    command(changed, "--stage=tune")
    command(changed, "--rows", "base", "--seeds=1")
    capsys.readouterr()
    monkeypatch.setattr(runs, "run", brief)
    command(changed, "--stage=plan")
    out = capsys.readouterr().out.splitlines()
    # 100 updates of 2 s, 20 validations of 2 s, 3 s; of `base` two seeds are left.
    assert out[2:4] == ["| 10 | base | 243 | 2 | 0.6 |", "| 10 | other | 243 | 3 | 0.7 |"]
    # A flow takes 9,000 updates of 64 images at 50 a second, 3.2 hours, for each of three seeds.
    assert out[4] == "10.9 hours on one process, of them 9.6 for flows."


def test_a_half_written_line_is_run_again(command, capsys):
    results = command(study(), "--stage=tune")
    command(study(), "--seeds=2")
    path = results / "table.jsonl"
    path.write_text(path.read_text()[:-30])
    command.commit = "b"
    command(study(), "--seeds=2")
    assert "Line 4 of table.jsonl" in capsys.readouterr().out
    assert [line["commit"] for line in lines(results, "table.jsonl")] == ["a", "a", "a", "b"]


def test_rows_that_are_not_tuned_take_the_choices_of_others(command):
    base = study(rows=("base", "other"))
    rows = {**base.rows, "both": {"augment.label_smoothing": 0.2}}
    more = dataclasses.replace(
        base,
        rows=rows,
        inherits={"both": ("base", "other")},
        candidates={**base.candidates, "other": [{"optimizer.weight_decay": d} for d in (0, 1)]},
        pairs=[("both", "other"), ("both", "base")],
    )
    command.accuracy = lambda s: min(
        s.optimizer.learning_rate + s.augment.label_smoothing * s.seed, 1.0
    )
    command(more, "--stage=tune")
    results = command(more)
    (changes,) = {
        json.dumps(line["changes"], sort_keys=True)
        for line in lines(results, "table.jsonl")
        if line["row"] == "both"
    }
    assert json.loads(changes) == {
        "augment.label_smoothing": 0.2,
        "optimizer.learning_rate": 0.3,
        "optimizer.weight_decay": 0,
    }
    # Seeds 0, 1, 2: differences of 0, 20 and 40 points to base.
    text = (results / "table.md").read_text()
    expected = scipy.stats.ttest_1samp([0, 20, 40], 0).pvalue
    assert f"| 10 | both | base | 3 | +20.00 ± 11.55 | {expected:.3f} |" in text


def test_lines_without_a_settings_hash_count_by_their_changes(command):
    command(study(), "--stage=tune")
    results = command(study())
    kept = [
        {k: v for k, v in r.items() if k != "settings_hash"} for r in lines(results, "table.*l")
    ]
    kept[-1]["changes"]["optimizer.learning_rate"] = 0.2
    (results / "table.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    command(study(), "--seeds=1")
    assert len(lines(results, "table.jsonl")) == 5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shard=2/2"], "'2/2' is not i/n"),
        (["--shard=1"], "'1' is not i/n"),
        (["--stage=tune", "--seeds=1"], "tuning runs as a whole"),
        (["--merge=x", "--rows", "base"], "leave out the other flags"),
        (["--stage=tune", "--merge=x"], "leave out the other flags"),
        (["--seeds=0"], "--seeds is 0; allowed: 1 to 3"),
        (["--seeds=-1"], "--seeds is -1; allowed: 1 to 3"),
        (["--seeds=4"], "--seeds is 4; allowed: 1 to 3"),
        (["--sizes", "7"], "the study has no cell of 7 labels per class; it has 10"),
        ([], "no candidate of the study for base, other; run --stage=tune"),
    ],
)
def test_what_a_command_line_can_get_wrong(command, args, message, capsys):
    with pytest.raises(SystemExit):
        command(study(), *args)
    assert message in capsys.readouterr().err


def test_a_damaged_choice_or_a_folder_that_cannot_be_used_is_said_in_a_paragraph(
    command, capsys, tmp_path
):
    results = command(study(), "--stage=tune")
    whole = (results / "tuned.json").read_text()
    for text in (whole[:-9], "", "[]", "null", "\x00\x01"):
        (results / "tuned.json").write_text(text)
        for args in ([], ["--stage=tune", "--again"], ["--stage=plan"]):
            with pytest.raises(SystemExit) as stopped:
                command(study(), *args)
            error = capsys.readouterr().err
            assert stopped.value.code == 1 and error.count("\n") == 1
            assert "tuned.json is damaged" in error and "run --stage=tune" in error
        assert (results / "tuned.json").read_text() == text
    (results / "tuned.json").write_text(whole)
    command(study(), "--seeds=1")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        command(study(), f"--runs={tmp_path / 'file'}")
    assert "cannot be read or written" in capsys.readouterr().err

    def refused(settings):
        raise UserError("no data there")

    command.accuracy = refused
    for args in (["--stage=tune", "--again"], ["--again"]):
        with pytest.raises(SystemExit) as stopped:
            command(study(), *args)
        assert stopped.value.code == 1 and capsys.readouterr().err == "no data there\n"
    assert len(lines(results, "table.jsonl")) == 2


def test_a_run_that_another_program_makes_is_left_to_it(command, capsys):
    command(study(), "--stage=tune")

    def busy(settings):
        if settings.seed == 1 and not settings.augment.label_smoothing:
            raise BusyError("another program")
        return 0.5

    command.accuracy = busy
    results = command(study())
    assert "was making them: 'base' with 10 labels per class, seed 1." in capsys.readouterr().out
    assert len(lines(results, "table.jsonl")) == 5
    command.accuracy = lambda settings: busy(dataclasses.replace(settings, seed=settings.seed - 99))
    command(study(rates=(0.1, 0.7)), "--stage=tune")  # seed 100 of base's
    out = capsys.readouterr().out
    assert out.count("is left to another program") == 1 and "7 of 8 runs are there" in out


def test_several_threads_lose_none_of_each_others_lines(command, tmp_path):
    """A lock is of an open file, so that threads stand for processes."""
    small = dataclasses.replace(study(), seeds=range(12))
    results = command(small, "--stage=tune")
    changes = small.changes(tuning.chosen(small, results / "tuned.json", (), pytest.fail))
    first = {"validation_accuracy": 0.5, "test_accuracy": 0.5, "seconds": 1.0}

    def add(job):
        seed, row = job
        settings = settings_of(small, changes[row], 10, seed, "")
        line = written.record(row, 10, changes[row], first | {"seed": seed}, settings)
        store.add_lines(small, changes, results / "table.jsonl", [line])
        store.put_line(results / "tuning-0.jsonl", line, lambda line: line["settings_hash"])

    before = len(lines(results, "tuning-0.jsonl"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, [(seed, row) for seed in range(12) for row in ("base", "other")]))
    assert len(lines(results, "table.jsonl")) == 24
    assert len(lines(results, "tuning-0.jsonl")) == before + 24


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_line_that_comes_back_survives_what_stops_the_writing(command, stop, monkeypatch):
    command(study(), "--stage=tune")
    results = command(study())
    choice = json.loads((results / "tuned.json").read_text())
    other = choice | {"other": {"optimizer.learning_rate": 0.1}}
    writes, whole = [], store.write_lines

    def stopped(path, lines):
        writes.append(path.name)
        if len(writes) == stop:
            raise KeyboardInterrupt
        whole(path, lines)

    for choices in (other, choice):  # the lines of `other` go, and come back
        (results / "tuned.json").write_text(json.dumps(choices))
        with monkeypatch.context() as patch:
            writes.clear()
            patch.setattr(store, "write_lines", stopped)
            with contextlib.suppress(SystemExit):
                command(study(), "--rows", "base")
        every = lines(results, "table.jsonl") + lines(results, "left_out.jsonl")
        assert {(line["row"], line["seed"]) for line in every} == {
            (row, seed) for row in ("base", "other") for seed in range(3)
        }
        command(study(), "--rows", "base")
    assert len(lines(results, "table.jsonl")) == 6 and not lines(results, "left_out.jsonl")


def test_rows_of_other_data_do_not_stand_beside_each_other(command, capsys):
    command(study(), "--stage=tune")
    results = command(study(), "--rows", "base")
    command.data = "t"  # another --data_dir
    with pytest.raises(SystemExit):
        command(study(), "--rows", "other")
    error = capsys.readouterr().err
    assert "Row 'other', seed 0 has other labelled images than row 'base'" in error
    assert "--data_dir" in error and len(lines(results, "table.jsonl")) == 3
    command(study(), "--rows", "base", "--seeds=1", "--again")  # its own line is no other row's
    assert [line["subset_hash"] for line in lines(results, "table.jsonl")] == ["t0", "s1", "s2"]


def test_a_study_takes_the_choices_of_another(command, tmp_path, capsys):
    one = study()
    both = {"one": one, "two": dataclasses.replace(one, tuned_as="one")}
    with pytest.raises(SystemExit):
        command(both, "--study=two")
    assert "no candidate of the study for base, other" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(both, "--study=two", "--stage=tune")
    assert "takes the choices of one; tune that one" in capsys.readouterr().err
    results = command(both, "--study=one", "--stage=tune")
    command(both, "--study=two")
    rates = {line["changes"]["optimizer.learning_rate"] for line in lines(results, "two/*.jsonl")}
    assert rates == {0.3} and not (results / "two" / "tuned.json").exists()


def test_a_row_that_has_not_been_tuned_is_refused(command, capsys):
    command(study(), "--stage=tune")
    more = study(rows=("base", "other", "third"))
    results = command(more, "--rows", "base", "other")  # the others can be run
    assert len(lines(results, "table.jsonl")) == 6
    with pytest.raises(SystemExit):
        command(study(rows=("base", "other", "third")))
    assert "no candidate of the study for third" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("digits", ["STUDY"]),
        ("fashion_mnist", ["STUDY"]),
        ("latent", ["DIGITS", "FASHION_MNIST"]),
        ("phantom", ["STUDIES"]),
        ("combined", ["STUDIES"]),
        ("pooling", ["STUDIES"]),
        ("self_tuned", ["STUDIES"]),
        ("sources", ["FASHION_MNIST", "CIFAR10"]),
        ("fine_tuning", ["STUDIES"]),
    ],
)
def test_the_published_tables_are_of_the_studies_as_they_are(module, names):
    loaded = importlib.import_module(f"experiments.{module}.run")
    results = Path(loaded.__file__).parent / "results"
    for name in names:
        value = getattr(loaded, name)
        studies = value if isinstance(value, dict) else {name.lower(): value}
        for folder, study in studies.items():
            folder = results if name == "STUDY" else results / folder
            found = store.read_lines(folder / "table.jsonl")
            rows = {line["row"] for line in found}
            home = results / study.tuned_as if study.tuned_as else folder
            tuned = tuning.chosen(study, home / "tuned.json", rows, pytest.fail)
            changes = study.changes(tuned)
            assert found and all(store.is_current(study, changes, line) for line in found)


def test_the_papers_study_has_its_classifier_its_attack_and_its_flow(tmp_path):
    """arXiv:2108.07958 and its code: 5 % of CIFAR-10; 250 passes of the flow, ten of warm-up."""
    paper = importlib.import_module("experiments.latent.run").CIFAR10
    tuning.chosen(paper, tmp_path / "tuned.json", paper.rows, pytest.fail)  # nothing is tuned
    changes = paper.changes({})
    of = {r: settings_of(paper, c, paper.sizes[0], 0, "") for r, c in changes.items()}
    images = 10 * paper.sizes[0]
    assert images == 0.05 * 50_000 and len(paper.seeds) >= 2
    for settings in of.values():
        steps = BatchPlan(settings, np.arange(images) % 10).steps_per_epoch
        assert (settings.model.name, settings.train.batch_size, steps) == ("resnet18", 128, 19)
        optimizer = settings.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay) == (0.1, 5e-4)
        assert (settings.train.epochs, optimizer.step_epochs) == (200, (60, 120, 160))
        assert settings.augment.train == "flip+crop(4)"
    base, ours, on_all = of.values()
    assert not base.uses_latent and not base.uses_flow
    for settings, seen in ((ours, images), (on_all, 49_000)):
        latent, flow = settings.latent, settings.flow
        assert (latent.kind, latent.epsilon, latent.step_size) == ("adversarial", 1.0, 0.5)
        assert latent.num_steps == 3 and not flow.conditional
        assert (flow.levels, flow.steps, flow.width, flow.optimizer) == (3, 32, 512, "adamax")
        assert flow.updates * flow.batch_size / seen == pytest.approx(250, rel=0.01)
        assert flow.warmup * flow.batch_size / seen == pytest.approx(10, rel=0.02)
    assert (ours.flow.images, on_all.flow.images) == ("labelled", "all")


def test_an_ensemble_is_the_mean_of_its_members_probabilities(tmp_path):
    small = study(
        **{
            "model.widths": (4, 8),
            "train.epochs": 1,
            "train.steps_per_epoch": 5,
            "data.validation_fraction": 0.1,
        }  # fmt: skip
    )
    settings = settings_of(small, {}, 10, 3, "")
    found = runs.ensemble(tmp_path, settings, 3)
    loaded = {path.parent: gr.load(path.parent) for path in tmp_path.glob("*/summary.json")}
    seeds = sorted(run.config.seed for run in loaded.values())
    assert seeds == [3, 1003, 2003]
    dataset = runs.load(settings)
    for name in ("validation", "test"):
        split = getattr(dataset, name)
        each = [run.predict(split.images).probabilities for run in loaded.values()]
        assert not np.allclose(each[0], each[1], atol=1e-3)
        predicted = np.mean(each, 0).argmax(-1)
        assert found[f"{name}_accuracy"] == pytest.approx(np.mean(predicted == split.labels))
    summaries = [json.loads((path / "summary.json").read_text()) for path in loaded]
    assert found["seconds"] == pytest.approx(sum(s["seconds"] for s in summaries))
    assert {s["subset_hash"] for s in summaries} == {found["subset_hash"]}
    assert 0 < found["processor_seconds"]
    alone = runs.run(tmp_path, settings)["processor_seconds"]
    assert (
        0
        < alone
        < found["processor_seconds"]
        == runs.ensemble(tmp_path, settings, 3)["processor_seconds"]
    )
    next(tmp_path.glob("*-member-2.processor_seconds")).unlink()  # of before it was measured
    assert runs.ensemble(tmp_path, settings, 3)["processor_seconds"] is None


def test_processor_seconds_add_up_over_processes_and_do_not_count_what_others_do(tmp_path):
    def work():
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    settings, folder = settings_of(study(), {}, 10, 3, ""), tmp_path / "run"
    spent = lambda: runs.processor_seconds(settings, [folder])
    with runs.processor_time(folder, begun=False):
        time.sleep(0.3)
        assert spent() is None  # until it ends: a process may be killed
    assert spent() < 0.1
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), runs.processor_time(folder, begun=True):
            work()
            raise KeyboardInterrupt
    assert 0.4 <= spent() < 0.6
    flow = dataclasses.replace(
        settings_of(study(), {"synthetic.loss": "pcr", "synthetic.weight": 1.0}, 10, 3, ""),
        flow=dataclasses.replace(settings.flow, workdir=str(tmp_path / "flow")),
    )
    assert runs.processor_seconds(flow, [tmp_path / "run"]) is None
    (tmp_path / "flow.processor_seconds").write_text("3.5")
    assert 3.9 <= runs.processor_seconds(flow, [tmp_path / "run"]) < 4.1
    (tmp_path / "run.processor_seconds").write_text("")  # a full disk
    assert spent() is None
    with runs.processor_time(folder, begun=True):
        work()
    assert spent() is None  # some of them are lost
    (tmp_path / "run.processor_seconds").unlink(missing_ok=True)  # as of a killed process
    with runs.processor_time(folder, begun=True):
        work()
    assert spent() is None


def test_help_and_slips_name_the_studies_and_the_rows(command, capsys):
    both = {"one": study(), "two": study(rows=("base", "third"))}
    for args, code, words in (
        (["--help"], 0, "{one,two}"),
        ([], 2, "required: --study"),
        (["--study=three"], 2, "choose from"),
        (["--study=two", "--rows", "other"], 2, "no row 'other'; it has 'base', 'third'"),
    ):
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as stopped:
            command(both, *args)
        assert words in "".join(capsys.readouterr())
        assert not code or stopped.value.code == code
    with pytest.raises(SystemExit):
        command(study(), "--rows", "mrg")
    assert "no row 'mrg'; it has 'base', 'other'" in capsys.readouterr().err


def test_a_line_of_another_number_of_members_does_not_count(command, monkeypatch):
    calls = []
    one = lambda folder, settings, members: calls.append(members) or runs.run(folder, settings)
    monkeypatch.setattr(runs, "ensemble", one)
    two = dataclasses.replace(study(), candidates={}, members={"other": 2})
    results = command(two)
    assert [r.get("members") for r in lines(results, "table.jsonl")] == [None, 2] * 3
    command(two)
    assert calls == [2] * 3
    results = command(dataclasses.replace(two, members={"other": 3}))
    assert calls == [2] * 3 + [3] * 3


@pytest.fixture
def limits(command, tmp_path, monkeypatch):
    """Calls the command line of a study of limits; `limits.made` is what has been run."""
    module = importlib.import_module("experiments.sources.limits")
    (tmp_path / "results").mkdir()

    def one(folder, settings, substitute):
        call.made.append((settings.seed, substitute, settings.optimizer.learning_rate))
        accuracy = settings.optimizer.learning_rate + 0.01 * settings.seed
        return {"validation_accuracy": accuracy, "seed": settings.seed, "commit": "a"}

    def call(rows, *args):
        monkeypatch.setattr(sys, "argv", ["limits", f"--runs={tmp_path / 'runs'}", *args])
        module.main(study(), lambda: rows, range(2, 5), tmp_path)
        return tmp_path / "results"

    call.made = []
    monkeypatch.setattr(module, "one", one)
    return call


def test_what_limits_is_run_once_with_each_rows_settings(limits, capsys):
    rate = lambda r: {"optimizer.learning_rate": r}
    rows = {"base": ("", rate(0.1)), "pcr": ("real", rate(0.2))}
    for _ in range(2):
        results = limits(rows, "--rows", "base")  # nothing to compare it with yet
    assert limits.made == [(seed, "", 0.1) for seed in (2, 3, 4)]
    limits(rows, "--seeds=2")
    assert limits.made[3:] == [(2, "real", 0.2), (3, "real", 0.2)]
    assert "| pcr | 2 | 22.50 ± 0.50 | +10.00 ± 0.00 |  |  |" in capsys.readouterr().out
    changed = {"base": ("", rate(0.5)), "pcr": ("real", rate(0.2))}
    limits(changed, "--seeds=2")  # the old lines of base do not stand in for the new
    assert limits.made[5:] == [(2, "", 0.5), (3, "", 0.5)]
    assert "| pcr | 2 | 22.50 ± 0.50 | -30.00 ± 0.00 |" in (results / "limits.md").read_text()
    assert len(lines(results, "limits.jsonl")) == 7
    for args, message in ((["--seeds=0"], "allowed: 1 to 3"), (["--rows", "x"], "invalid choice")):
        with pytest.raises(SystemExit):
            limits(rows, *args)
        assert message in capsys.readouterr().err


def test_two_processes_train_a_shared_flow_once(tmp_path, monkeypatch):
    trained, both = [], threading.Barrier(2)

    def train(settings, dataset, home, augment):
        trained.append(home)
        time.sleep(0.3)
        return None, {"bits": 1.0}

    monkeypatch.setattr(runs, "trained_flow_generator", train)
    settings = settings_of(study(), {"synthetic.loss": "pcr", "synthetic.weight": 1.0}, 10, 3, "")

    def one(_):
        both.wait()
        return runs.with_flow(tmp_path, settings).flow.workdir

    with ThreadPoolExecutor(2) as pool:  # a lock is of an open file: threads stand for processes
        folders = set(pool.map(one, range(2)))
    assert len(trained) == 1 and folders == {str(trained[0])}


def test_a_run_that_goes_on_from_before_it_was_measured_has_no_processor_seconds(tmp_path):
    small = study(
        **{"model.widths": (4,), "train.epochs": 2, "train.steps_per_epoch": 2},
    )
    settings = settings_of(small, {}, 10, 3, "")
    run = lambda: runs.run(tmp_path, settings)["processor_seconds"]
    (tmp_path / config_hash(settings)).mkdir()
    assert run() is None
