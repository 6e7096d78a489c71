"""The page of the low-data study, from its lines.

python -m experiments.low_data.report                       # docs/low_data.md and its pictures
python -m experiments.low_data.report --study=fashion_mnist # prints one study's part
"""

import argparse
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.lines import by_row, p_value, signed, with_error
from experiments.low_data import tables
from experiments.low_data.run import ENSEMBLE, STUDIES, times
from experiments.low_data.tables import LONGER, OUTSIDE
from experiments.store import current_lines
from experiments.study import Study
from experiments.tuning import best_rows, chosen
from genreg_jax.door import leave, through
from genreg_jax.errors import UserError
from genreg_jax.logs.files import write_atomically

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE = HERE / "page.md"
AREA = 8  # of a mark, for base's time
GOALS = {"fashion_mnist": 50, "cifar10": 50}  # study to labels per class
PUBLISHED = {  # data set to labels per class to what others had
    "cifar10": {
        50: "A WRN-16-8 with tuned cross-entropy, shift and flip and 500 passes has 55.2 % on "
        "ciFAIR-10, mean of 30 runs, its settings chosen within the 500 labels "
        "(Brigato et al., 2022, doi:10.1109/ACCESS.2022.3172939)"
    }
}


def with_p(p: float) -> str:
    """`p 0.020`, `p < 0.001`, or that there is none yet."""
    return f"p {p_value(p)}" if p_value(p) else f"no p below {tables.LEAST} seeds"


def gained(found: Mapping[str, Any]) -> str:
    """`+1.20 ± 0.30`, or the gain alone of one seed, nothing of none."""
    return signed(found["gain"], found["error"])


def length(row: str) -> str:
    """`4 times the updates` of base's longer trainings."""
    return row.removeprefix("base, ")


def markdown(head: str, rows: Iterable[Sequence[Any]]) -> str:
    """A table of this head, whose cells have `|` between them."""
    rule = "|---" * (head.count(" | ") + 1) + "|"
    lines = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([f"| {head} |", rule, *lines]) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    head = (
        "labels per class | row | n | test accuracy, % | gain over base | p | seconds | "
        "time, x base | FLOPs, x base | beside base of the same time | p | that base"
    )
    lines = []
    for r in rows:
        gain, same = r.get("gain"), r.get("same_time", {"n": 0})
        cells = [
            *(r["size"], r["row"], r["n"], r["accuracy"]),
            gained(gain) if gain else "",
            p_value(gain.get("holm", math.nan)) if gain else "",
            f"{r['seconds']:.0f}",
            f"{r['time']:.1f}",
            "" if r["flops"] is None else f"{r['flops']:.1f}",
        ]
        if same["n"] > 1:
            over = length(same["over"]) + ", less" * same["less"]
            fewer = f" (n = {same['n']})" * (same["n"] < r["n"])
            cells += [gained(same) + fewer, p_value(same.get("holm", math.nan)), over]
        else:
            cells += ["", "", ""]
        lines.append(cells)
    return markdown(head, lines)


