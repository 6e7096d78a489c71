"""Picture files of every kind against Pillow and NumPy, and folders, tables and `.npz` of them."""

import os
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import genreg_jax as gr
from genreg_jax.data import cache, pictures
from genreg_jax.data.dataset import Split, hold_out
from genreg_jax.data.files import read_images
from genreg_jax.data.folders import find
from genreg_jax.data.npz import read_npz
from genreg_jax.data.pictures import Unreadable, fit, open_picture


def noise(*shape, seed=0, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def opened(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options) if mode else Image.fromarray(array).save(
        path, **options
    )
    return np.asarray(open_picture(path))


# ----------------------------------------------------------------------------------- one picture


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".tga"])
def test_plain_pictures_come_back_as_they_are(tmp_path, suffix):
    rgb, grey = noise(5, 7, 3), noise(5, 7)
    np.testing.assert_array_equal(opened(tmp_path / f"a{suffix}", rgb), rgb)
    np.testing.assert_array_equal(opened(tmp_path / f"b{suffix}", grey), grey)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(tmp_path, orientation):
    upright = noise(6, 4, 3)
    # What a camera held otherwise stores: the inverse of what EXIF asks a viewer to do.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "a.png")), upright)


def test_sixteen_bits_become_eight_by_their_share_of_the_range(tmp_path):
    values = noise(5, 7, high=65536, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        found = opened(tmp_path / name, values)
        np.testing.assert_array_equal(found, np.rint(values / 65535 * 255).astype(np.uint8))


def test_floating_point_in_the_unit_interval_is_read_and_other_numbers_are_not(tmp_path):
    values = np.random.default_rng(0).random((5, 7), np.float32)
    found = opened(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(found, np.rint(values * np.float32(255)).astype(np.uint8))
    Image.fromarray(values * 3).save(tmp_path / "b.tif")
    with pytest.raises(Unreadable, match=r"not in \[0, 1\]"):
        open_picture(tmp_path / "b.tif")
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(Unreadable, match="not of 8 or 16 bits"):
        open_picture(tmp_path / "c.tif")


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = noise(5, 7, 4)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    found = opened(tmp_path / "a.png", rgba)
    assert np.abs(found - expected).max() <= 1
    la = noise(5, 7, 2, seed=1)
    Image.fromarray(la, "LA").save(tmp_path / "b.png")
    found = np.asarray(open_picture(tmp_path / "b.png"))
    alpha = la[..., 1] / 255
    assert found.ndim == 2 and np.abs(found - (la[..., 0] * alpha + 255 * (1 - alpha))).max() <= 1


def test_palettes_cmyk_and_two_grey_levels_become_rgb_or_grey(tmp_path):
    rgb = np.repeat(np.repeat(noise(2, 3, 3), 2, 0), 2, 1)
    Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.gif")
    found = np.asarray(open_picture(tmp_path / "a.gif"))
    assert np.abs(found.astype(int) - rgb).max() <= 4
    cmyk = Image.fromarray(rgb).convert("CMYK")
    cmyk.save(tmp_path / "b.tif")
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "b.tif")), rgb)
    Image.fromarray(noise(4, 5, high=2).astype(bool)).save(tmp_path / "c.png")
    assert set(np.unique(np.asarray(open_picture(tmp_path / "c.png")))) == {0, 255}


