"""Draws the similarity of validation embeddings within and between classes over training.

python -m experiments.phantom.similarity --study=digits

Reads the metrics of the runs in the table and writes `results/<study>/similarity.json` (means and
standard errors over seeds) and `similarity.png` beside it.
"""

import argparse
import json
import pathlib

import numpy as np

from experiments.phantom.run import STUDIES
from genreg_jax.checks import path_of
from genreg_jax.door import leave, through

CURVES = {
    "within classes": "validation/intra_class_similarity",
    "between classes": "validation/inter_class_similarity",
}


def curves(study, records, folder, size):
    """`{row: {title: {"step", "mean", "error"}}}` over the seeds of one size."""
    found = {}
    for row in study.rows:
        runs = [r for r in records if r["row"] == row and r["labels_per_class"] == size]
        lines = []
        for record in runs:
            text = (folder / record["config_hash"] / "metrics.jsonl").read_text()
            lines.append([json.loads(line) for line in text.splitlines()])
        if not lines:
            continue
        found[row] = {}
        for title, name in CURVES.items():
            values = np.array([[line[name] for line in run if name in line] for run in lines])
            error = (
                values.std(axis=0, ddof=1) / len(values) ** 0.5
                if len(values) > 1
                else 0 * values[0]
            )
            found[row][title] = {
                "step": [line["step"] for line in lines[0] if name in line],
                "mean": values.mean(axis=0).round(5).tolist(),
                "error": error.round(5).tolist(),
                "n": len(values),
            }
    return found


def draw(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, title in zip(figure.subplots(1, 2), CURVES):
        for row, of_row in found.items():
            curve = {k: np.array(v) for k, v in of_row[title].items()}
            axes.plot(curve["step"], curve["mean"], label=row)
            low, high = (curve["mean"] + sign * curve["error"] for sign in (-1, 1))
            axes.fill_between(curve["step"], low, high, alpha=0.2)
        axes.set_title(f"cosine similarity {title}")
        axes.set_xlabel("step")
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--runs", type=path_of, default=pathlib.Path("runs/experiments"))
    parser.add_argument("--size", type=int, help="labels per class; the study's first by default")
    args = parser.parse_args()
    study = STUDIES[args.study]
    results = pathlib.Path(__file__).parent / "results" / args.study
    records = [json.loads(line) for line in (results / "table.jsonl").read_text().splitlines()]
    found = curves(study, records, args.runs, args.size or study.sizes[0])
    (results / "similarity.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, results / "similarity.png")


if __name__ == "__main__":
    leave(through(main))
