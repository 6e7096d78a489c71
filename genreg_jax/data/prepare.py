"""Prepare a data set from its official archives, without TensorFlow.

    python -m genreg_jax.data.prepare --dataset=cifar10 [--archive=PATH] [--data_dir=DIR]
    python -m genreg_jax.data.prepare --dataset=pets [--archive=FOLDER] [--data_dir=DIR]

CIFAR-10, CIFAR-100 and Fashion-MNIST become data sets of TFDS; the photographs of
`genreg_jax.data.photographs` (cars, aircraft, cub, dtd, flowers, pets) are unpacked as they are.

The official archive is downloaded from the address that TFDS registers, or given with
`--archive`, and compared with the size and SHA-256 that TFDS registers (aircraft, which TFDS does
not have, with its published MD5). What becomes a data set of TFDS is then written in TFDS's own
layout, in `array_record` format, under the same keys as TFDS itself would use, so that
`tfds.data_source` reads it and the order of examples is the official one.
"""

import argparse
import contextlib
import gzip
import io
import math
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genreg_jax.data import archives
from genreg_jax.data.download import (
    MAX_BYTES,
    move_into_place,
    read_verified,
    registered,
    replaced,
)
from genreg_jax.data.photographs import SETS
from genreg_jax.data.tfds import tfds_root
from genreg_jax.door import leave, through
from genreg_jax.errors import UserError


class _Cifar(NamedTuple):
    folder: str
    splits: dict[str, tuple[str, ...]]
    label_files: dict[str, str]  # label feature -> file of its names, in the order of the bytes


