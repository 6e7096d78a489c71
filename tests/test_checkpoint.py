"""Checkpoints come back bit for bit, with their types."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genreg_jax.checkpoint import Checkpoints
from genreg_jax.state import Best, TrainState


def make_state(seed):
    params = {
        "w": jax.random.normal(jax.random.key(seed), (3, 2)),
        "half": jnp.asarray([seed + 1 / 3], jnp.bfloat16),
    }
    tx = optax.adam(0.1)
    _, opt_state = tx.update(params, tx.init(params), params)
    state = TrainState(
        step=jnp.int32(seed),
        params=params,
        model_state={"batch_stats": {"mean": jnp.full(2, np.float32(np.pi))}},
        opt_state=opt_state,
        finder_params=(),
        finder_opt_state=(),
        key=jax.random.fold_in(jax.random.key(3), seed),
    )
    best = Best(params, {}, jnp.float32(0.7), jnp.float32(np.inf), jnp.int32(1))
    return state, best


def as_numpy(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(
        lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "deep" / "inside"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 4, 9):
            checkpoints.save(step, make_state(step), {"epoch": step, "hash": "abc", "nested": [1]})
    return folder


def test_the_latest_comes_back_bit_for_bit_with_keys_and_types(folder):
    with Checkpoints(folder) as checkpoints:
        step, tree, extra = checkpoints.restore(make_state(0))
    assert step == 9 and extra == {"epoch": 9, "hash": "abc", "nested": [1]}
    expected = make_state(9)
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
    jax.tree.map(np.testing.assert_array_equal, as_numpy(tree), as_numpy(expected))
    draw = lambda state: jax.random.normal(state.key, (3,))
    np.testing.assert_array_equal(draw(tree[0]), draw(expected[0]))


def test_shapes_alone_are_enough_to_restore(folder):
    with Checkpoints(folder) as checkpoints:
        _, tree, _ = checkpoints.restore(jax.eval_shape(lambda: make_state(0)))
    jax.tree.map(np.testing.assert_array_equal, as_numpy(tree), as_numpy(make_state(9)))


def test_only_the_latest_are_kept_and_extra_needs_no_structure(folder):
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["4", "9"]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.extra()["epoch"] == 9


def test_an_absent_folder_holds_nothing_and_is_not_made(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.restore(make_state(0)) is None
        assert checkpoints.extra() is None
    assert not (tmp_path / "none").exists()


def test_a_save_is_complete_when_the_context_is_left_by_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make_state(2), {"epoch": 2})
        raise KeyboardInterrupt
    with Checkpoints(tmp_path) as checkpoints:
        step, tree, _ = checkpoints.restore(make_state(0))
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, as_numpy(tree), as_numpy(make_state(2)))
