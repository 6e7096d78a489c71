"""The low-data study: its statistics, its count of operations, and what its page says."""

import dataclasses
import importlib
import json
import math
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure
from test_runner import command, study  # noqa: F401  # a fixture

from genreg_jax.batches import BatchPlan
from genreg_jax.errors import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
costs = importlib.import_module("experiments.low_data.costs")
report = importlib.import_module("experiments.low_data.report")
tables = importlib.import_module("experiments.low_data.tables")
low_data = importlib.import_module("experiments.low_data.run")
store = importlib.import_module("experiments.store")
written = importlib.import_module("experiments.lines")
tuning = importlib.import_module("experiments.tuning")
settings_of = importlib.import_module("experiments.study").settings_of


# -------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_its_definition_rejects(seed):
    rng = np.random.default_rng(seed)
    values = dict(enumerate(rng.random(9) ** 4))
    corrected = tables.holm(values)
    for alpha in (0.01, 0.05, 0.2, 0.5, 0.9):
        rejected = set()
        for rank, key in enumerate(sorted(values, key=values.get)):
            if values[key] > alpha / (len(values) - rank):
                break
            rejected.add(key)
        assert {key for key, p in corrected.items() if p <= alpha} == rejected


def test_a_paired_difference_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a, b = ({i: float(v) for i, v in enumerate(rng.normal(size=n))} for n in (7, 9))
    mean, error, p, n = written.paired(a, b)
    gains = np.array([a[i] - b[i] for i in range(7)])
    assert n == 7 and mean == pytest.approx(gains.mean())
    assert error == pytest.approx(scipy.stats.sem(gains))
    assert p == pytest.approx(scipy.stats.ttest_rel(list(a.values()), list(b.values())[:7]).pvalue)
    assert math.isnan(written.paired({0: 1.0}, b)[1])
    assert written.paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})[2] == 1.0
    # The same gain on every seed is no certainty: of n signs all are the same in 2 of 2^n cases.
    same = written.paired({i: 50.2 for i in range(5)}, {i: 50.0 for i in range(5)})
    sign = scipy.stats.binomtest(5, 5).pvalue
    assert same == (pytest.approx(0.2), pytest.approx(0), pytest.approx(sign), 5)


# -------------------------------------------------------------------------------------- operations


def test_products_and_convolutions_are_counted_in_closed_form():
    a, b = jnp.zeros((3, 5, 7)), jnp.zeros((3, 7, 11))
    count = lambda f, *args: costs.flops(jax.make_jaxpr(f)(*args).jaxpr)
    assert count(jnp.matmul, a, b) == 2 * 3 * 5 * 7 * 11
    x, w = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 2, 12))
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )
    assert count(conv, x, w) == 2 * (2 * 4 * 4 * 12) * (3 * 3 * 2)


def test_a_loop_counts_its_turns_and_a_branch_the_larger_one():
    a = jnp.ones((4, 4))
    count = lambda f: costs.flops(jax.make_jaxpr(f)(a).jaxpr)
    one = 2 * 4**3
    assert count(lambda a: jax.lax.fori_loop(0, 5, lambda i, c: c @ a, a)) == 5 * one
    assert count(lambda a: jax.lax.scan(lambda c, _: (c @ a @ a, None), a, length=3)[0]) == 6 * one
    branches = [lambda a: a, lambda a: a @ a @ a]
    assert count(lambda a: jax.lax.switch(jnp.int32(a[0, 0]), branches, a)) == 2 * one
    assert count(jax.jit(lambda a: a @ a)) == one


def test_the_count_of_a_plain_update_is_that_of_xla():
    study = low_data.STUDIES["digits"]
    changes = low_data.draws(1, (16,), 50)[0]
    settings = settings_of(study, changes, 10, 0, "")
    ours = costs.of_update(settings)
    x, w = jnp.zeros((16, 8, 8, 32)), jnp.zeros((3, 3, 32, 64))
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    theirs = jax.jit(conv).lower(x, w).cost_analysis()["flops"]
    mine = costs.flops(jax.make_jaxpr(conv)(x, w).jaxpr)
    assert 0.75 * mine < theirs <= mine  # XLA leaves out what falls on the padding
    adversarial = {"latent.kind": "adversarial", "latent.epsilon": 1.0}
    few, many = (
        costs.of_update(
            settings_of(study, {**changes, **adversarial, "latent.num_steps": n}, 10, 0, "")
        )
        for n in (1, 4)
    )
    assert ours < few < many and (many - few) / 3 > 0.5 * ours