_CIFAR = {
    "cifar10": _Cifar(
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        {"label": "batches.meta.txt"},
    ),
    "cifar100": _Cifar(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
}
_IDX_PREFIX = {"train": "train", "test": "t10k"}

DATASETS = (*_CIFAR, "fashion_mnist")  # written for TFDS, and small enough to download unasked


class _Parsed(NamedTuple):
    images: np.ndarray  # uint8 [N, H, W, C]
    labels: dict[str, np.ndarray]  # label feature -> [N]


def prepare(
    dataset: str,
    data_dir: str | os.PathLike[str] = "",
    *,
    archive: str | os.PathLike[str] | None = None,
    url: str | None = None,
    sha256: Sequence[str] | None = None,
    timeout: float = 8.0,
) -> Path:
    """Write a dataset from its official archives; do nothing if it is there.

    Everything is verified and parsed before anything is written, and the finished directory
    appears under its name in one step, so a failure leaves nothing behind.

    Args:
      dataset: `cifar10`, `cifar100` or `fashion_mnist`; or `cars`, `aircraft`, `cub`, `dtd`,
        `flowers` or `pets`.
      data_dir: TFDS data directory; empty for `$TFDS_DATA_DIR` or else `~/tensorflow_datasets`.
      archive: the official archive, or a directory that holds it or, where there are several such
        as the four `.gz` files of `fashion_mnist`, all; by default they are downloaded, but for
        `cars`, whose address is gone.
      url: another address to download from; of their directory where there are several files. The
        same checksums apply.
      sha256: the expected SHA-256 of every file, in the order in which TFDS registers them (for
        photographs, of `photographs.SETS[dataset].archives`), in place of the registered ones. For
        an archive that is not the official one.
      timeout: seconds to wait for a connection, and for each piece of a download; a server that
        sends less than 1 KiB a second over as long is given up.

    Returns:
      The directory of the prepared version, `DATA_DIR/NAME/VERSION`; of photographs that of the
      official layout, such as `DATA_DIR/pets/oxford-iiit-pet`.

    Raises:
      UserError: if the archive cannot be had, is not the expected one, or cannot be written.

    Example:
      >>> prepare("cifar10", archive="cifar-10-binary.tar.gz")  # doctest: +SKIP
      >>> DATASETS
      ('cifar10', 'cifar100', 'fashion_mnist')

    Source: https://www.tensorflow.org/datasets/catalog/cifar10 and its siblings.
    """
    if dataset in SETS:
        options: dict[str, Any] = {"archive": archive, "url": url, "sha256": sha256}
        return archives.prepare(dataset, data_dir, **options, timeout=timeout)
    if dataset not in DATASETS:
        known = ", ".join((*DATASETS, *SETS))
        raise UserError(f"dataset is {dataset!r}; it must be one of {known}.")
    root = tfds_root(data_dir)
    target = root / dataset / _version(dataset)
    if target.exists():
        _check_existing(target)
        return target
    remotes = replaced(dataset, registered(dataset), url, sha256)
    files = {r.filename: read_verified(dataset, r, archive, timeout) for r in remotes}
    try:
        parsed, names = (
            _parse_cifar(_CIFAR[dataset], *files.values())
            if dataset in _CIFAR
            else _parse_fashion_mnist(files)
        )
    except UserError:
        raise
    except Exception as error:  # what a parser of another's bytes can raise, tarfile's is anything
        raise UserError(
            f"The archive of {dataset} cannot be read ({type(error).__name__}: {error}); it is "
            "truncated, damaged or not the binary version. Download it again."
        ) from error
    try:
        _write(dataset, parsed, names, root, target)
    except OSError as error:
        raise UserError(
            f"{dataset} cannot be written to {root} ({error}); give another directory with "
            "--data_dir=DIR, or make room there."
        ) from error
    return target


def _version(dataset: str) -> str:
    import tensorflow_datasets as tfds

    return str(tfds.builder_cls(dataset).VERSION)


def _check_existing(target: Path) -> None:
    info = target / "dataset_info.json"
    if not info.is_file() or '"array_record"' not in info.read_text(encoding="utf-8"):
        raise UserError(
            f"{target} exists already, but not as a complete dataset in array_record format; "
            "remove it, or give another directory with --data_dir=DIR."
        )


# Reading the official formats, in memory and by exact member names: nothing is extracted to disk.


def _parse_cifar(layout: _Cifar, archive: bytes) -> tuple[dict[str, _Parsed], dict[str, list[str]]]:
    # Unpacked first, within a limit: to find a member, all before it must be.
    with tarfile.open(fileobj=io.BytesIO(_unpacked(archive)), mode="r:") as tar:
        names = {
            feature: _read_names(_read_member(tar, f"{layout.folder}/{filename}"))
            for feature, filename in layout.label_files.items()
        }
        splits = {}
        for split, filenames in layout.splits.items():
            parts = [
                _cifar_records(
                    filename, _read_member(tar, f"{layout.folder}/{filename}"), list(names)
                )
                for filename in filenames
            ]
            splits[split] = _Parsed(
                np.concatenate([part.images for part in parts]),
                {key: np.concatenate([part.labels[key] for part in parts]) for key in names},
            )
    _check_labels(splits, names)
    return splits, names


def _unpacked(content: bytes) -> bytes:
    with gzip.open(io.BytesIO(content)) as file:
        unpacked = file.read(MAX_BYTES + 1)
    if len(unpacked) > MAX_BYTES:
        raise UserError(f"The archive unpacks to more than {MAX_BYTES:,} bytes: it is another one.")
    return unpacked


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.getmember(name)
    file = tar.extractfile(member) if member.isfile() and member.size <= MAX_BYTES else None
    if file is None:
        raise UserError(f"{name} in the archive is not a plain file of a sensible size.")
    return file.read()


def _read_names(content: bytes) -> list[str]:
    return [line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()]


def _cifar_records(filename: str, content: bytes, label_keys: list[str]) -> _Parsed:
    # A record is one byte a label, then the red, the green and the blue plane.
    record_size = len(label_keys) + 3 * 32 * 32
    if not content or len(content) % record_size:
        raise UserError(
            f"{filename} has {len(content)} bytes, which is not a whole number of records of "
            f"{record_size} bytes; the archive is truncated or of another dataset."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record_size)
    planes = records[:, len(label_keys) :].reshape(-1, 3, 32, 32)
    labels = {key: records[:, i] for i, key in enumerate(label_keys)}
    return _Parsed(planes.transpose(0, 2, 3, 1), labels)


def _parse_fashion_mnist(
    files: dict[str, bytes],
) -> tuple[dict[str, _Parsed], dict[str, list[str]]]:
    import tensorflow_datasets as tfds

    splits = {}
    for split, prefix in _IDX_PREFIX.items():
        images = _read_idx(files, f"{prefix}-images-idx3-ubyte.gz", rank=3)
        labels = _read_idx(files, f"{prefix}-labels-idx1-ubyte.gz", rank=1)
        if images.shape != (len(labels), 28, 28) or not len(labels):
            raise UserError(
                f"The {split} files hold images of the shape {images.shape} and labels of the "
                f"shape {labels.shape}; [N, 28, 28] and [N] are expected."
            )
        splits[split] = _Parsed(images[..., None], {"label": labels})
    # The names are in no file of the archive; the registered builder has them.
    builder: Any = tfds.builder("fashion_mnist", data_dir=os.devnull)
    _check_labels(splits, {"label": builder.info.features["label"].names})
    return splits, {}


def _read_idx(files: dict[str, bytes], filename: str, rank: int) -> np.ndarray:
    content = _unpacked(files[filename])
    header_size = 4 + 4 * rank
    magic, *shape = np.frombuffer(content[:header_size].ljust(header_size, b"\0"), ">u4").tolist()
    # An idx file begins 0, 0, type (8: unsigned byte), rank, then one 32-bit size an axis.
    if magic != 0x0800 + rank or len(content) != header_size + math.prod(shape):
        raise UserError(
            f"{filename} has {len(content)} bytes and does not begin as an idx file of rank {rank} "
            "of that size does; it is truncated or another file."
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _check_labels(splits: dict[str, _Parsed], names: dict[str, list[str]]) -> None:
    for split, parsed in splits.items():
        for key, values in parsed.labels.items():
            if values.max() >= len(names[key]):
                raise UserError(
                    f"The {split} data has the {key} {values.max()}, but there are only "
                    f"{len(names[key])} class names; the archive is damaged or of another dataset."
                )


# Writing.


def _write(
    dataset: str, splits: dict[str, _Parsed], names: dict[str, list[str]], root: Path, target: Path
) -> None:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{dataset}-") as temporary:
        builder: Any = tfds.builder(dataset, data_dir=temporary)
        for feature, class_names in names.items():
            builder.info.features[feature].names = class_names
        # The official builder yields arrays, which TFDS can only encode with TensorFlow; PNG
        # bytes, which Pillow makes, it stores as they are. Everything else stays the builder's.
        builder._split_generators = lambda dl_manager: {
            split: _examples(dataset, split, parsed) for split, parsed in splits.items()
        }
        # TFDS would print the temporary directory as the place of the dataset.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
        move_into_place(Path(builder.data_dir), target)


def _examples(dataset: str, split: str, parsed: _Parsed) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, image in enumerate(parsed.images):
        example: dict[str, Any] = {key: int(values[i]) for key, values in parsed.labels.items()}
        example["image"] = _encode_png(image)
        if dataset in _CIFAR:
            example["id"] = f"{split}_{i:05d}"
        yield i, example


def _encode_png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.squeeze())).save(file, "PNG")
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
      argv: the arguments, by default those of the process.

    Returns:
      0 when the dataset is prepared, 1 after printing what is wrong.

    Example:
      >>> main(["--dataset=cifar11"])
      1
    """
    parser = argparse.ArgumentParser(prog="python -m genreg_jax.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dataset", required=True, help=", ".join((*DATASETS, *SETS)))
    parser.add_argument("--archive", help="official archive, or the directory of several")
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    parser.add_argument("--url", help="another address to download from")
    parser.add_argument("--sha256", help="expected SHA-256, comma-separated where several files")
    args = parser.parse_args(argv)

    def command() -> None:
        target = prepare(
            args.dataset,
            args.data_dir,
            archive=args.archive,
            url=args.url,
            sha256=args.sha256.split(",") if args.sha256 else None,
        )
        print(f"{args.dataset} is ready in {target}")
        if args.dataset in SETS:
            print(f"Licence: {SETS[args.dataset].licence}")

    return through(command)


if __name__ == "__main__":
    leave(main())
