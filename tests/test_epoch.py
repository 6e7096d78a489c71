"""An epoch's program: the same updates in every form, left off and continued anywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genreg_jax as gr
from genreg_jax import epoch
from genreg_jax.batches import EpochIndices
from genreg_jax.contract import Batch

STEPS = 23
traced = []


def step(state, real, outer):
    """Multiplies the parameters by what the batches are, so that order and number matter."""
    traced.append(state)
    factor = 1 + jnp.mean(real.images) / 10 - jnp.mean(outer.labels) / 20
    params = {"w": state.params["w"] * factor + state.step}
    metrics = {"train/loss": params["w"].sum(), "train/nonfinite": jnp.int32(0)}
    return dataclasses.replace(state, params=params, step=state.step + 1), metrics


@pytest.fixture
def made(monkeypatch):
    """`made(backend) -> (run_epoch, state, *its arguments)`."""
    rng = np.random.default_rng(0)
    data = Batch(jnp.asarray(rng.normal(size=(9, 2)), jnp.float32), jnp.arange(9))
    rows = lambda size: jnp.asarray(rng.integers(0, 9, (STEPS, size)))
    indices = EpochIndices(rows(4), rows(3))

    def make(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        tx, key = optax.sgd(0.1), jax.random.key(0)
        state = gr.TrainState.create({"w": jnp.ones(3)}, {}, tx, key)
        traced.clear()
        return epoch.compile_epoch(step, state, data, indices, ()), state, data, indices, ()

    return make


def go(run_epoch, state, *args, history=(), stop_at=None):
    """State, history and where `tick` was called; left off after the update `stop_at`."""
    ticks = [None]
    state, history = run_epoch(
        state,
        *args,
        tick=lambda number, metrics: ticks.append(number),
        history=list(history),
        stop=lambda: stop_at is not None and ticks[-1] == stop_at,
    )
    return state, history, ticks[1:]


def test_an_accelerator_makes_the_updates_of_a_loop_in_shares(made):
    state, history, ticks = go(*made("cpu"))
    assert ticks == list(range(1, STEPS + 1))
    other, other_history, other_ticks = go(*made("gpu"))
    assert len(traced) == 1
    assert other_ticks[0] == 1 and other_ticks[-1] == STEPS and len(other_ticks) < STEPS
    np.testing.assert_allclose(other.params["w"], state.params["w"], rtol=1e-6)
    assert [h["train/loss"] for h in other_history] == pytest.approx(
        [h["train/loss"] for h in history]
    )
    assert int(other.step) == STEPS == len({h["train/loss"] for h in history})


def test_a_share_is_what_takes_about_a_second(made, monkeypatch):
    ends = np.cumsum([0.0, 2.0, 0.3, 0.9, 0.6, 0.9, 0.9, 0.9])
    readings = iter(np.repeat(ends, 2)[1:].tolist())  # a share begins where the last one ended
    monkeypatch.setattr(epoch.time, "perf_counter", lambda: next(readings))
    *_, ticks = go(*made("gpu"))
    # 1 update in 2 s, 1 in 0.3 s: 3; in 0.9 s: 3; in 0.6 s: 5; and in 0.9 s: 5
    assert np.diff([0, *ticks]).tolist() == [1, 1, 3, 3, 5, 5, 5]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_an_epoch_that_is_left_off_continues_to_the_same_end(made, backend):
    whole, whole_history, ticks = go(*made(backend))
    run_epoch, state, *args = made(backend)
    state, history, first = go(run_epoch, state, *args, stop_at=ticks[0])
    assert 0 < len(history) < STEPS
    state, history, rest = go(run_epoch, state, *args, history=history)
    assert rest[-1] == STEPS and first[-1] == ticks[0]
    np.testing.assert_array_equal(state.params["w"], whole.params["w"])
    assert history == whole_history


def test_several_processes_make_a_whole_epoch_at_once(made, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    *_, ticks = go(*made("gpu"))
    assert ticks == [STEPS]
