"""The six sets of photographs by name, from small archives in their exact official layouts."""

import dataclasses
import functools
import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.io import savemat

import genreg_jax as gr
from genreg_jax import UserError
from genreg_jax.data import archives, cache, photographs, prepare
from genreg_jax.data.photographs import SETS

SIZE = 12
# Small enough to make, and no two numbers alike.
SIZES = {"train": 7, "validation": 6, "test": 5}
NAMES = {
    "cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"),
    "aircraft": ("707-320", "F/A-18", "Falcon 2000"),
    "cub": ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross"),
    "dtd": ("banded", "blotchy", "zigzagged"),
    "flowers": ("0", "1", "2"),
    "pets": ("Abyssinian", "american bulldog", "yorkshire terrier"),
}
LABEL = {split: np.arange(number) % 3 for split, number in SIZES.items()}


def encoded(i, kind="JPEG"):
    """A picture of its own size; of a kind that is not what its name says for a few."""
    noise = np.random.default_rng(i).integers(0, 256, (4, 5, 4)).astype(np.uint8)
    picture = Image.fromarray(noise).resize((30 + 3 * i, 50 - i))
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    file = io.BytesIO()
    if kind == "PNG":  # four channels
        picture.save(file, kind)
    elif kind == "GIF":
        frames = [picture.convert("RGB").convert("P"), picture.rotate(90).convert("P")]
        frames[0].save(file, kind, save_all=i % 2 == 0, append_images=frames[1:] * (i % 2 == 0))
    else:
        picture.convert("L" if kind == "grey" else "RGB").save(file, "JPEG")
    return file.getvalue()


