"""The page of the low-data study, from its lines.

python -m experiments.low_data.report                       # docs/low_data.md and its pictures
python -m experiments.low_data.report --study=fashion_mnist # prints one study's table

Differences are of the same seeds, with their standard errors, and p-values of paired t-tests after
Holm's correction over the rows of the same number of labels, those still to come too. Seconds are
the median run's, its flow's training included: the processor's where all runs of these labels have
them (with the network's making and the pictures), else the clock's. The next columns are multiples
of plain training's: of the seconds, and of the floating-point operations of the updates, without
the flow's training. The last column compares with plain training that was given the same time: by
two to sixteen times the updates or as the mean of two networks. Of those up to the cheapest that
takes as long (nine tenths of it are enough) the one with the best validation accuracy counts;
"less" is said where none takes as long. Goals were set for 50 labels per class of FashionMNIST and
CIFAR-10: all three surely above the single method and above the augmentation that are best on
validation images, by two p-values that are corrected by Holm between themselves, and a tenth of
base's errors taken away by latent adversarial perturbations. Where seeds are still to come they are
as of now. In the pictures bands are one standard error, and the area of a mark is the time.
"""

import argparse
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.low_data.run import ENSEMBLE, LONG, STUDIES, TIMES
from experiments.runner import Study, chosen, is_current, paired, read_lines, with_error

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
AREA = 8  # of a mark, for base's time
LONGER = ("base", *(f"base, {n} times the updates" for n in TIMES), ENSEMBLE)
OUTSIDE = (*LONGER, *(f"{row}, 4 times the updates" for row in LONG))  # of Holm's family
PUBLISHED = {  # data set to labels per class to what others had
    "cifar10": {
        50: "WRN-16-8 with tuned cross-entropy: 55.2 % on ciFAIR-10 with shift and flip and 500 "
        "passes (Brigato et al., GEM, arXiv:2108.13122; 30 runs), 63.0 % with AutoAugment and "
        "2,000 passes (10 seeds)"
    }
}


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


