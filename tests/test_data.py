"""Loading, subsets and errors of genreg_jax.data, against counts and pixels computed by hand."""

import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from genreg_jax import data
from genreg_jax.data import prepare
from genreg_jax.errors import UserError
from genreg_jax.settings import DataSettings

ROOT = Path(__file__).parents[1]
REAL_TFDS = Path(os.environ.get("GENREG_TFDS_DIR") or ROOT.parent / "shared/data/tfds")


def as_set(split):
    return {(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels)}


def numbered(class_sizes, seed=0):
    """Images that carry their own index in two pixels, in shuffled order, and their labels."""
    labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
    images = np.zeros((len(labels), 1, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels)) // 256
    images[:, 0, 1, 0] = np.arange(len(labels)) % 256
    order = np.random.default_rng(seed).permutation(len(labels))
    return images[order], labels[order]


def indices(split):
    return set((split.images[:, 0, 0, 0].astype(int) * 256 + split.images[:, 0, 1, 0]).tolist())


def from_train(images, labels, **kwargs):
    return data.from_arrays(images, labels, images[:1], labels[:1], **kwargs)


# Digits and synthetic.


def test_digits_are_all_there_once_and_scaled_to_the_full_range():
    from sklearn.datasets import load_digits

    raw = load_digits()
    expected = Counter(
        (bytes(int(v * 255 / 16 + 0.5) for v in image), int(label))
        for image, label in zip(raw.data, raw.target)
    )
    digits = data.load("digits", validation_fraction=0.2, seed=3)
    got = Counter()
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        got.update((i.tobytes(), int(y)) for i, y in zip(split.images, split.labels))
    assert got == expected
    assert len(digits.test) == 500 and digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10 and digits.class_names == tuple("0123456789")
    whole = np.bincount(raw.target)
    assert np.all(np.abs(np.bincount(digits.test.labels) - 500 * whole / 1797) < 1)


def test_the_test_split_does_not_depend_on_the_seed_or_the_size():
    a = data.load("digits", seed=0)
    b = data.load("digits", seed=9, per_class=3, validation_fraction=0.3)
    np.testing.assert_array_equal(a.test.images, b.test.images)
    assert a.fingerprint == b.fingerprint and a.subset_hash != b.subset_hash


def test_synthetic_is_learnable_by_a_linear_model():
    from sklearn.linear_model import RidgeClassifier

    dataset = data.load("synthetic", per_class=100)
    assert dataset.image_shape == (16, 16, 3) and dataset.num_classes == 4
    model = RidgeClassifier(100.0).fit(
        dataset.train.images.reshape(400, -1) / 255, dataset.train.labels
    )
    flat = dataset.test.images.reshape(len(dataset.test), -1) / 255
    assert model.score(flat, dataset.test.labels) > 0.98
    assert not as_set(dataset.train) & as_set(dataset.test)


# Subsets.


def test_counts_disjointness_and_validation_that_ignores_the_size():
    images, labels = numbered([50, 20, 7])
    small = from_train(images, labels, per_class=2, validation_fraction=0.25)
    large = from_train(images, labels, per_class=5, validation_fraction=0.25)
    everything = from_train(images, labels, validation_fraction=0.25)
    assert np.bincount(small.train.labels).tolist() == [2, 2, 2]
    # 12.5, 5 and 1.75, each rounded to the nearest, halves up.
    assert np.bincount(small.validation.labels).tolist() == [13, 5, 2]
    assert indices(small.validation) == indices(large.validation) == indices(everything.validation)
    assert indices(small.train) < indices(large.train) < indices(everything.train)
    assert not indices(everything.train) & indices(everything.validation)
    assert indices(everything.train) | indices(everything.validation) == set(range(77))
    for split in (small.train, small.validation, everything.train):
        true_labels = np.repeat([0, 1, 2], [50, 20, 7])[
            split.images[:, 0, 0, 0].astype(int) * 256 + split.images[:, 0, 1, 0]
        ]
        np.testing.assert_array_equal(split.labels, true_labels)