def decoded(content, resize="crop", cut=0):
    """What the loader must make of a picture, by Pillow alone."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    width, height = picture.size
    picture = picture.crop((0, 0, width, height - cut))
    if resize == "pad":
        return np.asarray(ImageOps.pad(picture, (SIZE, SIZE), Image.Resampling.BICUBIC, 0))
    return np.asarray(ImageOps.fit(picture, (SIZE, SIZE), Image.Resampling.BICUBIC))


def mat(**variables):
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


def cars(pictures):
    def annotations(split):
        fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        rows = np.zeros((1, len(pictures[split])), [(field, object) for field in fields])
        for i, label in enumerate(LABEL[split]):
            rows[0, i] = (30.0, 52.0, 246.0, 147.0, np.uint8(label + 1), f"{i + 1:05d}.jpg")
        return mat(annotations=rows)

    names = np.empty((1, 3), object)
    names[0] = NAMES["cars"]
    yield (
        "car_devkit.tgz",
        {
            "devkit/README.txt": b"...",
            "devkit/cars_meta.mat": mat(class_names=names),
            "devkit/cars_train_annos.mat": annotations("train"),
        },
    )
    for split in ("train", "test"):
        yield (
            f"cars_{split}.tgz",
            {f"cars_{split}/{i + 1:05d}.jpg": c for i, c in enumerate(pictures[split])},
        )
    yield "cars_test_annos_withlabels.mat", annotations("test")


def aircraft(pictures):
    top, members = "fgvc-aircraft-2013b/data", {"fgvc-aircraft-2013b/README.md": b"..."}
    members[f"{top}/variants.txt"] = "\n".join(NAMES["aircraft"]).encode() + b"\n"
    for split, short in {"train": "train", "validation": "val", "test": "test"}.items():
        ids = [f"{len(short)}{len(split)}{i:05d}" for i in range(SIZES[split])]
        lines = [f"{i} {NAMES['aircraft'][label]}\n" for i, label in zip(ids, LABEL[split])]
        members[f"{top}/images_variant_{short}.txt"] = "".join(lines).encode()
        members |= {f"{top}/images/{i}.jpg": c for i, c in zip(ids, pictures[split])}
    yield "fgvc-aircraft-2013b.tar.gz", members


def cub(pictures):
    top = "CUB_200_2011"
    folders = [f"{c + 1:03d}.{name.replace(' ', '_')}" for c, name in enumerate(NAMES["cub"])]
    rows = [(s, i) for s in ("train", "test") for i in range(SIZES[s])]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    rows.sort(key=lambda row: LABEL[row[0]][row[1]])  # the splits are mixed within the classes
    members, lists = {"attributes.txt": b"1 has_bill_shape::curved\n"}, [""] * 3
    for number, (split, i) in enumerate(rows, start=1):
        label = LABEL[split][i]
        file = f"{folders[label]}/Albatross_{split}_{i:04d}.jpg"
        members[f"{top}/images/{file}"] = pictures[split][i]
        for k, value in enumerate((file, label + 1, int(split == "train"))):
            lists[k] += f"{number} {value}\n"
    names = ("images", "image_class_labels", "train_test_split")
    members |= {f"{top}/{name}.txt": text.encode() for name, text in zip(names, lists)}
    classes = "".join(f"{c} {folder}\n" for c, folder in enumerate(folders, start=1))
    yield "CUB_200_2011.tgz", {**members, f"{top}/classes.txt": classes.encode()}


def dtd(pictures):
    members = {"dtd/imdb/imdb.mat": b"...", "dtd/images/banded/.directory": b"..."}
    for split, short in {"train": "train", "validation": "val", "test": "test"}.items():
        names = [NAMES["dtd"][label] for label in LABEL[split]]
        files = [f"{name}/{name}_{split[:2]}{i:04d}.jpg" for i, name in enumerate(names)]
        members[f"dtd/labels/{short}1.txt"] = "".join(f"{file}\n" for file in files).encode()
        members[f"dtd/labels/{short}2.txt"] = b"zigzagged/another_fold.jpg\n"
        members |= {f"dtd/images/{file}": c for file, c in zip(files, pictures[split])}
    yield "dtd-r1.0.1.tar.gz", members


def flowers(pictures):
    # The identities of the splits are mixed, and the labels in their order.
    order = np.random.default_rng(1).permutation(sum(SIZES.values())) + 1
    ids = dict(zip(SIZES, np.split(order, [7, 13])))
    labels = np.zeros((1, len(order)), np.uint8)
    for split in SIZES:
        labels[0, ids[split] - 1] = LABEL[split] + 1
    files = {
        f"jpg/image_{number:05d}.jpg": content
        for split in SIZES
        for number, content in zip(ids[split], pictures[split])
    }
    yield "102flowers.tgz", files
    yield "imagelabels.mat", mat(labels=labels)
    keys = {"trnid": "train", "valid": "validation", "tstid": "test"}
    yield (
        "setid.mat",
        mat(**{key: ids[split].astype(np.uint16)[None] for key, split in keys.items()}),
    )


def pets(pictures):
    images, lists = {"images/Abyssinian_1.mat": b"..."}, {}
    for split, short in {"train": "trainval", "test": "test"}.items():
        names = [NAMES["pets"][label].replace(" ", "_") for label in LABEL[split]]
        names = [f"{name}_{100 * len(short) + i}" for i, name in enumerate(names)]
        lines = [f"{name} {label + 1} 1 1\n" for name, label in zip(names, LABEL[split])]
        lists[f"annotations/{short}.txt"] = "".join(lines).encode()
        images |= {f"images/{name}.jpg": c for name, c in zip(names, pictures[split])}
    hidden = {"annotations/trimaps/._Abyssinian_1.png": b"macOS"}
    yield "images.tar.gz", images
    yield "annotations.tar.gz", {"annotations/list.txt": b"#Image CLASS-ID", **lists, **hidden}


LAYOUTS = {f.__name__: f for f in (cars, aircraft, cub, dtd, flowers, pets)}


def contents(name):
    """Split to its pictures: grey ones, and of pets PNG and GIF that are named .jpg."""
    kinds = ["JPEG", "grey", "PNG", "GIF", "GIF"] if name == "pets" else ["JPEG", "grey"]
    found = {}
    for start, split in enumerate(SETS[name].sizes):
        number = SIZES[split]
        found[split] = [encoded(10 * start + i, kinds[i % len(kinds)]) for i in range(number)]
    return found


def tar_of(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_archives(name, folder):
    """Writes the archives of a set; returns their SHA-256 in the order of its row."""
    folder.mkdir(parents=True, exist_ok=True)
    for filename, content in LAYOUTS[name](contents(name)):
        if isinstance(content, bytes):
            (folder / filename).write_bytes(content)
        else:  # the archives of Oxford are tar files without compression, whatever their names
            tar_of(folder / filename, content, "w" if name in ("dtd", "pets") else "w:gz")
    return [sha256_of(folder / filename) for filename in SETS[name].archives]


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The published numbers become those of the small archives."""
    for name, row in list(SETS.items()):
        sizes = {split: SIZES[split] for split in row.sizes}
        monkeypatch.setitem(SETS, name, dataclasses.replace(row, classes=3, sizes=sizes))