def rows_of(
    study: Study, lines: Sequence[Mapping[str, Any]], multiples: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A dict for each size and row that has lines."""
    found = []
    for size in study.sizes:
        of = by_row(lines, size)
        if study.first not in of:
            continue
        runs = [line for of_row in of.values() for line in of_row.values()]
        measured = all(line.get("processor_seconds") for line in runs)
        seconds_of = processor_seconds if measured else wall_seconds
        seconds = {
            row: statistics.median(map(seconds_of, runs.values())) for row, runs in of.items()
        }
        entries = []
        for row in (row for row in study.rows if row in of):
            entry = {
                "size": size,
                "row": row,
                "accuracy": with_error(list(accuracies(of[row]).values())),
                "n": len(of[row]),
                "seconds": seconds[row],
                "time": seconds[row] / seconds[study.first],
                "flops": multiples.get(row),
            }
            if row != study.first:
                gain = paired(accuracies(of[row]), accuracies(of[study.first]))
                entry |= dict(zip(("gain", "error", "p", "pairs"), gain))
            if row not in LONGER:
                entry |= same_time(of, seconds, row)
            entries.append(entry)
        p = {entry["row"]: entry.get("p", math.nan) for entry in entries}
        corrected = holm({r: p.get(r, math.nan) for r in study.rows if r not in OUTSIDE})
        found += [entry | {"holm": corrected.get(entry["row"])} for entry in entries]
    return found


def by_row(lines, size) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The lines of a size: row to seed to line."""
    of: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["labels_per_class"] == size:
            of.setdefault(line["row"], {})[line["seed"]] = line
    return of


def wall_seconds(line: Mapping[str, Any]) -> float:
    """Of a run, with the training of its flow."""
    return line["seconds"] + ((line.get("flow") or {}).get("seconds") or 0)


def processor_seconds(line: Mapping[str, Any]) -> float:
    """Of the processor, the network's making and the pictures included; other work adds none."""
    return line["processor_seconds"]


def accuracies(runs: Mapping[int, Mapping[str, Any]], name: str = "test") -> dict[int, float]:
    """Of each seed, in per cent."""
    return {seed: 100 * line[f"{name}_accuracy"] for seed, line in runs.items()}


def same_time(of, seconds, row) -> dict[str, Any]:
    """The difference to plain training that was given the time of a row."""
    shared = {other: of[other].keys() & of[row].keys() for other in LONGER if other in of}
    told = [other for other in shared if len(shared[other]) > 1] or list(shared)
    longer = sorted(told, key=lambda other: seconds[other])
    as_long = [i for i, other in enumerate(longer) if seconds[other] >= 0.9 * seconds[row]]
    within = longer[: as_long[0] + 1] if as_long else longer
    mean = lambda other: statistics.fmean(accuracies(of[other], "validation").values())
    best = max(within, key=mean)
    gain, error, _, _ = paired(accuracies(of[row]), accuracies(of[best]))
    return {"over": best, "over_gain": gain, "over_error": error, "less": not as_long}


def p_value(p: float) -> str:
    """Three digits, never 0; nothing of what is still to come."""
    if math.isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def further(study: Study, lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the study's other comparisons, corrected among themselves at each size."""
    text = "| labels per class | row | compared with | n | difference | p (Holm) |\n"
    text += "|---|---|---|---|---|---|\n"
    for size in study.sizes:
        of = by_row(lines, size)
        found = {
            pair: paired(*(accuracies(of.get(row, {})) for row in pair)) for pair in study.pairs
        }
        corrected = holm({pair: values[2] for pair, values in found.items()})
        for (row, other), (gain, error, p, n) in found.items():
            if not math.isnan(p):
                p = p_value(corrected[row, other])
                text += f"| {size} | {row} | {other} | {n} | {gain:+.2f} ± {error:.2f} | {p} |\n"
    return text if text.count("\n") > 2 else ""


def goals(study: Study, lines: Sequence[Mapping[str, Any]], tuned: Mapping[str, Any]) -> str:
    """Of each size: all three beside what tuning found best, and the errors taken away."""
    words = {"best single": "best single method", "best augmentation": "best augmentation"}
    best = {
        name: row
        for name in words
        for row in study.best[name]
        if study.rows[row] | tuned.get(row, {}) == tuned.get(name)
    }
    text = ""
    for size in study.sizes:
        of = {row: accuracies(runs) for row, runs in by_row(lines, size).items()}
        found = {
            name: paired(of.get("all three", {}), of.get(best.get(name, ""), {})) for name in words
        }
        corrected = holm({name: values[2] for name, values in found.items()})
        sentences = [
            f"All three beside {best[name]}, the {words[name]}: {gain:+.2f} ± {error:.2f} "
            f"(n = {n}, p {p_value(corrected[name])}), "
            f"{'' if gain > 0 and corrected[name] < 0.05 else 'not '}reached."
            for name, (gain, error, p, n) in found.items()
            if not math.isnan(p)
        ]
        attacked, base = of.get("latent adversarial", {}), of.get(study.first, {})
        gain, error, _, n = paired(attacked, base)
        if not math.isnan(error):
            share = 100 / statistics.fmean(100 - base[seed] for seed in attacked.keys() & base)
            sentences.append(
                f"Latent adversarial takes away {share * gain:.0f} ± {share * error:.0f} % of "
                f"base's errors (n = {n}; the goal is 10)."
            )
        if sentences:
            text += f"- **Goals, {size} labels per class.** {' '.join(sentences)}\n"
    return text


def published(study: Study, lines: Sequence[Mapping[str, Any]]) -> str:
    """Of each size that has one: what others had with plain training, and what base has."""
    text = ""
    for size, theirs in PUBLISHED.get(study.config().data.name, {}).items():
        ours = []
        for row, runs in by_row(lines, size).items():
            if row in LONGER and row != ENSEMBLE:
                line = next(iter(runs.values()))
                images = line["steps"] * line["changes"]["train.batch_size"]
                passes = images / line["train_examples"]
                found = with_error(list(accuracies(runs).values()))
                ours.append(f"{found} % in {passes:.0f} passes (n = {len(runs)})")
        if ours:
            text += (
                f"- **Published, {size} labels per class.** {theirs}. Base, with "
                f"{line['parameters']:,} parameters: {', '.join(ours)}.\n"
            )
    return text


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
        if not math.isnan(r.get("over_error", math.nan)):
            times = r["over"].removeprefix("base, ").removesuffix(" the updates")
            times += ", less" * r["less"]
            over = f"{r['over_gain']:+.2f} ± {r['over_error']:.2f} ({times})"
        p = "" if r["holm"] is None else p_value(r["holm"])
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
        if r["size"] == size and r["row"] not in OUTSIDE and not math.isnan(r.get("p", math.nan))
    ]
    if not able:
        return ""
    best = max(able, key=lambda r: r["gain"])
    sure = [r for r in able if r["gain"] > 0 and r["holm"] < 0.05]
    cheap = min(sure, key=lambda r: r["time"]) if sure else None
    p = p_value(best["holm"]).replace("< ", "below ")
    first = (
        f"{best['row']} gains most, {best['gain']:+.2f} ± {best['error']:.2f} points "
        f"(p {p} after Holm's correction), for {best['time']:.1f} times the time."
    )
    second = (
        f"Surely above base: {len(sure)} of {len(able)} rows; the cheapest is {cheap['row']}, "
        f"{cheap['gain']:+.2f} ± {cheap['error']:.2f} for {cheap['time']:.1f} times the time."
        if cheap
        else "No row is surely above base."
    )
    times = "less time, there being no longer run of two seeds" if best["less"] else "the same time"
    third = (
        f"Beside base given {times} ({best['over']}) the best row is at "
        f"{best['over_gain']:+.2f} ± {best['over_error']:.2f}."
    )
    return f"- **{size} labels per class.** {first} {second} {third}\n"


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str) -> None:
    """The gain over base, with its error and, as the area of a mark, the time.

    Against labels per class a line a method; of one number of labels a row a method.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if not math.isnan(r.get("error", math.nan))]
    able = [r for r in rows if r["row"] not in OUTSIDE]
    sizes, gained = {r["size"] for r in able}, "points above tuned base"
    if len(sizes) == 1:
        figure, plot = plt.subplots(figsize=(8, 1 + 0.25 * len(rows)))
        _draw_size(plot, rows)
        plot.set(xlabel=gained, title=f"{title}, {sizes.pop()} labels per class (time in base's)")
    else:
        figure, plot = plt.subplots(figsize=(8, 5))
        _draw_sizes(plot, able)
        plot.set(xscale="log", xlabel="labels per class", ylabel=gained, title=title)
    plot.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_size(plot, rows):
    """A mark a row, base with more updates in grey."""
    rows = sorted(rows, key=lambda r: r["gain"])
    x, y = [r["gain"] for r in rows], range(len(rows))
    colors = ["grey" if r["row"] in LONGER else "C0" for r in rows]
    plot.scatter(x, y, s=[AREA * r["time"] for r in rows], c=colors)
    plot.errorbar(x, y, xerr=[r["error"] for r in rows], fmt="none", color="black")
    plot.set_yticks(y, [f"{r['row']}  ({r['time']:.1f}x)" for r in rows], fontsize=8)
    plot.axvline(0, color="black", linewidth=0.8)


def _draw_sizes(plot, rows, shown=8):
    """A line a method, bands of an error, of the methods that gain most."""
    mean = {
        name: statistics.fmean(r["gain"] for r in rows if r["row"] == name)
        for name in dict.fromkeys(r["row"] for r in rows)
    }
    for name in sorted(mean, key=lambda name: -mean[name])[:shown]:
        mine = sorted((r for r in rows if r["row"] == name), key=lambda r: r["size"])
        x, y = [r["size"] for r in mine], [r["gain"] for r in mine]
        (line,) = plot.plot(x, y, label=name)
        low, high = ([r["gain"] + s * r["error"] for r in mine] for s in (-1, 1))
        plot.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        plot.scatter(x, y, s=[AREA * r["time"] for r in mine], color=line.get_color())
    plot.axhline(0, color="black", linewidth=0.8)
    plot.legend(fontsize=8)


def report(name: str) -> tuple[list[dict[str, Any]], str]:
    """A study's rows and its part of the page."""
    study, results = STUDIES[name], HERE / "results" / name
    costs = results / "costs.json"
    multiples = json.loads(costs.read_text())["multiples"] if costs.exists() else {}
    lines = read_lines(results / "table.jsonl")
    if not lines:
        return [], ""
    tuned = chosen(study, results / "tuned.json", (), print)
    changes = study.changes(tuned)
    lines = [line for line in lines if is_current(study, changes, line)]
    rows = rows_of(study, lines, multiples)
    said = "".join(what_to_turn_on(rows, size) for size in study.sizes)
    said += goals(study, lines, tuned) + published(study, lines)
    return rows, f"{said}\n{table(rows)}\n{further(study, lines)}"


def page(pictures: pathlib.Path | None = None) -> str:
    """The page of all studies that have lines; their pictures go into a folder, if it is given."""
    parts = ["# What to turn on with few labels\n", str(__doc__).split("\n\n")[2].strip() + "\n"]
    for name in STUDIES:
        rows, text = report(name)
        if not rows:
            continue
        picture = f"low_data_{name}.png"
        if pictures is not None:
            draw(rows, pictures / picture, name)
        parts.append(f"## {name}\n\n![gain over base against labels]({picture})\n\n{text}")
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.low_data.report")
    parser.add_argument("--study", choices=STUDIES, help="print the part of one")
    args = parser.parse_args()
    if args.study:
        print(report(args.study)[1])
    else:
        (DOCS / "low_data.md").write_text(page(DOCS))


if __name__ == "__main__":
    main()