def test_fractions_are_nested_and_stratified_over_unequal_classes():
    # Sizes for which largest-remainder rounding takes an image from a class as the total grows.
    sizes = np.array([61, 60, 17, 33, 5])
    images, labels = numbered(sizes)
    previous = set()
    for fraction in np.linspace(0.15, 1.0, 60):
        subset = from_train(images, labels, fraction=fraction, validation_fraction=0)
        counts = np.bincount(subset.train.labels, minlength=5)
        assert counts.sum() == int(fraction * 176 + 0.5)
        assert np.all(np.abs(counts - fraction * sizes) <= 1)
        assert previous <= indices(subset.train)
        assert len(subset.validation) == 0
        previous = indices(subset.train)


def test_validation_has_every_class_however_small_the_fraction():
    images, labels = numbered([90, 5])
    dataset = from_train(images, labels, validation_fraction=0.01)
    assert np.bincount(dataset.validation.labels).tolist() == [1, 1]


def test_the_same_examples_are_drawn_from_a_copy_in_another_order():
    a = from_train(*numbered([30, 30], seed=1), per_class=4, seed=5)
    b = from_train(*numbered([30, 30], seed=2), per_class=4, seed=5)
    np.testing.assert_array_equal(a.train.images, b.train.images)
    np.testing.assert_array_equal(a.validation.labels, b.validation.labels)
    assert a.subset_hash == b.subset_hash


def test_the_classes_are_mixed_from_the_first_example_to_the_last():
    images, labels = numbered([200] * 4)
    for seed in range(10):
        dataset = from_train(images, labels, validation_fraction=0.5, seed=seed)
        for part in (dataset.train.labels, dataset.validation.labels):
            for end in (part[:40], part[-40:]):
                # 10 of each are expected, with a standard deviation of 2.6.
                assert np.bincount(end, minlength=4).max() < 24


def test_hashes_change_with_the_seed_the_size_and_the_content():
    images, labels = numbered([30, 30])
    base = from_train(images, labels, per_class=4)
    edited = images.copy()
    edited[0, 0, 0, 0] += 1
    relabelled = labels.copy()
    relabelled[0] = 1 - relabelled[0]
    others = [
        from_train(images, labels, per_class=4, seed=1),
        from_train(images, labels, per_class=5),
        from_train(images, labels, per_class=4, validation_fraction=0.2),
    ]
    assert len({d.subset_hash for d in [base, *others]}) == 4
    assert {d.fingerprint for d in others} == {base.fingerprint}
    assert base.fingerprint != from_train(edited, labels).fingerprint
    assert base.fingerprint != from_train(images, relabelled).fingerprint


def test_different_seeds_draw_different_examples():
    images, labels = numbered([200])
    drawn = [indices(from_train(images, labels, per_class=20, seed=s).train) for s in range(20)]
    counts = np.bincount(np.concatenate([list(d) for d in drawn]), minlength=200)
    # 400 draws over 200 images: about 1 - exp(-2) = 86 % of the images are drawn at least once.
    assert 0.78 < np.mean(counts > 0) < 0.94