def test_what_is_no_picture_is_refused_with_its_reason(tmp_path, monkeypatch):
    whole = tmp_path / "whole.png"
    Image.fromarray(noise(40, 40, 3)).save(whole)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-400])
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    frames = [Image.fromarray(noise(4, 4, 3, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    header = bytearray(whole.read_bytes())
    header[16:24] = (30_000).to_bytes(4, "big") * 2  # the size that it claims
    crc = zipfile.crc32(bytes(header[12:29]))
    header[29:33] = crc.to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(header)
    for name, words in [
        ("empty.png", "it is empty"), ("text.png", "cannot identify"), ("cut.png", "truncated"),
        ("folder.png", "no regular file"), ("pipe.png", "no regular file"), ("none.png", "No such"),
        ("film.gif", "it has 3 frames"), ("bomb.png", "30000 x 30000 pixels|more than 100,000,000"),
    ]:  # fmt: skip
        with pytest.raises(Unreadable, match=words) as error:
            open_picture(tmp_path / name)
        assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_pictures_are_brought_to_a_size_with_their_proportions_kept(size):
    rows, columns = np.indices((40, 100))
    ramp = np.stack([rows * 6, columns * 2, rows + columns], -1).astype(np.uint8)
    height, width = size
    scale = max(height / 40, width / 100)
    cropped = np.asarray(fit(Image.fromarray(ramp), size)).astype(float)
    # A linear picture stays linear: the middle of each new pixel, measured from the centre.
    at = lambda n, whole: (np.arange(n) - (n - 1) / 2) / scale + (whole - 1) / 2
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(
        cropped[..., 0][inner], np.broadcast_to(at(height, 40)[:, None] * 6, size)[inner], atol=2
    )
    np.testing.assert_allclose(
        cropped[..., 1][inner], np.broadcast_to(at(width, 100)[None] * 2, size)[inner], atol=2
    )
    padded = np.asarray(fit(Image.fromarray(np.full((40, 100, 3), 200, np.uint8)), size, "pad"))
    expected = round(40 * min(height / 40, width / 100))
    bright = np.flatnonzero((padded > 100).all((1, 2)))
    assert len(bright) == expected and abs(bright.mean() - (height - 1) / 2) <= 0.5


def test_of_the_two_pictures_of_a_phones_jpeg_the_first_is_the_photograph(tmp_path):
    first, second = (np.full((8, 8, 3), value, np.uint8) for value in (200, 20))
    whole = {"format": "MPO", "save_all": True, "append_images": [Image.fromarray(second)]}
    Image.fromarray(first).save(tmp_path / "phone.jpg", **whole)
    assert np.asarray(open_picture(tmp_path / "phone.jpg")).min() > 190


# -------------------------------------------------------------------------------------- a folder


def photographs(folder, classes=("cat", "dog", "10", "9"), count=10, shape=(20, 30, 3)):
    for c, name in enumerate(classes):
        (folder / name / "deep").mkdir(parents=True)
        for i in range(count):
            array = (noise(*shape, seed=100 * c + i) // 4 + 48 * c).astype(np.uint8)
            Image.fromarray(array).save(folder / name / ("deep" if i % 2 else "") / f"{i:02d}.png")
    return folder


def test_a_folder_is_a_data_set(tmp_path, capsys):
    photographs(tmp_path)
    one = gr.data.from_folder(tmp_path, image_size=8, validation_fraction=0.25)
    for split in (one.train, one.validation, one.test):
        assert len(set(split.names)) == len(split)
        for name, image, label in zip(split.names, split.images, split.labels):
            assert name.startswith(f"{one.class_names[label]}/")
            np.testing.assert_array_equal(
                np.asarray(fit(open_picture(tmp_path / name), (8, 8))), image
            )
    assert one.class_names == ("9", "10", "cat", "dog") and one.image_shape == (8, 8, 3)
    assert [len(s) for s in (one.train, one.validation, one.test)] == [24, 8, 8]
    assert (
        "8 of the 40 images, 20% of every class as nearly as can be, are held out"
        in capsys.readouterr().err
    )
    place = {"cat": 2, "dog": 3, "10": 1, "9": 0}
    known = {
        np.asarray(fit(open_picture(f), (8, 8))).tobytes(): place[f.relative_to(tmp_path).parts[0]]
        for f in tmp_path.rglob("*.png")
    }
    for split in (one.train, one.validation, one.test):
        counts = np.bincount(split.labels, minlength=4)
        assert counts.min() == counts.max()
        for image, label in zip(split.images, split.labels):
            assert known[image.tobytes()] == label
    # The test images do not depend on the seed; the others do.
    two = gr.data.from_folder(tmp_path, image_size=8, validation_fraction=0.25, seed=1)
    np.testing.assert_array_equal(one.test.images, two.test.images)
    assert one.subset_hash != two.subset_hash
    s = gr.data.load("folder", data_dir=tmp_path, image_size=8, validation_fraction=0.25)
    assert s.subset_hash == one.subset_hash


def test_the_test_pictures_are_the_same_at_every_size_and_few_change_as_pictures_come(tmp_path):
    photographs(tmp_path, count=30)
    names = lambda **options: set(gr.data.from_folder(tmp_path, **options).test.names)
    first = names(image_size=8)
    assert len(first) == 24
    assert names(image_size=16) == names(image_size=8, resize="pad", seed=3) == first
    for i in range(4):  # named as before those that are there, and as behind them
        opened(tmp_path / "dog" / f"{'a' * (i % 2)}{i}.png", noise(20, 30, 3, seed=900 + i))
    assert len(first - names(image_size=8)) <= 1
    more = names(image_size=8, test_fraction=0.3)
    assert len(more) == 37 and names(image_size=8) < more


def test_the_test_pictures_are_the_same_on_every_system_and_in_every_order(tmp_path):
    """Names with accents are written in two ways, and tables name files by their whole paths."""
    for form in ("NFC", "NFD"):
        names = (unicodedata.normalize(form, name) for name in ("caf\u00e9", "n\u00e9on"))
        photographs(tmp_path / form, classes=names, count=20, shape=(8, 8, 3))
    one, other = (gr.data.from_folder(tmp_path / form) for form in ("NFC", "NFD"))
    assert one.fingerprint == other.fingerprint
    files = sorted((tmp_path / "NFC").rglob("*.png"))
    lines = [f"{file},{file.relative_to(tmp_path).parts[1]}" for file in files]
    (tmp_path / "tables").mkdir()
    for name, order in (("a", lines), ("b", lines[::-1])):
        write(tmp_path / "tables" / f"{name}.csv", "\n".join(["file,label", *order]))
    a, b = (gr.data.from_folder(tmp_path / "tables" / f"{name}.csv") for name in "ab")
    assert a.fingerprint == b.fingerprint == one.fingerprint
    assert set(a.test.names) == set(one.test.names)  # below the folder that they share
    twins = np.zeros((20, 4, 4, 1), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    labels, same = np.arange(20) % 2, ("a.png",) * 20
    halves = [
        hold_out(Split(twins[order], labels[order], same), 0.5)[1].images.tolist()
        for order in (np.arange(20), np.arange(20)[::-1])
    ]
    assert halves[0] == halves[1]


def test_a_warm_start_from_a_run_of_other_splits_is_said(tmp_path, capsys):
    photographs(tmp_path / "in", classes=("a", "b"), count=20, shape=(8, 8))
    config = {
        "data": {"name": "folder", "dir": str(tmp_path / "in")},
        "model": {"widths": [4]},
        "train": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 8, "progress": False},
    }
    gr.train_and_evaluate(config, tmp_path / "first")
    warm = {**config, "model": {"widths": [4], "init_from": str(tmp_path / "first")}}
    gr.train_and_evaluate(warm, tmp_path / "same")
    assert "may be too good" not in capsys.readouterr().err
    warm["data"] = {**config["data"], "test_fraction": 0.5}
    gr.train_and_evaluate(warm, tmp_path / "other")
    assert "the test accuracy may be too good" in capsys.readouterr().err
    warm["data"] = {**config["data"], "image_size": 6}  # the same pictures held out
    gr.train_and_evaluate(warm, tmp_path / "smaller")
    assert "may be too good" not in capsys.readouterr().err
    warm["data"] = {**warm["data"], "test_fraction": 0.5}
    gr.train_and_evaluate(warm, tmp_path / "smaller_other")
    assert "the test accuracy may be too good" in capsys.readouterr().err


def test_splits_of_ones_own_are_kept(tmp_path):
    for name, count in (("train", 6), ("test", 3), ("val", 2)):
        photographs(tmp_path / name, classes=("a", "b"), count=count, shape=(8, 8))
    dataset = gr.data.from_folder(tmp_path)
    assert dataset.image_shape == (8, 8, 1) and dataset.class_names == ("a", "b")
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [12, 4, 6]
    assert np.bincount(dataset.validation.labels).tolist() == [2, 2]


def test_a_table_and_arrays_are_data_sets_too(tmp_path):
    photographs(tmp_path / "pictures", classes=("a", "b"), count=10, shape=(8, 8))
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    lines = ["file,label,split"]
    for i, file in enumerate(files):
        name, split = file.relative_to(tmp_path), "test" if i % 5 == 0 else "train"
        lines.append(f"{name},{name.parts[1]},{split}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    table = gr.data.from_folder(tmp_path / "table.csv")
    assert len(table.test) == 4 and len(table.train) + len(table.validation) == 16
    images = np.stack([np.asarray(Image.open(file))[..., None] for file in files])
    labels = np.array([int(file.relative_to(tmp_path).parts[1] == "b") for file in files])
    test = np.arange(20) % 5 == 0
    np.savez(
        tmp_path / "arrays.npz", images=images[~test], labels=labels[~test],
        test_images=images[test], test_labels=labels[test], class_names=["a", "b"],
    )  # fmt: skip
    arrays = gr.data.from_folder(tmp_path / "arrays.npz")
    assert arrays.subset_hash == table.subset_hash and arrays.fingerprint == table.fingerprint
    assert arrays.class_names == table.class_names


def test_a_name_is_one_class_however_it_is_written(tmp_path):
    photographs(tmp_path / "train", classes=("caf\u00e9", "dog"), count=4)
    photographs(tmp_path / "test", classes=("cafe\u0301", "dog"), count=2)
    dataset = gr.data.from_folder(tmp_path, image_size=8)
    assert dataset.class_names == ("caf\u00e9", "dog") and len(dataset.test) == 4
    files = sorted((tmp_path / "train").rglob("*.png"))
    lines = ["file, label , split", ""]
    for i, file in enumerate(files):
        label = file.relative_to(tmp_path).parts[1]
        split = " test" if i in (0, 4) else "train "
        lines += [f"{file.relative_to(tmp_path)}, {label}{' ' * (i % 2)},{split}"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    table = gr.data.from_folder(tmp_path / "t.csv", image_size=8)
    assert table.class_names == dataset.class_names and len(table.test) == 2
    (tmp_path / "t.csv").write_text("\n".join([*lines, '"a\nb.png",cat,dev']))
    with pytest.raises(gr.UserError, match=r"Line 12 of .*'dev'"):
        gr.data.from_folder(tmp_path / "t.csv", image_size=8)
    found = read_images(tmp_path / "test", (8, 8, 3), dataset.class_names, resize="crop")
    assert found.labels is not None and sorted(found.labels.tolist()) == [0, 0, 1, 1]


def test_a_split_within_each_class_is_not_trained_on_as_one(tmp_path):
    for name in ("cat", "dog"):
        photographs(tmp_path / name, classes=("train", "test"), count=3)
    with pytest.raises(gr.UserError, match=r"Put the classes into the splits .*/train/cat and"):
        gr.data.from_folder(tmp_path, image_size=8)
    photographs(tmp_path / "owl", classes=("train", "forest"), count=3)  # what owls sit on
    assert gr.data.from_folder(tmp_path, image_size=8).class_names == ("cat", "dog", "owl")


def test_the_pictures_of_a_run_are_of_no_class(tmp_path, capsys):
    photographs(tmp_path, classes=("cat", "dog"))
    before = gr.data.from_folder(tmp_path, image_size=8).fingerprint
    photographs(tmp_path / "runs" / "mine", classes=("samples",), count=3)
    write(tmp_path / "runs" / "mine" / "config.json", "{}")
    (tmp_path / "runs" / "mine" / "checkpoints").mkdir()
    assert gr.data.from_folder(tmp_path, image_size=8).fingerprint == before
    assert "runs/mine (a run of this program)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.array(["a", "b"] * 10), "class_names": ["a", "b"]}, "of the type <U1"),
        ({"labels": np.arange(20) % 2 + 1}, "from 1 to 2, and class indices begin at 0"),
        ({"class_names": ["a", "a"]}, "are a, a, with a name twice"),
        ({"class_names": ["a"]}, "has one class, a; a classifier needs two"),
        (
            {"images": np.zeros((20, 4, 4, 5), np.uint8)},
            "Images of 5 channels cannot",
        ),
        (
            {"images": np.zeros((20, 4, 4, 2), np.uint8)},
            "Images of 2 channels cannot",
        ),
    ],
)
def test_arrays_that_are_no_data_set_are_refused_in_words(tmp_path, change, words):
    arrays = {"images": noise(20, 4, 4, 1), "labels": np.arange(20) % 2}
    np.savez(tmp_path / "a.npz", **(arrays | change))
    with pytest.raises(gr.UserError, match=words):
        gr.data.load("folder", data_dir=tmp_path / "a.npz", image_size=8)


def test_arrays_with_alpha_are_resized_on_white(tmp_path):
    rgba = noise(20, 4, 4, 4)
    np.savez(tmp_path / "A.NPZ", images=rgba, labels=np.arange(20) % 2)
    (tmp_path / "A.NPZ.npz").rename(tmp_path / "A.NPZ")
    dataset = gr.data.load("folder", data_dir=tmp_path / "A.NPZ", image_size=4)
    assert dataset.image_shape == (4, 4, 3) and dataset.unlabelled.shape[1:] == (4, 4, 3)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    for image in dataset.test.images:
        assert np.abs(expected - image).max(axis=(1, 2, 3)).min() <= 1
    with pytest.raises(gr.UserError, match=r"to the shape \(8, 8, 4\), only those of 1"):
        pictures.fit_array(rgba[0], (8, 8, 4))
    with pytest.raises(gr.UserError, match="is no data set: that is a folder"):
        gr.data.from_folder(write(tmp_path / "a.npy", "x"))


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    photographs(tmp_path / "data", classes=("a", "b"), count=5)
    outside = tmp_path / "outside"
    photographs(outside, classes=("c",), count=1)
    data = tmp_path / "data"
    (data / "notes.txt").write_text("x")
    (data / "loose.png").write_bytes(next((data / "a").glob("*.png")).read_bytes())
    (data / ".hidden.png").touch()
    (data / "linked").symlink_to(outside / "c")
    (data / "a" / "out.png").symlink_to(outside / "c" / "00.png")
    (data / "a" / "in.png").symlink_to(data / "b" / "00.png")
    files, left_out = find(data)
    assert len(files) == 12
    assert left_out == [
        "linked (a link to a folder)", "notes.txt (no picture by its suffix)",
        "a/out.png (a link out of the folder)",
    ]  # fmt: skip
    dataset = gr.data.from_folder(data, image_size=8)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 11
    said = capsys.readouterr().err
    assert "4 files are left out: linked (a link to a folder)" in said and "loose.png" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label,label\na.png,x,y\n", "names a column twice"),
        ("file,label\na,b.png,x\n", "Line 2 of .* has more cells than"),
        (None, "has 268,435,457 bytes, and a table may have"),
    ],
)
def test_a_table_is_taken_as_it_is_or_not_at_all(tmp_path, text, words):
    with (tmp_path / "t.csv").open("w") as file:
        file.write(text or "")
        file.truncate(None if text else 2**28 + 1)
    with pytest.raises(gr.UserError, match=words):
        gr.data.from_folder(tmp_path / "t.csv")


def test_the_empty_folder_of_a_class_is_named(tmp_path, capsys):
    photographs(tmp_path, classes=("cat", "dog"))
    (tmp_path / "owl").mkdir()
    assert gr.data.from_folder(tmp_path, image_size=8).class_names == ("cat", "dog")
    assert "1 files are left out: owl (an empty folder)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_named(tmp_path, capsys, monkeypatch):
    photographs(tmp_path, classes=("cat", "dog", "owl"))
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("owl"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    dataset = gr.data.from_folder(tmp_path, image_size=8)
    assert dataset.class_names == ("cat", "dog")
    assert "1 files are left out: owl (Permission denied)" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_named_together_or_skipped(tmp_path, capsys):
    photographs(tmp_path, classes=("a", "b"), count=8)
    for name in ("x.png", "y.jpg"):
        (tmp_path / "a" / name).write_text("no")
    with pytest.raises(gr.UserError, match=r"2 of 18 pictures .*x\.png.*y\.jpg.*'skip'"):
        gr.data.from_folder(tmp_path, image_size=8)
    dataset = gr.data.from_folder(tmp_path, image_size=8, unreadable="skip")
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 16
    assert "2 of 18 pictures cannot be read and are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none", "There is no .*none.*subfolder of pictures for each class"),
        (lambda p: p, "no picture in a class's folder"),
        (lambda p: photographs(p, classes=("a",)), "has one class, 'a'"),
        (lambda p: mixed(p), "3 sizes, from 5 x 6 to 9 x 8 .*set config.data.image_size"),
        (lambda p: write(p / "t.csv", "name,label\nx,1\n"), "columns file and label"),
        (lambda p: write(p / "t.csv", "file;label\nx;1\n"), r"has the columns \['file;label'\]"),
        (lambda p: write(p / "t.csv", "file,label,split\nx,1,dev\n"), "Line 2 .*'dev'"),
        (lambda p: write(p / "t.csv", "file,label\nx\0.png,1\ny.png,2\n"), "2 of 2 pictures"),
        (lambda p: latin(p / "t.csv"), "is not text in UTF-8; save"),
        (lambda p: write(p / "t.csv", "file,label\nx.png,1\ny.png,2\n"), "2 of 2 pictures"),
        (lambda p: write(p / "t.csv", f"file,label\n {'x' * 999},1\ny,2\n"), "2 of 2 pictures"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_with_the_way_out(tmp_path, make, words):
    with pytest.raises(gr.UserError, match=words):
        gr.data.from_folder(make(tmp_path))


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "Val", "Test"), ("TRAINING", "", "testing")]
)
def test_folders_of_a_split_are_known_under_their_usual_names(tmp_path, names):
    for i, name in enumerate(filter(None, names)):
        photographs(tmp_path / name, classes=("a", "b"), count=4 + i)
    (tmp_path / "__MACOSX").mkdir()
    opened(tmp_path / "__MACOSX" / "._a.png", noise(4, 4, 3))
    dataset = gr.data.from_folder(tmp_path, image_size=8, validation_fraction=0.25)
    assert dataset.class_names == ("a", "b")
    if names[1]:
        assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [8, 10, 12]
    else:
        assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [6, 2, 10]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train", "test", "extra"), "folders test, train of a split and beside them extra"),
        (("test", "val"), "folders test, val and no train"),
        (("train", "cat"), "folders train of a split and beside them cat"),
    ],
)
def test_folders_of_a_split_are_not_taken_for_classes(tmp_path, names, words):
    for name in names:
        photographs(tmp_path / name, classes=("a", "b"), count=3)
    with pytest.raises(gr.UserError, match=words):
        gr.data.from_folder(tmp_path, image_size=8)