def prepared(name, tmp_path):
    sha256 = write_archives(name, tmp_path / "archives")
    archive = tmp_path / "archives"
    return prepare.prepare(name, tmp_path / "data", archive=archive, sha256=sha256)


def load(name, data_dir, **options):
    return gr.data.load(name, data_dir=data_dir, image_size=SIZE, **options)


def by_bytes(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_prepared_and_read_as_pillow_reads_it(name, tmp_path):
    target = prepared(name, tmp_path)
    data_dir = tmp_path / "data"
    assert target == data_dir / name / SETS[name].folder
    assert [path.name for path in data_dir.iterdir()] == [name]
    needed = {need.split("/")[0] for need in SETS[name].needs}
    assert {path.name for path in target.iterdir()} == needed
    assert not [path for path in target.rglob("*") if path.name.startswith(".")]

    dataset = load(name, data_dir, validation_fraction=0)
    assert dataset.class_names == NAMES[name]
    assert dataset.name == name and dataset.image_shape == (SIZE, SIZE, 3)
    files = contents(name)
    for split in SIZES:
        expected = [decoded(c, cut=20 * (name == "aircraft")) for c in files.get(split, [])]
        found = getattr(dataset, split)
        assert by_bytes(found.images, found.labels) == by_bytes(expected, LABEL[split])
        for image, file in zip(found.images, found.names):
            content = (target / file).read_bytes()
            assert np.array_equal(image, decoded(content, cut=20 * (name == "aircraft")))

    # The folder itself, the one that holds it, and one without a name of the set's.
    shutil.copytree(target, tmp_path / "anything")
    for place in (target, target.parent, tmp_path / "anything"):
        assert load(name, place, validation_fraction=0).subset_hash == dataset.subset_hash
    # Without a published validation split one is drawn.
    assert ("validation" in files) == (len(load(name, target).train) == SIZES["train"])
    # Once it is there, no archive is needed.
    assert prepare.prepare(name, data_dir, archive="/no/such") == target


def test_the_published_numbers(monkeypatch):
    monkeypatch.undo()
    numbers = {name: (row.classes, *row.sizes.values()) for name, row in SETS.items()}
    assert numbers == {
        "cars": (196, 8144, 8041),
        "aircraft": (100, 3334, 3333, 3333),
        "cub": (200, 5994, 5794),
        "dtd": (47, 1880, 1880, 1880),
        "flowers": (102, 1020, 1020, 6149),
        "pets": (37, 3680, 3669),
    }
    remotes = {name: archives._remotes(name, None, None) for name in SETS}
    assert [len(found) for found in remotes.values()] == [4, 1, 1, 1, 3, 2]
    assert remotes["aircraft"][0].sha256 == "d4acdd33327262359767eeaa97a4f732"
    assert remotes["cub"][0].sha256.startswith("0c685df5597a8b24909f6a7c9db6d11e008733779a671760")
    assert remotes["cub"][0].url.startswith("https://data.caltech.edu/")
    assert remotes["pets"][1].size == 19173078


def test_the_names_of_the_flowers_are_those_that_tfds_registers():
    names = photographs.tfds.class_names("oxford_flowers102", [str(c) for c in range(102)])
    assert (names[0], names[73]) == ("pink primrose", "rose")


def test_pad_and_a_config(tmp_path):
    target = prepared("cub", tmp_path)
    dataset = load("cub", target, resize="pad", validation_fraction=0)
    expected = [decoded(content, "pad") for content in contents("cub")["test"]]
    found = by_bytes(dataset.test.images, dataset.test.labels)
    assert found == by_bytes(expected, LABEL["test"])
    settings = gr.settings.DataSettings(name="cub", dir=str(target), image_size=SIZE)
    assert len(gr.data.from_settings(settings, seed=0).test) == SIZES["test"]
    with pytest.raises(UserError, match="image_size .* is 0; set it to the side"):
        gr.data.load("cub", data_dir=target)


def test_the_cache_tells_a_cut_picture_from_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_PICTURES", 1)
    target = prepared("aircraft", tmp_path)
    cut = load("aircraft", target)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3
    row = dataclasses.replace(SETS["aircraft"], cut_bottom=0)
    monkeypatch.setitem(SETS, "aircraft", row)
    whole = load("aircraft", target)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 6
    monkeypatch.setattr("genreg_jax.data.pictures.open_picture", None)  # from the cache alone
    assert load("aircraft", target).fingerprint == whole.fingerprint != cut.fingerprint


def test_a_split_of_grey_pictures_is_rgb_as_the_others_are(tmp_path):
    target = prepared("cub", tmp_path)
    for file in (target / "images").rglob("*_test_*.jpg"):
        Image.open(file).convert("L").save(file)
    test = load("cub", target).test.images
    assert test.shape[-1] == 3 and np.array_equal(test[..., 0], test[..., 2])


def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path):
    target = prepared("dtd", tmp_path)
    file = target / "labels/train1.txt"
    file.write_text(file.read_text().replace("banded/banded", "banded/../../../banded", 1))
    with pytest.raises(
        UserError, match="lists of dtd in .* cannot be read .*a picture 'images/ban"
    ):
        load("dtd", target)