# ------------------------------------------------------------------------------------------ tuning


def test_half_of_the_candidates_go_on_with_more_epochs_and_the_others_take_the_choice(command):  # noqa: F811
    seen = []

    def accuracy(settings):
        rate, smoothing = settings.optimizer.learning_rate, settings.augment.label_smoothing
        seen.append((rate, settings.train.epochs, smoothing))
        # With few epochs the largest rate looks best, with many the second.
        best = 0.4 if settings.train.epochs < 8 else 0.3
        return 1 - abs(rate - best) - smoothing

    command.accuracy = accuracy
    small = dataclasses.replace(
        study(rates=(0.1, 0.2, 0.3, 0.4), **{"train.epochs": 8}),
        candidates={
            "base": [{"optimizer.learning_rate": r} for r in (0.1, 0.2, 0.3, 0.4)],
            "other": [{"train.batch_size": b} for b in (16, 32)],
        },
        halving=(0.25, 0.5, 1.0),
        on_first=True,
        best={"best of all": ("other",)},
    )
    results = command(small, "--stage=tune")
    choice = json.loads((results / "tuned.json").read_text())
    assert choice["base"] == {"optimizer.learning_rate": 0.4}  # 0.3 fell out at half the epochs
    halving = [(rate, epochs) for rate, epochs, smoothing in seen if not smoothing]
    assert (
        halving
        == [(r, 2) for r in (0.1, 0.2, 0.3, 0.4) for _ in range(2)]
        + [(r, 4) for r in (0.4, 0.3) for _ in range(2)]
        + [(0.4, 8)] * 2
    )
    # The other row was tried with base's choice, and so is the table.
    assert {rate for rate, _, smoothing in seen if smoothing} == {0.4}
    assert small.changes(choice)["other"]["optimizer.learning_rate"] == 0.4
    assert choice["best of all"] == {"augment.label_smoothing": 0.1, **choice["other"]}
    seen.clear()
    command(small, "--stage=tune", "--rows", "base")
    assert not seen  # every line was there
    with pytest.raises(SystemExit):
        command(small, "--stage=tune", "--shard=0/2")


def test_the_other_rows_are_not_tuned_before_the_first(command, capsys):  # noqa: F811
    first = dataclasses.replace(study(), on_first=True)
    with pytest.raises(SystemExit):
        command(first, "--stage=tune", "--rows", "other")
    assert "run --stage=tune" in capsys.readouterr().err


@pytest.mark.parametrize("name", low_data.STUDIES)
def test_every_row_has_its_settings_whatever_tuning_chooses(name):
    study = low_data.STUDIES[name]
    budgets = {len(c) for row, c in study.candidates.items() if row != "base"}
    assert budgets == {4}
    for pick in (0, -1):
        tuned = {row: choices[pick] for row, choices in study.candidates.items()}
        for best, group in study.best.items():
            tuned[best] = {**study.rows[group[pick]], **tuned[group[pick]]}
        changes = study.changes(tuned)
        assert changes.keys() == study.rows.keys()
        settings = {r: settings_of(study, c, study.sizes[0], 0, "") for r, c in changes.items()}
        everything = settings["all three"]
        assert everything.uses_meta and everything.uses_phantom and everything.uses_latent
        assert settings["all three + best augmentation"].uses_meta
        assert settings["all three, self-tuned"].tune.learn
        assert {s.train.nonfinite for s in settings.values()} == {"skip"}
        updates = {
            s.train.epochs for r, s in settings.items() if not r.endswith(" times the updates")
        }
        assert len(updates) == 1
        images = {
            s.train.epochs * s.train.steps_per_epoch * s.train.batch_size
            for r, s in settings.items()
            if not r.endswith(" times the updates")
        }
        assert len(images) == 1
        base = changes["base"]
        for row in ("base", *low_data.LONG):
            assert settings[f"{row}, 4 times the updates"] == dataclasses.replace(
                settings[row],
                train=dataclasses.replace(
                    settings[row].train, epochs=4 * study.config().train.epochs
                ),
            )
        for row in study.rows:
            if row not in ("trivialaugment", "small batches, strong decay"):
                assert changes[row]["optimizer.learning_rate"] == base["optimizer.learning_rate"]