def test_the_digits_subset_is_the_same_in_another_process_and_for_ever():
    code = (
        "import sys; from genreg_jax import data; d = data.load('digits', per_class=4, seed=7);"
        "assert sys.modules.get('tensorflow') is None; print(d.subset_hash)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    here = data.load("digits", per_class=4, seed=7)
    assert done.stdout.strip() == here.subset_hash
    # Pinned: a change here silently changes which images every earlier run was trained on.
    assert here.subset_hash.startswith("0d498b6a0a922546")
    content = hashlib.sha256()
    for split in (here.train, here.validation):
        content.update(repr(split.images.shape).encode())
        content.update(split.images.tobytes() + split.labels.tobytes())
    assert here.subset_hash == content.hexdigest()


# Arrays of one's own.


def test_float_images_become_the_uint8_images_that_they_came_from():
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    for dtype in (np.float32, np.float64):
        floats = (images / 255).astype(dtype)
        dataset = data.from_arrays(
            floats, labels, floats, labels, class_names=["a", "b", "c"], validation_fraction=0
        )
        assert as_set(dataset.train) == {(i.tobytes(), int(y)) for i, y in zip(images, labels)}
        np.testing.assert_array_equal(dataset.test.images, images)
    assert dataset.class_names == ("a", "b", "c") and dataset.image_shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 4, 4)), r"shape \(3, 4, 4\); it must be \[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 1)), "nothing empty"),
        (np.full((1, 2, 2, 1), 1.5), r"from 1\.5 to 1\.5; they must lie in \[0, 1\]"),
        (np.full((1, 2, 2, 1), -0.1), "from -0.1"),
        (np.array([0.5, np.nan]).reshape(1, 1, 2, 1), "contains NaN"),
        (np.zeros((1, 2, 2, 1), np.int64), "type int64"),
        ([np.zeros((2, 2, 1)), np.zeros((3, 2, 1))], "differ in size"),
    ],
)
def test_unusable_images_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        data.validate_images(images)


