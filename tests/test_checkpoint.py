"""Checkpoints come back bit for bit, with their types."""

import dataclasses
import os
import shutil
import subprocess
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genreg_jax.checkpoint import CheckpointReader, Checkpoints
from genreg_jax.errors import UserError
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
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, expected)
    chex.assert_trees_all_equal(as_numpy(tree), as_numpy(expected))
    draw = lambda state: jax.random.normal(state.key, (3,))
    np.testing.assert_array_equal(draw(tree[0]), draw(expected[0]))


def test_shapes_alone_are_enough_to_restore(folder):
    with Checkpoints(folder) as checkpoints:
        _, tree, _ = checkpoints.restore(jax.eval_shape(lambda: make_state(0)))
    jax.tree.map(np.testing.assert_array_equal, as_numpy(tree), as_numpy(make_state(9)))


def test_without_structure_lists_and_dicts_come_back(folder):
    with Checkpoints(folder) as checkpoints:
        step, (state, best), _ = checkpoints.restore(None)
    assert step == 9
    expected = make_state(9)[0]
    np.testing.assert_array_equal(state["params"]["w"], expected.params["w"])
    np.testing.assert_array_equal(best["accuracy"], np.float32(0.7))


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


def flip_a_bit(path, where):
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1 << (where % 8)
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(12))
def test_damage_anywhere_is_found_and_the_step_before_is_restored(folder, tmp_path, seed):
    """A flipped bit, a truncated file or a missing one in a random file of the newest step."""
    copy, rng = tmp_path / "run", np.random.default_rng(seed)
    shutil.copytree(folder, copy)
    files = sorted(p for p in (copy / "9").rglob("*") if p.is_file() and p.stat().st_size)
    path = files[rng.integers(len(files))]
    damage = ("flip", "truncate", "remove")[seed % 3]
    if damage == "flip":
        flip_a_bit(path, int(rng.integers(path.stat().st_size)))
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    notes = []
    with Checkpoints(copy, note=notes.append) as checkpoints:
        step, tree, extra = checkpoints.restore(make_state(0))
    # Damage to a byte that nothing reads may leave the step whole; it never changes a value.
    assert step == extra["epoch"] and step in (4, 9)
    jax.tree.map(np.testing.assert_array_equal, as_numpy(tree), as_numpy(make_state(step)))
    assert (step == 4) == (len(notes) == 1) == (tmp_path / "run_damaged" / "9").exists()