@pytest.mark.parametrize("name", low_data.STUDIES)
def test_every_batch_fits_into_the_smallest_subset(name):
    study = low_data.STUDIES[name]
    images = 10 * min(study.sizes)
    seen = set()
    for candidate in (*study.candidates["base"], study.rows["small batches, strong decay"]):
        seen.add(candidate["train.steps_per_epoch"] * candidate["train.batch_size"])
        settings = settings_of(study, candidate, min(study.sizes), 0, "")
        assert BatchPlan(settings, np.arange(images) % 10).steps_per_epoch > 0
    assert len(seen) == 1


# ---------------------------------------------------------------------------------------- the page


def records(gains, seconds, sizes=(10, 50), seeds=6):
    """Runs whose accuracies are 70 % and their gains, on validation images too; flows take 15 s."""
    rng = np.random.default_rng(0)
    return [
        {
            "row": row, "labels_per_class": size, "seed": seed, "seconds": seconds[row],
            "test_accuracy": 0.7 + 0.01 * gains[row] + 0.003 * rng.normal() + 0.01 * seed,
            "validation_accuracy": 0.7 + 0.01 * gains[row],
            "flow": {"seconds": 15.0} if row in ("mgr", "gda") else None,
        }
        for size in sizes
        for row in gains
        for seed in range(seeds)
    ]  # fmt: skip


TIMES = {"base": 10.0} | {f"base, {n} times the updates": 10.0 * n for n in (2, 4)}
GAINS = {"base": 0.0, "base, 2 times the updates": 1.0, "base, 4 times the updates": 1.5}


def test_the_page_compares_with_base_and_with_base_of_the_same_time(tmp_path):
    gains = GAINS | {"mgr": 3.0, "pgd": -2.0, "cutout": 0.0}
    seconds = TIMES | {"mgr": 28.0, "pgd": 90.0, "cutout": 10.5}
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10, 50))
    lines = records(gains, seconds)
    rows = tables.rows_of(study, lines, {"mgr": 9.5})
    of = {(r["size"], r["row"]): r for r in rows}
    assert len(rows) == 12 and of[10, "mgr"]["flops"] == 9.5
    assert of[10, "mgr"]["seconds"] == 43.0 and of[10, "mgr"]["time"] == 4.3  # with its flow
    assert of[10, "mgr"]["gain"]["gain"] == pytest.approx(3.0, abs=0.6)
    same = {row: of[10, row]["same_time"] for row in ("mgr", "pgd", "cutout")}
    assert same["mgr"]["over"] == "base, 4 times the updates"  # 40 s are nine tenths of 43
    assert not same["mgr"]["less"]
    assert same["mgr"]["gain"] == pytest.approx(1.5, abs=0.6)
    assert same["pgd"]["over"] == "base, 4 times the updates"  # the longest there is
    assert same["pgd"]["less"]
    assert same["cutout"]["over"] == "base" and not same["cutout"]["less"]
    assert "gain" not in of[10, "base"]
    for row in ("base", "base, 2 times the updates"):
        assert "same_time" not in of[10, row] and "holm" not in of[10, row].get("gain", {})
    for size in (10, 50):  # corrected among the rows of a size, those still to come too
        for name in ("gain", "same_time"):
            p = {row: of[size, row][name]["p"] for row in ("mgr", "pgd", "cutout")}
            every = {row: p.get(row, 1.0) for row in study.rows if row not in tables.OUTSIDE}
            assert len(every) == 23
            corrected = tables.holm(every)
            assert {r: of[size, r][name]["holm"] for r in p} == {r: corrected[r] for r in p}
    text = report.what_to_turn_on(rows, 10)
    assert "mgr gains most" in text and "Of the 3 methods of five seeds or more 1 gains" in text
    assert "cheapest of them mgr" in text and "p < 0.001" in text and "none takes" not in text
    assert "and pgd loses." in text
    base = of[10, "base, 4 times the updates"]["gain"]["gain"]
    assert f"Base with 4 times the updates gains {base:+.2f}" in text
    page = report.table(rows)
    assert "| 10 | mgr | 6 |" in page and "4 times the updates |" in page
    assert "4 times the updates, less |" in page and "nan" not in page
    short = report.summary({"digits": rows})
    assert short.count("| digits |") == 2 and "| digits | 10 |" in short and "| mgr |" in short
    report.draw(rows, tmp_path / "gain.png", "digits")
    report.draw([r for r in rows if r["size"] == 10], tmp_path / "one_size.png", "digits")
    assert (tmp_path / "gain.png").stat().st_size > 5000