def further(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of `tables.further`; nothing without a row."""
    if not rows:
        return ""
    head = "labels per class | row | compared with | n | difference | p"
    lines = [(r["size"], *r["pair"], r["n"], gained(r), p_value(r["holm"])) for r in rows]
    return f"Further comparisons:\n\n{markdown(head, lines)}"


def able_of(rows: Sequence[Mapping[str, Any]], size: int) -> list[Mapping[str, Any]]:
    """The methods of five seeds or more, or, where none has them, of two or more."""
    able = [r for r in rows if r["size"] == size and r["row"] not in OUTSIDE]
    many = [r for r in able if r["gain"]["n"] >= tables.LEAST]
    return many or [r for r in able if r["gain"]["n"] > 1]


def best_of(rows: Sequence[Mapping[str, Any]], size: int) -> Mapping[str, Any] | None:
    """The method that gains most."""
    return max(able_of(rows, size), key=lambda r: r["gain"]["gain"], default=None)


def what_to_turn_on(rows: Sequence[Mapping[str, Any]], size: int) -> str:
    """Three sentences about one size."""
    able, best = able_of(rows, size), best_of(rows, size)
    if best is None:
        return ""
    sure = [r for r in able if r["gain"]["holm"] < 0.05]
    gain, lose = ([r for r in sure if sign * r["gain"]["gain"] > 0] for sign in (1, -1))
    first = (
        f"Of the methods {best['row']} gains most, {gained(best['gain'])} points "
        f"({with_p(best['gain']['holm'])}, n = {best['gain']['n']}), for {best['time']:.1f} times "
        "base's time."
    )
    if best["gain"]["n"] < tables.LEAST:
        second = "No method has five seeds yet, so that there is no p."
    else:
        second = f"Of the {len(able)} methods of five seeds or more {len(gain) or 'none'} gain"
        second += "s with p below 0.05" if len(gain) < 2 else " with p below 0.05"
        if gain:
            cheap = min(gain, key=lambda r: r["time"])
            second += (
                f", the cheapest of them {cheap['row']}, {gained(cheap['gain'])} for "
                f"{cheap['time']:.1f} times base's time"
            )
        if lose:
            second += f", and {' and '.join(r['row'] for r in lose)} lose{'s' * (len(lose) < 2)}"
        second += "."
    same = best["same_time"]
    if same["n"] < 2 or same["over"] == "base":
        return f"- **{size} labels per class.** {first} {second}\n"
    base = next(r for r in rows if (r["size"], r["row"]) == (size, same["over"]))
    third = (
        f"Base with {length(base['row'])} gains {gained(base['gain'])} for {base['time']:.1f} "
        f"times the time{', and none takes as long' * same['less']}; {best['row']} is at "
        f"{gained(same)} from it ({with_p(same['holm'])})."
    )
    return f"- **{size} labels per class.** {first} {second} {third}\n"


def longer(rows: Sequence[Mapping[str, Any]], size: int) -> str:
    """A sentence: methods with four times the updates beside base of as many."""
    found = sorted(long_of(rows, size), key=lambda r: -r["as_long"]["gain"])
    said = (
        f"{method(r)} {gained(r['as_long'])} (n = {r['as_long']['n']}, "
        f"{with_p(r['as_long']['holm'])})"
        for r in found
    )
    return (
        f"- **Four times the updates, {size} labels per class.** Beside base of as many: "
        f"{', '.join(said)}.\n"
    ) * bool(found)


def long_of(rows: Sequence[Mapping[str, Any]], size: int) -> list[Mapping[str, Any]]:
    """The methods with four times the updates, of two seeds or more beside base of as many."""
    return [r for r in rows if r["size"] == size and "as_long" in r]


def method(row: Mapping[str, Any]) -> str:
    """Of a row of four times the updates."""
    return row["row"].removesuffix(times("", 4))


def verdict(reached: bool, n: int) -> str:
    """Of a goal; nothing is decided below five seeds."""
    if n < tables.LEAST:
        return "not decided yet"
    return "reached" if reached else "not reached"


def goals(name: str, lines: Sequence[tables.Line], tuned: Mapping[str, Any]) -> str:
    """Whether the goals of a study that has any are reached."""
    if name not in GOALS:
        return ""
    study, size = STUDIES[name], GOALS[name]
    best = {
        kind: row
        for kind, row in best_rows(study, tuned).items()
        if kind in ("best single", "best augmentation")
    }
    beside, removed = tables.goals(study, lines, best, size)
    margins = tables.margins(study, HERE / "results" / name, tuned, best)
    sentences = []
    for kind, found in beside.items():
        words = {"best single": "best single method"}.get(kind, kind)
        if kind in margins:
            own, second, other = margins[kind]
            words += f" of tuning ({own:.2f} % of validation images; {second} {other:.2f})"
        reached = found["gain"] > 0 and found["holm"] < 0.05
        sentences.append(
            f"All three beside {best[kind]}, the {words}: {gained(found)} (n = {found['n']}, "
            f"{with_p(found['holm'])} of two), {verdict(reached, found['n'])}."
        )
    if removed:
        reached = removed["share"] >= 10
        sentences.append(
            f"A tenth of base's errors taken away by latent adversarial: {removed['share']:.0f} ± "
            f"{removed['error']:.0f} % (n = {removed['n']}), {verdict(reached, removed['n'])}."
        )
    return f"- **Goals, {size} labels per class.** {' '.join(sentences)}\n" * bool(sentences)


def published(study: Study, lines: Sequence[tables.Line]) -> str:
    """Of each size that has one: what others had with plain training, and what base has."""
    text = ""
    for size, theirs in PUBLISHED.get(study.config().data.name, {}).items():
        ours = []
        for row, runs in by_row(lines, size).items():
            if row in LONGER and row != ENSEMBLE:
                line = next(iter(runs.values()))
                images = line["steps"] * line["changes"]["train.batch_size"]
                passes = images / line["train_examples"]
                found = with_error(list(tables.accuracies(runs).values()))
                ours.append(f"{found} % in {passes:.0f} passes (n = {len(runs)})")
        if ours:
            text += (
                f"- **Published, {size} labels per class.** {theirs}. Base here, with "
                f"{line['parameters']:,} parameters, on CIFAR-10's own test images, has "
                f"{', '.join(ours)}.\n"
            )
    return text


def choices(study: Study, tuned: Mapping[str, Any]) -> str:
    """Markdown: what tuning chose for each row."""
    best = best_rows(study, tuned)
    lines = []
    for row, choice in tuned.items():
        if row in best:
            words = best[row]
        else:
            words = ", ".join(f"`{key} = {value!r}`" for key, value in choice.items()) or "as it is"
            candidates = study.candidates[row]
            if row != study.first and tables.at_an_edge(candidates, choice):
                words += " (the least or the most that was tried)"
        lines.append((row, words))
    return f"Chosen on validation images:\n\n{markdown('row | chosen', lines)}"


def about(lines: Sequence[tables.Line], dropped: int) -> str:
    """What the lines were made with."""
    line = next(r for r in lines if r["row"] == "base")
    text = (
        f"Base has {line['parameters']:,} parameters and makes {line['steps']:,} updates of "
        f"{line['changes']['train.batch_size']} images. "
    )
    for size in dict.fromkeys(r["labels_per_class"] for r in lines):
        runs = [r for r in lines if r["labels_per_class"] == size]
        kind = "processor" if tables.on_processor(by_row(runs, size)) else "clock"
        text += f"With {size} labels per class seconds are the {kind}'s. "
    commits = sorted({(r["commit"] or "unknown")[:7] for r in lines})
    kinds = sorted({r["device"]["kind"] for r in lines})
    text += f"{len(lines)} lines of commits {', '.join(commits)}, made on {', '.join(kinds)}."
    if dropped:
        text += f" {dropped} lines of other settings are left out."
    return text + "\n"


def summary(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: a line a data set and number of labels."""
    head = (
        "data | labels per class | base, % | gains most | points | p | time, x base | "
        "beside base of the same time | p"
    )
    lines = []
    for name, rows in found.items():
        for size in dict.fromkeys(r["size"] for r in rows):
            best = best_of(rows, size)
            if best is None:
                continue
            base, same = next(r for r in rows if r["size"] == size), best["same_time"]
            over = f"{gained(same)} ({length(same['over'])}{', less' * same['less']})"
            cells = [
                *(name, size, base["accuracy"], best["row"], gained(best["gain"])),
                *(p_value(best["gain"]["holm"]), f"{best['time']:.1f}"),
                *(over, p_value(same["holm"])),
            ]
            lines.append(cells)
    return markdown(head, lines)


def summary_of_longer(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: the same of four times the updates."""
    head = (
        "data | labels per class | base of as many, % | gains most | points | n | p | "
        "time, x base of as many"
    )
    lines = []
    for name, rows in found.items():
        for size in dict.fromkeys(r["size"] for r in rows):
            long = long_of(rows, size)
            if not long:
                continue
            best = max(long, key=lambda r: r["as_long"]["gain"])
            base = next(r for r in rows if (r["size"], r["row"]) == (size, times("base", 4)))
            cells = [
                *(name, size, base["accuracy"], method(best), gained(best["as_long"])),
                *(best["as_long"]["n"], p_value(best["as_long"]["holm"])),
                f"{best['time'] / base['time']:.1f}",
            ]
            lines.append(cells)
    return markdown(head, lines)


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str) -> None:
    """The gain over base, with its error and, as the area of a mark, the time.

    Against labels per class a line a method; of one number of labels a row a method. Rows of one
    seed are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if "gain" in r and r["gain"]["n"] > 1]
    if not rows:
        return
    sizes, label = {r["size"] for r in rows}, "points above tuned base, ± standard error"
    if len(sizes) == 1:
        figure, plot = plt.subplots(figsize=(8, 1.2 + 0.25 * len(rows)))
        _draw_size(plot, rows)
        plot.set(xlabel=label, title=f"{title}, {sizes.pop()} labels per class")
    else:
        figure, plot = plt.subplots(figsize=(8, 5))
        _draw_sizes(plot, rows)
        plot.set(xlabel="labels per class", ylabel=label, title=title)
    plot.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_size(plot, rows):
    """A mark a row, base's longer trainings grey, others' red; a line at the best of base's."""
    rows = sorted(rows, key=lambda r: r["gain"]["gain"])
    x, errors = ([r["gain"][name] for r in rows] for name in ("gain", "error"))
    kinds = {
        "methods": ("C0", lambda row: row not in OUTSIDE),
        "methods, longer": ("C3", lambda row: row in OUTSIDE and row not in LONGER),
        "base, longer": ("grey", lambda row: row in LONGER),
    }
    for name, (color, has) in kinds.items():
        if mine := [i for i, r in enumerate(rows) if has(r["row"])]:
            area = [AREA * rows[i]["time"] for i in mine]
            plot.scatter([x[i] for i in mine], mine, s=area, c=color, label=name)
    plot.errorbar(x, range(len(rows)), xerr=errors, fmt="none", color="black")
    names = [f"{r['row']}  ({r['time']:.1f}x, n = {r['gain']['n']})" for r in rows]
    plot.set_yticks(range(len(rows)), names, fontsize=8)
    plot.axvline(0, color="black", linewidth=0.8, label="base")
    if longer := [r["gain"]["gain"] for r in rows if r["row"] in LONGER]:
        plot.axvline(max(longer), color="grey", linestyle="--", linewidth=0.8)
    # One run that fell over would squeeze all others.
    usual = [i for i, e in enumerate(errors) if e <= 4 * statistics.median(errors)]
    low = min(0.0, *(x[i] - errors[i] for i in usual))
    high = max(0.0, *(x[i] + errors[i] for i in usual))
    plot.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for mark in plot.legend(fontsize=8, loc="lower right").legend_handles:
        if hasattr(mark, "set_sizes"):
            mark.set_sizes([30])


def _draw_sizes(plot, rows, shown=6):
    """A line a method, bands of an error, of the methods that gain most; base's longer in grey."""
    of: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["size"]):
        of.setdefault(row["row"], []).append(row)
    most = max(len(mine) for mine in of.values())
    gain = {
        name: statistics.fmean(r["gain"]["gain"] for r in mine)
        for name, mine in of.items()
        if len(mine) == most  # of all sizes, so that they compare
    }
    first = lambda names: sorted(names, key=lambda name: -gain[name])
    drawn = first(name for name in gain if name not in OUTSIDE)[:shown]
    for name in drawn + first(name for name in gain if name in LONGER)[:1]:
        x = [r["size"] for r in of[name]]
        y, errors = ([r["gain"][key] for r in of[name]] for key in ("gain", "error"))
        style = {"color": "grey", "linestyle": "--"} if name in LONGER else {}
        (line,) = plot.plot(x, y, label=name, **style)
        low, high = ([v + sign * e for v, e in zip(y, errors)] for sign in (-1, 1))
        plot.fill_between(x, low, high, alpha=0.12, color=line.get_color())
        plot.scatter(x, y, s=[AREA * r["time"] for r in of[name]], color=line.get_color())
    plot.set_xscale("log")
    sizes = sorted({r["size"] for r in rows})
    plot.set_xticks(sizes, sizes)
    plot.minorticks_off()
    plot.axhline(0, color="black", linewidth=0.8)
    plot.legend(fontsize=8)


