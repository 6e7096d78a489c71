"""What each row computes, in multiples of plain training.

python -m experiments.low_data.costs --study=fashion_mnist

Floating-point operations of the convolutions and matrix products of one update, counted in its
jaxpr with the number of turns of every loop, which XLA's own count leaves out, times the updates.
Nothing is run on images; the flow has its shape, and its training is not counted. Writes
`results/STUDY/costs.json`.
"""

import argparse
import json
import math
import pathlib
from typing import Any

import jax

from experiments.low_data.run import STUDIES
from experiments.parts import parts_of
from experiments.study import settings_of
from experiments.tuning import chosen
from genreg_jax.door import leave, through
from genreg_jax.epoch import update_of
from genreg_jax.logs import write_json

SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def flops(jaxpr) -> float:
    """Of the convolutions and matrix products of a jaxpr, a multiplication and an addition each.

    The larger branch of a `cond` counts, and a `while_loop`, whose turns are not known, once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        shapes: Any = [getattr(v.aval, "shape", ()) for v in (*equation.invars, *equation.outvars)]
        params = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            spec = params["dimension_numbers"].rhs_spec
            kernel = shapes[1]
            each = math.prod(kernel) / kernel[spec[0]]  # inputs of one output
            total += 2 * math.prod(shapes[-1]) * each
        inner = [
            flops(getattr(part, "jaxpr", part))
            for value in params.values()
            for part in (value if isinstance(value, (tuple, list)) else [value])
            if hasattr(getattr(part, "jaxpr", part), "eqns")
        ]
        if inner:
            turns = params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += turns * (max(inner) if equation.primitive.name == "cond" else sum(inner))
    return total


def of_update(settings) -> float:
    """`flops` of an update of a run on random images."""
    side = settings.data.image_size
    shape = SHAPES.get(settings.data.name, (side, side, 3))
    count = 3 * settings.train.batch_size + 40
    parts, indices = parts_of(settings, shape, images=count, validation_fraction=0.2)
    update = update_of(parts.step, len(indices.inner))
    args = (parts.state, parts.train_data, indices, parts.frozen)
    return flops(jax.make_jaxpr(update)(*args).jaxpr)


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.low_data.costs")
    parser.add_argument("--study", choices=STUDIES, required=True)
    args = parser.parse_args()
    study = STUDIES[args.study]
    results = pathlib.Path(__file__).parent / "results" / args.study
    changes = study.changes(chosen(study, results / "tuned.json", study.rows, parser.error))
    found = {}
    for row, change in changes.items():
        settings = settings_of(study, change, study.sizes[0], 0, "")
        updates = settings.train.epochs * settings.train.steps_per_epoch
        found[row] = updates * study.members.get(row, 1) * of_update(settings)
        print(f"{row}: {found[row]:.4g}, {found[row] / found[study.first]:.2f}", flush=True)
    multiples = {row: count / found[study.first] for row, count in found.items()}
    write_json(results / "costs.json", {"flops": found, "multiples": multiples})
    print(json.dumps(multiples, indent=2))


if __name__ == "__main__":
    leave(through(main))