def test_a_line_a_method_over_labels_per_class_beside_the_longer_base():
    gains = GAINS | {"mgr": 3.0, "pgd": -2.0, "cutout": 0.0, "gda": 9.0}
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(5, 10, 20))
    lines = records(gains, dict.fromkeys(gains, 10.0), sizes=(5, 10, 20))
    lines = [r for r in lines if r["row"] != "gda" or r["labels_per_class"] == 5]
    rows = [r for r in tables.rows_of(study, lines, {}) if "gain" in r]
    plot = Figure().subplots()
    report._draw_sizes(plot, rows, shown=2)
    assert [t.get_text() for t in plot.get_xticklabels()] == ["5", "10", "20"]
    assert list(plot.get_xticks()) == [5, 10, 20] and plot.get_xscale() == "log"
    _, labels = plot.get_legend_handles_labels()  # gda has one size of three
    assert labels == ["mgr", "cutout", "base, 4 times the updates"]
    of_mgr = [r["gain"]["gain"] for r in rows if r["row"] == "mgr"]
    assert list(plot.get_lines()[0].get_ydata()) == of_mgr


def test_of_the_longer_trainings_the_best_on_validation_images_counts():
    """Four times the updates take as long as the method, and are worse than twice."""
    gains = GAINS | {"base, 4 times the updates": 0.5, "gda": 3.0, "cutmix": 0.0}
    seconds = TIMES | {"gda": 20.0, "cutmix": 15.0}
    lines = records(gains, seconds)
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,))
    of = {r["row"]: r for r in tables.rows_of(study, lines, {})}
    assert of["gda"]["seconds"] == 35.0
    twice = "base, 2 times the updates"
    assert of["gda"]["same_time"]["over"] == of["cutmix"]["same_time"]["over"] == twice
    # The longer one has two good seeds alone: on the seeds that it shares it is behind.
    for line in lines:
        if line["seed"] in (4, 5):
            line["validation_accuracy"] += 0.2
    few = [r for r in lines if "4 times" not in r["row"] or r["seed"] in (4, 5)]
    rows = tables.rows_of(study, few, {})
    assert {r["row"]: r for r in rows}["gda"]["same_time"]["over"] == twice
    for line in few:  # now the longer one is ahead, on the two seeds that the row shares with it
        line["validation_accuracy"] += 0.1 * ("4 times" in line["row"])
    rows = tables.rows_of(study, few, {})
    assert {r["row"]: r for r in rows}["gda"]["same_time"]["over"] == "base, 4 times the updates"
    assert " (n = 2) |" in next(r for r in report.table(rows).splitlines() if "| gda |" in r)
    alone = [line for line in lines if line["row"] in ("base", "cutmix")][:7]
    assert "nan" not in report.table(tables.rows_of(low_data.STUDIES["digits"], alone, {}))


def test_trainings_without_a_seed_in_common_are_not_taken_for_a_shorter_one():
    lines = records(GAINS | {"mgr": 3.0}, TIMES | {"mgr": 28.0}, sizes=(10,), seeds=4)
    seeds = {"base, 2 times the updates": (0, 1), "base, 4 times the updates": (2, 3)}
    lines = [r for r in lines if r["seed"] in seeds.get(r["row"], range(4))]
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,))
    same = {r["row"]: r for r in tables.rows_of(study, lines, {})}["mgr"]["same_time"]
    assert same["over"] == "base, 4 times the updates" and same["n"] == 2


def test_there_is_a_p_value_from_five_seeds_on():
    lines = records(GAINS | {"mgr": 3.0}, TIMES | {"mgr": 28.0}, sizes=(10,), seeds=6)
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,))
    for seeds in (1, 2, 4, 5):
        few = [line for line in lines if line["seed"] < seeds]
        rows = tables.rows_of(study, few, {})
        gain = next(r for r in rows if r["row"] == "mgr")["gain"]
        assert gain["n"] == seeds and math.isnan(gain["holm"]) == (seeds < 5)
        cells = report.table(rows).splitlines()[-1].split(" | ")
        mine = next(c for c in report.table(rows).splitlines() if "| mgr |" in c).split(" | ")
        assert ("±" in mine[4]) == (seeds > 1) and (mine[5] != "") == (seeds >= 5)
        assert mine[4].startswith("+") and len(cells) == len(mine)
        text = report.what_to_turn_on(rows, 10)
        assert ("no p below 5 seeds" in text) == (1 < seeds < 5) and bool(text) == (seeds > 1)
    # A row of few seeds is not what gains most where others have five.
    lines += records({"gda": 9.0}, {"gda": 20.0}, sizes=(10,), seeds=2)
    assert "mgr gains most" in report.what_to_turn_on(tables.rows_of(study, lines, {}), 10)