def report(name: str) -> tuple[list[dict[str, Any]], str]:
    """A study's rows and its part of the page."""
    study, results = STUDIES[name], HERE / "results" / name
    tuned = chosen(study, results / "tuned.json", (), print)
    lines, left = current_lines(study, study.changes(tuned), results / "table.jsonl")
    if not any(line["row"] == study.first for line in lines):
        if lines or left:
            raise UserError(
                f"No line of {study.first} in {results} counts, of {len(lines) + len(left)} lines: "
                "its tuned.json is missing or of other choices, its table.jsonl is damaged, or the "
                "study has changed. Put the files back. The page was not changed."
            )
        return [], ""
    rows = tables.rows_of(study, lines, tables.multiples(results / "costs.json"))
    said = "".join(what_to_turn_on(rows, size) + longer(rows, size) for size in sorted(study.sizes))
    said += goals(name, lines, tuned) + published(study, lines)
    parts = [said, about(lines, len(left)), table(rows)]
    parts += [further(tables.further(study, lines)), choices(study, tuned)]
    return rows, "\n".join(part for part in parts if part)


def page(found: Mapping[str, tuple[list[dict[str, Any]], str]]) -> str:
    """The page of the studies that have lines, from their reports."""
    parts, words = [], "gains over base with their errors; the area of a mark is the time"
    for name, (rows, text) in found.items():
        drawn = any(r["gain"]["n"] > 1 for r in rows if "gain" in r)
        image = f"![{words}]({picture(name)})\n\n" * drawn
        parts.append(f"{heading(name)}\n\n{image}{text}")
    rows = {name: rows for name, (rows, _) in found.items()}
    text = PAGE.read_text().replace("{summary}", summary(rows).rstrip())
    text = text.replace("{longer}", summary_of_longer(rows).rstrip())
    return text.replace("{studies}", "\n".join(parts))


