"""`python -m genreg_jax.augment`: perturbed copies of a folder or an .npz, and what is refused."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import genreg_jax as gr
from genreg_jax.augment.__main__ import main
from genreg_jax.checkpoint import CheckpointReader
from genreg_jax.restore import restore_classifier


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run with a conditional flow and a classifier."""
    workdir = tmp_path_factory.mktemp("run")
    config = {
        "data": {"name": "digits", "per_class": 8, "validation_fraction": 0.05},
        "model": {"widths": [4, 6]},
        "latent": {"kind": "random"},
        "flow": {"levels": 1, "steps": 1, "width": 4, "updates": 2, "eval_every": 2},
        "train": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 16, "progress": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)
        gr.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def digits():
    split = gr.data.load("digits").test
    return split.images[:20], split.labels[:20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("images")
    for i, (image, label) in enumerate(zip(*digits)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / str(label) / f"{i:02d}.png")
    return folder


def command(workdir, images, output, *options):
    return main([f"--flow={workdir}", f"--input={images}", f"--output={output}", *options])


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def pictures(folder):
    files = sorted(folder.rglob("*.png"))
    return {str(f.relative_to(folder)): np.asarray(Image.open(f)) for f in files}


def test_a_folder_comes_back_perturbed_under_the_same_names(tmp_path, workdir, folder, capsys):
    given = pictures(folder)
    for name, epsilon in (("same", 0), ("moved", 0.3), ("again", 0.3)):
        assert command(workdir, folder, tmp_path / name, f"--epsilon={epsilon}") == 0
    assert "20 images in" in capsys.readouterr().out
    same, moved, again = (pictures(tmp_path / name) for name in ("same", "moved", "again"))
    assert same.keys() == moved.keys() == given.keys()
    for name, image in given.items():
        np.testing.assert_array_equal(same[name], image)
        np.testing.assert_array_equal(moved[name], again[name])
    changed = np.mean([np.abs(moved[n].astype(int) - given[n]).max() > 8 for n in given])
    assert changed > 0.9


@pytest.mark.parametrize("kind", ["away", "interpolation", "adversarial"])
def test_an_npz_comes_back_as_an_npz(tmp_path, workdir, digits, kind):
    images, labels = digits
    np.savez(tmp_path / "in.npz", images=images, labels=labels)
    out, before = tmp_path / "out", contents(workdir)
    assert command(workdir, tmp_path / "in.npz", out, f"--kind={kind}", "--copies=2") == 0
    assert contents(workdir) == before, "a reader changes nothing"
    with np.load(out / "images.npz") as result:
        assert result["images"].shape == (40, 8, 8, 1) and result["images"].dtype == np.uint8
        np.testing.assert_array_equal(result["labels"], np.tile(labels, 2))
        first, second = np.split(result["images"], 2)
    assert np.any(first != images) and np.any(second != first)


def test_what_cannot_be_used_ends_in_a_paragraph_and_nothing_is_written(
    tmp_path, workdir, folder, digits, capsys
):
    images, labels = digits
    save = lambda name, **arrays: np.savez(tmp_path / name, **arrays)
    save("plain.npz", images=images)
    save("large.npz", images=np.zeros((2, 10, 10, 1), np.uint8), labels=np.zeros(2, int))
    save("wrong.npz", images=images, labels=labels + 5)
    save("other.npz", x=images)
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    shutil.copy(next(folder.rglob("*.png")), tmp_path / "flat")
    shutil.copytree(folder, tmp_path / "odd")
    shutil.copytree(folder / str(labels[0]), tmp_path / "odd" / "three")
    shutil.copytree(folder, tmp_path / "double")
    one = next((tmp_path / "double").rglob("*.png"))
    shutil.copy(one, one.with_suffix(".tiff"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no picture")
    for arguments, words in [
        ((tmp_path / "no", folder), "holds no trained flow"),
        ((workdir, tmp_path / "nothing"), "neither a folder of images nor an .npz"),
        ((workdir, tmp_path / "empty"), "There is no image in"),
        ((workdir, tmp_path / "flat"), "has no labels, which a flow conditioned on classes needs"),
        ((workdir, tmp_path / "odd"), "The subfolder 'three'"),
        ((workdir, tmp_path / "double"), "More than one image would be written as"),
        ((workdir, tmp_path / "text"), "1 of 1 pictures cannot be read"),
        ((workdir, tmp_path / "plain.npz"), "has no labels"),
        ((workdir, tmp_path / "large.npz"), "and (8, 8, 1) is needed"),
        ((workdir, tmp_path / "wrong.npz"), "must be one integer from 0 to 9"),
        ((workdir, tmp_path / "other.npz"), "not an .npz with an array `images`"),
        ((workdir, folder, "--epsilon=-1"), "epsilon is -1.0"),
        ((workdir, folder, "--kind=adversarial", "--num_steps=0"), "num_steps is 0"),
        ((workdir, folder, "--copies=0"), "copies must be at least 1"),
        ((workdir, folder, "--ratio=2"), "ratio is 2.0"),
    ]:
        given, images, *options = arguments
        assert command(given, images, tmp_path / "out", *options) == 1, words
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert command(workdir, folder, folder) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_an_adversarial_perturbation_needs_a_classifier(tmp_path, workdir, folder, capsys):
    shutil.copytree(workdir / "flow", tmp_path / "flow")
    assert command(tmp_path, folder, tmp_path / "out", "--kind=adversarial") == 1
    assert "holds no trained classifier" in capsys.readouterr().err


def test_an_adversarial_perturbation_says_that_a_classifier_is_not_of_this_library(
    tmp_path, workdir, folder, capsys
):
    def apply(params, model_state, x, *, rng, train):
        embedding = x.reshape(len(x), -1)
        return gr.Outputs(embedding @ params, embedding), model_state

    model = gr.Model(lambda key, x: (jnp.zeros((x[0].size, 10)), {}), apply)
    config = json.loads((workdir / "config.json").read_text())
    config["latent"]["kind"], config["data"]["per_class"] = "none", 8
    shutil.copytree(workdir / "flow", tmp_path / "own" / "flow")
    gr.train_and_evaluate(config, tmp_path / "run", model=model)
    shutil.copytree(tmp_path / "run", tmp_path / "own", dirs_exist_ok=True)
    assert command(tmp_path / "own", folder, tmp_path / "out", "--kind=adversarial") == 1
    error = capsys.readouterr().err
    assert "a classifier that its caller had made" in error and "--kind=random" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_classifier_of_an_earlier_version_is_refused_in_words(tmp_path, workdir, monkeypatch):
    restore = CheckpointReader.restore

    def without_record(self, like):
        step, tree, extra = restore(self, like)
        return step, tree, {k: v for k, v in extra.items() if k != "run"}

    monkeypatch.setattr(CheckpointReader, "restore", without_record)
    with pytest.raises(gr.UserError, match="is of an earlier version"):
        restore_classifier(workdir)
