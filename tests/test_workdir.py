"""A workdir has one writer at a time."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax import workdir as workdirs
from genreg_jax.checkpoint import CheckpointReader, Checkpoints
from genreg_jax.config import from_config
from genreg_jax.errors import BusyError, UserError

SETTINGS = from_config({"data": {"name": "digits"}})
HOLD = """
import sys
from pathlib import Path
from genreg_jax import workdir as workdirs
from genreg_jax.config import from_config
with workdirs.start(Path(sys.argv[1]), from_config({"data": {"name": "digits"}})):
    print("held", flush=True)
    sys.stdin.read()
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_writer_is_refused_with_the_first_one_s_name_and_changes_nothing(tmp_path):
    with workdirs.start(tmp_path / "run", SETTINGS):
        before = contents(tmp_path / "run")
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .*, since 20\d\d-.*Ctrl-C"):
            workdirs.start(tmp_path / "run", SETTINGS)
        assert contents(tmp_path / "run") == before
        with workdirs.start(tmp_path / "other", SETTINGS):
            pass
    with workdirs.start(tmp_path / "run", SETTINGS):
        pass


def test_a_removed_lock_file_lets_no_second_writer_in(tmp_path):
    with workdirs.start(tmp_path, SETTINGS):
        (tmp_path / ".lock").unlink()
        with pytest.raises(BusyError, match="Another program writes to the workdir"):
            workdirs.start(tmp_path, SETTINGS)
    with workdirs.start(tmp_path, SETTINGS):
        pass


def test_a_lock_that_is_a_link_empties_no_other_file(tmp_path):
    (tmp_path / "mine").write_text("thesis")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written"):
        workdirs.start(tmp_path / "run", SETTINGS)
    assert (tmp_path / "mine").read_text() == "thesis"


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock is a folder, .* Remove or rename it"):
        workdirs.start(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_killed_writer_holds_nothing(tmp_path):
    program = [sys.executable, "-c", HOLD, tmp_path / "run"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(program, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            workdirs.start(tmp_path / "run", SETTINGS)
        process.kill()
        process.wait()
        with workdirs.start(tmp_path / "run", SETTINGS):
            assert f"process {os.getpid()} on" in (tmp_path / "run" / ".lock").read_text()


def test_a_run_that_another_program_finished_meanwhile_is_not_run_again(tmp_path):
    with workdirs.start(tmp_path, SETTINGS):
        pass
    assert workdirs.claim(tmp_path, SETTINGS) is None
    summary = '{"test_accuracy": 0.5, "subset_hash": "a", "flow": null}'
    (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(BusyError, match="Another program has just finished"):
        workdirs.start(tmp_path, SETTINGS)


def test_what_a_killed_program_was_writing_is_removed_by_the_next_writer(tmp_path):
    (tmp_path / ".summary.json.123.tmp").write_text("{")
    (tmp_path / "checkpoints" / ".probe.123.tmp" / "0").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".mine.tmp").touch()
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    with workdirs.start(tmp_path, SETTINGS):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {".lock", "config.json", "checkpoints", "checkpoints/.mine.tmp"}


def test_files_of_others_below_a_workdir_are_left_alone(tmp_path):
    notes = tmp_path / "notes" / ".draft.2024.tmp"
    notes.parent.mkdir()
    notes.write_text("mine")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    with workdirs.start(tmp_path, SETTINGS):
        assert notes.read_text() == "mine"


@pytest.mark.parametrize("inside", ["checkpoints/99", "flow", "flow_damaged/3/4"])
def test_a_workdir_among_the_files_of_another_run_is_refused(tmp_path, inside):
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    with pytest.raises(UserError, match="lies among the files of the run in"):
        workdirs.claim(tmp_path / inside, SETTINGS)
    assert workdirs.claim(tmp_path / "runs" / inside, SETTINGS) is None


def test_what_a_killed_start_leaves_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.123.tmp").write_text("{")
    assert workdirs.claim(tmp_path, SETTINGS) is None
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not the workdir of a run"):
        workdirs.claim(tmp_path, SETTINGS)


@pytest.mark.parametrize("name", ["run[1]", "a*b", "a?b", "a\\b", "gs://bucket/run"])
def test_a_folder_whose_checkpoints_could_not_be_read_back_is_refused_before_anything_is_made(
    tmp_path, name
):
    with pytest.raises(UserError, match="in its path, which checkpoints cannot have"):
        workdirs.start(tmp_path / name, SETTINGS)
    with pytest.raises(UserError, match="in its path, which checkpoints cannot have"):
        Checkpoints(tmp_path / name / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a(1)", "{a}", "a%20b", "a b", "é", "a#b", "run~"])
def test_other_names_are_those_of_runs(tmp_path, name):
    with Checkpoints(tmp_path / name / "a") as checkpoints:
        checkpoints.save(1, {"a": np.arange(3)}, {})
    with CheckpointReader(tmp_path / name / "a") as checkpoints:
        assert checkpoints.restore(None)[1]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["", "a\0b", "a\udcff"])
def test_what_is_no_name_of_a_folder_is_refused(name):
    with pytest.raises(UserError, match="cannot be the name of a run's folder"):
        gr.train_and_evaluate({"data": {"name": "digits"}}, name)
    if name:
        with pytest.raises(UserError, match=r"config\.flow\.workdir must be text without NUL"):
            from_config({"flow": {"workdir": name}})


@pytest.mark.parametrize("call", ["truncate", "write"])
def test_a_lock_that_cannot_be_written_names_its_file(tmp_path, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"\.lock: No space left on device"):
        workdirs.start(tmp_path / "run", SETTINGS)


def test_letting_go_of_a_lock_hides_nothing_that_came_before(tmp_path, monkeypatch):
    real, calls = os.truncate, []

    def truncate(*args):
        calls.append(args)
        if len(calls) % 2 == 0:
            raise OSError(errno.EIO, "Input/output error")
        real(*args)

    monkeypatch.setattr(os, "truncate", truncate)
    with workdirs.start(tmp_path / "a", SETTINGS):
        pass
    with pytest.raises(KeyError, match="first"), workdirs.start(tmp_path / "b", SETTINGS):
        raise KeyError("first")
    assert len(calls) == 4