def test_a_picture_of_the_banner_alone_is_refused(tmp_path):
    target = prepared("aircraft", tmp_path)
    file = next((target / "data/images").iterdir())
    Image.new("RGB", (40, 20)).save(file)
    with pytest.raises(UserError, match="20 rows of pixels, and the lowest 20 are to be cut off"):
        load("aircraft", target)


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", SETS)
def test_a_missing_file_and_wrong_numbers_are_named(name, tmp_path, monkeypatch):
    target = prepared(name, tmp_path)
    for need in SETS[name].needs:
        path = target / need
        path.rename(tmp_path / "away")
        with pytest.raises(UserError, match=f"holds {name}, but without {need}.*--archive=ARCH"):
            load(name, target)
        with pytest.raises(UserError, match=f"exists already, .*{need} missing.* Remove it"):
            prepare.prepare(name, tmp_path / "data")
        (tmp_path / "away").rename(path)
    row = SETS[name]
    for wrong in ({"classes": 4}, {"sizes": {**row.sizes, "test": 6}}):
        monkeypatch.setitem(SETS, name, dataclasses.replace(row, **wrong))
        with pytest.raises(UserError, match=r"it has 3 classes .* 7 of train, .*5 of test, where "):
            load(name, target)
    monkeypatch.setitem(SETS, name, row)
    for need in row.needs:
        if (target / need).is_file():
            content = (target / need).read_bytes()
            (target / need).write_bytes(content[:-5] + b"\xff 9\n9\n")
            with pytest.raises(UserError, match="cannot be read|it has"):
                load(name, target)
            (target / need).write_bytes(content)
    picture = next(path for path in sorted(target.rglob("*.jpg")))
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"1 of \d pictures cannot be read: .*{picture.name}"):
        load(name, target)
    before = sum(SIZES[split] for split in row.sizes)
    dataset = load(name, target, unreadable="skip")
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == before - 1


