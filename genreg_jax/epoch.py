"""An epoch: its program, which loops over steps or is one, and what is made of its metrics."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax.batches import EpochIndices
from genreg_jax.checkpoint import Checkpoints
from genreg_jax.contract import Batch
from genreg_jax.errors import UserError
from genreg_jax.feed import Feed
from genreg_jax.objective import CHECKED
from genreg_jax.settings import Settings
from genreg_jax.state import Best, TrainState

# How long an accelerator is left alone: progress is shown and signals are obeyed in between.
SECONDS = 1.0


def compile_epoch(
    step: Callable,
    state: TrainState,
    train_data: Batch | Feed,
    indices: EpochIndices,
    frozen: tuple,
) -> Callable:
    """Compiles the training of one epoch, in the form that suits the backend and the data.

    On accelerators it is a loop on the device, of as many updates as take about a second, the first
    time of one; of a whole epoch where there are several processes, whose clocks differ. On CPU,
    where XLA's convolutions are about twenty times slower inside a loop, it is a Python loop over a
    compiled step, as it is where batches are read while others train. This is the one place that
    decides. Being compiled here, no form can recompile later.

    Args:
      step: from `make_train_step`.
      state: the first state, for its shapes; its buffers are donated at each call of the result.
      train_data: all training images, or where batches of them come from.
      indices: of one epoch; images in memory are gathered on the device.
      frozen: what `step` takes after the batches: the generator's parameters and maybe a flow.

    Returns:
      `run_epoch(state, train_data, indices, frozen, *, tick, history, stop) -> (state, history)`.
      `tick(step, metrics)` is called as updates are made; the device may still be at the one that
      the metrics are of. `history` has the metrics of each update of the epoch; one that has begun
      is continued from it, and left off where `stop()` is true.
    """
    steps = len(indices.inner)
    if isinstance(train_data, Feed):
        return _fed(step, state, train_data, indices, frozen)
    make = loop_on_device if (loop := jax.default_backend() != "cpu") else update_of
    sharding = state.step.sharding  # that of all of the state
    number = lambda count: jax.device_put(np.int32(count), sharding)
    program = (
        jax.jit(make(step, steps), donate_argnums=0, out_shardings=sharding)
        .lower(state, train_data, indices, frozen, *([number(1)] if loop else []))
        .compile()
    )
    share = 1 if jax.process_count() == 1 else steps

    def run_epoch(state, train_data, indices, frozen, *, tick, history, stop):
        nonlocal share
        done, fresh = int(state.step), []
        while (left := steps - len(history) - len(fresh)) and not stop():
            if loop:
                count, began = min(share, left), time.perf_counter()
                state, kept = program(state, train_data, indices, frozen, number(count))
                kept = jax.device_get(kept)
                if share < steps:
                    seconds = max(time.perf_counter() - began, 1e-6)
                    share = min(max(int(SECONDS / seconds * count), 1), 10 * share)
                fresh += [jax.tree.map(lambda values, i=i: values[i], kept) for i in range(count)]
            else:
                state, metrics = program(state, train_data, indices, frozen)
                fresh.append(metrics)
            tick(done + len(fresh), fresh[-1])
        return state, [*history, *_floats(fresh)]

    return run_epoch


def _floats(metrics: list) -> list[dict[str, float]]:
    return [jax.tree.map(float, m) for m in jax.device_get(metrics)]


def _fed(
    step: Callable, state: TrainState, feed: Feed, indices: EpochIndices, frozen: tuple
) -> Callable:
    """`compile_epoch` where the batches are read from a `Feed`, on any backend."""

    def update(state, inner, outer, frozen):
        return step(state, inner, outer, *frozen)

    program = (
        jax.jit(update, donate_argnums=0, out_shardings=state.step.sharding)
        .lower(state, *feed.shapes(indices), frozen)
        .compile()
    )

    def run_epoch(state, feed, indices, frozen, *, tick, history, stop):
        done, fresh = int(state.step), []
        with contextlib.closing(feed.batches(indices, len(history))) as batches:
            batch = next(batches, None)
            while batch is not None and not stop():
                state, metrics = program(state, *batch, frozen)
                fresh.append(metrics)
                batch = next(batches, None)  # while the device is at the update
                tick(done + len(fresh), metrics)
                if metrics["train/nonfinite"] and int(state.step) < done + len(fresh):
                    break  # the update was not made, and none after it is
        return state, [*history, *_floats(fresh)]

    return run_epoch


def update_of(step: Callable, steps: int) -> Callable:
    """`(state, train_data, indices, frozen) -> (state, metrics)`: the next update of an epoch."""

    def update(state, train_data, indices, frozen):
        i = state.step % steps
        inner, outer = (
            None if rows is None else jax.tree.map(lambda array: array[rows[i]], train_data)  # noqa: B023
            for rows in indices
        )
        return step(state, inner, outer, *frozen)

    return update


def loop_on_device(step: Callable, steps: int) -> Callable:
    """The next `count` updates: `(..., count) -> (state, metrics [steps])`, the rest being zero."""
    # A program of its own, so that its shapes and the loop's body are of one tracing.
    update = jax.jit(update_of(step, steps))

    def loop(state, train_data, indices, frozen, count):
        shapes = jax.eval_shape(update, state, train_data, indices, frozen)[1]
        kept = jax.tree.map(lambda m: jnp.zeros((steps, *m.shape), m.dtype), shapes)

        def body(i, carry):
            state, kept = carry
            state, metrics = update(state, train_data, indices, frozen)
            return state, jax.tree.map(lambda all, m: all.at[i].set(m), kept, metrics)

        return jax.lax.fori_loop(0, count, body, (state, kept))

    return loop


def means(history: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of an epoch from those of its updates, float32; not of skipped ones."""
    made = [m for m in history if not m["train/nonfinite"]]
    return {
        name: float(np.mean([np.float32(m[name]) for m in made])) if made else math.nan
        for name in history[0]
        if name != "train/nonfinite"
    }


