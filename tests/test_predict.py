"""A run read back: its predictions, and the command that predicts pictures."""

import csv
import dataclasses
import io
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

import genreg_jax as gr
from genreg_jax import compare, export, predict, report, train
from genreg_jax.fingerprints import digest_of

CONFIG = {
    "data": {"name": "digits", "per_class": 10},
    "model": {"widths": [8, 16]},
    "train": {"epochs": 2, "steps_per_epoch": 10, "batch_size": 16, "progress": False},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what it predicted of its test set."""
    workdir, seen = tmp_path_factory.mktemp("run"), {}
    page = train.page_of_test

    def kept(dataset, test):
        seen.update(test)
        return page(dataset, test)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)
        patch.setattr(train, "page_of_test", kept)
        gr.train_and_evaluate(CONFIG, workdir)
    return workdir, seen


def snapshot(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_notebook_shows_a_run_by_its_report_which_runs_nothing(trained, tmp_path):
    run = gr.load(trained[0])
    assert "not finished" not in run._repr_html_() and "<iframe" not in run._repr_html_()
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text('<p class="a">é & <script>alert(1)</script></p>')
    page = gr.load(tmp_path / "run")._repr_html_()
    assert page.startswith('<iframe sandbox srcdoc="&lt;p class=&quot;a&quot;&gt;é &amp; ')
    assert "<script" not in page


def test_predictions_are_those_of_the_run_bit_for_bit_and_reading_changes_nothing(trained):
    workdir, seen = trained
    before = snapshot(workdir)
    run = gr.load(workdir)
    test = gr.data.load("digits", per_class=10).test
    found = run.predict(test.images)
    np.testing.assert_array_equal(found.labels, seen["predictions"])
    np.testing.assert_array_equal(found.embedding, seen["embeddings"])
    result = run.evaluate()
    assert result["accuracy"] == run.summary["test_accuracy"] == seen["accuracy"]
    assert result["loss"] == run.summary["test_loss"]
    # The probabilities are the softmax of the logits, and of the labels the largest.
    logits, _ = run.model.apply(
        run.params, run.model_state, jnp.asarray(test.images / 255.0, jnp.float32), rng=None,
        train=False,
    )  # fmt: skip
    p = np.exp(np.asarray(logits.logits, np.float64))
    np.testing.assert_allclose(found.probabilities, p / p.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(found.probabilities.argmax(1), found.labels)
    assert run.class_names == tuple("0123456789") and run.image_shape == (8, 8, 1)
    assert snapshot(workdir) == before and "test accuracy" in repr(run)


def test_images_come_in_many_forms(trained):
    run, images = gr.load(trained[0]), gr.data.load("digits").test.images[:4]
    expected = run.predict(images).probabilities
    forms = {
        "float": images / 255.0, "no channel": images[..., 0], "list": list(images),
        "rgb": np.repeat(images, 3, -1), "larger": np.kron(images, np.ones((1, 3, 3, 1), np.uint8)),
    }  # fmt: skip
    for name, form in forms.items():
        found = run.predict(form).probabilities
        atol = 0.3 if name == "larger" else 1e-6  # scaled down again by a wider filter
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=name)
    np.testing.assert_array_equal(run.predict(images[0]).probabilities[0], expected[0])
    sizes = run.predict([images[0, ..., 0], np.zeros((30, 50, 4), np.uint8)])
    np.testing.assert_array_equal(sizes.probabilities[0], expected[0])
    for wrong in ([], np.zeros(5), np.zeros((2, 8, 8, 7)), images.astype(int), images / 1.0):
        with pytest.raises(gr.UserError):
            run.predict(wrong)
    with pytest.raises(gr.UserError, match="train, validation and test"):
        run.evaluate("dev")


def test_a_model_of_ones_own_is_given_again(tmp_path):
    def apply(params, model_state, x, *, rng, train):
        embedding = x.reshape(len(x), -1)
        return gr.Outputs(embedding @ params["w"] + params["b"][None], embedding), model_state

    def init(key, x):
        return {"w": jnp.zeros((x[0].size, 10)), "b": jnp.zeros(10)}, {}

    model = gr.Model(init, apply)
    gr.train_and_evaluate(CONFIG, tmp_path, model=model)
    with pytest.raises(gr.UserError, match=r"gr\.load\(workdir, model=\.\.\.\)"):
        gr.load(tmp_path)
    run = gr.load(tmp_path, model)
    assert run.evaluate()["accuracy"] == run.summary["test_accuracy"]
    other = gr.Model(lambda key, x: ({"w": jnp.zeros((3, 10)), "b": jnp.zeros(10)}, {}), apply)
    with pytest.raises(gr.UserError, match=r"its 0/w is \(3, 10\) float32, and the run has \(64"):
        gr.load(tmp_path, other)


def test_labels_of_an_npz_count_its_own_names(trained, tmp_path, capsys):
    test = gr.data.load("digits").test
    names = list("9876543210")
    arrays = {"images": test.images, "labels": 9 - test.labels, "class_names": names}
    np.savez(tmp_path / "a.npz", **arrays)
    command = [f"--workdir={trained[0]}", f"--output={tmp_path / 'a.csv'}", "--input"]
    assert predict.main([*command, str(tmp_path / "a.npz")]) == 0
    accuracy = 100 * np.mean(trained[1]["predictions"] == test.labels)
    assert f"accuracy: {accuracy:.2f} %" in capsys.readouterr().out
    names[3] = "six"
    for wrong, words in (
        ({"class_names": names}, "six"),
        ({"labels": test.labels + 1}, "0 to 9"),
        ({"labels": test.labels[:, None]}, "0 to 9"),
        ({"labels": np.int64(3)}, "0 to 9"),
    ):
        np.savez(tmp_path / "b.npz", **(arrays | wrong))
        assert predict.main([*command, str(tmp_path / "b.npz")]) == 1
        assert words in capsys.readouterr().err


def test_pictures_of_one_class_are_compared_with_it(trained, tmp_path, capsys):
    test = gr.data.load("digits").test
    images = test.images[test.labels == 7]
    np.savez(
        tmp_path / "a.npz", images=images, labels=np.zeros(len(images), int), class_names=["7"]
    )
    assert predict.main([f"--workdir={trained[0]}", "--input", str(tmp_path / "a.npz")]) == 0
    accuracy = 100 * np.mean(trained[1]["predictions"][test.labels == 7] == 7)
    assert f"accuracy: {accuracy:.2f} %" in capsys.readouterr().err


def test_a_file_of_any_name_stands_in_the_table_and_home_is_home(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0], tmp_path / "home" / "run")
    (tmp_path / "home" / "in").mkdir()
    name = os.fsdecode(b"gr\xf6\xdfe.png")  # of another system's encoding
    Image.fromarray(gr.data.load("digits").test.images[0, ..., 0]).save(
        tmp_path / "home" / "in" / name
    )
    command = ["--workdir=~/run", "--output=~/out/a.csv", "--input", "~/in"]
    assert predict.main(command) == 0
    (line,) = csv.DictReader((tmp_path / "home" / "out" / "a.csv").open(encoding="utf-8"))
    assert line["file"] == r"gr\udcf6\udcdfe.png"
    assert export.main(["--workdir=~/run", "--output=~/exported"]) == 0
    assert (tmp_path / "home" / "exported" / "model.json").exists()
    config = {**CONFIG, "train": {**CONFIG["train"], "epochs": 1, "steps_per_epoch": 1}}
    config["model"] = {**CONFIG["model"], "init_from": "~/run"}
    first = gr.train_and_evaluate(config, "~/b")
    assert gr.load("~/b").summary == first == gr.train_and_evaluate(config, "~/b")
    assert compare.compare(["~/b"])[0]["n"] == "1" and report.regenerate("~/b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_folder_of_pictures_becomes_a_table(trained, tmp_path, capsys):
    workdir, seen = trained
    test = gr.data.load("digits").test
    rows = np.arange(30)
    for i in rows:
        path = tmp_path / "in" / str(test.labels[i]) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[i, ..., 0]).save(path)
    out = tmp_path / "out" / "table.csv"
    command = [f"--workdir={workdir}", f"--output={out}", "--input", str(tmp_path / "in")]
    assert predict.main(command) == 0
    lines = list(csv.DictReader(out.open()))
    assert list(lines[0]) == ["file", "label", *"0123456789"] and len(lines) == 30
    for line in lines:
        i = int(line["file"].split("/")[1][:2])
        assert line["label"] == str(seen["predictions"][i])
        assert sum(float(line[name]) for name in "0123456789") == pytest.approx(1, abs=1e-4)
    printed = capsys.readouterr().out
    right = int(np.sum(seen["predictions"][rows] == test.labels[rows]))
    assert f"30 predictions in {out}" in printed
    assert f"accuracy: {100 * right / 30:.2f} % ({right} of 30)" in printed
    matrix = confusion_matrix(test.labels[rows], seen["predictions"][rows], labels=range(10))
    shown = [line.split()[-10:] for line in printed.splitlines()[-10:]]
    np.testing.assert_array_equal(np.array(shown, int), matrix)
    # Printed where no file is named, and pictures without folders have no accuracy.
    one = next((tmp_path / "in").rglob("*.png"))
    assert predict.main([f"--workdir={workdir}", "--input", str(one), str(one)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("file,label,0,1,") and said.out.count("\n") == 3 and not said.err


def test_what_cannot_be_predicted_ends_in_a_paragraph(trained, tmp_path, capsys):
    workdir, _ = trained
    (tmp_path / "bad.png").write_text("no")
    for arguments, words in [
        ([f"--workdir={tmp_path}", "--input", str(tmp_path)], "holds no trained classifier"),
        (["--workdir=~nosuchuser", "--input", str(tmp_path)], "holds no trained classifier"),
        ([f"--workdir={workdir}", "--input", str(tmp_path / "no")], "neither a folder of images"),
        ([f"--workdir={workdir}", "--input", str(tmp_path)], "1 of 1 pictures cannot be read"),
    ]:
        assert predict.main(arguments) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_files_that_were_changed_are_refused_and_not_read_as_another_result(trained, tmp_path):
    workdir, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    changes = [
        ("summary.json", '"test_accuracy": 0', '"test_accuracy": 1', "its checksum does not fit"),
        ("summary.json", '"seed": 0', '"seed": [0', "is damaged"),
        ("config.json", '"stride"', '"max"', "is not the config that the run was trained with"),
        ("config.json", '"widths": [', '"widths": {', "is damaged"),
        ("config.json", '"epochs": 2', '"epochs": 1e999', "is damaged: the number 1e999"),
        ("config.json", '"epochs": 2', '"epochs": 12345678901234567890123', "is too large"),
        ("config.json", '"stride"', '"\\ud800"', "it holds half of a character"),
    ]
    for name, old, new, words in changes:
        path = tmp_path / "run" / name
        whole = path.read_text()
        assert whole.count(old) == 1, old
        path.write_text(whole.replace(old, new))
        with pytest.raises(gr.UserError, match=words):
            gr.load(tmp_path / "run")
        if name == "summary.json":
            with pytest.raises(gr.UserError, match=words):
                gr.train_and_evaluate(CONFIG, tmp_path / "run")
        path.write_text(whole)
    assert gr.load(tmp_path / "run").summary == gr.load(workdir).summary


@pytest.mark.parametrize(
    "change",
    [
        {"run": "x"},
        {"history": None},
        {"processes": [3]},
        {"stages": {"flow": "NaN"}},
        {"run": {"own": [[]]}},
        {"run": {"class_names": 5}},
        {"run": {"image_shape": [8, -1, 1]}},
        {"run": {"image_shape": [8, 8]}},
    ],
)
def test_a_checkpoint_that_says_odd_things_of_its_run_is_not_used(trained, tmp_path, change):
    shutil.copytree(trained[0], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/record/metadata"):
        record = json.loads(path.read_text())
        for name, value in change.items():
            there = record["extra"][name]
            record["extra"][name] = {**there, **value} if type(value) is dict else value
        record["digest"] = digest_of({n: v for n, v in record.items() if n != "digest"})
        path.write_text(json.dumps(record))
    with pytest.raises(gr.UserError):
        gr.load(tmp_path / "run")


def test_images_and_labels_of_ones_own_are_prepared_as_for_predict_and_checked(trained):
    run, test = gr.load(trained[0]), gr.data.load("digits").test
    images, labels = test.images[:20], test.labels[:20]
    large = np.kron(images, np.ones((1, 3, 2, 3), np.uint8))
    expected = run.predict(large)
    found = run.evaluate(gr.data.Split(large, labels.astype(np.int64)))
    np.testing.assert_array_equal(found["probabilities"], expected.probabilities)
    assert found["accuracy"] == np.mean(expected.labels == labels)
    p = expected.probabilities[np.arange(20), labels].astype(np.float64)
    assert found["loss"] == pytest.approx(-np.log(p).mean(), rel=1e-3)
    assert run.evaluate(gr.data.Split(list(images), list(labels)))["loss"] == pytest.approx(
        run.evaluate(gr.data.Split(images / 255.0, labels))["loss"]
    )
    for wrong, words in [
        (images, "split is an array of shape .*Split.* run.predict"),
        ((images, labels), "Split"),
        (gr.data.Split(images, [0, 1]), r"split.labels has the shape \(2,\).* 20 images"),
        (gr.data.Split(images, np.eye(10)[labels]), "argmax"),
        (gr.data.Split(images, labels + 0.0), "float64"),
        (gr.data.Split(images, None), "labels"),
        (gr.data.Split(images, [[0], [1, 2]]), "labels"),
        (gr.data.Split(images, labels + 90), "from 90 to 99; .* 0 to 9"),
        (gr.data.Split(images, labels - 1), "from -1 to 8"),
        (gr.data.Split(images, labels + np.int64(2**32)), "0 to 9"),
        (gr.data.Split(images + 0.0, labels), r"values from 0 to 255; they must lie in \[0, 1\]"),
        (gr.data.Split(images[:0], labels[:0]), "nothing empty"),
    ]:
        with pytest.raises(gr.UserError, match=words):
            run.evaluate(wrong)


def _arrays():
    rng = np.random.default_rng(3)
    images, labels = rng.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8), np.arange(60) % 3
    return images, labels


@pytest.mark.parametrize("name", ["arrays", "digits"])
def test_a_run_of_arrays_says_how_to_evaluate_it(tmp_path, name):
    images, labels = _arrays()
    dataset = gr.data.from_arrays(
        images[:30], labels[:30], images[30:], labels[30:], name=name, validation_fraction=0
    )
    config = {"train": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "progress": False}}
    gr.train_and_evaluate(config, tmp_path, dataset=dataset)
    words = r"dataset in memory.*run\.evaluate\(dataset\.test\), with the same dataset"
    run = gr.load(tmp_path)
    with pytest.raises(gr.UserError, match=words) as raised:
        run.evaluate()
    assert ("is of other images" in str(raised.value)) == (name == "digits")
    assert run.evaluate(dataset.test)["accuracy"] == run.summary["test_accuracy"]
    # A run that is not finished knows its images too.
    (tmp_path / "summary.json").unlink()
    with pytest.raises(gr.UserError, match=words):
        gr.load(tmp_path).evaluate()


def test_a_split_without_images_is_named(tmp_path):
    config = {**CONFIG, "data": {**CONFIG["data"], "validation_fraction": 0.0}}
    gr.train_and_evaluate(config, tmp_path)
    with pytest.raises(gr.UserError, match="has no validation images"):
        gr.load(tmp_path).evaluate("validation")


def test_a_run_that_is_not_finished_says_so(trained, tmp_path, capsys):
    """Stopped between two epochs: one of its checkpoints, and no summary."""
    folder = tmp_path / "a run"
    images, labels = _arrays()
    dataset = gr.data.from_arrays(images, labels)

    def stop(step, metrics):
        if step == 6:
            raise KeyError("stopped")

    config = {**CONFIG, "train": {**CONFIG["train"], "epochs": 4, "steps_per_epoch": 0,
                                  "batch_size": 14}}  # fmt: skip
    with pytest.raises(KeyError):
        gr.train_and_evaluate(config, folder, dataset=dataset, callbacks=[stop])
    capsys.readouterr()
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "a.png")
    command = [f"--workdir={folder}", "--input", str(tmp_path / "a.png")]
    assert predict.main(command) == 0
    said = capsys.readouterr()
    assert said.out.startswith("file,label,0,1,2\na.png,") and said.err.count("\n") == 1
    assert f"is not finished: its classifier is the best one after 3 of {3 * 4} updates" in said.err
    assert f"--workdir='{folder}', continues it" in said.err
    assert export.main([f"--workdir={folder}", f"--output={tmp_path / 'out'}"]) == 0
    assert "after 3 of 12 updates" in capsys.readouterr().err
    assert predict.main([f"--workdir={trained[0]}", *command[1:]]) == 0
    assert capsys.readouterr().err == ""
    # Before its first checkpoint there is nothing to go on with.
    shutil.rmtree(folder / "checkpoints")
    assert predict.main(command) == 1
    error = capsys.readouterr().err
    assert "is not finished" in error and f"--workdir='{folder}', continues it" in error
    assert "no classifier yet" in error and error.count("\n") == 1


@pytest.fixture
def pictures(tmp_path):
    """Writes small pictures, and returns the folder that they are in."""

    def write(*names):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 99).save(path)
        return tmp_path / "in"

    return write


def test_the_option_of_the_command_is_named_for_unreadable_pictures(trained, pictures, capsys):
    folder = pictures("a.png", "b.png")
    (folder / "b.png").write_text("no")
    command = [f"--workdir={trained[0]}", "--input", str(folder)]
    assert predict.main(command) == 1
    error = capsys.readouterr().err
    assert "--unreadable=skip" in error and "config" not in error and error.count("\n") == 1
    assert predict.main([*command, "--unreadable=skip"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("names", [("x/a.png", "y/b.png", "c.png"), ("train/0/a.png",)])
def test_a_folder_without_classes_is_predicted_and_says_so(trained, pictures, capsys, names):
    folder = pictures(*names)
    assert predict.main([f"--workdir={trained[0]}", "--input", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1 + len(names) and said.err.count("\n") == 1
    assert f"no subfolder of {folder} is one of the run's classes (0, 1, 2, 3" in said.err
    assert names[0].split("/")[0] in said.err and "Predicted without comparing" in said.err


def test_pictures_beside_the_folders_of_classes_are_named(trained, pictures, capsys):
    folder = pictures("0/a.png", "1/b.png", "loose.png", "cat/c.png")
    assert predict.main([f"--workdir={trained[0]}", "--input", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "2 that are in none: loose.png, cat/c.png. Move them" in error
    assert error.count("\n") == 1


def test_a_table_is_answered_with_what_to_give(trained, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("file,label\n")
    assert predict.main([f"--workdir={trained[0]}", "--input", str(tmp_path / "x.csv")]) == 1
    error = capsys.readouterr().err
    assert "is a table" in error and "the folder of the pictures" in error


def test_the_table_has_columns_of_other_names_and_no_formulas(trained):
    run = gr.load(trained[0])
    names = ("file", "label", "file_", "=1+1", "-x", "@y", "+z", "a=b", "'q", "ok")
    run = dataclasses.replace(run, class_names=names)
    p = np.full((2, 10), 0.1, np.float32)
    found = predict.Prediction(np.array([3, 0]), p, p)
    lines = list(csv.reader(io.StringIO(predict._table(run, ["=a.png", "b=.png"], found))))
    assert lines[0] == ["file__", "label_", "file", "label", "file_", "'=1+1", "'-x", "'@y", "'+z",
                        "a=b", "'q", "ok"]  # fmt: skip
    assert [line[:2] for line in lines[1:]] == [["'=a.png", "'=1+1"], ["b=.png", "file"]]
    plain = dataclasses.replace(run, class_names=tuple("0123456789"))
    assert predict._table(plain, ["a", "b"], found).startswith("file,label,0,1,")