# Errors.


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"per_class": 5, "fraction": 0.5}, "per_class=5 and fraction=0.5 were both given"),
        ({"per_class": -1}, "per_class is -1"),
        ({"per_class": 2.5}, "per_class is 2.5"),
        ({"fraction": 0.0}, r"fraction is 0.0; it must lie in \(0, 1\]"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"fraction": float("nan")}, "fraction is nan"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1.0; it must lie in \[0, 1\)"),
        ({"validation_fraction": -0.1}, "validation_fraction is -0.1"),
        ({"seed": -1}, "seed is -1"),
        ({"per_class": 1000}, r"class '\d' has 11\d training images .* at most 11\d here"),
        ({"fraction": 0.001}, r"fraction=0.001 leaves no training image of class '\d'"),
        ({"validation_fraction": 0.999}, "leaves none to train on"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(UserError, match=message) as caught:
        data.load("digits", **kwargs)
    assert "\n" not in str(caught.value)


def test_per_class_may_be_what_the_error_says_and_no_more():
    images, labels = numbered([10, 6])
    names = ["cat", "dog"]
    with pytest.raises(UserError, match="class 'dog' has 5 training images .* at most 5 here"):
        from_train(images, labels, class_names=names, per_class=6)
    assert len(from_train(images, labels, class_names=names, per_class=5).train) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["cat"]}, r"run from 0 to 1; with 1 classes they must lie in 0\.\.0"),
        ({"train_labels": np.array([0, -1, 0, 1])}, "run from -1 to 1"),
        ({"train_labels": np.array([0, 2**32 + 1, 0, 1])}, "has the label 4294967297"),
        ({"test_labels": np.array([0, 1, 2**63], np.uint64)}, "has the label 9223372036854775808"),
        ({"train_labels": np.array([0, 1])}, "4 images but 2 labels"),
        ({"train_labels": np.eye(4)}, "One-hot labels"),
        ({"test_images": np.zeros((4, 3, 2, 1), np.uint8)}, "they must be the same"),
        ({"test_images": np.full((4, 2, 2, 1), 9.0)}, "test_images is floating point"),
    ],
)
def test_unusable_arrays_are_refused(change, message):
    arrays = {
        "train_images": np.zeros((4, 2, 2, 1), np.uint8),
        "train_labels": np.array([0, 1, 0, 1]),
        "test_images": np.zeros((4, 2, 2, 1), np.uint8),
        "test_labels": np.array([0, 1, 0, 1]),
        **change,
    }
    with pytest.raises(UserError, match=message):
        data.from_arrays(**arrays)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-10", "Did you mean .*cifar10"),
        ("digit", "Did you mean digits"),
        ("../cifar10", "Unknown dataset"),
        ("", "Unknown dataset ''"),
        ("qqqqqqqqqq", "'qqqqqqqqqq'. Allowed are digits"),
    ],
)
def test_unknown_names(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        data.load(name, data_dir=tmp_path)


def test_a_row_of_one_s_own_is_read_by_name_and_through_a_config(monkeypatch, tmp_path):
    given = {}

    def mine(**options):
        given.update(options)
        rng = np.random.default_rng(0)
        labels = np.arange(50) % 2
        train = data.Split(rng.random((50, 4, 4, 3)), labels)
        return train, data.Split(rng.integers(0, 256, (20, 4, 4, 3), np.uint8), labels[:20]), "ab"

    monkeypatch.setitem(data.SOURCES, "mine", mine)
    settings = DataSettings(name="mine", dir=str(tmp_path), per_class=3, unreadable="skip")
    dataset = data.from_settings(settings, seed=1)
    assert given == {
        "name": "mine", "data_dir": str(tmp_path), "download": True, "unreadable": "skip",
        "image_size": 0, "resize": "crop", "test_fraction": 0.2, "stream": False,
    }  # fmt: skip
    assert dataset.name == "mine" and dataset.class_names == ("a", "b")
    assert dataset.train.images.dtype == np.uint8 and dataset.train.labels.dtype == np.int32
    assert len(dataset.train) == 6 and len(dataset.test) == 20
    with pytest.raises(UserError, match="Did you mean mine"):
        data.load("mime", data_dir=tmp_path)

    def broken(**options):
        train, test, names = mine(**options)
        return data.Split(train.images[..., 0], train.labels), test, names

    monkeypatch.setitem(data.SOURCES, "mine", broken)
    with pytest.raises(UserError, match=r"train_images has the shape \(50, 4, 4\)"):
        data.load("mine")


def no_network(*args, **kwargs):
    raise urllib.error.URLError("no network here")


@pytest.mark.parametrize("name", ["cifar10", "svhn_cropped"])
def test_an_absent_dataset_names_the_ways_out_within_seconds(name, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        data.load(name, data_dir=tmp_path)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert str(tmp_path / name) in message and "\n" not in message
    for way in ("--config.data.dir=", "digits"):
        assert way in message
    if name == "cifar10":
        assert "python -m genreg_jax.data.prepare --dataset=cifar10 --archive=PATH" in message
        assert "no network here" in message
    assert list(tmp_path.iterdir()) == []


def test_download_false_does_not_touch_the_network(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(UserError, match="is not prepared in"):
        data.load("cifar10", data_dir=tmp_path, download=False)


# TFDS directories.


def fake_cifar10(path, num_train=40, num_test=20):
    """Write an archive in CIFAR-10's binary format; return the images by split."""
    rng = np.random.default_rng(0)
    images = {
        "train": rng.integers(0, 256, (num_train, 32, 32, 3), dtype=np.uint8),
        "test": rng.integers(0, 256, (num_test, 32, 32, 3), dtype=np.uint8),
    }

    def record(i, image):
        return bytes([i % 10]) + b"".join(image[:, :, c].tobytes() for c in range(3))

    train = [record(i, image) for i, image in enumerate(images["train"])]
    members = {f"data_batch_{k + 1}.bin": b"".join(train[k * 8 : k * 8 + 8]) for k in range(5)}
    members["test_batch.bin"] = b"".join(record(i, im) for i, im in enumerate(images["test"]))
    members["batches.meta.txt"] = "\n".join(f"class {c}" for c in range(10)).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return images


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    archive = directory / "fake.tar.gz"
    images = fake_cifar10(archive)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    prepare.prepare("cifar10", directory, archive=archive, sha256=[sha256])
    return directory, images


def copy_of(prepared, tmp_path):
    source = next((prepared[0] / "cifar10").iterdir())
    target = tmp_path / "cifar10" / source.name
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_tfds_directory_is_read_pixel_by_pixel(prepared, monkeypatch):
    directory, images = prepared
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    dataset = data.load("cifar10", data_dir=directory, validation_fraction=0.25)
    expected = {
        split: {(image.tobytes(), i % 10) for i, image in enumerate(images[split])}
        for split in images
    }
    assert as_set(dataset.train) | as_set(dataset.validation) == expected["train"]
    assert as_set(dataset.test) == expected["test"]
    assert np.bincount(dataset.validation.labels).tolist() == [1] * 10
    assert dataset.class_names[3] == "class 3"
    same = data.from_arrays(
        images["train"],
        np.arange(40) % 10,
        images["test"],
        np.arange(20) % 10,
        validation_fraction=0.25,
    )
    assert dataset.subset_hash == same.subset_hash and dataset.fingerprint == same.fingerprint


def test_the_default_directory_is_that_of_tfds(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared[0]))
    assert len(data.load("cifar10", download=False).test) == 20


def test_a_tfrecord_directory_is_refused(prepared, tmp_path):
    info = copy_of(prepared, tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="'tfrecord', which cannot be read without TensorFlow"):
        data.load("cifar10", data_dir=tmp_path)


def test_a_missing_file_and_a_damaged_file_are_named(prepared, tmp_path):
    target = copy_of(prepared, tmp_path)
    shard = next(target.glob("cifar10-train*"))
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=f"incomplete: {shard.name} missing"):
        data.load("cifar10", data_dir=tmp_path)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="most likely damaged"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("part", [0, 1])
def test_what_an_array_masks_is_not_used_like_the_rest(part):
    arrays = [np.zeros((40, 4, 4, 1), np.uint8), np.arange(40) % 2]
    assert len(data.from_arrays(np.ma.array(arrays[0]), arrays[1], validation_fraction=0.0).train)
    arrays[part] = np.ma.array(arrays[part], mask=arrays[part] == 0)
    with pytest.raises(UserError, match="is a masked array"):
        data.from_arrays(*arrays)


def test_test_images_that_are_training_images_are_counted(capfd):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 4, 4, 1), np.uint8)
    test = np.concatenate([rng.integers(0, 256, (5, 4, 4, 1), np.uint8), images[[3, 7, 3]]])
    make = lambda test: data.from_arrays(
        images, np.arange(12) % 2, test, np.zeros(len(test), int), name="mine"
    )  # another label does not make another image
    assert make(test).test_images_in_train == 3
    assert "mine: 3 of the 8 test images are in the training split too" in capfd.readouterr().err
    assert make(test[:5]).test_images_in_train == 0
    assert capfd.readouterr().err == ""


