"""Preparing official archives without TensorFlow, against archives written by hand."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from genreg_jax.data import prepare as prepare_lib
from genreg_jax.errors import UserError

ROOT = Path(__file__).parents[1]

READ_BACK = """
import sys
import numpy as np
import tensorflow_datasets as tfds

name, data_dir, out = sys.argv[1:]
arrays = {}
for split in ("train", "test"):
    examples = list(tfds.data_source(name, split=split, data_dir=data_dir))
    for key in examples[0]:
        arrays[f"{split}_{key}"] = np.array([example[key] for example in examples])
features = tfds.builder(name, data_dir=data_dir).info.features
for key in ("label", "coarse_label"):
    if key in features:
        arrays[f"{key}_names"] = np.array(features[key].names)
assert sys.modules.get("tensorflow") is None
np.savez(out, **arrays)
"""


def random_images(num, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


def cifar_bytes(images, *labels):
    """CIFAR's binary records, written plane by plane."""
    out = b""
    for i, image in enumerate(images):
        out += bytes(int(values[i]) for values in labels)
        for channel in range(3):
            for row in range(32):
                out += bytes(image[row, :, channel].tolist())
    return out


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sha256_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def cifar10_members(images, labels):
    folder = "cifar-10-batches-bin"
    members = {f"{folder}/batches.meta.txt": b"".join(b"name%d\n" % c for c in range(10)) + b"\n"}
    for k in range(5):
        part = slice(4 * k, 4 * k + 4)
        content = cifar_bytes(images["train"][part], labels["train"][part])
        members[f"{folder}/data_batch_{k + 1}.bin"] = content
    members[f"{folder}/test_batch.bin"] = cifar_bytes(images["test"], labels["test"])
    return members


@pytest.fixture
def cifar10(tmp_path):
    images = {"train": random_images(20, 32, 32, 3), "test": random_images(6, 32, 32, 3, seed=1)}
    labels = {"train": np.arange(20) % 10, "test": np.arange(6)}
    archive = write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10_members(images, labels))
    return archive, images, labels