def test_seconds_are_the_processors_where_every_run_has_them():
    lines = records(GAINS | {"mgr": 3.0}, TIMES | {"mgr": 28.0}, sizes=(10,))
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,))
    of_mgr = lambda: next(r for r in tables.rows_of(study, lines, {}) if r["row"] == "mgr")
    for line in lines:
        line["processor_seconds"] = {"base": 8.0, "mgr": 20.0}.get(line["row"], 99.0)
    assert (of_mgr()["seconds"], of_mgr()["time"]) == (20.0, 2.5)
    made_with = {"parameters": 7, "steps": 5, "changes": {"train.batch_size": 3}}
    for line in lines:
        line |= made_with | {"commit": "0123456789", "device": {"kind": "cpu"}}
    text = report.about(lines, 2)
    assert "labels per class seconds are the processor's" in text and "commits 0123456," in text
    assert "2 lines of other settings are left out" in text
    of = [line for line in lines if line["row"] == "mgr"]
    of[0]["processor_seconds"] = 50.0
    for line, spent in zip(of[1:3], (None, 0.0), strict=True):
        line["processor_seconds"] = spent  # of a process that was killed
    del of[3]["processor_seconds"]
    assert (of_mgr()["seconds"], of_mgr()["time"]) == (20.0, 2.5)  # of 50, 20 and 20
    for line in of:
        line["processor_seconds"] = None
    assert (of_mgr()["seconds"], of_mgr()["time"]) == (43.0, 4.3)
    assert "seconds are the clock's" in report.about(lines, 0)


def test_times_are_multiples_of_bases_at_the_same_commit():
    """Two seeds were made on a machine that takes three times as long."""
    lines = records(GAINS | {"mgr": 3.0}, TIMES | {"mgr": 25.0}, sizes=(10,), seeds=5)
    for line in lines:
        slow = line["seed"] < 2
        line |= {"commit": "slow" if slow else "fast"}
        line["processor_seconds"] = line["seconds"] * (3 if slow else 1) + line["seed"]
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,))

    def of(lines):
        return {r["row"]: r for r in tables.rows_of(study, lines, {})}

    # Base's medians are 30.5 and 13; 75 and 76 of the one are more than 27 to 29 of the other.
    assert of(lines)["mgr"]["time"] == pytest.approx(29 / 13)
    slow = [r for r in lines if r["row"] != "mgr" or r["commit"] == "slow"]
    found = of(slow)["mgr"]
    assert found["time"] == pytest.approx((75 + 76) / 2 / 30.5)
    assert found["seconds"] == pytest.approx(14 * found["time"])  # base's median of 13, 14, 30, ...
    other = [r | {"commit": "third"} if r["row"] == "mgr" else r for r in slow]
    assert of(other)["mgr"]["time"] == pytest.approx((75 + 76) / 2 / 14)  # no base of its commit


def with_goals(monkeypatch, gains, seeds=6):
    """A study of one size with goals, its lines, and what tuning chose: gda and mixup."""
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,))
    monkeypatch.setitem(report.STUDIES, "digits", study)
    monkeypatch.setitem(report.GOALS, "digits", 10)
    tuned = {row: choices[0] for row, choices in study.candidates.items()}
    tuned["best single"] = study.rows["gda"] | tuned["gda"]
    tuned["best augmentation"] = study.rows["mixup"] | tuned["mixup"]
    return records(gains, dict.fromkeys(gains, 1.0), sizes=(10,), seeds=seeds), tuned