def test_without_test_images_a_stratified_part_is_held_out_the_same_for_every_seed(capfd):
    images, labels = numbered([30, 50])
    a, b = (data.from_arrays(images, labels, test_fraction=0.25, seed=seed) for seed in (0, 1))
    assert (
        "20 of the 80 images, 25% of every class as nearly as can be, are held out"
        in capfd.readouterr().err
    )
    assert as_set(a.test) == as_set(b.test) and a.subset_hash != b.subset_hash
    assert not as_set(a.test) & (as_set(a.train) | as_set(a.validation))
    assert sorted(Counter(a.test.labels.tolist()).values()) == [8, 12]
    for fraction in (0, 1, 0.001, float("nan")):
        with pytest.raises(UserError, match="is no test set"):
            data.from_arrays(images, labels, test_fraction=fraction)


def test_a_dataset_shows_itself_in_one_line():
    images, labels = numbered([30, 50])
    dataset = data.from_arrays(images, labels, images, labels, name="mine")
    assert (
        repr(dataset)
        == "Dataset('mine': train 72, validation 8, test 80 images (1, 2, 1), 2 classes)"
    )
    assert repr(dataset.test) == "Split(80 images (1, 2, 1))"


def test_classes_with_no_image_or_one_are_named(capfd):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 1), np.uint8)
    names = ["cat", "dog", "emu", "fox"]
    data.from_arrays(
        images, [0, 0, 2, 0, 3, 3, 0], images[:1] ^ 1, [0], class_names=names, validation_fraction=0
    )
    err = capfd.readouterr().err
    assert "no training image of dog." in err and "a single training image of emu." in err