def test_what_is_not_there_is_said_with_what_to_do(tmp_path):
    with pytest.raises(UserError) as error:
        load("aircraft", tmp_path)
    assert "data/variants.txt" in str(error.value) and "as fgvc-aircraft-2013b;" in str(error.value)
    assert "TFDS" not in str(error.value) and "robots.ox.ac.uk" in str(error.value)
    with pytest.raises(UserError, match=r"a TFDS data directory with cars196 as array_record"):
        load("cars", tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cub is not in .*file"):
        load("cub", tmp_path / "file")


@pytest.mark.parametrize("name", ["pets", "aircraft"])
def test_a_wrong_checksum_is_refused_before_anything_is_written(name, tmp_path, capsys):
    write_archives(name, tmp_path / "archives")
    data_dir = tmp_path / "data"
    arguments = [f"--archive={tmp_path / 'archives'}", f"--data_dir={data_dir}"]
    assert prepare.main([f"--dataset={name}", *arguments]) == 1
    error = capsys.readouterr().err
    filename = SETS[name].archives[0]
    kind = "MD5 d4acdd33327262359767eeaa97a4f732" if name == "aircraft" else "SHA-256 67195c5e1c01"
    assert f"is not the expected {filename}" in error and kind in error and error.count("\n") == 1
    assert not data_dir.exists()


def test_other_mistakes_are_one_paragraph(tmp_path, capsys):
    write_archives("pets", tmp_path / "archives")
    (tmp_path / "archives/annotations.tar.gz").unlink()
    sums = f"--sha256={sha256_of(tmp_path / 'archives/images.tar.gz')},{64 * '0'}"
    data_dir, folder = f"--data_dir={tmp_path / 'data'}", f"--archive={tmp_path / 'archives'}"
    for arguments, message in [
        (["--dataset=pets", folder, sums], "annotations.tar.gz cannot be read (No such file"),
        (["--dataset=pets", f"--archive={__file__}"], "is one file; for pets give the directory"),
        (["--dataset=pets", folder, "--sha256=abc"], "sha256 has 1 values; pets needs 2"),
        (["--dataset=cars"], "no longer offers cars; give a directory with its official"),
        (["--dataset=flowers", "--url=nonsense"], "cannot be downloaded"),
        (["--dataset=cats"], "must be one of cifar10, cifar100, fashion_mnist, cars, aircraft"),
    ]:
        assert prepare.main([*arguments, data_dir]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert list((tmp_path / "data").iterdir()) == []


def odd(members, kind, root):
    """A tar archive with one member that is no plain file where it belongs, and no compression."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        other = tarfile.TarInfo(
            {"up": "images/../../escaped", "root": f"{root}/escaped"}.get(kind, "images/x")
        )
        if kind == "bytes":
            other.size = 2 * 10**6
        if kind == "link":
            other.type, other.linkname = tarfile.SYMTYPE, "../../.."
        tar.addfile(other, io.BytesIO(bytes(other.size)))
        if kind == "link":  # through it a file would be written elsewhere
            tar.addfile(tarfile.TarInfo("images/x/escaped"))
    content = file.getvalue()
    return {"cut": content[: len(content) // 3], "noise": b"<html>" * 999}.get(kind, content)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("up", "member 'images/../../escaped', which leads out of the folder"),
        ("root", "member '/.*', which leads out of the folder"),
        ("bytes", "unpacks to more than 1,000,000 bytes"),
        ("files", "or 20 files"),
        ("cut", "cannot be unpacked .* truncated"),
        ("noise", "cannot be unpacked .* no archive"),
        ("link", None),
    ],
)
def test_odd_archives_write_nothing_elsewhere_and_leave_nothing(
    kind, message, tmp_path, monkeypatch
):
    folder, data_dir = tmp_path / "archives", tmp_path / "data"
    write_archives("pets", folder)
    (images, members), _ = pets(contents("pets"))
    if kind == "files":
        members |= {f"images/{i}": b"" for i in range(20)}
    (folder / images).write_bytes(odd(members, kind, tmp_path))
    sha256 = [sha256_of(folder / file) for file in SETS["pets"].archives]
    monkeypatch.setattr(archives, "MOST_BYTES", 10**6)
    monkeypatch.setattr(archives, "MOST_FILES", 20)
    if message is None:
        target = prepare.prepare("pets", data_dir, archive=folder, sha256=sha256)
        assert not any(path.is_symlink() for path in target.rglob("*"))
        assert (target / "images/x/escaped").is_file()
    else:
        with pytest.raises(UserError, match=message):
            prepare.prepare("pets", data_dir, archive=folder, sha256=sha256)
        assert list(data_dir.iterdir()) == []
    assert len(list(tmp_path.rglob("escaped"))) == (kind == "link")


def test_an_archive_without_a_picture_or_a_list_is_refused_and_leaves_nothing(tmp_path):
    folder, data_dir = tmp_path / "archives", tmp_path / "data"
    whole = dict(dtd(contents("dtd")))["dtd-r1.0.1.tar.gz"]
    for lost in ("dtd/labels/val1.txt", "dtd/images/zigzagged/zigzagged_tr0002.jpg"):
        folder.mkdir(exist_ok=True)
        archive = folder / "dtd-r1.0.1.tar.gz"
        tar_of(archive, {name: content for name, content in whole.items() if name != lost})
        with pytest.raises(UserError, match=f"is not whole: {lost[4:]} missing"):
            prepare.prepare("dtd", data_dir, archive=archive, sha256=[sha256_of(archive)])
        assert list(data_dir.iterdir()) == []


def test_an_interruption_leaves_nothing_and_a_full_disk_is_a_paragraph(tmp_path, monkeypatch):
    folder, data_dir = tmp_path / "archives", tmp_path / "data"
    sha256 = write_archives("cars", folder)

    def fails_at(number, error):
        calls = []

        def copy(source, file, original=shutil.copyfileobj):
            calls.append(source)
            if len(calls) == number:
                raise error
            return original(source, file)

        monkeypatch.setattr(archives.shutil, "copyfileobj", copy)

    fails_at(12, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("cars", data_dir, archive=folder, sha256=sha256)
    assert list(data_dir.iterdir()) == []
    fails_at(5, OSError(28, "No space left on device"))
    with pytest.raises(UserError, match=r"cannot be written to .*No space left.*make room there"):
        prepare.prepare("cars", data_dir, archive=folder, sha256=sha256)
    assert list(data_dir.iterdir()) == []
    fails_at(0, None)
    target = prepare.prepare("cars", data_dir, archive=folder, sha256=sha256)
    # torchvision and others have the labels of the test pictures in the devkit as well.
    (target / "cars_test_annos_withlabels.mat").rename(
        target / "devkit/cars_test_annos_withlabels.mat"
    )
    assert len(load("cars", target).test) == SIZES["test"]


def test_archives_are_downloaded_to_disk(tmp_path, monkeypatch):
    sha256 = write_archives("flowers", tmp_path / "archives")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    handler = functools.partial(quiet, directory=str(tmp_path / "archives"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        target = prepare.prepare("flowers", tmp_path / "data", url=url, sha256=sha256)
        with pytest.raises(UserError, match=f"{url}102flowers.tgz is not the expected"):
            prepare.prepare("flowers", tmp_path / "other", url=url)
        server.shutdown()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["flowers"]
    assert list((tmp_path / "other").iterdir()) == []
    assert len(load("flowers", target).validation) == SIZES["validation"]


# -------------------------------------------------------------------------------- TFDS's directory


def write_tfds(directory, sizes=SIZES):
    """A directory of `dtd` as TFDS prepares it, with a mask beside each picture."""
    import tensorflow_datasets as tfds

    def examples(split):
        for i, label in enumerate(LABEL[split][: sizes[split]]):
            content = encoded(10 * list(SIZES).index(split) + i)
            yield i, {"image": content, "mask": b"not looked at", "label": int(label)}

    class Dtd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "mask": tfds.features.Image(shape=(None, None, 4)),
                "label": tfds.features.ClassLabel(names=NAMES["dtd"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: examples(split) for split in SIZES}

        def _generate_examples(self):
            raise NotImplementedError

    Dtd(data_dir=directory).download_and_prepare(file_format="array_record")


def test_a_directory_that_tfds_prepared_is_read_with_its_validation_split(tmp_path, monkeypatch):
    write_tfds(tmp_path)
    dataset = load("dtd", tmp_path)
    assert dataset.class_names == NAMES["dtd"]
    for start, split in enumerate(SIZES):
        expected = [decoded(encoded(10 * start + i)) for i in range(SIZES[split])]
        found = getattr(dataset, split)
        assert by_bytes(found.images, found.labels) == by_bytes(expected, LABEL[split])
    padded = load("dtd", tmp_path, resize="pad").test
    expected = [decoded(encoded(20 + i), "pad") for i in range(SIZES["test"])]
    assert by_bytes(padded.images, padded.labels) == by_bytes(expected, LABEL["test"])
    # The official layout has its place beside it, and goes first.
    sha256 = write_archives("dtd", tmp_path / "archives")
    target = prepare.prepare("dtd", tmp_path, archive=tmp_path / "archives", sha256=sha256)
    assert target == tmp_path / "dtd/dtd" and (tmp_path / "dtd/3.0.1").is_dir()
    assert load("dtd", tmp_path).test.names is not None
    os.unlink(target / "labels/test1.txt")
    assert load("dtd", tmp_path).fingerprint == dataset.fingerprint

    row = SETS["dtd"]
    monkeypatch.setitem(SETS, "dtd", dataclasses.replace(row, sizes={**row.sizes, "test": 6}))
    shutil.rmtree(target)
    monkeypatch.setattr("genreg_jax.data.tfds._read_split", None)  # before a picture is read
    with pytest.raises(UserError, match=r"3.0.1 is not dtd as it was published: it has 3 classes"):
        load("dtd", tmp_path)