def test_longer_methods_stand_beside_base_of_as_many_updates():
    gains = {low_data.times(row, 4): gain for row, gain in (("base", 3.0), ("gda", 4.0))}
    gains |= {"base": 0.0, low_data.times("latent adversarial", 4): 9.0}
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10, 5))
    seconds = {low_data.times("latent adversarial", 4): 8.4, low_data.times("base", 4): 4.0}
    lines = records(gains, dict.fromkeys(gains, 1.0) | seconds, sizes=(5, 10))
    rows = tables.rows_of(study, lines, {})
    text = [report.longer(rows, size) for size in (5, 10)]
    of = {row: np.array([r["test_accuracy"] for r in lines if r["row"] == row]) for row in gains}
    mean, error = [], []
    for row in ("latent adversarial", "gda"):
        found = 100 * (of[low_data.times(row, 4)] - of[low_data.times("base", 4)])[6:]
        mean.append(found.mean())
        error.append(scipy.stats.sem(found))
    assert "updates, 5 labels" in text[0] and "updates, 10 labels" in text[1]
    first, second = (f"{m:+.2f} ± {e:.2f} (n = 6, p" for m, e in zip(mean, error))
    assert f"as many: latent adversarial {first} < 0.001), gda {second}" in text[1]
    short = report.summary_of_longer({"digits": rows}).splitlines()
    assert len(short) == 4 and short[3].startswith("| digits | 10 | ")
    assert (
        f"| latent adversarial | {mean[0]:+.2f} ± {error[0]:.2f} | 6 | < 0.001 | 2.1 |" in short[3]
    )
    rows = tables.rows_of(study, records(GAINS, TIMES, sizes=(5, 10)), {})
    assert report.longer(rows, 10) == "" and report.summary_of_longer({"x": rows}).count("\n") == 2


@pytest.mark.parametrize("ahead", [True, False])
def test_the_goals_are_those_of_the_study(ahead, monkeypatch):
    gains = {"base": 0.0, "mixup": 1.0, "cutout": 4.0, "gda": 2.0, "latent adversarial": 6.0}
    gains["latent adversarial"] = 6.0 if ahead else 2.0
    gains["all three"] = 7.0 if ahead else 1.01
    lines, tuned = with_goals(monkeypatch, gains)
    text = report.goals("digits", lines, tuned)
    of = {row: np.array([r["test_accuracy"] for r in lines if r["row"] == row]) for row in gains}
    for row, name in (("gda", "gda, the best single method"), ("mixup", "mixup, the best augm")):
        gain = 100 * (of["all three"] - of[row])
        assert f"beside {name}" in text
        assert f": {gain.mean():+.2f} ± {scipy.stats.sem(gain):.2f} (n = 6" in text
    p = [scipy.stats.ttest_rel(of["all three"], of[row]).pvalue for row in ("gda", "mixup")]
    assert report.with_p(min(2 * min(p), 1)) in text
    removed = 100 * (of["latent adversarial"] - of["base"])
    share, error = (v / (1 - of["base"]).mean() for v in (removed.mean(), scipy.stats.sem(removed)))
    assert f"by latent adversarial: {share:.0f} ± {error:.0f} % (n = 6)" in text
    assert (text.count(", reached"), text.count("not reached")) == ((3, 0) if ahead else (0, 3))
    monkeypatch.delitem(report.GOALS, "digits")
    assert report.goals("digits", lines, tuned) == ""


def test_a_goal_without_lines_or_choices_is_left_out(monkeypatch):
    lines, tuned = with_goals(monkeypatch, {"base": 0.0, "gda": 2.0, "all three": 4.0})
    text = report.goals("digits", lines, tuned)
    assert "gda" in text and "mixup" not in text and "errors" not in text
    assert report.goals("digits", lines[:1], tuned) == report.goals("digits", lines, {}) == ""
    few = [line for line in lines if line["seed"] < 3]
    text = report.goals("digits", few, tuned)
    assert "no p below 5 seeds of two), not decided yet." in text and "reached" not in text
    del tuned["gda"]  # its candidates have changed since
    assert report.goals("digits", lines, tuned) == ""
    lines, _ = with_goals(monkeypatch, {"base": 0.0, "latent adversarial": 6.0})
    few = lines[:9]  # three of the latter
    text = report.goals("digits", few, tuned)
    base, attacked = (np.array([r["test_accuracy"] for r in few[i : i + 3]]) for i in (0, 6))
    share = 100 * (attacked - base).mean() / (1 - base).mean()
    assert f"latent adversarial: {share:.0f} ± " in text and "n = 3), not decided yet" in text
    for line in lines:
        line["test_accuracy"] = 1.0
    assert report.goals("digits", lines, tuned) == ""  # no error to take away


