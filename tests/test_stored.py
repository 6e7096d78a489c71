"""Images that stay where they lie: against the same images in memory, in reading and in runs."""

import dataclasses
import errno
import hashlib
import json
import signal
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image
from test_data import fake_cifar10, write_tfds
from test_train import metric_lines, processes, same_losses

import genreg_jax as gr
from genreg_jax import data, feed, train
from genreg_jax.data import prepare, stored
from genreg_jax.data.stored import Stored, channel_statistics
from genreg_jax.devices import data_mesh
from genreg_jax.errors import UserError
from genreg_jax.interrupt import Interrupted


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


class Source:
    """Images that say who reads which of them."""

    def __init__(self, images):
        self.images, self.read = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read.append(i)
        return self.images[i]


# -------------------------------------------------------------------------------------- as arrays


def test_indexing_gives_what_numpy_gives():
    array = noise(11, 3, 5, 2)
    images, mask = Stored(array), np.arange(11) % 3 == 1
    indices = [
        4, -1, slice(2, 9, 3), slice(None), slice(3, 3), [7, 0, 7], np.array([5, -2]), mask,
        np.int32(3), np.array([], int),
    ]  # fmt: skip
    for index in indices:
        np.testing.assert_array_equal(images[index], array[index], err_msg=str(index))
        np.testing.assert_array_equal(images.take([8, 2, 5])[:], array[[8, 2, 5]])
    np.testing.assert_array_equal(images.gather(np.array([9, 1])), array[[9, 1]])
    np.testing.assert_array_equal(images.take(mask).take([1, 0])[:], array[mask][[1, 0]])
    np.testing.assert_array_equal(np.concatenate(list(images.blocks())), array)
    np.testing.assert_array_equal(np.stack(list(images)), array)
    double = images.map(lambda x: np.repeat(x, 2, axis=0), (6, 5, 2), "twice")
    np.testing.assert_array_equal(double.take([3])[:], np.repeat(array[[3]], 2, axis=1))
    assert images.shape == array.shape and len(images) == 11 and images.dtype == array.dtype
    with pytest.raises(IndexError):
        images[11]


def test_nothing_is_read_before_it_is_asked_for():
    source = Source(noise(20, 4, 4, 1))
    images = Stored(source, shape=(4, 4, 1)).take(np.arange(10, 20)).take([3, 1])
    assert not source.read
    images[:]
    assert sorted(source.read) == [11, 13]


def test_all_at_once_is_refused_in_words():
    with pytest.raises(UserError, match="All 3 images at once are needed here"):
        np.asarray(Stored(noise(3, 2, 2, 1)))


@pytest.mark.parametrize(
    "images", [np.ones((2, 4, 4, 1)), noise(2, 4, 4), noise(0, 4, 4, 1), noise(2, 4, 0, 1)]
)
def test_what_are_no_images_are_refused(images):
    with pytest.raises(UserError, match=r"must be uint8 \[H, W, C\]|no image"):
        Stored(images)


def test_an_image_of_another_shape_is_named():
    images = Stored([*noise(3, 4, 4, 1), *noise(1, 4, 5, 1)])
    with pytest.raises(UserError, match=r"Image 3 has the shape \(4, 5, 1\)"):
        images[:]


@pytest.mark.parametrize("shape", [(700, 3, 5, 3), (1, 1, 1, 1), (300, 2, 2, 4)])
def test_statistics_of_channels_are_those_in_float64(shape):
    images = noise(*shape) // (1 + np.arange(shape[-1], dtype=np.uint8))
    values = images.astype(np.float64) / 255
    for given in (images, Stored(images)):
        mean, std = channel_statistics(given)
        np.testing.assert_allclose(mean, values.mean((0, 1, 2)), rtol=1e-7)
        np.testing.assert_allclose(std, values.std((0, 1, 2)), rtol=1e-6)
        assert mean.dtype == std.dtype == np.float32


def test_statistics_do_not_lose_small_differences_among_many_pixels():
    images = np.full((4000, 64, 64, 1), 255, np.uint8)
    images[0, 0, 0] = 254
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, 1 - 1 / 255 / images.size, rtol=1e-7)
    np.testing.assert_allclose(std, 1 / 255 / np.sqrt(images.size), rtol=1e-3)


# ----------------------------------------------------------------------------------- as a data set


