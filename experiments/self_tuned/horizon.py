"""What does a hypergradient see of a strength, and what would the whole training say?

python -m experiments.self_tuned.horizon        # digits, validation images only; resumes

For each strength a grid of values. `end` is what a whole training with that value comes to on the
validation images: accuracy, cross-entropy, and cross-entropy at its best temperature. `slope` is
the hypergradient of the latter in the logarithm of the strength, taken in the middle of that
training through K = 1, 5 and 20 of its updates, and at that point by the implicit function theorem
as if it were a minimum (a Neumann series of 20 terms): mean and standard error over batches and
seeds. Where the slope is negative, learning makes the strength larger.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genreg_jax as gr
from experiments.lines import mean_and_error
from experiments.runs import load, with_flow
from experiments.self_tuned.run import STUDIES
from experiments.study import settings_of
from genreg_jax import build
from genreg_jax.batches import BatchPlan
from genreg_jax.checks import path_of
from genreg_jax.contract import to_float
from genreg_jax.door import leave, through
from genreg_jax.logs import provenance
from genreg_jax.restore import restore_flow
from genreg_jax.strengths import calibrated_cross_entropy

GRID = {"phantom.weight": (0.3, 1.0, 3.0, 10.0, 30.0), "latent.epsilon": (0.2, 0.6, 2.0, 6.0)}
SEEDS, MIDDLE, BATCHES = (100, 101, 102), 300, 12

_PROGRAMS = {}


def measure(name, value, seed, runs):
    """One line: a training with one value, and the slopes in its middle."""
    changes = STUDIES["digits"].rows[f"{name.split('.')[0]}, 1x"]
    settings = settings_of(STUDIES["digits"], {**changes, name: value}, 10, seed, data_dir="")
    settings = with_flow(runs, settings)
    dataset = load(settings)
    plan = BatchPlan(settings, dataset.train.labels)
    views = build.views_of(settings, dataset.image_shape)
    flow = restore_flow(settings.flow.workdir).freeze() if settings.uses_flow else None
    parts = build.parts(settings, dataset, plan=plan, views=views, flow=flow)
    total = settings.train.epochs * plan.steps_per_epoch
    indices = np.concatenate([plan.epoch(e).inner for e in range(settings.train.epochs)])
    step = jax.jit(parts.step)
    state, middle = parts.state, None
    for t in range(total):
        if t == MIDDLE:
            middle = state
        batch = jax.tree.map(lambda a: a[indices[t]], parts.train_data)  # noqa: B023
        state, _ = step(state, batch, None, (), flow)
    held_out = jnp.asarray(dataset.validation.images), jnp.asarray(dataset.validation.labels)
    end = parts.evaluate(state.params, state.model_state, *map(np.asarray, held_out))
    logits = parts.model.apply(
        state.params, state.model_state, to_float(held_out[0]), rng=None, train=False
    )[0].logits
    slopes = {k: [] for k in ("1", "5", "20", "implicit")}
    if name not in _PROGRAMS:  # the first run's; everything that differs is an argument
        _PROGRAMS[name] = slopes_of(name, settings, parts, views, total)
    programs = _PROGRAMS[name]
    for i in range(BATCHES):
        key = jax.random.fold_in(jax.random.key(seed), i)
        outer = jax.random.choice(key, len(held_out[1]), (64,), replace=False)
        outer = to_float(held_out[0][outer]), held_out[1][outer]
        for k in slopes:
            rows = indices[MIDDLE + 20 * i : MIDDLE + 20 * i + (int(k) if k.isdigit() else 1)]
            batches = jax.tree.map(lambda a: a[rows], parts.train_data)  # noqa: B023
            keys = jax.random.split(jax.random.fold_in(key, 1), len(rows))
            h = programs[k](value, flow, middle, (keys, batches), outer)
            slopes[k].append(float(h))
    return {
        "strength": name,
        "value": value,
        "seed": seed,
        "accuracy": end["accuracy"],
        "cross_entropy": end["loss"],
        "calibrated": float(calibrated_cross_entropy(logits, held_out[1])),
        "slopes": slopes,
        **provenance(),
    }


def slopes_of(name, settings, parts, views, total):
    """K to a compiled `(value, flow, state, batches, outer) -> slope` in its logarithm."""

    def losses(params, strength, flow, model_state, key, batch):
        keys = jax.random.split(key, 3)
        images = views["train"](keys[0], to_float(batch.images))
        if name == "latent.epsilon":
            perturb = build.perturbation_of(settings, epsilon=strength)
            images = perturb(keys[1], flow, None, images, batch.labels, None)
        outputs, _ = parts.model.apply(params, model_state, images, rng=keys[2], train=True)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, batch.labels)
        if name == "phantom.weight":
            term = build.embedding_term_of(settings, 10, total, strength)
            assert term is not None
            loss += term(keys[1], outputs, batch.labels, jnp.int32(MIDDLE))
        return jnp.mean(loss)

    tx = build.optimizer_of(settings, parts.schedule)

    def program(k):
        def slope(value, flow, state, batches, outer):
            def outer_loss(params):
                outputs, _ = parts.model.apply(
                    params, state.model_state, outer[0], rng=None, train=True
                )
                return calibrated_cross_entropy(outputs.logits, outer[1])

            inner = lambda p, r, b: losses(p, value * jnp.exp(r), flow, state.model_state, *b)
            if k == "implicit":
                first = jax.tree.map(lambda x: x[0], batches)
                decay = settings.optimizer.weight_decay / 2
                squares = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p) if x.ndim > 1)
                return gr.implicit_hypergradient(
                    lambda p, r: inner(p, r, first) + decay * squares(p),
                    outer_loss,
                    state.params,
                    jnp.float32(0),
                    solver="neumann",
                    step_size=0.01,
                ).grads
            return gr.hypergradient(
                inner,
                outer_loss,
                state.params,
                jnp.float32(0),
                tx,
                state.opt_state,
                num_steps=int(k),
                batches=batches,
                unroll=True,
            ).grads

        return jax.jit(slope)

    return {k: program(k) for k in ("1", "5", "20", "implicit")}


def table(lines):
    """Markdown, a row a value."""
    head = "| strength | value | n | accuracy, % | cross-entropy | at its best temperature | "
    head += "slope, K = 1 | K = 5 | K = 20 | implicit |"
    rows = [head, "|" + "---|" * 10]
    for name, values in GRID.items():
        for value in values:
            of = [x for x in lines if (x["strength"], x["value"]) == (name, value)]
            if not of:
                continue

            def shown(numbers, digits):
                mean, error = mean_and_error(numbers)
                return f"{mean:.{digits}f} ± {error:.{digits}f}"

            cells = [
                shown([100 * x["accuracy"] for x in of], 2),
                shown([x["cross_entropy"] for x in of], 3),
                shown([x["calibrated"] for x in of], 3),
                *(
                    shown([1e4 * s for x in of for s in x["slopes"][k]], 1)
                    for k in ("1", "5", "20", "implicit")
                ),
            ]
            rows.append(f"| {name} | {value:g} | {len(of)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n\nSlopes are 10^-4 of the outer loss, over batches and seeds.\n"


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=path_of, default=pathlib.Path("runs"))
    parser.add_argument("--only", choices=GRID, help="one strength")
    args = parser.parse_args()
    folder = pathlib.Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / "horizon.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    for name, values in GRID.items():
        for value in values if args.only in (None, name) else ():
            for seed in SEEDS:
                if any(
                    (x["strength"], x["value"], x["seed"]) == (name, value, seed) for x in lines
                ):
                    continue
                lines.append(measure(name, value, seed, args.runs))
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    (folder / "horizon.md").write_text(table(lines), encoding="utf-8")
    print(table(lines))


if __name__ == "__main__":
    leave(through(main))
