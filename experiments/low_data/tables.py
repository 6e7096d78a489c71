"""What the lines of a low-data study say: gains over base, their times and their p-values."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.lines import by_row, paired, with_error
from experiments.low_data.run import ENSEMBLE, LONG, TIMES, times
from experiments.study import Study
from experiments.tuning import tuning_scores
from genreg_jax.errors import UserError
from genreg_jax.logs import read_json

LONGER = ("base", *(times("base", n) for n in TIMES), ENSEMBLE)
OUTSIDE = (*LONGER, *(times(row, 4) for row in LONG))  # of Holm's family
# Pairs of runs for a p-value: of two or three, t-tests of rounded accuracies say anything.
LEAST = 5

Line = Mapping[str, Any]


def holm(values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values after Holm's step-down correction, 1979: the smallest times their number, and so on.

    NaN, a p-value still to come, counts as 1 and stays NaN.

    Example:
      >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
      {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    told = {key: p for key, p in values.items() if not math.isnan(p)}
    corrected, largest = dict.fromkeys(values.keys() - told.keys(), math.nan), 0.0
    for rank, key in enumerate(sorted(told, key=lambda key: told[key])):
        largest = max(largest, min((len(values) - rank) * told[key], 1.0))
        corrected[key] = largest
    return corrected


def accuracies(runs: Mapping[int, Line], name: str = "test") -> dict[int, float]:
    """Of each seed, in per cent."""
    return {seed: 100 * line[f"{name}_accuracy"] for seed, line in runs.items()}


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> dict[str, Any]:
    """`gain` over the seeds that both have, its `error`, `p` and their number `n`.

    `p` is NaN below `LEAST` pairs, `error` below two.
    """
    gain, error, p, n = paired(a, b)
    return {"gain": gain, "error": error, "p": p if n >= LEAST else math.nan, "n": n}


def on_processor(of: Mapping[str, Mapping[int, Line]]) -> bool:
    """Whether each row has runs with the processor's seconds, which other work does not lengthen.

    Of a run whose process was killed they are not known.
    """
    return all(any(line.get("processor_seconds") for line in runs.values()) for runs in of.values())


def seconds_of(line: Line, processor: bool) -> float | None:
    """Of a run, with the training of its flow; None where they are not known.

    Those of the processor have the making of the network and the pictures in them, too.
    """
    if processor:
        return line.get("processor_seconds") or None
    return line["seconds"] + ((line.get("flow") or {}).get("seconds") or 0)


def rows_of(
    study: Study, lines: Sequence[Line], multiples: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A dict for each size and row that has lines.

    `time` is in multiples of base's, see `relative_times`, and `seconds` so many of base's median.
    `gain` and `same_time` are of `difference`, with `holm`, p after the correction over the rows of
    Holm's family; `same_time` has the other row as `over`, and whether it is `less` than the time.
    Rows of four times the updates have `as_long`, of `further`, beside base of as many.
    """
    found, long = [], times(study.first, 4)
    as_long = {(r["size"], r["pair"]): r for r in further(study, lines)}
    for size in sorted(study.sizes):
        of = by_row(lines, size)
        if study.first not in of:
            continue
        time, base = relative_times(of, study.first, on_processor(of))
        entries = {}
        for row in (row for row in study.rows if row in of):
            entries[row] = {
                "size": size,
                "row": row,
                "accuracy": with_error(list(accuracies(of[row]).values())),
                "n": len(of[row]),
                "seconds": time[row] * base,
                "time": time[row],
                "flops": multiples.get(row),
            }
            if row != study.first:
                entries[row]["gain"] = difference(accuracies(of[row]), accuracies(of[study.first]))
            if row not in LONGER:
                entries[row]["same_time"] = same_time(of, time, row)
            if (size, (row, long)) in as_long:
                entries[row]["as_long"] = as_long[size, (row, long)]
        for name in ("gain", "same_time"):
            family = {
                row: entries.get(row, {}).get(name, {}).get("p", math.nan)
                for row in study.rows
                if row not in OUTSIDE
            }
            for row, p in holm(family).items():
                if row in entries:
                    entries[row][name]["holm"] = p
        found += entries.values()
    return found