def test_a_flipped_bit_in_the_data_is_found(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    data = max((p for p in (copy / "9").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip_a_bit(data, data.stat().st_size // 2)
    notes = []
    with Checkpoints(copy, note=notes.append) as checkpoints:
        assert checkpoints.restore(make_state(0))[0] == 4
    assert "step 9" in notes[0] and "is damaged" in notes[0]


def test_every_step_damaged_is_as_none(folder, tmp_path):
    copy, notes = tmp_path / "run", []
    shutil.copytree(folder, copy)
    for step in ("4", "9"):
        shutil.rmtree(copy / step)
        (copy / step).mkdir()
    with Checkpoints(copy, note=notes.append) as checkpoints:
        assert checkpoints.restore(make_state(0)) is None
        checkpoints.save(9, make_state(9), {})
    assert len(notes) == 2 and "none before it" in notes[1]


def listing(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_reader_passes_damage_over_and_changes_nothing(folder, tmp_path):
    copy, notes = tmp_path / "run", []
    shutil.copytree(folder, copy)
    data = max((p for p in (copy / "9").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip_a_bit(data, data.stat().st_size // 2)
    (copy / "12.orbax-checkpoint-tmp").mkdir()  # what a save that is at work looks like
    (copy / "12.orbax-checkpoint-tmp" / "half").write_bytes(b"written")
    before = listing(tmp_path)
    with CheckpointReader(copy, note=notes.append) as checkpoints:
        step, tree, extra = checkpoints.restore(make_state(0))
        assert step == extra["epoch"] == 4
        # The record of the newest is whole, whatever its arrays are.
        assert checkpoints.extra()["epoch"] == 9 and checkpoints.digest() is not None
    jax.tree.map(np.testing.assert_array_equal, as_numpy(tree), as_numpy(make_state(4)))
    assert listing(tmp_path) == before
    assert len(notes) == 1 and "step 9" in notes[0] and "left as it is" in notes[0]
    assert not hasattr(CheckpointReader, "save")


def test_a_reader_of_nothing_makes_nothing(tmp_path):
    with CheckpointReader(tmp_path / "none") as checkpoints:
        assert checkpoints.restore(None) is checkpoints.extra() is checkpoints.digest() is None
    assert not list(tmp_path.iterdir())


def test_a_reader_beside_a_writer_reads_whole_steps_and_disturbs_none(tmp_path):
    program = """
import sys
import jax.numpy as jnp
from genreg_jax.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    for step in range(1, 61):
        checkpoints.save(step, {"w": jnp.full(50_000, step)}, {"step": step})
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    steps, notes = [], []
    while writer.poll() is None:
        with CheckpointReader(tmp_path / "run", note=notes.append) as checkpoints:
            found = checkpoints.restore({"w": jnp.zeros(50_000, jnp.int32)})
        if found is not None:
            step, tree, extra = found
            assert extra == {"step": step} and np.all(tree["w"] == step)
            steps.append(step)
    assert writer.returncode == 0, writer.communicate()[0]
    assert steps == sorted(steps) and len(set(steps)) > 3 and notes == []
    with CheckpointReader(tmp_path / "run") as checkpoints:
        assert checkpoints.restore({"w": jnp.zeros(50_000, jnp.int32)})[0] == 60


def test_another_model_is_refused_and_nothing_is_set_aside(folder):
    state, best = make_state(0)
    other = (
        dataclasses.replace(state, params={"w": jnp.zeros((3, 3)), "half": state.params["half"]}),
        best,
    )
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(
            UserError, match=r"params/w is.*\[3, 2\].*\[3, 3\].*Nothing was changed"
        ):
            checkpoints.restore(other)
        assert checkpoints.restore(make_state(0))[0] == 9


def test_numpy_scalars_are_saved_as_arrays(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"n": np.int64(5)}, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({"n": np.zeros((), np.int64)})[1]["n"] == 5


def test_a_full_disk_ends_in_a_paragraph_and_the_step_before_restores(tmp_path):
    """A limit on the size of files stands for the full disk."""
    program = """
import resource, sys
import jax.numpy as jnp
from genreg_jax.checkpoint import Checkpoints
from genreg_jax.errors import UserError
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"w": jnp.arange(9.0)}, {})
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        checkpoints.save(2, {"w": jnp.arange(1e6)}, {})
except ValueError as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.stdout.startswith("UserError A checkpoint could not be written"), done.stderr
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({"w": jnp.zeros(9)})[0] == 1


@pytest.mark.parametrize("made", [0, 6, 7])
def test_a_folder_that_cannot_be_made_is_an_error_at_once_and_not_five_minutes_later(
    tmp_path, made
):
    """Orbax's threads wait for 300 seconds for a folder that could not be made."""
    program = """
import os, sys
import numpy as np
from genreg_jax.checkpoint import Checkpoints
real, left = os.mkdir, int(sys.argv[2])
def refused(path, *args, **kwargs):
    global left
    if "checkpoints" in os.fspath(path):
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
    real(path, *args, **kwargs)
os.mkdir = refused
try:
    with Checkpoints(sys.argv[1] + "/checkpoints") as checkpoints:
        checkpoints.save(1, {"a": np.arange(3)}, {})
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(made)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "could not be written" in done.stdout and "No space left" in done.stdout, done.stderr
    assert done.returncode == 0 and "never awaited" not in done.stderr
    assert not any(tmp_path.rglob(".probe*"))


def test_a_checkpoint_that_a_killed_program_had_half_removed_goes(tmp_path):
    with Checkpoints(tmp_path / "a", keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"a": np.arange(step)}, {})
    (tmp_path / "a" / "0" / "tree").mkdir(parents=True)
    with Checkpoints(tmp_path / "a", keep=2) as checkpoints:
        step, tree, _ = checkpoints.restore(None)
    assert step == 2 and tree["a"].tolist() == [0, 1]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["1", "2"]


@pytest.mark.parametrize("name", ["٣", "007", "9" * 200, "+5"])
def test_only_names_that_a_run_writes_are_steps(tmp_path, name):
    (tmp_path / "a" / name).mkdir(parents=True)
    with CheckpointReader(tmp_path / "a") as checkpoints:
        assert checkpoints.restore(None) is None
    said = []
    for step in (1, 2):
        with Checkpoints(tmp_path / "a", note=said.append) as checkpoints:
            checkpoints.save(step, {"a": np.arange(3)}, {})
    with Checkpoints(tmp_path / "a") as checkpoints:
        assert checkpoints.restore(None)[0] == 2
    assert len(said) == 1 and f"moved to {tmp_path / 'a_damaged' / name}." in said[0]


def test_a_record_of_another_shape_is_damage(tmp_path):
    with Checkpoints(tmp_path / "a") as checkpoints:
        for step, text in ((1, "one"), (2, ["two"])):
            checkpoints.save(step, {"a": np.arange(3)}, {"text": text})
    with CheckpointReader(tmp_path / "a", shape={"text": str, "more?": int}) as checkpoints:
        assert checkpoints.extra() == {"text": "one"} and checkpoints.restore(None)[0] == 1
    with CheckpointReader(tmp_path / "a") as checkpoints:
        assert checkpoints.restore(None)[0] == 2


def test_a_folder_that_is_replaced_meanwhile_is_not_written_to(tmp_path):
    with (
        pytest.raises(UserError, match="was removed, moved or replaced while a run wrote to it"),
        Checkpoints(tmp_path / "run" / "a") as checkpoints,
    ):
        checkpoints.save(1, {"a": np.arange(3)}, {})
        checkpoints.wait()
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        checkpoints.save(2, {"a": np.arange(3)}, {})
    assert not list((tmp_path / "run").iterdir())
    with CheckpointReader(tmp_path / "moved" / "a") as checkpoints:
        assert checkpoints.restore(None)[0] == 1


def test_only_what_follows_a_reported_error_is_not_printed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    CheckpointReader(tmp_path)
    CheckpointReader(tmp_path)
    for error in (RuntimeError("Event loop is closed"), RuntimeError("news")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in seen] == ["news"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Before:
    """A state of an earlier version, which had no field for what this one may have."""

    a: object
    key: object
    opt_state: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Since:
    a: object
    key: object
    opt_state: object
    more: object = ()


def test_a_field_that_came_later_and_is_empty_makes_no_checkpoint_a_damaged_one(tmp_path):
    params = {"w": jax.random.normal(jax.random.key(0), (3, 2)), "b": jnp.arange(2.0)}
    opt_state = optax.adam(0.1).init(params)
    before = Before(params, jax.random.key(5), optax.tree.map_params(
        optax.adam(0.1), lambda x: x + 0.5, opt_state
    ))  # fmt: skip
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(2, (before, {}), {})
    zeros = jax.tree.map(jnp.zeros_like, params)
    like = Since(zeros, jax.random.key(0), optax.adam(0.1).init(zeros))
    for opened in (Checkpoints, CheckpointReader):
        with opened(tmp_path / "c") as checkpoints:
            step, (since, _), _ = checkpoints.restore((like, {}))
        assert step == 2 and since.more == () and type(since.opt_state) is type(opt_state)
        for name in ("a", "opt_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(since, name), getattr(before, name))
        assert jax.random.key_data(since.key).tolist() == [0, 5]


def test_what_is_saved_is_what_there_was_when_it_was_saved(tmp_path, monkeypatch):
    """The record is written in the background, while the training appends to its history."""
    extra = {"history": [{"step": 1}], "nested": {"a": [1]}}
    with Checkpoints(tmp_path / "c") as checkpoints:
        manager = checkpoints._manager
        save = manager.save

        def late(*args, **kwargs):
            extra["history"].append({"step": 2})
            extra["nested"]["a"].append(2)
            return save(*args, **kwargs)

        monkeypatch.setattr(manager, "save", late)
        checkpoints.save(1, {"w": jnp.arange(3)}, extra)
    with CheckpointReader(tmp_path / "c") as checkpoints:
        _, _, found = checkpoints.restore({"w": jnp.zeros(3, jnp.int32)})
    assert found == {"history": [{"step": 1}], "nested": {"a": [1]}}
