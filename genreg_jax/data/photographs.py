"""Six sets of photographs by name: cars, aircraft, cub, dtd, flowers and pets.

Each is read from the folders of its official archives, as they are unpacked by hand, by
`genreg_jax.data.prepare` or by torchvision, with its official splits, or else from a directory in
which TFDS prepared it. What is found is compared with the published numbers, in `SETS`.

A set is a row of `SETS` and a function from its folder to the lists of its splits.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genreg_jax.data import tfds
from genreg_jax.data.dataset import Split
from genreg_jax.data.pictures import read_pictures
from genreg_jax.errors import UserError

# Split to pictures, each a path within the folder and a label; and one name a class.
Lists = tuple[dict[str, list[tuple[str, int]]], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class PhotographSet:
    """A published set of photographs.

    Attributes:
      folder: of the official layout, as it is called.
      needs: what it holds, paths within the folder.
      read: from the folder to the lists of its splits.
      classes: their number.
      sizes: split to the number of its pictures.
      address: where it is offered.
      licence: what may be done with it.
      archives: official files, in the order of `--sha256`.
      tfds: the name that TFDS has for it; empty where it has none.
      md5: of the archive, where TFDS registers no checksum.
      offered: whether the address still answers.
      cut_bottom: rows of pixels below that do not belong to the photograph.
    """

    folder: str
    needs: tuple[str, ...]
    read: Callable[[Path], Lists]
    classes: int
    sizes: dict[str, int]
    address: str
    licence: str
    archives: tuple[str, ...]
    tfds: str = ""
    md5: str = ""
    offered: bool = True
    cut_bottom: int = 0


# ------------------------------------------------------------------- the official lists, set by set


def _cars(folder: Path) -> Lists:
    def pictures(directory: str, annotations: np.ndarray) -> list[tuple[str, int]]:
        names, labels = annotations["fname"], annotations["class"]
        return [(f"{directory}/{name}", int(c) - 1) for name, c in zip(names, labels)]

    splits = {
        "train": pictures(
            "cars_train", _mat(folder / "devkit/cars_train_annos.mat", "annotations")
        ),
        "test": pictures("cars_test", _mat(_cars_test_labels(folder), "annotations")),
    }
    return splits, tuple(map(str, _mat(folder / "devkit/cars_meta.mat", "class_names")))


def _cars_test_labels(folder: Path) -> Path:
    """A file of its own, which lies beside the devkit or in it."""
    inside = folder / "devkit/cars_test_annos_withlabels.mat"
    return inside if inside.exists() else folder / inside.name


def _aircraft(folder: Path) -> Lists:
    names = _lines(folder / "data/variants.txt")
    files = {"train": "train", "validation": "val", "test": "test"}
    splits = {}
    for split, file in files.items():
        lines = _lines(folder / f"data/images_variant_{file}.txt")
        pairs = [line.split(maxsplit=1) for line in lines]
        splits[split] = [(f"data/images/{i}.jpg", names.index(name)) for i, name in pairs]
    return splits, tuple(names)


def _cub(folder: Path) -> Lists:
    def column(file: str) -> dict[str, str]:
        lines = [line.split(maxsplit=1) for line in _lines(folder / file)]
        return {key: value for key, value in lines}

    names, files = column("classes.txt"), column("images.txt")
    labels, is_train = column("image_class_labels.txt"), column("train_test_split.txt")
    splits = {"train": [], "test": []}
    for key, file in files.items():
        splits["train" if int(is_train[key]) else "test"].append(
            (f"images/{file}", int(labels[key]) - 1)
        )
    # "001.Black_footed_Albatross"
    return splits, tuple(name.partition(".")[2].replace("_", " ") for name in names.values())


def _dtd(folder: Path) -> Lists:
    files = {"train": "train1", "validation": "val1", "test": "test1"}
    lines = {split: _lines(folder / f"labels/{file}.txt") for split, file in files.items()}
    names = sorted({line.split("/")[0] for split in lines.values() for line in split})
    splits = {
        split: [(f"images/{line}", names.index(line.split("/")[0])) for line in found]
        for split, found in lines.items()
    }
    return splits, tuple(names)


def _flowers(folder: Path) -> Lists:
    labels = _mat(folder / "imagelabels.mat", "labels")
    keys = {"train": "trnid", "validation": "valid", "test": "tstid"}
    splits = {}
    for split, key in keys.items():
        ids = [int(i) for i in _mat(folder / "setid.mat", key)]
        if min(ids) < 1:
            raise ValueError("pictures are counted from 1")
        splits[split] = [(f"jpg/image_{i:05d}.jpg", int(labels[i - 1]) - 1) for i in ids]
    # The names are in no file of the archive.
    numbers = [str(c) for c in range(int(labels.max()))]
    return splits, tfds.class_names("oxford_flowers102", numbers)


def _pets(folder: Path) -> Lists:
    splits, names = {}, {}
    for split, file in {"train": "trainval", "test": "test"}.items():
        rows = [line.split() for line in _lines(folder / f"annotations/{file}.txt")]
        splits[split] = [(f"images/{name}.jpg", int(label) - 1) for name, label, *_ in rows]
        names |= {int(label): name.rpartition("_")[0] for name, label, *_ in rows}
    return splits, tuple(names[label].replace("_", " ") for label in sorted(names))


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _mat(path: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat

    return np.atleast_1d(loadmat(path, squeeze_me=True)[key])


SETS: dict[str, PhotographSet] = {
    "cars": PhotographSet(
        folder="stanford_cars",
        needs=(
            "cars_train",
            "cars_test",
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
        ),
        read=_cars,
        classes=196,
        sizes={"train": 8144, "test": 8041},
        address="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        licence="none is stated; the photographs are their owners'",
        archives=(
            "cars_train.tgz",
            "cars_test.tgz",
            "car_devkit.tgz",
            "cars_test_annos_withlabels.mat",
        ),
        tfds="cars196",
        offered=False,
    ),
    "aircraft": PhotographSet(
        folder="fgvc-aircraft-2013b",
        needs=(
            "data/images",
            "data/variants.txt",
            "data/images_variant_train.txt",
            "data/images_variant_val.txt",
            "data/images_variant_test.txt",
        ),
        read=_aircraft,
        classes=100,
        sizes={"train": 3334, "validation": 3333, "test": 3333},
        address="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/",
        licence="non-commercial research only",
        archives=("fgvc-aircraft-2013b.tar.gz",),
        md5="d4acdd33327262359767eeaa97a4f732",
        cut_bottom=20,  # a banner with the photographer's name
    ),
    "cub": PhotographSet(
        folder="CUB_200_2011",
        needs=(
            "images",
            "images.txt",
            "image_class_labels.txt",
            "train_test_split.txt",
            "classes.txt",
        ),
        read=_cub,
        classes=200,
        sizes={"train": 5994, "test": 5794},
        address="https://data.caltech.edu/records/65de6-vp158",
        licence="non-commercial research and teaching; the photographs are their owners'",
        archives=("CUB_200_2011.tgz",),
        tfds="caltech_birds2011",
    ),
    "dtd": PhotographSet(
        folder="dtd",
        needs=("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"),
        read=_dtd,
        classes=47,
        sizes={"train": 1880, "validation": 1880, "test": 1880},
        address="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        licence="research only",
        archives=("dtd-r1.0.1.tar.gz",),
        tfds="dtd",
    ),
    "flowers": PhotographSet(
        folder="flowers-102",
        needs=("jpg", "imagelabels.mat", "setid.mat"),
        read=_flowers,
        classes=102,
        sizes={"train": 1020, "validation": 1020, "test": 6149},
        address="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        licence="none is stated; the photographs are their owners'",
        archives=("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        tfds="oxford_flowers102",
    ),
    "pets": PhotographSet(
        folder="oxford-iiit-pet",
        needs=("images", "annotations/trainval.txt", "annotations/test.txt"),
        read=_pets,
        classes=37,
        sizes={"train": 3680, "test": 3669},
        address="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        licence="CC BY-SA 4.0; the photographs are their owners'",
        archives=("images.tar.gz", "annotations.tar.gz"),
        tfds="oxford_iiit_pet",
    ),
}


# ------------------------------------------------------------------------------ reading a set


def read(
    *,
    name: str,
    data_dir: str | os.PathLike[str],
    image_size: int = 0,
    resize: str = "crop",
    unreadable: str = "refuse",
    **options: Any,
) -> tuple[Split, Split, tuple[str, ...], Split | None]:
    """Reads one of the six sets, in RGB.

    Args:
      name: a key of `SETS`.
      data_dir: the folder of the official layout, or the one that holds it; or a TFDS data
        directory in which `prepare` or TFDS put the set; empty for TFDS's own default.
      image_size: side of the square that pictures are brought to; it must be given.
      resize: `crop` (short side scaled, centre cut out) or `pad` (long side scaled, on black).
      unreadable: `refuse` where a picture cannot be read, or `skip` such pictures; both name them.
      **options: of other readers.

    Returns:
      The training and the test `Split`, uint8 images `[N, S, S, 3]` and labels `[N]`, the class
      names, and the validation `Split`, or None where none is published.

    Raises:
      UserError: the set is not there, is not whole, is not the published one, or has no size.

    Example:
      >>> read(name="pets", data_dir="PETS", image_size=64)  # doctest: +SKIP
      >>> SETS["pets"].classes, SETS["pets"].sizes
      (37, {'train': 3680, 'test': 3669})
    """
    row = SETS[name]
    if not image_size:
        raise UserError(
            f"The pictures of {name} have many sizes, and config.data.image_size (image_size in "
            "Python) is 0; set it to the side of the square that they are brought to, such as 64 "
            "or 224."
        )
    folder, missing = find(name, data_dir)
    if folder is None or missing:
        prepared = row.tfds and tfds.read_squares(
            row.tfds,
            data_dir,
            list(row.sizes),
            unreadable=unreadable,
            size=image_size,
            resize=resize,
            check=functools.partial(check_numbers, name),
        )
        if not prepared:
            raise UserError(absent_message(name, data_dir, folder, missing))
        splits, class_names = prepared
    else:
        lists, class_names = read_lists(name, folder)
        splits = {}
        for split, pictures in lists.items():
            files = [folder / file for file, _ in pictures]
            images, kept = read_pictures(
                files,
                (image_size, image_size),
                resize,
                unreadable,
                channels=3,
                cut_bottom=row.cut_bottom,
                first_frame=True,
            )
            labels = np.array([pictures[i][1] for i in kept], np.int32)
            splits[split] = Split(images, labels, tuple(pictures[i][0] for i in kept))
    return splits["train"], splits["test"], class_names, splits.get("validation")


def find(name: str, data_dir: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """Looks for a set's official layout.

    Args:
      name: a key of `SETS`.
      data_dir: as in `read`.

    Returns:
      The folder that holds most of it, or None where there is nothing of it, and what it lacks.

    Example:
      >>> find("pets", "/no/such/folder")[0] is None
      True
    """
    row, root = SETS[name], tfds.tfds_root(data_dir)
    folders = [root, root / row.folder, root / name / row.folder, root / name]
    lacking = {folder: missing_files(name, folder) for folder in folders}
    best = min(folders, key=lambda folder: len(lacking[folder]))
    there = len(lacking[best]) < len(row.needs)
    return best if there else None, lacking[best]


def missing_files(name: str, folder: Path) -> list[str]:
    """What the folder of an official layout lacks of what the set needs."""
    places = {need: folder / need for need in SETS[name].needs}
    if name == "cars":
        places["cars_test_annos_withlabels.mat"] = _cars_test_labels(folder)
    return [need for need, place in places.items() if not place.exists()]


def absent_message(
    name: str, data_dir: str | os.PathLike[str], folder: Path | None, missing: list[str]
) -> str:
    """What to do where a set is not there, or not whole."""
    row, root = SETS[name], tfds.tfds_root(data_dir)
    what = (
        f"{name} is not in {root}"
        if folder is None
        else f"{folder} holds {name}, but without {', '.join(missing)}"
    )
    elsewhere = f", or a TFDS data directory with {row.tfds} as array_record" if row.tfds else ""
    return (
        f"{what}. Give with --config.data.dir=DIR (data_dir=DIR in Python) the folder with the "
        f"official {', '.join(row.needs)}, or the one that holds it as {row.folder}{elsewhere}; or "
        f"put the official {', '.join(row.archives)} ({row.address}) into a folder ARCHIVES and "
        f"run `python -m genreg_jax.data.prepare --dataset={name} --archive=ARCHIVES "
        "--data_dir=DIR`."
    )


def read_lists(name: str, folder: Path) -> Lists:
    """Reads the lists of a set's splits and compares them with the published numbers.

    Args:
      name: a key of `SETS`.
      folder: of its official layout.

    Returns:
      Split to pictures, each a path within the folder and a label, and the class names.

    Raises:
      UserError: a list cannot be read, or the numbers are others.
    """
    try:
        splits, class_names = SETS[name].read(folder)
        for pictures in splits.values():
            for file, label in pictures:
                if not 0 <= label < len(class_names) or ".." in Path(file).parts:
                    raise ValueError(f"a picture {file[:80]!r} of the class {label + 1}")
    except Exception as error:  # what scipy's reader of .mat files raises is anything
        raise UserError(
            f"The lists of {name} in {folder} cannot be read ({type(error).__name__}: "
            f"{str(error)[:200]}); they are damaged or of another set. Unpack the official "
            f"{', '.join(SETS[name].archives)} again, into an empty folder."
        ) from error
    sizes = {split: len(pictures) for split, pictures in splits.items()}
    check_numbers(name, folder, sizes, len(class_names))
    return splits, class_names


def check_numbers(name: str, place: Path, sizes: dict[str, int], classes: int) -> None:
    """Refuses a set whose numbers of classes and pictures are not the published ones."""
    row = SETS[name]
    if (classes, sizes) == (row.classes, row.sizes):
        return

    def words(classes: int, sizes: dict[str, int]) -> str:
        counts = ", ".join(f"{count:,} of {split}" for split, count in sizes.items())
        return f"{classes} classes and the pictures {counts}"

    raise UserError(
        f"{place} is not {name} as it was published: it has {words(classes, sizes)}, where "
        f"{words(row.classes, row.sizes)} are expected. Unpack the official archives again, into "
        "an empty folder; another selection of pictures can be read as `folder`."
    )