def test_an_image_that_cannot_be_decoded_is_named_or_left_out(tmp_path, capfd):
    import tensorflow_datasets as tfds

    images = list(np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3), np.uint8))
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    write_tfds(tmp_path, images, features, cut=5)
    with pytest.raises(UserError, match=r"Image \d of the train split of 'odd' cannot be decoded"):
        data.load("odd", data_dir=tmp_path)
    dataset = data.load("odd", data_dir=tmp_path, unreadable="skip", validation_fraction=0)
    assert "are unreadable and left out" in capfd.readouterr().err
    expected = {(image.tobytes(), i % 2) for i, image in enumerate(images) if i != 5}
    assert as_set(dataset.train) == as_set(dataset.test) == expected
    with pytest.raises(UserError, match="unreadable is 'ignore'; it must be"):
        data.load("odd", data_dir=tmp_path, unreadable="ignore")


def write_tfds(directory, images, features, cut=None):
    """Write a small TFDS dataset called `odd` of PNG images."""
    import tensorflow_datasets as tfds
    from PIL import Image

    def examples():
        for i, image in enumerate(images):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            encoded = file.getvalue()
            yield i, {"image": encoded[: 60 if i == cut else None], "label": i % 2}

    class Odd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": examples(), "test": examples()}

        def _generate_examples(self):
            raise NotImplementedError

    Odd(data_dir=directory).download_and_prepare(file_format="array_record")


def test_images_of_differing_sizes_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    images = [np.zeros((6, 5 + i // 3, 3), np.uint8) for i in range(4)]
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    write_tfds(tmp_path, images, features)
    with pytest.raises(UserError, match="differ in size"):
        data.load("odd", data_dir=tmp_path)


def test_a_dataset_without_class_labels_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}
    )
    write_tfds(tmp_path, [np.zeros((4, 4, 3), np.uint8)] * 2, features)
    with pytest.raises(UserError, match="not an image-classification dataset"):
        data.load("odd", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "num_train", "shape", "means"),
    [
        ("cifar10", 50_000, (32, 32, 3), [0.4914, 0.4822, 0.4465]),
        ("fashion_mnist", 60_000, (28, 28, 1), [0.2860]),
    ],
)
def test_the_real_datasets_have_their_published_means(name, num_train, shape, means):
    if not (REAL_TFDS / name).is_dir():
        pytest.skip(f"no prepared {name} in {REAL_TFDS}; set GENREG_TFDS_DIR to run this")
    dataset = data.load(name, data_dir=REAL_TFDS, validation_fraction=0, download=False)
    assert dataset.train.images.shape == (num_train, *shape)
    assert np.bincount(dataset.train.labels).tolist() == [num_train // 10] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    measured = dataset.train.images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(measured, means, atol=1e-4)
    assert not any(class_name.isdigit() for class_name in dataset.class_names)


def test_a_data_folder_runs_no_code(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    images = [np.zeros((6, 5, 3), np.uint8)] * 4
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    write_tfds(tmp_path / "data", images, features)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "data" / "odd" / "1.0.0" / "features.json"
    whole = path.read_text()
    name = "tensorflow_datasets.core.features.image_feature.Image"
    assert whole.count(name) == 1
    for key in ("pythonClassName", "python_class_name", "type"):
        path.write_text(whole.replace(name, "evil.Evil").replace("pythonClassName", key))
        with pytest.raises(UserError, match=r"names the class '.*import and run"):
            data.load("odd", data_dir=tmp_path / "data", validation_fraction=0.0)
        assert not (tmp_path / "ran").exists()
    path.write_text(whole)
    assert len(data.load("odd", data_dir=tmp_path / "data", validation_fraction=0.0).train) == 4
