"""An exported classifier, loaded without this package, predicts what the run predicts."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import genreg_jax as gr
from genreg_jax import export
from genreg_jax.data.files import read_images

LOADER = """
import json, sys
import numpy as np
from jax import export
from safetensors.numpy import load_file
folder = sys.argv[1]
model = export.deserialize(open(folder + "/model.stablehlo", "rb").read())
images = np.load(folder + "/images.npy")
for size in (1, 5, len(images)):
    probabilities, embedding = model.call(images[:size])
about = json.load(open(folder + "/model.json"))
tensors = load_file(folder + "/parameters.safetensors")
assert {n: [list(a.shape), str(a.dtype)] for n, a in tensors.items()} == about["tensors"]
np.savez(folder + "/found.npz", probabilities=probabilities, embedding=embedding,
         kernel=tensors["params/head/kernel"])
assert not any(name.startswith("genreg") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = {
        "data": {"name": "digits", "per_class": 10},
        "model": {"widths": [8, 16]},
        "train": {"epochs": 1, "steps_per_epoch": 5, "batch_size": 16, "progress": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)
        gr.train_and_evaluate(config, workdir)
    return workdir


def test_the_round_trip_needs_nothing_of_this_package(workdir, tmp_path):
    folder = tmp_path / "exported"
    assert export.main([f"--workdir={workdir}", f"--output={folder}"]) == 0
    images = gr.data.load("digits").test.images[:37]
    np.save(folder / "images.npy", images)
    subprocess.run([sys.executable, "-c", LOADER, str(folder)], check=True, timeout=120)
    run = gr.load(workdir)
    expected = run.predict(images)
    with np.load(folder / "found.npz") as found:
        np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-6)
        np.testing.assert_allclose(found["embedding"], expected.embedding, atol=1e-6)
        np.testing.assert_array_equal(found["kernel"], run.params["head"]["kernel"])
    about = json.loads((folder / "model.json").read_text())
    assert about["class_names"] == list("0123456789") and about["image_shape"] == [8, 8, 1]
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert "genreg" not in (folder / "README.md").read_text().split("```python")[1]


@pytest.mark.parametrize("resize", ["crop", "pad"])
@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (1, "L"), (3, "RGB"), (3, "P")])
def test_the_readme_brings_a_picture_to_the_size_as_the_run_does(
    workdir, tmp_path, monkeypatch, resize, channels, mode
):
    run = gr.load(workdir)
    data = dataclasses.replace(run.config.data, resize=resize)
    height, width = 7, 9
    run = dataclasses.replace(
        run,
        config=dataclasses.replace(run.config, data=data),
        image_shape=(height, width, channels),
    )
    monkeypatch.setattr(export.jax_export, "export", lambda *args, **kwargs: lambda *args: _Program)
    folder = export.export(run, tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    (code,) = [b for b in (folder / "README.md").read_text().split("```") if "ImageOps" in b]
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    for size in ((31, 23), (12, 40), (width, height)):
        values = np.random.default_rng(4).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(values).convert(mode).save("picture.png", exif=exif)
        found = {}
        exec(code.removeprefix("python"), found)
        expected = read_images(Path("picture.png"), run.image_shape, (), resize=resize).images
        np.testing.assert_array_equal(found["images"], expected)
        assert found["images"].shape == (1, height, width, channels)


class _Program:
    """Of a model that nobody calls."""

    out_avals = (None, np.zeros((1, 5)))
    serialize = staticmethod(lambda: b"")


def test_what_cannot_be_exported_ends_in_a_paragraph(workdir, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    for arguments, words in [
        ([f"--workdir={tmp_path}", f"--output={tmp_path / 'new'}"], "holds no trained classifier"),
        ([f"--workdir={workdir}", f"--output={tmp_path}"], "is not an empty folder"),
    ]:
        assert export.main(arguments) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