def write_folder(folder, count=15, size=12, seed=0):
    """Pictures of three classes, a third of them grey."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(("ant", "bee", "cow")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 128, (size, size + 3, 3)) + 60 * label
            picture = Image.fromarray(pixels.astype(np.uint8))
            (picture if i % 3 else picture.convert("L")).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures") / "all")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    archive = directory / "fake.tar.gz"
    fake_cifar10(archive)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    prepare.prepare("cifar10", directory, archive=archive, sha256=[sha256])
    return directory


def same_dataset(streamed, whole):
    for name in ("name", "class_names", "subset_hash", "fingerprint", "test_images_in_train"):
        assert getattr(streamed, name) == getattr(whole, name), name
    for name in ("train", "validation", "test"):
        a, b = getattr(streamed, name), getattr(whole, name)
        assert isinstance(a.images, Stored) and isinstance(b.images, np.ndarray)
        np.testing.assert_array_equal(a.images[:], b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert a.names == b.names
    np.testing.assert_array_equal(streamed.unlabelled[:], whole.unlabelled)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 8},
        {"image_size": 20, "resize": "pad", "per_class": 4, "seed": 3},
        {"validation_fraction": 0.0, "fraction": 0.5},
    ],
)
def test_a_folder_is_the_same_in_memory_and_not(folder, options):
    same_dataset(*(data.from_folder(folder, stream=stream, **options) for stream in (True, False)))


def test_a_folder_that_is_grey_stays_grey(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(6):
            picture = Image.fromarray(noise(5, 5, seed=i + 10 * (name == "b")))
            picture.save(tmp_path / name / f"{i}.png")
    streamed = data.from_folder(tmp_path, stream=True)
    assert streamed.image_shape == (5, 5, 1)
    same_dataset(streamed, data.from_folder(tmp_path))


@pytest.mark.parametrize("options", [{}, {"image_size": 16, "per_class": 2}])
def test_a_data_set_of_tfds_is_the_same_in_memory_and_not(tfds_dir, options):
    load = lambda stream: data.load("cifar10", data_dir=tfds_dir, stream=stream, **options)
    same_dataset(load(True), load(False))


def test_arrays_of_one_s_own_are_the_same_in_memory_and_not():
    images, labels = noise(40, 4, 6, 3), np.arange(40) % 3
    make = lambda kind: data.from_arrays(kind(images), labels, seed=4, validation_fraction=0.2)
    same_dataset(make(Stored), make(np.asarray))


def test_pictures_that_cannot_be_read_are_refused_or_skipped_as_in_memory(tmp_path, capfd):
    write_folder(tmp_path / "a", count=6)
    (tmp_path / "a" / "bee" / "0.png").write_bytes(b"no picture")
    content = (tmp_path / "a" / "cow" / "1.png").read_bytes()
    (tmp_path / "a" / "cow" / "1.png").write_bytes(content[: len(content) // 2])
    messages = []
    for stream in (True, False):
        with pytest.raises(UserError, match="2 of 18 pictures cannot be read") as caught:
            data.from_folder(tmp_path / "a", image_size=8, stream=stream)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    options = {"image_size": 8, "unreadable": "skip"}
    same_dataset(*(data.from_folder(tmp_path / "a", stream=s, **options) for s in (True, False)))
    assert capfd.readouterr().err.count("2 of 18 pictures cannot be read and are left out") == 2
    with pytest.raises(UserError, match="sizes, from"):
        Image.fromarray(noise(30, 9, 3)).save(tmp_path / "a" / "ant" / "0.png")
        data.from_folder(tmp_path / "a", unreadable="skip", stream=True)


def test_damaged_images_of_tfds_are_refused_or_skipped_as_in_memory(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(9, 9, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
    )
    write_tfds(tmp_path, list(noise(12, 9, 9, 3)), features, cut=5)
    with pytest.raises(UserError, match=r"Image \d+ of the train split of 'odd' cannot be decoded"):
        data.load("odd", data_dir=tmp_path, stream=True)
    load = lambda s: data.load("odd", data_dir=tmp_path, stream=s, unreadable="skip")
    same_dataset(load(True), load(False))


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_what_is_in_memory_anyway_cannot_be_streamed(name):
    with pytest.raises(UserError, match=f"'{name}' is read into memory as a whole"):
        data.load(name, stream=True)


def test_what_was_found_out_is_remembered_until_a_picture_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "a", count=6)
    opened, open_picture = [], data.pictures.open_picture
    monkeypatch.setattr(
        data.pictures,
        "open_picture",
        lambda *a, **k: (opened.append(a[0]), open_picture(*a, **k))[1],
    )
    load = lambda: data.from_folder(tmp_path / "a", image_size=8, stream=True)
    first = load()
    count = len(opened)
    assert count >= 2 * 18  # once to know that they can be read, once for their digests
    assert load().subset_hash == first.subset_hash and len(opened) == count
    assert channel_statistics(load().train.images)[0] == pytest.approx(
        channel_statistics(first.train.images)[0]
    )
    Image.fromarray(noise(12, 15, 3, seed=9)).save(tmp_path / "a" / "bee" / "3.png")
    changed = load()
    assert changed.fingerprint != first.fingerprint
    same_dataset(changed, data.from_folder(tmp_path / "a", image_size=8))


# ------------------------------------------------------------------------------------------ a feed


def test_batches_are_the_rows_of_the_plan_and_each_is_read_once():
    array, labels = noise(30, 4, 4, 1), np.arange(30, dtype=np.int32)
    source = Source(array)
    split = data.Split(Stored(source, shape=(4, 4, 1)), labels)
    batches = feed.training_data([split], data_mesh(1, 6))
    inner = np.random.default_rng(0).permutation(30).reshape(5, 6)
    outer = np.random.default_rng(1).permutation(30)[:20].reshape(5, 4)
    indices = feed.EpochIndices(inner, outer)
    found = list(batches.batches(indices, 2))
    assert len(found) == 3
    for i, (a, b) in enumerate(found, 2):
        for part, rows in ((a, inner[i]), (b, outer[i])):
            np.testing.assert_array_equal(part.images, array[rows])
            np.testing.assert_array_equal(part.labels, labels[rows])
    assert sorted(source.read) == sorted([*inner[2:].ravel(), *outer[2:].ravel()])


def test_validation_images_follow_those_of_training():
    parts = [data.Split(Stored(noise(n, 2, 2, 1, seed=n)), np.arange(n)) for n in (5, 3)]
    batches = feed.training_data(parts, data_mesh(1, 4))
    rows = np.array([[0, 4, 5, 7]])
    ((inner, outer),) = batches.batches(feed.EpochIndices(rows, None), 0)
    whole = np.concatenate([noise(5, 2, 2, 1, seed=5), noise(3, 2, 2, 1, seed=3)])
    np.testing.assert_array_equal(inner.images, whole[rows[0]])
    assert outer is None and inner.labels.tolist() == [0, 4, 0, 2]


def test_a_batch_lies_split_over_the_devices():
    split = data.Split(Stored(noise(32, 2, 2, 1)), np.arange(32))
    mesh = data_mesh(8, 16)
    batches = feed.training_data([split], mesh)
    ((inner, outer),) = batches.batches(
        feed.EpochIndices(np.arange(16)[None], np.arange(5)[None]), 0
    )
    assert {shard.data.shape[0] for shard in inner.images.addressable_shards} == {2}
    assert {shard.data.shape[0] for shard in outer.images.addressable_shards} == {5}
    np.testing.assert_array_equal(inner.images, noise(32, 2, 2, 1)[:16])


# ------------------------------------------------------------------------------------------- runs


def config(folder, stream, **groups):
    return {
        "data": {"name": "folder", "dir": str(folder), "image_size": 8, "stream": stream},
        "model": {"widths": [4, 8]},
        "augment": {"train": "flip"},
        "optimizer": {"learning_rate": 0.02},
        **groups,
        "train": {
            "epochs": 3, "steps_per_epoch": 4, "batch_size": 8, "progress": False, "devices": 1,
            **groups.get("train", {}),
        },
    }  # fmt: skip


def same_run(one, other):
    """Of two workdirs, number by number."""
    skipped = ("seconds", "images_per_second")
    a, b = (
        [{k: v for k, v in line.items() if not k.endswith(skipped)} for line in metric_lines(w)]
        for w in (one, other)
    )
    assert a == b and len(a) >= 3


METHODS = {
    "base": {},
    "phantom": {"phantom": {"loss": "attraction", "weight": 0.5}},
    "learned": {
        "phantom": {"loss": "attraction", "weight": 0.5},
        "tune": {"learn": "phantom.weight", "outer": "validation"},
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_in_memory_and_not(folder, tmp_path, method):
    summaries = {}
    for stream in (True, False):
        settings = config(
            folder, stream, **{k: v for k, v in METHODS[method].items() if k != "data"}
        )
        settings["data"] |= METHODS[method].get("data", {})
        summaries[stream] = gr.train_and_evaluate(settings, tmp_path / str(stream))
    same_run(tmp_path / "True", tmp_path / "False")
    for name in ("test_accuracy", "test_loss", "subset_hash", "config_hash", "best_step"):
        assert summaries[True][name] == summaries[False][name], name
    assert not [t for t in threading.enumerate() if "grain" in t.name.lower()]


def test_a_run_goes_on_from_within_an_epoch_wherever_its_images_lie(folder, tmp_path, monkeypatch):
    update = train.Progress.update

    def interrupt(self, step, **kwargs):
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        return update(self, step, **kwargs)

    gr.train_and_evaluate(config(folder, False), tmp_path / "whole")
    monkeypatch.setattr(train.Progress, "update", interrupt)
    with pytest.raises(Interrupted, match="after update 6 of 12"):
        gr.train_and_evaluate(config(folder, True), tmp_path / "moved")
    monkeypatch.undo()
    gr.train_and_evaluate(config(folder, True), tmp_path / "moved")
    same_run(tmp_path / "whole", tmp_path / "moved")


def test_latents_are_perturbed_with_a_flow_that_was_trained_before(folder, tmp_path):
    flow = {"levels": 1, "steps": 1, "width": 4, "updates": 4, "eval_every": 2}
    gr.train_and_evaluate(
        config(folder, False, model={"name": "none"}, flow=flow), tmp_path / "flow"
    )
    groups = {
        "flow": {**flow, "workdir": str(tmp_path / "flow")},
        "latent": {"kind": "adversarial", "epsilon": 0.5, "num_steps": 1, "cache": False},
        "synthetic": {"loss": "pcr", "weight": 0.5},
        "meta": {"enabled": True, "outer": "folds"},
        "augment": {"train": "none"},
    }
    for stream in (True, False):
        gr.train_and_evaluate(config(folder, stream, **groups), tmp_path / str(stream))
    same_run(tmp_path / "True", tmp_path / "False")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"model": {"name": "none"}}, "a flow is trained on images in memory"),
        ({"latent": {"kind": "random", "epsilon": 1.0}}, "a flow is trained on images in memory"),
        (
            {
                "synthetic": {"loss": "pcr", "weight": 1.0, "source": "renoised"},
                "flow": {"workdir": "there"},
            },
            "starts from encodings of all of them; choose 'prior'",
        ),
    ],
)
def test_what_needs_all_images_is_refused_before_anything_is_written(
    folder, tmp_path, groups, message
):
    with pytest.raises(UserError, match=message):
        gr.train_and_evaluate(config(folder, True, **groups), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_without_grain_it_is_said_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"pip install 'genreg_jax\[stream\]'"):
        gr.train_and_evaluate(config(folder, True), tmp_path)


def test_a_picture_that_vanishes_ends_the_run_in_words(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "a", count=6)
    dataset = data.from_folder(folder, image_size=8, stream=True)
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"\.png cannot be read any more \(No such file"):
        gr.train_and_evaluate(config(folder, True), tmp_path / "run", dataset=dataset)


def test_eight_devices_read_what_one_reads(folder, tmp_path):
    for count in (1, 8):
        settings = config(folder, True, train={"devices": count})
        gr.train_and_evaluate(settings, tmp_path / str(count))
    same_losses(tmp_path / "1", tmp_path / "8")


def test_two_processes_read_a_share_each_and_compute_what_one_computes(folder, tmp_path):
    program = """