def test_a_class_may_be_called_test(tmp_path):
    photographs(tmp_path, classes=("test", "control"), count=10)
    assert gr.data.from_folder(tmp_path, image_size=8).class_names == ("control", "test")


def write(path, text):
    path.write_text(text)
    return path


def latin(path):
    path.write_bytes("file,label\nä.png,1\n".encode("latin-1"))
    return path


def mixed(folder):
    for i, shape in enumerate([(5, 6), (9, 8), (7, 7)] * 2):
        path = folder / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(*shape)).save(path)
    return folder


def test_without_a_folder_the_config_says_what_is_missing():
    with pytest.raises(gr.UserError, match="Which folder"):
        gr.data.load("folder")


# ------------------------------------------------------------------------------------------- npz


def test_an_npz_is_looked_at_before_memory_is_taken(tmp_path):
    def saved(name, **arrays):
        np.savez_compressed(tmp_path / name, **arrays)
        return tmp_path / name

    large = saved("large.npz", images=np.zeros((50, 400, 400, 3), np.uint8))
    with pytest.raises(gr.UserError, match=r"have the shape \(400, 400, 3\), and \(8, 8, 3\)"):
        read_images(large, (8, 8, 3), ("a",))
    with pytest.raises(gr.UserError, match="is not an .npz of arrays that can be read"):
        read_npz(saved("objects.npz", images=np.array([{}, []], object)))
    # A header that claims 10^15 images.
    small = saved("small.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(small) as archive:
        content = archive.read("images.npy")
    lie = content.replace(b"(3, 8, 8, 3), }" + b" " * 16, b"(1000000000000000, 8, 8, 3), }" + b" ")
    assert lie != content and len(lie) == len(content)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("images.npy", lie)
    with pytest.raises(gr.UserError, match="claims 192,000,000,000,000,000 bytes and has fewer"):
        read_npz(tmp_path / "lie.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(gr.UserError, match="is not an .npz of arrays"):
        read_npz(tmp_path / "text.npz")


IMAGES = noise(12, 8, 8, 3)
LABELS = np.arange(12) % 3


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": LABELS[:11]}, r"12 images and labels of the shape \(11,\)"),
        ({"labels": np.arange(13)}, r"12 images and labels of the shape \(13,\)"),
        ({"labels": np.eye(12)}, r"labels of the shape \(12, 12\)"),
        ({"labels": np.array(list("abcdefghijkl"))}, "labels in .* are of the type <U1"),
        ({"labels": LABELS - 1}, "labels in .* are from -1 to 1; they must be class indices"),
        ({"test_images": IMAGES}, "each images with their labels.*it has .*test_images"),
        ({"val_images": IMAGES, "val_labels": LABELS}, "may hold validation_images.*it has"),
        ({"class_names": np.array("ab")}, r"class_names in .* has the shape \(\)"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"is \[N, C, H, W\]; it must be"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **{"images": IMAGES, "labels": LABELS, **arrays})
    with pytest.raises(gr.UserError, match=words):
        gr.data.load("folder", data_dir=tmp_path / "a.npz", validation_fraction=0.25)


def test_images_of_every_source_are_brought_to_a_size(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    load = lambda **options: gr.data.load(
        "folder", data_dir=tmp_path / "a.npz", validation_fraction=0.25, **options
    )
    small, large = load(), load(image_size=16)
    assert large.image_shape == (16, 16, 3) and large.subset_hash == small.subset_hash
    for name in ("train", "validation", "test"):
        for image, big in zip(getattr(small, name).images, getattr(large, name).images):
            expected = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(big, expected)
    assert large.unlabelled.shape == (len(small.unlabelled), 16, 16, 3)
    digits = gr.data.load("digits", per_class=2, image_size=12)
    assert digits.image_shape == (12, 12, 1) and digits.unlabelled.shape[1:] == (12, 12, 1)
    with pytest.raises(gr.UserError, match="image_size is -1"):
        gr.data.load("digits", image_size=-1)
    with pytest.raises(gr.UserError, match="resize must be one of"):
        gr.data.load("digits", image_size=16, resize="stretch")


def test_one_picture_a_grey_one_and_labels_by_folder_are_read_for_a_run(tmp_path):
    photographs(tmp_path, classes=("a", "b"), count=3)
    found = read_images(tmp_path, (8, 8, 1), ("b", "a"), resize="crop")
    assert found.images.shape == (6, 8, 8, 1) and found.labels.tolist() == [1] * 3 + [0] * 3
    one = read_images(Path(tmp_path / "a" / "00.png"), (8, 8, 1), ("b", "a"), resize="crop")
    np.testing.assert_array_equal(one.images[0], found.images[0])
    assert one.labels is None and one.names == [Path("00.png")]
    with pytest.raises(gr.UserError, match=r"have the shape \(20, 30, 1\), and \(8, 8, 1\)"):
        read_images(tmp_path, (8, 8, 1), ("b", "a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": -3}, "image_size is -3; allowed: an integer from 0 to 4096"),
        ({"image_size": 100_000}, "image_size is 100000; allowed"),
        ({"image_size": "32"}, "image_size is '32'; allowed"),
        ({"image_size": 8.5}, "image_size is 8.5; allowed"),
        ({"resize": "stretch"}, "resize must be one of .*'crop', 'pad'.*, got 'stretch'"),
        ({"unreadable": "ignore"}, "unreadable is 'ignore'; it must be 'refuse' or 'skip'"),
        ({"test_fraction": 1.0}, "test_fraction = 1.0 of 2 images is no test set"),
    ],
)
def test_arguments_of_a_folder_are_checked_before_memory_is_taken(tmp_path, change, message):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(noise(6, 6, 3)).save(tmp_path / name / "0.png")
    with pytest.raises(gr.UserError, match=message):
        gr.data.from_folder(tmp_path, **{"image_size": 4, **change})


# ------------------------------------------------------------------------------------------ cache


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Three pictures, which are many enough to be kept; how often one is decoded is counted."""
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_PICTURES", 3)
    decoded = []

    def counted(path, *, open_picture=pictures.open_picture, **options):
        decoded.append(path.name)
        return open_picture(path, **options)

    monkeypatch.setattr(pictures, "open_picture", counted)
    for i in range(3):
        Image.fromarray(noise(6, 8, 3, seed=i)).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(3)], decoded


def entries(tmp_path):
    return sorted((tmp_path / "cache" / "pictures").glob("*"))


def test_pictures_are_decoded_once_and_again_when_they_or_the_policy_change(many, tmp_path):
    files, decoded = many
    first, _ = pictures.read_pictures(files, (4, 4))
    again, kept = pictures.read_pictures(files, (4, 4))
    np.testing.assert_array_equal(first, again)
    assert len(decoded) == 3 and kept == [0, 1, 2] and len(entries(tmp_path)) == 1
    pictures.read_pictures(files, (4, 4), "pad")
    assert len(decoded) == 6
    Image.fromarray(noise(6, 8, 3, seed=9)).save(files[1])
    os.utime(files[1], ns=(0, time.time_ns() + 10**9))
    changed, _ = pictures.read_pictures(files, (4, 4))
    assert len(decoded) == 9
    np.testing.assert_array_equal(changed[[0, 2]], first[[0, 2]])
    assert (changed[1] != first[1]).any()


def test_pictures_that_change_places_are_decoded_again(tmp_path, monkeypatch):
    """Names, sizes and times are the same afterwards: folders of classes that were exchanged."""
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_PICTURES", 2)
    files = [tmp_path / name for name in ("cat.bmp", "dog.bmp")]
    for file, value in zip(files, (10, 240)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(file)
        os.utime(file, ns=(0, 10**18))
    assert pictures.read_pictures(files, None)[0][:, 0, 0, 0].tolist() == [10, 240]
    for old, new in (("cat", "t"), ("dog", "cat"), ("t", "dog")):
        (tmp_path / f"{old}.bmp").rename(tmp_path / f"{new}.bmp")
    assert pictures.read_pictures(files, None)[0][:, 0, 0, 0].tolist() == [240, 10]


@pytest.mark.parametrize("damage", [b"", b"x" * 40, "cut", "bit"])
def test_a_damaged_entry_of_the_cache_is_not_used(many, tmp_path, damage):
    files, decoded = many
    first, _ = pictures.read_pictures(files, (4, 4))
    (entry,) = entries(tmp_path)
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        content = content[:-1]
    elif damage == "bit":
        content[-5] ^= 4
    else:
        content = damage
    entry.write_bytes(content)
    np.testing.assert_array_equal(pictures.read_pictures(files, (4, 4))[0], first)
    assert len(decoded) == 6
    pictures.read_pictures(files, (4, 4))
    assert len(decoded) == 6, "and it is made again"


def test_what_is_left_out_is_said_each_time_and_the_cache_can_be_off_or_full(
    many, tmp_path, monkeypatch, capsys
):
    files, decoded = many
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for _ in range(2):
        _, kept = pictures.read_pictures([*files, tmp_path / "bad.png"], (4, 4), "crop", "skip")
        assert kept == [0, 1, 2] and "1 of 4 pictures" in capsys.readouterr().err
    assert entries(tmp_path) == []
    pictures.read_pictures(files, (4, 4))
    monkeypatch.setattr(cache, "MOST_BYTES", 600)  # an entry has 16 + 128 + 144 bytes
    pictures.read_pictures(files, (3, 4))
    pictures.read_pictures(files, (4, 3))
    assert len(entries(tmp_path)) == 2
    count = len(decoded)
    for value in ("", str(tmp_path / "0.png")):  # off, and no folder can be made there
        monkeypatch.setenv("GENREG_CACHE", value)
        for _ in range(2):
            count += 3
            pictures.read_pictures(files, (4, 4))
            assert len(decoded) == count