def better(best: Best, state: TrainState, metrics: dict[str, float], epoch: int) -> Best:
    """The better of two models on validation; the latest one where there is no validation."""
    # In float32, as they are kept: otherwise rounding would decide between equal accuracies.
    accuracy = float(np.float32(metrics.get("validation/accuracy", -1.0)))
    loss = float(np.float32(metrics.get("validation/cross_entropy", np.inf)))
    loss = math.inf if math.isnan(loss) else loss
    better = (accuracy, -loss) > (float(best.accuracy), -float(best.loss))
    if "validation/accuracy" in metrics and not better:
        return best
    # A copy, since the state's buffers are donated to the next step.
    params, model_state = jax.tree.map(jnp.copy, (state.params, state.model_state))
    return Best(params, model_state, jnp.float32(accuracy), jnp.float32(loss), jnp.int32(epoch))


def check_finite(
    history: list[dict[str, float]],
    state: TrainState,
    best: Best,
    workdir: Path,
    settings: Settings,
) -> None:
    """Stops at an update that was not finite; `state` is then still that before it."""
    failed = [int(m["train/nonfinite"]) for m in history if m["train/nonfinite"]]
    if not failed:
        return
    made, folder = int(state.step), workdir / "postmortem"
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(made, (state, best), {"failed": CHECKED[failed[0] - 1]})
    raise UserError(
        f"Update {made + 1} was not made: {CHECKED[failed[0] - 1]} is not finite. The state before "
        f"it is saved in {folder}. Start in a new workdir with a lower "
        f"config.optimizer.learning_rate ({settings.optimizer.learning_rate:g}) or a "
        f"config.optimizer.grad_clip ({settings.optimizer.grad_clip:g}; 0 is none), or repeat the "
        "command with --config.train.nonfinite=skip to go on from the last checkpoint without such "
        "updates."
    )