import json, os, sys
import numpy as np
import genreg_jax as gr
from genreg_jax.data.stored import Stored
from genreg_jax.devices import connect
connect(os.environ["JAX_COORDINATOR_ADDRESS"], 2, int(os.environ["JAX_PROCESS_ID"]))
read, gather = [], Stored.gather
Stored.gather = lambda self, rows: (read.extend(rows.tolist()), gather(self, rows))[1]
summary = gr.train_and_evaluate(json.loads(sys.argv[1]), sys.argv[2])
print("read", len(read), summary["steps"])
"""
    two = processes(
        2, tmp_path, "-c", program, json.dumps(config(folder, True, train={"devices": 0})),
        str(tmp_path / "two"),
    )  # fmt: skip
    gr.train_and_evaluate(config(folder, False), tmp_path / "one")
    outputs = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    # Of 12 updates of 8 images each process reads half.
    assert all("read 48 12" in output for output in outputs), outputs
    same_losses(tmp_path / "one", tmp_path / "two")


def test_the_share_of_a_process_is_what_its_devices_hold():
    mesh = dataclasses.make_dataclass("Mesh", ["devices", "size"])
    devices = [dataclasses.make_dataclass("Device", ["process_index"])(i // 2) for i in range(6)]
    own = feed._own(mesh(np.array(devices), 6), 12)
    assert own == slice(0, 4) and jax.process_index() == 0
    assert feed._own(mesh(np.array(devices), 6), 13) == slice(None)
    assert stored.looked_at(3, lambda i: bytes([i]), "").ravel().tolist() == [0, 1, 2]


def test_a_run_on_stored_images_reads_them_again_to_be_evaluated(folder, tmp_path):
    summary = gr.train_and_evaluate(config(folder, True), tmp_path / "run")
    run = gr.load(tmp_path / "run")
    assert run.evaluate()["accuracy"] == summary["test_accuracy"]
    larger = data.from_folder(folder, image_size=10, stream=True).test
    smaller = data.Split(larger.images[:], larger.labels)
    np.testing.assert_array_equal(
        run.evaluate(larger)["probabilities"], run.evaluate(smaller)["probabilities"]
    )


# ------------------------------------------------------------------------- what an attack has found


def test_rows_may_be_a_mask_and_are_part_of_the_key():
    array = noise(20, 4, 4, 1)
    mask = np.arange(20) % 4 == 1
    np.testing.assert_array_equal(Stored(array, rows=mask)[:], array[mask])
    a, b = (Stored(array, rows=range(k, k + 10), key="mine") for k in (0, 10))
    assert a.key != b.key != Stored(array, key="mine").key
    assert Stored(array, key="mine").take(range(10, 20)).key == b.key
    for rows in ([0, 20], [0.5], np.ones(3, bool)):
        with pytest.raises(UserError, match="rows must be places in the source, or a mask"):
            Stored(array, rows=rows)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (noise(2, 3, 32, 32), r"which is \[C, H, W\]"),
        ([(noise(4, 4, 1), 1)] * 2, r"must be uint8 \[H, W, C\]"),
    ],
)
def test_a_source_of_something_else_is_refused_in_words(source, message):
    with pytest.raises(UserError, match=message):
        Stored(source)


def test_too_few_labels_are_refused_as_of_arrays():
    for kind in (Stored, np.asarray):
        with pytest.raises(UserError, match="every image needs one label"):
            data.from_arrays(kind(noise(20, 4, 4, 1)), np.arange(12) % 2)


def test_a_source_that_reads_stored_images_itself_ends():
    class Means:
        inner = Stored(noise(30, 4, 4, 1))

        def __len__(self):
            return 30

        def __getitem__(self, i):
            return self.inner[[i, (i + 1) % 30]].mean(axis=0).astype(np.uint8)

    found = []
    reader = threading.Thread(target=lambda: found.append(Stored(Means())[:]), daemon=True)
    reader.start()
    reader.join(30)
    assert found and found[0].shape == (30, 4, 4, 1)


def test_an_error_that_has_passed_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "a", count=6)
    opened, calls = Image.open, []

    def flaky(*args, **kwargs):
        calls.append(1)
        if len(calls) in (5, 19):  # 18 pictures; the second look at the fifth fails as well
            raise OSError("Input/output error")
        return opened(*args, **kwargs)

    monkeypatch.setattr(Image, "open", flaky)
    with pytest.raises(UserError, match="1 of 18 pictures cannot be read"):
        data.from_folder(folder, image_size=8, stream=True)
    monkeypatch.undo()
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    same_dataset(
        data.from_folder(folder, image_size=8, stream=True), data.from_folder(folder, image_size=8)
    )


def test_a_name_with_a_nul_is_said_or_skipped(tmp_path):
    write_folder(tmp_path / "a", count=4)
    rows = [
        f"{p.relative_to(tmp_path / 'a')},{p.parent.name}" for p in (tmp_path / "a").rglob("*.png")
    ]
    (tmp_path / "a" / "t.csv").write_text("file,label\n" + "\n".join([*rows, "x\0.png,ant"]) + "\n")
    with pytest.raises(UserError, match="1 of 13 pictures cannot be read"):
        data.from_folder(tmp_path / "a" / "t.csv", image_size=8, stream=True)
    skipped = data.from_folder(
        tmp_path / "a" / "t.csv", image_size=8, stream=True, unreadable="skip"
    )
    assert len(skipped.train) + len(skipped.validation) + len(skipped.test) == 12


def test_no_update_is_made_after_one_that_is_not_finite(tmp_path):
    from genreg_jax.batches import BatchPlan
    from genreg_jax.config import from_config

    images, labels = noise(64, 8, 8, 1), np.arange(64) % 2
    config = {
        "model": {"widths": [4, 8]},
        "train": {"epochs": 1, "steps_per_epoch": 6, "batch_size": 8, "progress": False},
    }
    for kind in (np.asarray, Stored):
        dataset = data.from_arrays(kind(images), labels, images[:8], labels[:8])
        plan = BatchPlan(from_config(config), dataset.train.labels, ())
        bad = jax.numpy.asarray(dataset.train.labels[plan.epoch(0).inner[1]])

        def term(key, outputs, labels, step):
            spoiled = jax.numpy.where((labels == bad).all(), jax.numpy.nan, 0.0)  # noqa: B023
            return spoiled * jax.numpy.ones(8)

        workdir = tmp_path / kind.__name__
        with pytest.raises(UserError, match="Update 2 was not made"):
            gr.train_and_evaluate(config, workdir, dataset=dataset, embedding_term=term)
        assert (workdir / "postmortem" / "1").is_dir()


def test_a_flow_of_a_part_of_the_images_serves_all_of_them(folder, tmp_path):
    flow = {"levels": 1, "steps": 1, "width": 4, "updates": 4, "eval_every": 2}
    part = config(folder, False, model={"name": "none"}, flow=flow)
    part["data"]["per_class"] = 4
    gr.train_and_evaluate(part, tmp_path / "flow")
    groups = {
        "flow": {**flow, "workdir": str(tmp_path / "flow")},
        "latent": {"kind": "random", "epsilon": 0.5},
    }
    summary = gr.train_and_evaluate(config(folder, True, **groups), tmp_path / "run")
    assert summary["steps"] == 12
    with pytest.raises(UserError, match="other training images"):
        gr.train_and_evaluate(config(folder, False, **groups), tmp_path / "in memory")


def test_tfds_files_that_vanish_end_in_words(tfds_dir, tmp_path):
    import shutil

    shutil.copytree(tfds_dir, tmp_path / "copy")
    dataset = data.load("cifar10", data_dir=tmp_path / "copy", stream=True)
    for file in (tmp_path / "copy").rglob("*array_record*"):
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(UserError, match="cannot be read|cannot be decoded any more"):
        data.load("cifar10", data_dir=tmp_path / "copy", stream=True)
    with pytest.raises(UserError, match="cannot be read|cannot be decoded any more"):
        dataset.train.images[:]


class Lost:
    """A source of 12 images of which the fifth is gone."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i == 4:
            raise self.error
        return np.full((4, 4, 1), i, np.uint8)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError("bucket is gone"),
        ConnectionResetError(104, "reset"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/pictures/4.png"),
    ],
)
def test_a_source_that_fails_is_named_and_no_advice_is_given_about_the_disk(error):
    images = Stored(Lost(error))
    for read in (
        lambda: images[:],
        lambda: images.gather(np.arange(6)),
        lambda: images[4],
        lambda: data.from_arrays(images, np.arange(12) % 2),
        lambda: Stored(Lost(error), rows=[4, 5]),
    ):
        with pytest.raises(UserError, match="Image 4 of the source, a Lost, cannot be") as found:
            read()
        assert "make room" not in str(found.value) and found.value.__cause__ is error