def test_a_choice_stands_beside_the_next_one_of_tuning(tmp_path):
    study = low_data.STUDIES["fashion_mnist"]
    results = report.HERE / "results" / "fashion_mnist"
    tuned = json.loads((results / "tuned.json").read_text())
    best = tuning.best_rows(study, tuned)
    found = tables.margins(study, results, tuned, best)
    lines = [r for i in (0, 1) for r in store.read_lines(results / f"tuning-{i}.jsonl")]
    means = {}
    for row in study.candidates:
        chosen = [
            r["validation_accuracy"]
            for r in lines
            if r["row"] == row and r["changes"] == store.as_read(tuned[row])
        ]
        means[row] = 100 * np.mean(chosen) if chosen else math.nan
    for name, (own, second, other) in found.items():
        group = sorted(study.best[name], key=lambda row: -means[row])
        assert own == pytest.approx(means[best[name]]) and other == pytest.approx(means[second])
        assert best[name] == group[0] and means[group[1]] == means[second]
    assert found.keys() == study.best.keys()
    other_base = tuned | {"base": {**tuned["base"], "optimizer.learning_rate": 0.5}}
    assert tables.margins(study, results, other_base, best) == {}


def test_a_choice_at_the_edge_of_what_was_tried_is_said():
    tried = [{"a": v, "b": w} for v in (1, 2, 3) for w in (0.1, 0.2)]
    assert tables.at_an_edge(tried, {"a": 1, "b": 0.1}) and tables.at_an_edge(tried, {"a": 3})
    assert not tables.at_an_edge(tried, {"a": 2, "b": 0.2})  # two values have no middle
    assert not tables.at_an_edge([{"s": v} for v in ("x", "y", "z")], {"s": "x"})
    study = low_data.STUDIES["digits"]
    tuned = {row: choices[2] for row, choices in study.candidates.items()}
    text = report.choices(study, tuned | {"mixup": study.candidates["mixup"][-1]})
    assert text.count("the least or the most") == 1
    assert "| mixup | `augment.mix_alpha = 1.0` (the least or the most that was tried) |" in text


def test_what_others_had_stands_beside_base():
    lines = records({**GAINS, "mgr": 3.0}, {**TIMES, "mgr": 9.0}, sizes=(50, 100), seeds=3)
    for line in lines:
        turns = 2 if "2 times" in line["row"] else 4 if "4 times" in line["row"] else 1
        line |= {"parameters": 182_362, "train_examples": 500, "steps": 250 * turns}
        line["changes"] = {"train.batch_size": 64}
    text = report.published(low_data.STUDIES["cifar10"], lines)
    of_base = [
        100 * r["test_accuracy"] for r in lines if (r["row"], r["labels_per_class"]) == ("base", 50)
    ]
    assert (
        text.count("\n") == 1 and "Published, 50 labels" in text and "ACCESS.2022.3172939" in text
    )
    mean, error = np.mean(of_base), scipy.stats.sem(of_base)
    assert "182,362 parameters" in text
    assert f"has {mean:.2f} ± {error:.2f} % in 32 passes (n = 3)" in text
    assert "in 64 passes" in text and text.rstrip().endswith("in 128 passes (n = 3).")
    assert report.published(low_data.STUDIES["digits"], lines) == ""
    assert report.published(low_data.STUDIES["cifar10"], lines[-12:]) == ""


def test_the_same_time_is_that_of_trainings_with_two_seeds():
    lines = records(GAINS | {"mgr": 3.0}, TIMES | {"mgr": 28.0}, sizes=(10,))
    lines = [r for r in lines if r["row"] != "base, 4 times the updates" or r["seed"] == 0]
    rows = tables.rows_of(dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,)), lines, {})
    same = {r["row"]: r for r in rows}["mgr"]["same_time"]
    assert same["over"] == "base, 2 times the updates" and same["less"]
    text = report.what_to_turn_on(rows, 10)
    assert "nan" not in text and "times the time, and none takes as long; mgr is at" in text


