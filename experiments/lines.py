"""The lines of a study's results, one a run, and their table."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import scipy.stats

from experiments.study import Changes, Study
from genreg_jax.config import config_hash
from genreg_jax.settings import Settings

KEPT = (
    "test_accuracy validation_accuracy best_step steps train_examples seconds processor_seconds "
    "images_per_second test_intra_class_similarity test_inter_class_similarity parameters seed "
    "flow finder_spread finder_distance finder_share strengths stages skipped_updates subset_hash "
    "config_hash versions device commit"
).split()


def record(
    row: str, size: int, changes: Changes, summary: Mapping[str, Any], settings: Settings
) -> dict[str, Any]:
    """One line of the results.

    `settings_hash` is of the study's settings, `config_hash` of the run's, which also has the hash
    of the shared flow.
    """
    return {
        "row": row,
        "labels_per_class": size,
        "changes": dict(changes),
        "settings_hash": config_hash(settings),
        **{name: summary.get(name) for name in KEPT},
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error, the latter NaN for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def with_error(values: Sequence[float]) -> str:
    """`mean ± standard error`, the mean alone of a single value."""
    mean, error = mean_and_error(values)
    return f"{mean:.2f} ± {error:.2f}" if len(values) > 1 else f"{mean:.2f}"


def signed(mean: float, error: float) -> str:
    """`+1.20 ± 0.30`, the mean alone where the error is NaN, nothing where both are."""
    if math.isnan(mean):
        return ""
    return f"{mean:+.2f}" if math.isnan(error) else f"{mean:+.2f} ± {error:.2f}"


def p_value(p: float) -> str:
    """Three digits, never 0; nothing of NaN, one still to come."""
    if math.isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def by_row(
    lines: Iterable[Mapping[str, Any]], size: int
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The lines of a number of labels per class: row to seed to line."""
    of: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["labels_per_class"] == size:
            of.setdefault(line["row"], {})[line["seed"]] = line
    return of


def table(study: Study, records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: accuracy, paired difference to the first row with its p-value, seconds."""
    reference = study.first
    lines = [
        f"| labels per class | row | n | test accuracy, % | paired difference to {reference} | "
        "p (paired t) | median seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = [
        "| labels per class | row | compared with | n | paired difference | p (paired t) |",
        "|---|---|---|---|---|---|",
    ]
    for size in study.sizes:
        there = by_row(records, size)
        of = {row: there.get(row, {}) for row in study.rows}
        for row, runs in of.items():
            if not runs:
                continue
            accuracy = with_error([100 * r["test_accuracy"] for r in runs.values()])
            gain, p, _ = ("", "", 0) if row == reference else difference(runs, of[reference])
            seconds = statistics.median(r["seconds"] for r in runs.values())
            lines.append(
                f"| {size} | {row} | {len(runs)} | {accuracy} | {gain} | {p} | {seconds:.0f} |"
            )
        for row, other in study.pairs:
            gain, p, n = difference(of[row], of[other])
            if n > 1:
                pairs.append(f"| {size} | {row} | {other} | {n} | {gain} | {p} |")
    return "\n".join(lines + ["", *pairs] * (len(pairs) > 2)) + "\n"


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float, float, int]:
    """Mean difference over the seeds that both have, its standard error, p, and their number.

    p is of a paired t-test; where all differences are the same, of the test of their signs.
    """
    seeds = sorted(a.keys() & b.keys())
    gains = [a[s] - b[s] for s in seeds]
    if len(seeds) < 2:
        return statistics.fmean(gains) if gains else math.nan, math.nan, math.nan, len(seeds)
    mean, error = mean_and_error(gains)
    if max(gains) - min(gains) < 1e-9:
        return mean, error, 2.0 ** (1 - len(seeds)) if abs(mean) > 1e-9 else 1.0, len(seeds)
    test: Any = scipy.stats.ttest_1samp(gains, 0)
    return mean, error, float(test.pvalue), len(seeds)


def difference(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]
) -> tuple[str, str, int]:
    """Paired difference in test accuracy, its p-value, and the number of seeds; "" below two."""
    a, b = ({s: 100 * r["test_accuracy"] for s, r in of.items()} for of in (runs, others))
    mean, error, p, n = paired(a, b)
    return (signed(mean, error), p_value(p), n) if n > 1 else ("", "", n)
