"""An exported classifier, loaded without this package, predicts what the run predicts."""

import json
import subprocess
import sys

import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax import export

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