def test_further_comparisons_are_corrected_among_themselves():
    gains = {"all three": 3.0, "mgr": 0.0, "pcr": 0.0, "latent adversarial": 2.9}
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10,))
    lines = records(gains, dict.fromkeys(gains, 1.0), sizes=(10,))
    found = tables.further(study, lines)
    pairs = [("all three", "mgr"), ("all three", "latent adversarial"), ("mgr", "pcr")]
    assert [r["pair"] for r in found] == pairs
    p = dict.fromkeys(study.pairs, 1.0)
    for pair in pairs:
        a, b = ([r["test_accuracy"] for r in lines if r["row"] == row] for row in pair)
        p[pair] = scipy.stats.ttest_rel(a, b).pvalue
    corrected = tables.holm(p)
    for r in found:
        assert r["holm"] == pytest.approx(corrected[r["pair"]])
    text = report.further(found)
    assert "| 10 | all three | mgr | 6 | +" in text and "< 0.001 |" in text
    assert report.further(tables.further(study, [])) == ""


def test_a_row_without_lines_leaves_the_page_whole():
    assert tables.rows_of(low_data.STUDIES["digits"], [], {}) == []
    assert report.what_to_turn_on([], 10) == ""
    assert report.summary({"digits": []}).count("\n") == 2


def test_what_limits_has_the_choices_of_tuning_and_says_which_it_lacks(tmp_path, monkeypatch):
    limits = importlib.import_module("experiments.low_data.limits")
    rows = limits.rows()
    chosen = json.loads((report.HERE / "results" / "cifar10" / "tuned.json").read_text())
    assert all(chosen["base"].items() <= changes.items() for _, changes in rows.values())
    for name, (_, changes) in rows.items():
        if "flow of all images" in name:
            assert changes["flow.images"] == "all" and not changes["flow.conditional"]
            assert changes["latent.epsilon"] == float(name.split()[-1])
            assert changes["latent.step_size"] == changes["latent.epsilon"] / 2
    assert rows["gda, labelled real"][0] == rows["pcr, real"][0] == "labelled"
    monkeypatch.setattr(limits, "HERE", tmp_path)
    with pytest.raises(UserError, match="no candidate of the study for base, latent adv"):
        limits.rows()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("tuned.json", None, "No line of base in"),
        ("tuned.json", b'{"base": {}}', "No line of base in"),
        ("tuned.json", b'{"base": {}', "tuned.json is damaged"),
        ("tuned.json", b'{"base": 5}', "its 'base' is no object"),
        ("table.jsonl", None, "has digits, of which there is no line"),
        ("table.jsonl", b"\xff{}\n5\n", "has digits, of which there is no line"),
        ("costs.json", b"{", "costs.json is damaged"),
        ("costs.json", b'{"multiples": {"mgr": "x"}}', "its multiples are no numbers"),
    ],
)
def test_the_page_stays_as_it_is_where_a_file_is_damaged(
    name, damage, message, tmp_path, monkeypatch
):
    results, page = tmp_path / "results" / "digits", tmp_path / "low_data.md"
    shutil.copytree(report.HERE / "results" / "digits", results)
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "draw", lambda rows, path, title: path.write_text(title))
    report.write(page)
    before = page.read_bytes()
    assert b"## digits" in before and b"## cifar10" not in before
    picture = (tmp_path / "low_data_digits.png").stat().st_mtime_ns
    if damage is None:
        (results / name).unlink()
    else:
        (results / name).write_bytes(damage)
    with pytest.raises(UserError, match=message):
        report.write(page)
    assert page.read_bytes() == before
    assert (tmp_path / "low_data_digits.png").stat().st_mtime_ns == picture


def test_of_a_line_without_a_commit_none_is_said():
    lines = records({"base": 0.0}, {"base": 1.0}, sizes=(10,))
    for line in lines:
        line |= {"parameters": 7, "steps": 5, "changes": {"train.batch_size": 3}}
        line |= {"commit": None, "device": {"kind": "cpu"}}
    assert "6 lines of commits unknown, made on cpu" in report.about(lines, 0)


def test_a_picture_of_base_alone_is_drawn(tmp_path):
    study = dataclasses.replace(low_data.STUDIES["digits"], sizes=(10, 50))
    rows = tables.rows_of(study, records(GAINS, TIMES), {})
    report.draw(rows, tmp_path / "longer.png", "digits")
    assert (tmp_path / "longer.png").stat().st_size > 5000


def test_the_page_is_that_of_the_results():
    assert (report.DOCS / "low_data.md").read_text() == report.page(report.reports())
