"""The page of the low-data study, from its lines.

python -m experiments.low_data.report                       # docs/low_data.md and its pictures
python -m experiments.low_data.report --study=fashion_mnist # prints one study's table

Beside the paired difference to plain training stand its p-value after Holm's correction over all
rows and sizes of the table, the time and the floating-point operations in multiples of plain
training's, and the difference to plain training that was given at least the same time: the cheapest
of two, four and eight times the updates and the mean of two networks that takes as long.
"""

import argparse
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.low_data.run import ENSEMBLE, STUDIES
from experiments.runner import Study, paired, read_lines, with_error

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
LONGER = ("base", *(f"base, {n} times the updates" for n in (2, 4, 8)), ENSEMBLE)


def holm(values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values after Holm's step-down correction, 1979: the smallest times their number, and so on.

    Example:
      >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
      {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    order = sorted(values, key=lambda key: values[key])
    corrected, largest = {}, 0.0
    for rank, key in enumerate(order):
        largest = max(largest, min((len(order) - rank) * values[key], 1.0))
        corrected[key] = largest
    return corrected


def rows_of(
    study: Study, lines: Sequence[Mapping[str, Any]], multiples: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A dict for each size and row that has lines."""
    accuracy: dict[tuple[int, str], dict[int, float]] = {}
    seconds: dict[tuple[int, str], list[float]] = {}
    for line in lines:
        key = line["labels_per_class"], line["row"]
        accuracy.setdefault(key, {})[line["seed"]] = 100 * line["test_accuracy"]
        seconds.setdefault(key, []).append(line["seconds"])
    found = []
    for size in study.sizes:
        base = accuracy.get((size, study.first))
        for row in study.rows:
            if (size, row) not in accuracy or base is None:
                continue
            runs, time = accuracy[size, row], statistics.median(seconds[size, row])
            entry = {
                "size": size,
                "row": row,
                "accuracy": with_error(list(runs.values())),
                "n": len(runs),
                "seconds": time,
                "time": time / statistics.median(seconds[size, study.first]),
                "flops": multiples.get(row),
            }
            if row != study.first:
                entry |= dict(zip(("gain", "error", "p", "pairs"), paired(runs, base)))
                entry |= same_time(accuracy, seconds, size, runs, time)
            found.append(entry)
    corrected = holm(
        {
            (r["size"], r["row"]): r["p"]
            for r in found
            if not math.isnan(r.get("p", math.nan)) and r["row"] not in LONGER
        }
    )
    for entry in found:
        entry["holm"] = corrected.get((entry["size"], entry["row"]))
    return found


def same_time(accuracy, seconds, size, runs, time) -> dict[str, Any]:
    """The difference to plain training that takes at least as long, or to its longest."""
    longer = [(size, row) for row in LONGER if (size, row) in seconds]
    longer.sort(key=lambda key: statistics.median(seconds[key]))
    enough = [key for key in longer if statistics.median(seconds[key]) >= time]
    key = (enough or longer[-1:])[0]
    mean, error, p, _ = paired(runs, accuracy[key])
    return {"over": key[1], "over_gain": mean, "over_error": error, "over_p": p}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| labels per class | row | n | test accuracy, % | to base | p (Holm) | seconds | time | "
        "FLOPs | to base of the same time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        gain = over = ""
        if not math.isnan(r.get("error", math.nan)):
            gain = f"{r['gain']:+.2f} ± {r['error']:.2f}"
            times = r["over"].removeprefix("base, ").removesuffix(" the updates")
            over = f"{r['over_gain']:+.2f} ± {r['over_error']:.2f} ({times})"
        p = "" if r["holm"] is None else f"{r['holm']:.3f}"
        flops = "" if r["flops"] is None else f"{r['flops']:.1f}"
        lines.append(
            f"| {r['size']} | {r['row']} | {r['n']} | {r['accuracy']} | {gain} | {p} | "
            f"{r['seconds']:.0f} | {r['time']:.1f} | {flops} | {over} |"
        )
    return "\n".join(lines) + "\n"


def what_to_turn_on(rows: Sequence[Mapping[str, Any]], size: int) -> str:
    """Three sentences about one size."""
    able = [
        r
        for r in rows
        if r["size"] == size and r["row"] not in LONGER and not math.isnan(r.get("p", math.nan))
    ]
    if not able:
        return ""
    best = max(able, key=lambda r: r["gain"])
    sure = [r for r in able if r["gain"] > 0 and r["holm"] < 0.05]
    cheap = min(sure, key=lambda r: r["time"]) if sure else None
    first = (
        f"{best['row']} gains most, {best['gain']:+.2f} ± {best['error']:.2f} points "
        f"(p = {best['holm']:.3f} after Holm's correction), for {best['time']:.1f} times the time."
    )
    second = (
        f"Of the {len(sure)} rows that are surely above base, {cheap['row']} is the cheapest: "
        f"{cheap['gain']:+.2f} ± {cheap['error']:.2f} for {cheap['time']:.1f} times the time."
        if cheap
        else "No row is surely above base."
    )
    third = (
        f"Beside base given the same time ({best['over']}) the best row is at "
        f"{best['over_gain']:+.2f} ± {best['over_error']:.2f}."
    )
    return f"- **{size} labels per class.** {first} {second} {third}\n"


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str, shown: int = 8) -> None:
    """Gain over base against labels per class: a line a method, bands of an error, cost by size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    able = [r for r in rows if r["row"] not in LONGER and not math.isnan(r.get("error", math.nan))]
    mean = {
        name: statistics.fmean(r["gain"] for r in able if r["row"] == name)
        for name in dict.fromkeys(r["row"] for r in able)
    }
    figure, plot = plt.subplots(figsize=(8, 5))
    for name in sorted(mean, key=lambda name: -mean[name])[:shown]:
        mine = sorted((r for r in able if r["row"] == name), key=lambda r: r["size"])
        x, y = [r["size"] for r in mine], [r["gain"] for r in mine]
        (line,) = plot.plot(x, y, label=name)
        low, high = ([r["gain"] + s * r["error"] for r in mine] for s in (-1, 1))
        plot.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        plot.scatter(x, y, s=[15 * r["time"] for r in mine], color=line.get_color())
    plot.axhline(0, color="black", linewidth=0.8)
    plot.set(xscale="log", xlabel="labels per class", ylabel="points above tuned base", title=title)
    plot.legend(fontsize=8)
    plot.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(name: str) -> tuple[list[dict[str, Any]], str]:
    """A study's rows and its part of the page."""
    study, results = STUDIES[name], HERE / "results" / name
    costs = results / "costs.json"
    multiples = json.loads(costs.read_text())["multiples"] if costs.exists() else {}
    rows = rows_of(study, read_lines(results / "table.jsonl"), multiples)
    said = "".join(what_to_turn_on(rows, size) for size in study.sizes)
    return rows, f"{said}\n{table(rows)}"


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.low_data.report")
    parser.add_argument("--study", choices=STUDIES, help="print the part of one")
    args = parser.parse_args()
    if args.study:
        print(report(args.study)[1])
        return
    parts = ["# What to turn on with few labels\n", __doc__.split("\n\n")[2].strip() + "\n"]
    for name in STUDIES:
        rows, text = report(name)
        if not rows:
            continue
        picture = f"low_data_{name}.png"
        draw(rows, DOCS / picture, name)
        parts.append(f"## {name}\n\n![gain over base against labels]({picture})\n\n{text}")
    (DOCS / "low_data.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