@pytest.fixture
def serve():
    """Serve a directory on 127.0.0.1 and return its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def start(directory):
        handler = functools.partial(Quiet, directory=str(directory))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(arguments, tmp_path):
    """Run Python where importing TensorFlow raises, as an installed but forbidden package."""
    blocked = tmp_path / "blocked" / "tensorflow"
    blocked.mkdir(parents=True, exist_ok=True)
    (blocked / "__init__.py").write_text("raise AssertionError('TensorFlow was imported')")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(blocked.parent), str(ROOT)]),
        "JAX_PLATFORMS": "cpu",
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def command(*arguments):
    return ["-m", "genreg_jax.data.prepare", *arguments]


def read_back(name, data_dir, tmp_path):
    out = tmp_path / "read_back.npz"
    done = run(["-c", READ_BACK, name, data_dir, out], tmp_path)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def by_bytes(images, *labels):
    return sorted((im.tobytes(), *map(int, ys)) for im, *ys in zip(images, *labels))


def test_cifar10_downloaded_prepared_and_read_back(cifar10, serve, tmp_path):
    archive, images, labels = cifar10
    data_dir = tmp_path / "tfds"
    url = f"{serve(archive.parent)}/{archive.name}"
    flags = [f"--url={url}", f"--sha256={sha256_of(archive)}", f"--data_dir={data_dir}"]
    done = run(command("--dataset=cifar10", *flags), tmp_path)
    assert done.returncode == 0, done.stderr
    target = data_dir / "cifar10" / "3.0.2"
    assert str(target) in done.stdout
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]
    assert [p.name for p in target.parent.iterdir()] == ["3.0.2"]
    assert (target / "features.json").is_file() and (target / "label.labels.txt").is_file()

    back = read_back("cifar10", data_dir, tmp_path)
    assert back["label_names"].tolist() == [f"name{c}" for c in range(10)]
    for split in ("train", "test"):
        ids = back[f"{split}_id"].astype(str).tolist()
        assert sorted(ids) == [f"{split}_{i:05d}" for i in range(len(images[split]))]
        where = [int(one.rsplit("_")[-1]) for one in ids]
        np.testing.assert_array_equal(back[f"{split}_image"], images[split][where])
        np.testing.assert_array_equal(back[f"{split}_label"], labels[split][where])

    # Once prepared, nothing is needed any more: neither the address nor the archive.
    assert prepare_lib.prepare("cifar10", data_dir, url="http://127.0.0.1:1/") == target


def test_cifar100_has_both_labels(tmp_path):
    images = {"train": random_images(9, 32, 32, 3), "test": random_images(5, 32, 32, 3, seed=1)}
    fine = {"train": np.arange(9) * 11, "test": np.arange(5) + 3}
    coarse = {"train": np.arange(9) * 2 + 1, "test": np.arange(5)}
    folder = "cifar-100-binary"
    members = {
        f"{folder}/{split}.bin": cifar_bytes(images[split], coarse[split], fine[split])
        for split in images
    }
    members[f"{folder}/fine_label_names.txt"] = b"\n".join(b"fine%d" % c for c in range(100))
    members[f"{folder}/coarse_label_names.txt"] = b"\n".join(b"coarse%d" % c for c in range(20))
    archive = write_tar(tmp_path / "a.tar.gz", members)
    data_dir = tmp_path / "tfds"
    prepare_lib.prepare("cifar100", data_dir, archive=archive, sha256=[sha256_of(archive)])
    back = read_back("cifar100", data_dir, tmp_path)
    for split in images:
        got = [back[f"{split}_{key}"] for key in ("image", "coarse_label", "label")]
        assert by_bytes(*got) == by_bytes(images[split], coarse[split], fine[split])
    assert back["label_names"][99] == "fine99" and back["coarse_label_names"][19] == "coarse19"


def write_idx(directory, images, labels):
    """Write the four files of Fashion-MNIST; return their checksums in TFDS's order."""
    directory.mkdir(exist_ok=True)
    for prefix, split in (("train", "train"), ("t10k", "test")):
        header = struct.pack(">4I", 0x803, len(images[split]), 28, 28)
        with gzip.open(directory / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images[split].tobytes())
        with gzip.open(directory / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2I", 0x801, len(labels[split])) + bytes(labels[split]))
    return [sha256_of(path) for path in sorted(directory.iterdir())]


def test_fashion_mnist_from_a_directory_and_from_a_server(serve, tmp_path):
    images = {"train": random_images(12, 28, 28, 1), "test": random_images(7, 28, 28, 1, seed=1)}
    labels = {"train": [i % 10 for i in range(12)], "test": [9 - i for i in range(7)]}
    files = tmp_path / "files"
    sha256 = write_idx(files, images, labels)
    by_hand, by_url = tmp_path / "by_hand", tmp_path / "by_url"
    prepare_lib.prepare("fashion_mnist", by_hand, archive=files, sha256=sha256)
    prepare_lib.prepare("fashion_mnist", by_url, url=serve(files), sha256=sha256)
    for data_dir in (by_hand, by_url):
        back = read_back("fashion_mnist", data_dir, tmp_path)
        assert back["label_names"][9] == "Ankle boot"
        for split in images:
            got = by_bytes(back[f"{split}_image"], back[f"{split}_label"])
            assert got == by_bytes(images[split], labels[split])


def test_the_registered_checksums_are_the_published_ones():
    (remote,) = prepare_lib.registered("cifar10")
    assert remote.sha256 == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    assert remote.size == 170052171 and remote.filename == "cifar-10-binary.tar.gz"
    assert len(prepare_lib.registered("fashion_mnist")) == 4


@pytest.mark.parametrize("given", ["archive", "url"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(given, cifar10, serve, tmp_path):
    archive, *_ = cifar10
    data_dir = tmp_path / "tfds"
    source = archive if given == "archive" else f"{serve(archive.parent)}/{archive.name}"
    # Without --sha256 the registered checksum counts, and the fake archive is not the real one.
    done = run(
        command("--dataset=cifar10", f"--{given}={source}", f"--data_dir={data_dir}"), tmp_path
    )
    assert done.returncode == 1
    assert "is not the expected cifar-10-binary.tar.gz" in done.stderr
    assert sha256_of(archive) in done.stderr and "c4a38c50a1bc5f3a" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not data_dir.exists()


def test_one_flipped_bit_is_refused(cifar10, tmp_path):
    archive, *_ = cifar10
    sha256 = sha256_of(archive)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match="is not the expected"):
        prepare_lib.prepare("cifar10", tmp_path / "tfds", archive=archive, sha256=[sha256])
    assert not (tmp_path / "tfds").exists()


def broken_archives(tmp_path, images, labels):
    members = cifar10_members(images, labels)
    whole = write_tar(tmp_path / "whole.tar.gz", members).read_bytes()
    last = "cifar-10-batches-bin/data_batch_5.bin"
    without_last = {name: content for name, content in members.items() if name != last}
    yield "truncated", whole[: len(whole) // 2], "cannot be read"
    yield "not gzip", b"<html>Not found</html>", "cannot be read"
    missing = write_tar(tmp_path / "missing.tar.gz", without_last).read_bytes()
    yield "member missing", missing, "data_batch_5.bin"
    partial = write_tar(tmp_path / "partial.tar.gz", {**members, last: members[last][:-1]})
    yield "partial record", partial.read_bytes(), "not a whole number of records"
    wrong = write_tar(tmp_path / "wrong.tar.gz", {**members, last: b"\x0b" + members[last][1:]})
    yield "label too large", wrong.read_bytes(), "has the label 11, but there are only 10"


def test_archives_that_pass_the_checksum_but_are_broken(cifar10, tmp_path):
    _, images, labels = cifar10
    for case, content, message in broken_archives(tmp_path, images, labels):
        archive = tmp_path / "broken.tar.gz"
        archive.write_bytes(content)
        with pytest.raises(UserError, match=message):
            prepare_lib.prepare(
                "cifar10", tmp_path / "tfds", archive=archive, sha256=[sha256_of(archive)]
            )
        assert not (tmp_path / "tfds").exists(), case


def test_a_link_in_the_archive_is_not_followed(cifar10, tmp_path):
    archive, images, labels = cifar10
    secret = tmp_path / "secret"
    secret.write_bytes(b"outside")
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-bin/batches.meta.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(UserError, match="not a plain file"):
        prepare_lib.prepare(
            "cifar10", tmp_path / "tfds", archive=archive, sha256=[sha256_of(archive)]
        )


def test_idx_files_that_are_truncated_or_do_not_match(tmp_path):
    images = {"train": random_images(4, 28, 28, 1), "test": random_images(4, 28, 28, 1)}
    short, cut = tmp_path / "short", tmp_path / "cut"
    write_idx(short, images, {"train": [0, 1, 2], "test": [0, 1, 2, 3]})
    write_idx(cut, images, {"train": [0, 1, 2, 3], "test": [0, 1, 2, 3]})
    path = cut / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    for files, message in (
        (short, "train files hold images of the shape"),
        (cut, "t10k-labels-idx1-ubyte.gz has 11 bytes .* truncated"),
    ):
        sha256 = [sha256_of(path) for path in sorted(files.iterdir())]
        with pytest.raises(UserError, match=message):
            prepare_lib.prepare("fashion_mnist", tmp_path / "tfds", archive=files, sha256=sha256)


def test_an_interruption_while_writing_leaves_nothing(cifar10, tmp_path, monkeypatch):
    archive, *_ = cifar10
    calls = []

    def encode(image):
        calls.append(image)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return original(image)

    original = prepare_lib._encode_png
    monkeypatch.setattr(prepare_lib, "_encode_png", encode)
    data_dir = tmp_path / "tfds"
    with pytest.raises(KeyboardInterrupt):
        prepare_lib.prepare("cifar10", data_dir, archive=archive, sha256=[sha256_of(archive)])
    assert list(data_dir.iterdir()) == []
    monkeypatch.setattr(prepare_lib, "_encode_png", original)
    target = prepare_lib.prepare("cifar10", data_dir, archive=archive, sha256=[sha256_of(archive)])
    assert (target / "dataset_info.json").is_file()


def test_an_unreachable_and_a_silent_address_fail_within_seconds(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        free = socket.create_server(("127.0.0.1", 0))
        closed_port = free.getsockname()[1]
        free.close()
        for port in (silent.getsockname()[1], closed_port):
            start = time.monotonic()
            with pytest.raises(UserError, match=r"cannot be downloaded .* --archive=PATH"):
                prepare_lib.prepare(
                    "cifar10", tmp_path / "tfds", url=f"http://127.0.0.1:{port}/x", timeout=1.0
                )
            assert time.monotonic() - start < 4
    assert not (tmp_path / "tfds").exists()


def test_slow_name_resolution_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(5))
    start = time.monotonic()
    with pytest.raises(UserError, match="no connection within 0.5 seconds"):
        prepare_lib.prepare("cifar10", tmp_path, url="http://nowhere.invalid/x", timeout=0.5)
    assert time.monotonic() - start < 3


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers as its path says."""

    def do_GET(self):
        self.send_response(302 if "away" in self.path or "round" in self.path else 200)
        if "away" in self.path:
            self.send_header("Location", f"file://{__file__}")
        if "round" in self.path:
            self.send_header("Location", self.path)
        if "short" in self.path:
            self.send_header("Content-Length", "5")
        if "long" in self.path:
            self.send_header("Content-Length", "50")
        self.end_headers()
        self.wfile.write(b"not the archive")
        while "drips" in self.path or "stops" in self.path:
            time.sleep(0.05 if "drips" in self.path else 3)
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("drips", "less than 1024 bytes a second came"),
        ("stops", "timed out"),
        ("away", "Redirection to url"),
        ("round", "infinite loop"),
        ("short", "it has 5 bytes"),
        ("long", "it has 15 bytes"),
    ],
)
def test_odd_servers_end_in_a_paragraph_within_seconds(path, message, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.daemon_threads, start = True, time.monotonic()
        url = f"http://127.0.0.1:{server.server_port}/{path}"
        with pytest.raises(UserError, match=message):
            prepare_lib.prepare("cifar10", tmp_path / "tfds", url=url, timeout=0.4)
        assert time.monotonic() - start < 4
        server.shutdown()


def odd_archives(members):
    """Name to an archive in which one member is odd."""
    name = "cifar-10-batches-bin/data_batch_1.bin"

    def tar(**fields):
        out = io.BytesIO()
        with tarfile.open(
            fileobj=out, mode="w:gz", format=fields.pop("format", tarfile.PAX_FORMAT)
        ) as file:
            for key, content in members.items():
                member = tarfile.TarInfo(key)
                member.size = len(content)
                for field, value in fields.items() if key == name else ():
                    setattr(member, field, value)
                file.addfile(member, io.BytesIO(content) if member.isreg() else None)
        return out.getvalue()

    for kind in (
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    ):
        yield f"type {kind}", tar(type=kind, linkname="/etc/passwd"), "not a plain file"
    for odd in (
        f"/{name}",
        f"../{name}",
        f"./{name}",
        name.upper(),
        f"{name}\n",
        "a" * 5000,
        "\udcff",
        "",
    ):
        yield f"name {odd[:40]!r}", tar(name=odd), "data_batch_1.bin"
    for sparse in ("x", "9" * 400, "0,1,2"):
        headers = {"GNU.sparse.map": sparse, "GNU.sparse.size": "5"}
        yield f"sparse {sparse[:9]}", tar(pax_headers=headers), "archive"
    yield "a huge size", tar(pax_headers={"size": str(2**62)}), "archive"
    raw = bytearray(gzip.decompress(tar()))
    at = raw.index(name.encode())
    for field, value in {
        "size": (124, b"\x80" + b"\xff" * 11),
        "negative": (124, b"\xff" * 12),
        "checksum": (148, b"99999999"),
    }.items():
        other = bytearray(raw)
        other[at + value[0] : at + value[0] + len(value[1])] = value[1]
        if field != "checksum":
            other[at + 148 : at + 156] = b" " * 8
            other[at + 148 : at + 156] = b"%06o\0 " % sum(other[at : at + 512])
        yield f"header {field}", gzip.compress(other), "archive"


def test_odd_members_of_an_archive_end_in_a_paragraph(cifar10, tmp_path, monkeypatch):
    _, images, labels = cifar10
    members = cifar10_members(images, labels)
    path = tmp_path / "odd.tar.gz"
    for case, content, message in odd_archives(members):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            prepare_lib.prepare(
                "cifar10", tmp_path / "tfds", archive=path, sha256=[sha256_of(path)]
            )
        assert not (tmp_path / "tfds").exists(), case
    monkeypatch.setattr(prepare_lib, "MAX_BYTES", 10**6)
    path.write_bytes(gzip.compress(bytes(10**7)))  # a thousand times its size
    with pytest.raises(UserError, match="unpacks to more than 1,000,000 bytes"):
        prepare_lib.prepare("cifar10", tmp_path / "tfds", archive=path, sha256=[sha256_of(path)])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="it is not a plain file"):
        prepare_lib.prepare("cifar10", tmp_path / "tfds", archive=tmp_path / "fifo")


def test_other_mistakes_are_one_paragraph(tmp_path, capsys):
    blocked = tmp_path / "cifar10" / "3.0.2"
    blocked.mkdir(parents=True)
    data_dir = f"--data_dir={tmp_path}"
    cases = [
        (["--dataset=cifar11"], "must be one of cifar10, cifar100, fashion_mnist"),
        (["--dataset=cifar10", data_dir], "exists already"),
        (["--dataset=cifar100", "--archive=/no/such", data_dir], "/no/such cannot be read"),
        (["--dataset=fashion_mnist", f"--archive={__file__}", data_dir], "is not a directory"),
        (["--dataset=fashion_mnist", "--sha256=abc", data_dir], "sha256 has 1 values"),
        (["--dataset=cifar100", "--url=nonsense", data_dir], "cannot be downloaded"),
    ]
    for arguments, message in cases:
        assert prepare_lib.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