def heading(name: str) -> str:
    return f"## {name}"


def picture(name: str) -> str:
    return f"low_data_{name}.png"


def reports() -> dict[str, tuple[list[dict[str, Any]], str]]:
    """Those of the studies that have lines."""
    found = {name: report(name) for name in STUDIES}
    return {name: (rows, text) for name, (rows, text) in found.items() if rows}


def write(path: pathlib.Path) -> None:
    """Writes the page, and its pictures beside it.

    Raises:
      UserError: the page that is there has a study that has no lines now.
    """
    found = reports()
    there = path.read_text().splitlines() if path.exists() else []
    if gone := [name for name in STUDIES if heading(name) in there and name not in found]:
        raise UserError(
            f"{path} has {', '.join(gone)}, of which there is no line in {HERE / 'results'}. Put "
            "its table.jsonl back, or take its part out of the page. The page was not changed."
        )
    text = page(found)
    for name, (rows, _) in found.items():
        draw(rows, path.with_name(picture(name)), name)
    write_atomically(path, text)


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.low_data.report")
    parser.add_argument("--study", choices=STUDIES, help="print the part of one")
    args = parser.parse_args()
    if args.study:
        print(report(args.study)[1])
    else:
        write(DOCS / "low_data.md")


if __name__ == "__main__":
    leave(through(main))
