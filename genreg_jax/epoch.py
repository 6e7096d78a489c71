"""The one place that decides, by backend, whether an epoch is a scan or a loop of steps."""

from collections.abc import Callable

import jax

from genreg_jax.batches import EpochIndices
from genreg_jax.contract import Batch
from genreg_jax.state import TrainState


def compile_epoch(
    step: Callable,
    state: TrainState,
    train_data: Batch,
    indices: EpochIndices,
    frozen: tuple,
) -> Callable:
    """Compiles the training of one epoch, in the form that suits the backend.

    On accelerators an epoch is one `lax.scan`; on CPU, where XLA's convolutions are about twenty
    times slower inside a loop, it is a Python loop over a compiled step. This is the one place
    that decides. Being compiled here, neither form can recompile later.

    Args:
      step: from `make_train_step`.
      state: the first state, for its shapes; its buffers are donated at each call of the result.
      train_data: all training images.
      indices: of one epoch; images are gathered on the device.
      frozen: what `step` takes after the batches: the generator's parameters and maybe a flow.

    Returns:
      `run_epoch(state, train_data, indices, frozen, *, tick, history, stop) -> (state, history)`.
      `tick(step)` is called as updates are made. `history` has the metrics of each update of the
      epoch; one that has begun is continued from it, and left off where `stop()` is true.
    """
    steps = len(indices.inner)

    def indexed_step(state, train_data, indices, frozen):
        i = state.step % steps
        inner, outer = (
            None if rows is None else jax.tree.map(lambda array: array[rows[i]], train_data)  # noqa: B023
            for rows in indices
        )
        return step(state, inner, outer, *frozen)

    def scanned(state, train_data, indices, frozen):
        def body(state, _):
            return indexed_step(state, train_data, indices, frozen)

        return jax.lax.scan(body, state, length=steps)

    scan = jax.default_backend() != "cpu"
    program = (
        jax.jit(
            scanned if scan else indexed_step,
            donate_argnums=0,
            out_shardings=state.step.sharding,  # that of all of the state
        )
        .lower(state, train_data, indices, frozen)
        .compile()
    )

    def run_epoch(state, train_data, indices, frozen, *, tick, history, stop):
        done, fresh = int(state.step), []
        if scan:  # never left off, so never continued
            state, stacked = program(state, train_data, indices, frozen)
            stacked = jax.device_get(stacked)
            fresh = [jax.tree.map(lambda values: values[i], stacked) for i in range(steps)]  # noqa: B023
            tick(done + steps)
        while len(history) + len(fresh) < steps and not stop():
            state, metrics = program(state, train_data, indices, frozen)
            fresh.append(metrics)
            tick(done + len(fresh))
        fresh = [jax.tree.map(float, metrics) for metrics in jax.device_get(fresh)]
        return state, [*history, *fresh]

    return run_epoch