def relative_times(
    of: Mapping[str, Mapping[int, Line]], first: str, processor: bool
) -> tuple[dict[str, float], float]:
    """Row to the median of its runs' times, in multiples of the first row's, and its median.

    Of the first row's runs those of the same commit count, where there are any: a table grows, and
    lines of another day may be of a machine that is twice as fast.
    """
    seconds = {
        row: [
            (line.get("commit"), spent)
            for line in runs.values()
            if (spent := seconds_of(line, processor)) is not None
        ]
        for row, runs in of.items()
    }
    every = [spent for _, spent in seconds[first]]

    def multiple(commit, spent):
        same = [base for other, base in seconds[first] if other == commit]
        return spent / statistics.median(same or every)

    times = {
        row: statistics.median(multiple(*run) for run in runs) for row, runs in seconds.items()
    }
    return times, statistics.median(every)


def same_time(
    of: Mapping[str, Mapping[int, Line]], time: Mapping[str, float], row: str
) -> dict[str, Any]:
    """The difference to plain training that was given the time of a row.

    Of those with two seeds of the row's, up to the cheapest that takes nine tenths of its time, the
    one counts that is best on the validation images, beside the row on the same seeds.
    """
    shared = {other: of[other].keys() & of[row].keys() for other in LONGER if other in of}
    told = [other for other in shared if len(shared[other]) > 1] or list(shared)
    longer = sorted(told, key=lambda other: time[other])
    as_long = [i for i, other in enumerate(longer) if time[other] >= 0.9 * time[row]]
    within = longer[: as_long[0] + 1] if as_long else longer
    mine = accuracies(of[row], "validation")

    def ahead(other):
        theirs = accuracies(of[other], "validation")
        return statistics.fmean(theirs[seed] - mine[seed] for seed in shared[other])

    best = max((other for other in within if shared[other]), key=ahead, default=within[0])
    found = difference(accuracies(of[row]), accuracies(of[best]))
    return found | {"over": best, "less": not as_long}


def further(study: Study, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The study's other comparisons of two seeds or more, corrected among themselves at a size."""
    rows = []
    for size in sorted(study.sizes):
        of = {row: accuracies(runs) for row, runs in by_row(lines, size).items()}
        found = {
            pair: difference(*(of.get(row, {}) for row in pair)) | {"size": size, "pair": pair}
            for pair in study.pairs
        }
        corrected = holm({pair: values["p"] for pair, values in found.items()})
        rows += [v | {"holm": corrected[pair]} for pair, v in found.items() if v["n"] > 1]
    return rows


def goals(
    study: Study, lines: Sequence[Line], best: Mapping[str, str], size: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """All three beside the rows of `best`, corrected among them, and the share of errors removed.

    The share is `share`, its error and the number of seeds, of `latent adversarial` and in per cent
    of base's errors on the same seeds; empty without two.
    """
    of = {row: accuracies(runs) for row, runs in by_row(lines, size).items()}
    found = {
        name: difference(of.get("all three", {}), of.get(row, {})) for name, row in best.items()
    }
    corrected = holm({name: values["p"] for name, values in found.items()})
    beside = {n: v | {"holm": corrected[n]} for n, v in found.items() if v["n"] > 1}
    base, attacked = of.get(study.first, {}), of.get("latent adversarial", {})
    removed = difference(attacked, base)
    if removed["n"] < 2:
        return beside, {}
    errors = statistics.fmean(100 - base[seed] for seed in attacked.keys() & base)
    if not errors:
        return beside, {}
    share, error = (100 * removed[name] / errors for name in ("gain", "error"))
    return beside, {"share": share, "error": error, "n": removed["n"]}


def margins(
    study: Study, results: pathlib.Path, tuned: Mapping[str, Any], best: Mapping[str, str]
) -> dict[str, tuple[float, str, float]]:
    """Of each name in `best`: its validation accuracy in tuning, the next row and that one's."""
    scores, found = tuning_scores(study, results, tuned), {}
    for name, row in best.items():
        others = {r: scores[r] for r in study.best[name] if r != row and r in scores}
        if row in scores and others:
            second = max(others, key=lambda r: others[r])
            found[name] = scores[row], second, others[second]
    return found


def at_an_edge(candidates: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]) -> bool:
    """Whether a chosen number is the smallest or the largest of three or more that were tried."""
    for key, value in choice.items():
        tried = {c[key] for c in candidates if key in c}
        if len(tried) > 2 and not any(isinstance(v, str) for v in tried):
            if value in (min(tried), max(tried)):
                return True
    return False


def multiples(path: pathlib.Path) -> dict[str, float]:
    """The operations of a study's rows in multiples of base's; empty where they are not counted.

    Raises:
      UserError: the file is damaged.
    """
    found = read_json(path, multiples=dict)["multiples"] if path.exists() else {}
    if not all(isinstance(value, int | float) for value in found.values()):
        raise UserError(f"{path} is damaged: its multiples are no numbers. Make it again.")
    return found
