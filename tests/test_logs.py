"""Metrics on disk, the progress display, provenance, JSON files, image grids."""

import csv
import io
import json
import os
import re
import struct
import subprocess
import sys
import types
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genreg_jax import logs
from genreg_jax.errors import UserError
from genreg_jax.logs import MetricWriter, Progress, read_metrics
from genreg_jax.logs.provenance import _commit
from genreg_jax.report.images import grid, read_caption, save_png


def _metrics(step):
    line = {"train/loss": 1.0 / step, "learning_rate": 0.1}
    return line | ({"validation/accuracy": 0.5 + 0.01 * step} if step % 3 == 0 else {})


def _events(directory):
    """Reads all TensorBoard events of a directory, in the order of its files."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(directory.glob("events.*"), key=lambda path: int(path.suffix[1:])):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def _scalars(directory):
    return [
        (event.step, value.tag, value.simple_value)
        for event in _events(directory)
        for value in event.summary.value
    ]


def test_jsonl_csv_and_events_agree(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(1, 8):
            writer.write(step, _metrics(step))
    expected = [{"step": step, **_metrics(step)} for step in range(1, 8)]
    assert read_metrics(tmp_path) == expected
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert list(rows[0]) == ["step", "train/loss", "learning_rate", "validation/accuracy"]
    read_back = [{name: float(cell) for name, cell in row.items() if cell} for row in rows]
    assert read_back == expected
    scalars = _scalars(tmp_path / "tensorboard")
    assert len(scalars) == 16
    assert scalars[0][:2] == (1, "train/loss")
    assert scalars[2][0] == 2 and scalars[2][2] == pytest.approx(0.5)


def test_the_end_of_a_run_is_in_its_events_pictures_and_settings_too(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    picture = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    save_png(tmp_path / "1_real.png", picture)
    with MetricWriter(tmp_path) as writer:
        writer.write(3, {"loss": 1.0})
    settings = {"model.name": "convnet", "seed": 3, "train.rate": 0.25, "balanced": True}
    results = {"test_accuracy": 0.75}
    logs.write_result(tmp_path, 40, results, settings, [tmp_path / "1_real.png"])
    values = [
        (event.step, value)
        for event in _events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    scalars = {value.tag: (step, value.simple_value) for step, value in values}
    assert scalars["loss"] == (3, 1.0) and scalars["test_accuracy"] == (40, 0.75)
    (image,) = [value.image for _, value in values if value.tag == "1_real"]
    assert (image.width, image.height) == (9, 5)
    shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
    np.testing.assert_array_equal(shown, picture)
    found = {}
    for _, value in values:
        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for name, setting in data.session_start_info.hparams.items():
            found[name] = getattr(setting, setting.WhichOneof("kind"))
    assert found == settings


def test_a_line_is_on_disk_before_the_writer_is_closed(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert (tmp_path / "metrics.csv").read_text() == "step\n"
    writer.flush()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,2.0\n"
    writer.close()
    writer.close()


def test_array_scalars_and_non_finite_values(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(
            np.int64(3),
            {
                "numpy": np.float32(0.25),
                "jax": jnp.asarray(0.5),
                "bfloat16": jnp.asarray(1.5, jnp.bfloat16),
                "int": 2,
                "nan": jnp.nan,
                "inf": np.float32("inf"),
            },
        )

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "step": 3,
        "numpy": 0.25,
        "jax": 0.5,
        "bfloat16": 1.5,
        "int": 2.0,
        "nan": None,
        "inf": None,
    }


@pytest.mark.parametrize("metrics", [{"loss": np.zeros(2)}, {"step": 1.0}])
def test_bad_metrics_are_refused_and_write_nothing(tmp_path, metrics):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match="loss|step"):
        writer.write(1, metrics)
    assert read_metrics(tmp_path) == []


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with MetricWriter(whole) as writer:
        for step in range(1, 11):
            writer.write(step, _metrics(step))
    with MetricWriter(resumed) as writer:
        for step in range(1, 8):
            # What a stopped run wrote after its checkpoint need not be what the next one writes.
            writer.write(step, _metrics(step) if step <= 5 else {"of a lost step": 1.0})
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')
    with MetricWriter(resumed, resume_step=5) as writer:
        assert (resumed / "metrics.csv").read_text().count("\n") == 6
        for step in range(6, 11):
            writer.write(step, _metrics(step))
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_tensorboard_is_told_to_forget_lost_steps(tmp_path):
    for resume_step in (None, 5):
        with MetricWriter(tmp_path, resume_step=resume_step) as writer:
            writer.write(7, {"loss": 1.0})
    files = list((tmp_path / "tensorboard").glob("events.*"))
    assert len(files) == 2, "made within a second, the second must not overwrite the first"
    starts = [e.step for e in _events(tmp_path / "tensorboard") if e.session_log.status == 1]
    assert starts == [6]


def test_starting_over_drops_the_lines_of_its_own_phase_only(tmp_path):
    with MetricWriter(tmp_path, phase="flow") as writer:
        writer.write(900, {"bits_per_dim": 2.0})
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    MetricWriter(tmp_path).close()
    assert read_metrics(tmp_path) == [{"step": 900, "flow/bits_per_dim": 2.0}]
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, {"loss": 1.0})
    MetricWriter(tmp_path, phase="flow", resume_step=10).close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert _scalars(tmp_path / "tensorboard" / "flow") == [(900, "flow/bits_per_dim", 2.0)]
    with pytest.raises(ValueError, match="finder"):
        MetricWriter(tmp_path, phase="finder")


def test_a_damaged_line_in_the_middle_is_reported(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        MetricWriter(tmp_path, resume_step=3)
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("tail", ['{"step": 2, "a"', "\x00\x00\x00", "[1, 2]", '{"a": 1}', "{"])
def test_a_half_written_last_line_is_left_out(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n' + tail)
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2.0}]


def test_no_heavy_import():
    code = (
        "import sys, tempfile, genreg_jax\n"
        "before = set(sys.modules)\n"
        "import genreg_jax.logs as logs, genreg_jax.report.images, genreg_jax.report\n"
        "heavy = {'matplotlib', 'PIL', 'rich', 'tensorboardX'}\n"
        "assert not heavy & (set(sys.modules) - before)\n"
        "with logs.MetricWriter(tempfile.mkdtemp()) as writer: writer.write(1, {'a': 1.0})\n"
        "assert not {'tensorflow', 'tensorboard', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class _Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_speed_and_eta_leave_out_excluded_time_and_steps_before_a_restart():
    clock, out = _Clock(), io.StringIO()
    progress = Progress(1000, start_step=500, file=out, clock=clock)
    with progress.excluded():  # the first step compiles
        clock.now += 60
        progress.update(501, images=64)
    assert progress.seconds == 0 and progress.images_per_second == 0
    assert "ETA" not in out.getvalue()
    for step in range(502, 602):
        clock.now += 0.5
        progress.update(step, images=64)
    assert progress.seconds == pytest.approx(50)
    assert progress.images_per_second == pytest.approx(128)
    with progress.excluded(), progress.excluded():  # evaluation, which saves a checkpoint
        clock.now += 1000
        assert progress.seconds == pytest.approx(50)
    clock.now += 0.5
    progress.update(602, images=64, loss=jnp.asarray(0.123456))
    # 398 steps are left, at half a second each.
    assert out.getvalue().splitlines()[-1] == (
        "train  step 602/1000 (60 %)  ETA 3 min 19 s  128 images/s  loss 0.1235"
    )


def test_plain_lines_are_few():
    clock, out = _Clock(), io.StringIO()
    with Progress(1000, label="flow", file=out, clock=clock) as progress:
        for step in range(1, 1001):
            clock.now += 0.02
            progress.update(step, images=1, **{"train/loss": 1.0})
        progress.note("done [early]")
    lines = out.getvalue().splitlines()
    assert 5 <= len(lines) <= 7, "the first, one in 5 s, the last, the note"
    assert lines[0].startswith("flow  step 1/1000")
    assert lines[-2].startswith("flow  step 1000/1000 (100 %)  50 images/s")
    assert lines[-1] == "done [early]"


def test_the_speed_is_shown_after_a_second_of_steps_that_are_done():
    clock, out = _Clock(), io.StringIO()

    class OnItsWay:
        """What the device has in two seconds."""

        def block_until_ready(self):
            clock.now += 2
            return self

    progress = Progress(1000, file=out, clock=clock)
    clock.now += 0.01
    progress.update(1, images=64)
    assert out.getvalue() == "train  step 1/1000 (0 %)\n"
    clock.now += 5
    progress.update(2, images=64, wait=[OnItsWay()])
    assert out.getvalue().splitlines()[-1] == "train  step 2/1000 (0 %)  18 images/s"
    clock.now += 9
    progress.update(3, images=64, show=False, wait=[OnItsWay()])
    assert progress.step == 3 and out.getvalue().count("\n") == 2
    progress.update(3, loss=0.5)
    assert out.getvalue().splitlines()[-1].endswith("12 images/s  loss 0.5")


def test_metrics_are_read_only_when_shown():
    class Value:
        reads = 0

        def __float__(self):
            Value.reads += 1
            return 1.0

    clock = _Clock()
    progress = Progress(1000, file=io.StringIO(), clock=clock)
    for step in range(1, 500):
        clock.now += 0.001
        progress.update(step, loss=Value())
    assert Value.reads == 1


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_bar_is_one_line_of_its_terminal(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    out, clock = _Terminal(), _Clock()
    metrics = {"loss": 0.123456, "train": 0.987654, "validation": 0.876543}
    with Progress(100_000, file=out, clock=clock) as progress:
        for step in (500, 99_000):
            clock.now += 9876
            progress.update(step, images=123_456, **metrics)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if "/100000" in line]
    assert max(map(len, lines)) <= columns
    last = lines[-1]
    assert "99000/100000" in last and "ETA" in last
    assert ("validation 0.8765" in last) == (columns >= 80)
    assert ("images/s" in last) == (columns == 160)


def test_a_notebook_gets_one_output_that_is_drawn_again(monkeypatch):
    shown = []

    class Handle:
        def update(self, bar):
            shown.append((repr(bar), bar._repr_html_()))

    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    display.display = lambda bar, display_id: shown.append(repr(bar)) or Handle()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(3, label="<mgr>") as progress:
        progress.update(3, images=16, loss=0.5)
    assert shown[0] == "<mgr> 0/3  "
    text, page = shown[1]
    assert text.startswith("<mgr> 3/3") and "loss 0.5" in text and sys.stderr.getvalue() == ""
    assert '<progress value="3" max="3">' in page and "&lt;mgr&gt; 3/3" in page
    ipython.get_ipython = lambda: None  # imported, and not in a notebook
    with Progress(3, label="lines") as progress:
        progress.update(3)
    assert sys.stderr.getvalue().startswith("lines  step 3/3")


def test_a_terminal_gets_a_bar_and_a_disabled_display_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = _Terminal()
    with Progress(3, label="[mgr]", file=out) as progress:
        progress.update(1, images=8, loss=1.0)
        progress.note("best so far [1]")
        progress.update(3, images=16, loss=0.5)
    assert "[mgr]" in out.getvalue() and "3/3" in out.getvalue()
    assert "best so far [1]" in out.getvalue() and "loss 0.5" in out.getvalue()
    out = _Terminal()
    with Progress(3, enabled=False, file=out) as progress:
        progress.update(3, images=8)
        progress.note("nothing")
    assert out.getvalue() == "" and progress.images_per_second > 0


def test_provenance(tmp_path):
    found = logs.provenance()
    json.dumps(found, allow_nan=False)
    assert set(found["versions"]) == {"python", *logs.PACKAGES}
    assert found["versions"]["jax"] and found["device"]["count"] >= 1
    assert set(found["device"]) == {"platform", "kind", "count"}


def test_what_changes_numbers_is_compared_where_both_records_know_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    before = logs.provenance()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true --xla_dump_to=/home/me")
    with jax.numpy_dtype_promotion("strict"):
        now = logs.provenance()
    assert logs.changes(before, now) == [
        "jax_numpy_dtype_promotion: standard -> strict",
        "XLA_FLAGS: none -> --xla_cpu_enable_fast_math=true",
    ]
    del before["numerics"]["XLA_FLAGS"], before["versions"]["pillow"]  # of an earlier version
    assert len(logs.changes(before, now)) == 1


def test_a_file_of_a_workdir_that_is_none_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    os.mkfifo(tmp_path / "summary.json")
    (tmp_path / "config.json").symlink_to("/dev/zero")
    for read in (
        lambda: read_metrics(tmp_path),
        lambda: logs.read_summary(tmp_path),
        lambda: logs.read_json(tmp_path / "config.json"),
    ):
        with pytest.raises(UserError, match="is no plain file"):
            read()
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**28)
    with pytest.raises(UserError, match="has 268,435,456 bytes, and at most"):
        logs.read_json(tmp_path / "large.json")


def test_a_summary_without_a_checksum_is_read_only_with_its_types(tmp_path):
    whole = {"subset_hash": "a", "own": ["model"], "flow": {"hash": "b"}, "test_accuracy": 0.5}
    wrong = {"own": [[]], "flow": {"hash": 3}, "test_accuracy": "x", "validation_examples": "x"}
    logs.write_json(tmp_path / "summary.json", whole)
    assert logs.read_summary(tmp_path) == whole
    for name, value in wrong.items():
        logs.write_json(tmp_path / "summary.json", {**whole, name: value})
        with pytest.raises(UserError, match="is damaged: its "):
            logs.read_summary(tmp_path)
    # What has the stages of this version had a checksum too.
    logs.write_json(tmp_path / "summary.json", {**whole, "stages": {}})
    with pytest.raises(UserError, match="its checksum does not fit"):
        logs.read_summary(tmp_path)


def test_commit_is_of_the_packages_own_checkout(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    source = package / "__init__.py"
    source.write_text("")
    assert _commit(package) is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, timeout=60)

    git("init", "-q")
    (tmp_path / "other.txt").write_text("")
    git("add", "other.txt")
    git("commit", "-q", "-m", "other")
    assert _commit(package) is None, "a checkout that does not track the package"
    git("add", ".")
    git("commit", "-q", "-m", "package")
    git("tag", "v1")
    commit = _commit(package)
    assert len(commit) == 40 and int(commit, 16)
    (tmp_path / "other.txt").write_text("a result")
    assert _commit(package) == commit
    source.write_text("changed = True\n")
    assert _commit(package) == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _commit(package) is None, "no git installed"


def test_the_commit_is_that_of_the_code_that_the_process_has_loaded(monkeypatch):
    before = logs.provenance()["commit"]
    module = sys.modules["genreg_jax.logs.provenance"]
    monkeypatch.setattr(module, "_commit", lambda folder: "a later one")
    assert logs.provenance()["commit"] == before


def test_write_json(tmp_path):
    path = tmp_path / "summary.json"
    logs.write_json(path, {"b": float("nan"), "a": [np.inf, jnp.arange(2), (1, None)], "p": path})
    text = path.read_text()
    assert json.loads(text) == {"b": None, "a": [None, [0, 1], [1, None]], "p": str(path)}
    assert text.startswith('{\n  "b": null')
    with pytest.raises(TypeError, match="object"):
        logs.write_json(path, {"a": object()})
    assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def _left_edge(written, picture):
    """Finds the column at which a picture starts in the one with a margin and a title."""
    height, width = picture.shape[:2]
    for left in range(1, written.shape[1] - width + 1):
        if np.array_equal(written[-height:, left : left + width], picture):
            return left
    raise AssertionError("the picture is not there, unchanged")


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_images_and_text(channels):
    images = np.random.default_rng(0).random((5, 4, 3, channels), np.float32)
    picture = grid(images, columns=2, scale=3, pad=1)
    assert picture.shape == (3 * (3 * 5 + 1), 3 * (2 * 4 + 1), channels)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[18:30:3, 15:24:3], np.rint(255 * images[3]))
    assert (picture[-15:, -12:] == 255).all(), "the sixth place is empty"
    np.testing.assert_array_equal(
        picture, grid(np.rint(255 * images).astype(np.uint8), columns=2, scale=3)
    )
    written = grid(images, columns=2, scale=3, row_labels=["cat", "<dog>", ""], title="Animals")
    height, width = picture.shape[:2]
    top, left = written.shape[0] - height, _left_edge(written, picture)
    assert (written[:top] < 128).any(), "the title is drawn"
    labels = written[top:, :left] < 128
    assert labels[:16].any() and labels[16:32].any() and not labels[32:].any()


def test_grid_makes_tiny_images_readable_and_tolerates_odd_values():
    assert grid(np.zeros((1, 8, 8, 1)), columns=1).shape == (60, 60, 1)
    assert grid(np.zeros((1, 224, 224, 3)), columns=1).shape == (226, 226, 3)
    odd = np.array([np.nan, -1.0, 2.0, 0.5]).reshape(1, 2, 2, 1)
    assert grid(odd, columns=1, scale=1, pad=0).ravel().tolist() == [0, 0, 255, 128]
    half = grid(jnp.full((1, 2, 2, 1), 0.5, jnp.bfloat16), columns=1, scale=1, pad=0)
    assert half.ravel().tolist() == [128] * 4


@pytest.mark.parametrize(
    "images, arguments, message",
    [
        (np.zeros((2, 8, 8)), {}, "shape"),
        (np.zeros((0, 8, 8, 1)), {}, "shape"),
        (np.zeros((2, 8, 8, 1), np.int32), {}, "int32"),
        (np.zeros((2, 8, 8, 1)), {"columns": 0}, "columns"),
        (np.zeros((2, 8, 8, 1)), {"scale": 0}, "scale"),
        (np.zeros((2, 8, 8, 1)), {"pad": -1}, "pad"),
        (np.zeros((2, 8, 8, 1)), {"row_labels": ["a"]}, "row_labels"),
    ],
)
def test_grid_refuses(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        grid(images, **{"columns": 1, **arguments})


@pytest.mark.parametrize(("channels", "shown"), [(2, 1), (4, 3), (7, 3)])
def test_of_other_channels_the_first_are_shown(channels, shown):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, channels)).astype(np.uint8)
    expected = grid(images[..., :shown], columns=2)
    np.testing.assert_array_equal(grid(images, columns=2), expected)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
def test_png_round_trip(tmp_path, shape):
    from PIL import Image

    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    path = tmp_path / "samples" / "a.png"
    save_png(path, picture, caption="Ünïcode, line\nbreak")
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(shape), picture)
    assert read_caption(path) == "Ünïcode, line\nbreak"
    with pytest.raises(ValueError, match="float32"):
        save_png(path, picture.astype(np.float32))
