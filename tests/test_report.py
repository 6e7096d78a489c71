"""The report: one file, everything escaped, nothing fetched, the same from the command line."""

import ast
import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import genreg_jax as gr
from genreg_jax import data, logs, report
from genreg_jax.errors import UserError
from genreg_jax.evaluate import class_similarity
from genreg_jax.report import charts, page, pictures
from genreg_jax.report.images import grid, read_caption, save_png
from genreg_jax.samples import Samples

EVIL = "<script>alert('$x_1$ & \"y\"')</script>"

SUMMARY = {
    "test_accuracy": 0.9722,
    "test_examples": 360,
    "validation_accuracy": 0.9611,
    "train_examples": 1437,
    "steps": 1200,
    "seconds": 200.4,
    "images_per_second": 3456.7,
    "seed": 0,
    "best_step": 20,
    "device": {"platform": "cpu", "kind": "Some CPU", "count": 2},
    "versions": {"python": "3.11.7", "jax": "0.10.2", "genreg-jax": None},
    "commit": "0123abcd",
    "config_hash": "feedbeef",
}
COMMAND = "python -m genreg_jax.main --config=configs/mgr_digits.py --workdir=runs/a"
CONFIG = {"seed": 0, "mgr": {"weight": 0.5, "mode": "reverse"}, "data": {"dir": EVIL}}


class _Page(HTMLParser):
    """Collects what a test asks about a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        for reference in self.references:
            if reference.startswith("data:"):
                head, data = reference.split(",", 1)
                assert head == "data:image/png;base64"
                image = Image.open(io.BytesIO(base64.b64decode(data)))
                image.load()
                yield np.asarray(image)


@pytest.fixture
def workdir(tmp_path):
    with logs.MetricWriter(tmp_path, phase="flow") as writer:
        for step in range(0, 50, 10):
            writer.write(step, {"bits_per_dim": 3.0 - 0.01 * step})
    with logs.MetricWriter(tmp_path) as writer:
        for step in range(1, 31):
            metrics = {"train/loss": 2.0 / step, "train/pcr": 0.1, "learning_rate": 0.1}
            if step % 10 == 0:
                metrics |= {"train/accuracy": 0.9, "validation/accuracy": 0.8, f"loss/{EVIL}": 1.0}
            metrics["hypergradient_norm"] = float("nan") if step == 5 else 1e-3 * step
            writer.write(step, metrics)
    images = np.random.default_rng(0).random((4, 8, 8, 1))
    for name, caption in (
        ("real", f"Real images {EVIL}"),
        ("generated_000100", "An early one"),
        ("generated_001000", None),
    ):
        save_png(tmp_path / "samples" / f"{name}.png", grid(images, columns=2), caption=caption)
    return tmp_path


def _write(workdir, **arguments):
    arguments = {"title": "MGR on digits", "summary": SUMMARY, "config": CONFIG} | arguments
    path = report.write_report(workdir, **arguments)
    assert path == workdir / "report.html"
    return path.read_text(encoding="utf-8")


def _check_self_contained(text):
    page = _Page(text)
    for reference in page.references:
        assert reference.startswith(("data:image/png;base64,", "#")), reference[:80]
    assert not re.findall(r"url\((?!#)", text), "styles refer to nothing outside either"
    assert "@import" not in text and "<?xml" not in text and text.count("<!DOCTYPE") == 0
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    return page


def test_the_headline_the_curves_and_the_command(workdir):
    page = _check_self_contained(_write(workdir, command=COMMAND))
    for shown in (
        "MGR on digits",
        "97.2 %",
        "± 0.9 s.e., n = 360",
        "96.1 %",
        "1,437",
        "1,200",
        "3 min 20 s",
        "3,457 images/s",
        "2 x Some CPU",
        "0123abcd",
        "feedbeef",
        "jax 0.10.2",
        COMMAND,
        "Losses",
        "Accuracy",
        "Learning rate",
        "Hypergradient",
        "Flow",
        "bits per dimension",
        "flow/bits_per_dim",
    ):
        assert shown in page.text, shown
    assert page.tags.count("svg") == 5


def test_everything_is_escaped(workdir):
    names = ["cat", EVIL]
    text = _write(
        workdir,
        title=EVIL,
        notes=EVIL,
        command=EVIL,
        summary=SUMMARY | {"device": EVIL, "versions": {EVIL: EVIL}, "commit": EVIL},
        confusion=np.array([[3, 2], [0, 4]]),
        class_names=names,
        defaults={"seed": 0, "data": {"dir": EVIL + "2"}},
    )
    assert "<script" not in text
    page = _check_self_contained(text)
    # The title twice, the note, and the command; the legend, captions, tables and axes besides.
    assert page.text.count(EVIL) >= 8


def test_pictures_decode_and_of_a_series_the_last_is_shown(workdir):
    page = _check_self_contained(_write(workdir, confusion=np.diag([5, 6, 7])))
    shapes = [picture.shape for picture in page.pictures()]
    assert shapes.count((114, 114)) == 2
    assert len(shapes) == 3, "and the colours of the confusion matrix"
    assert "Generated" in page.text and "An early one" not in page.text
    given = _Page(_write(workdir, figures=[("Only this", workdir / "samples" / "real.png")]))
    assert len(list(given.pictures())) == 1 and "Only this" in given.text


def test_confusion_names_the_most_frequent_mistakes(workdir):
    counts = np.array([[30, 7, 0], [0, 40, 0], [2, 0, 50]])
    text = _Page(_write(workdir, confusion=counts, class_names=["ant", "bee", "cow"])).text
    assert re.search(r"true class\s*taken for\s*images\s*antbee7\s*cowant2\b", text)
    large = _write(workdir, confusion=np.eye(100, dtype=int))
    assert "No mistakes" in large
    with pytest.raises(ValueError, match="2, 3"):
        _write(workdir, confusion=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="class_names"):
        _write(workdir, confusion=np.eye(3), class_names=["a"])


def test_keys_that_differ_from_the_defaults_come_first(workdir):
    defaults = {"seed": 0, "mgr": {"weight": 0.0, "mode": "reverse"}, "data": {"dir": EVIL}}
    text = _write(workdir, defaults=defaults)
    first, everything = text.split("<h2>Configuration</h2>")[1].split("<details>")
    assert "mgr.weight" in first and "<td>0.5</td><td>0.0</td>" in first
    assert "seed" not in first and "mgr.mode" in everything
    assert "Every key has its default" in _write(workdir, defaults=CONFIG)


def test_a_bare_run_and_odd_numbers(tmp_path):
    text = _write(tmp_path, summary={"test_accuracy": None, "seconds": float("nan")}, config={})
    page = _check_self_contained(text)
    assert "MGR on digits" in page.text
    assert not {"svg", "img", "h2", "dd"} & set(page.tags), "no empty section"
    with logs.MetricWriter(tmp_path) as writer:  # one point, a negative loss, all missing
        writer.write(1, {"loss": -1.0, "accuracy": float("nan")})
    page = _Page(_write(tmp_path))
    assert page.tags.count("svg") == 1


# Every metric that a run writes, and the panel that shows it.
WRITTEN = {
    "train/loss": "Losses",
    "train/cross_entropy": "Losses",
    "train/embedding_loss": "Losses",
    "train/synthetic_loss": "Losses",
    "train/outer_loss": "Losses",
    "train/accuracy": "Accuracy",
    "train/attacked_accuracy": "Accuracy",
    "train/gradient_norm": "Gradient",
    "train/hypergradient_norm": "Hypergradient",
    "train/search_distance": "Search",
    "train/outer_decrease": "Outer loss",
    "train/search_gain": "Outer loss",
    "train/search_spread": "Search",
    "train/strength/phantom.weight": "Learned strengths",
    "train/learning_rate": "Learning rate",
    "train/skipped_updates": "Skipped updates",
    "validation/accuracy": "Accuracy",
    "validation/cross_entropy": "Losses",
    "validation/intra_class_similarity": "Similarity",
    "validation/inter_class_similarity": "Similarity",
    "flow/bits_per_dim": "Flow",
    "flow/validation_bits_per_dim": "Flow",
}
# Of an update: the position of the first check that failed. The loop makes `skipped_updates` of it.
NOT_WRITTEN = {"train/nonfinite"}


def _names_in_the_code():
    """Metrics that the package names: in the training, those of a validation, those of a flow."""
    names = set()
    for path in Path(gr.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"(train|validation|flow)/\w+", text):
                names.add(text)
            elif isinstance(text, str) and re.fullmatch(r"\w*bits_per_dim", text):
                if path.name == "training.py":
                    names.add(f"flow/{text}")
            elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                start = str(node.values[0].value)
                if re.match(r"(train|validation)/", start):
                    known = ("validation/", "train/strength/")
                    assert start in known, f"say in this test what {path} calls {start}..."
    similarity = class_similarity(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]))
    return names | {f"validation/{name}" for name in similarity}


def test_every_metric_that_the_code_writes_has_its_panel():
    of_settings = {"train/strength/phantom.weight"}
    assert _names_in_the_code() | of_settings == WRITTEN.keys() | NOT_WRITTEN
    for name, title in WRITTEN.items():
        taking = {panel.title for panel in charts._PANELS if panel.takes(name)}
        assert taking - {"Other", "Flow, other"} == {title}, name
        assert charts.panel_of(name) == title


def test_every_metric_is_drawn_once_in_its_panel(tmp_path):
    extra = {"mystery": "Other", "flow/seconds": "Flow, other", "lossless": "Other"}
    expected = WRITTEN | extra
    for phase in ("flow", ""):
        with logs.MetricWriter(tmp_path, phase=phase) as writer:
            for step in (1, 2, 3):
                of_phase = [n for n in expected if n.startswith("flow/") == bool(phase)]
                names = [n.removeprefix("flow/") for n in of_phase]
                writer.write(step, {n: (i + 2.0) / step for i, n in enumerate(names)})
    shown = {}
    for figure in re.findall(r"<figure>.*?</figure>", _write(tmp_path), re.S):
        (title,) = re.findall(r"<h3>(.*?)</h3>", figure)
        names = re.findall(r"</i>(.*?)</span>", figure)
        assert figure.count("<svg") == 1
        # Only curves are of this width, not the grid or the axes.
        assert len(re.findall(r"stroke-width: 1\.6", figure)) == len(names)
        shown |= dict.fromkeys(names, title)
    assert shown == expected


def test_long_curves_are_averaged():
    lines = [{"step": step, "loss": float(step)} for step in range(10_000)]
    steps, values = charts._series(lines, "loss")
    assert len(steps) == 400
    np.testing.assert_allclose(steps, values)
    assert values.mean() == pytest.approx(np.arange(10_000).mean())


def test_the_same_run_gives_the_same_page_and_leaves_matplotlib_alone(workdir):
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert _write(workdir, confusion=np.eye(3)) == _write(workdir, confusion=np.eye(3))
    assert dict(matplotlib.rcParams) == before


def test_no_pyplot(workdir):
    code = (
        "import sys; from genreg_jax import report\n"
        f"report.write_report({str(workdir)!r}, title='', summary={{}}, config={{}})\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def _command_line(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "genreg_jax.report", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_line_writes_the_same_page(workdir):
    config = CONFIG | {"sizes": (1, 2), "rate": float("inf")}
    expected = _write(
        workdir,
        config=config,
        defaults={"seed": 0, "sizes": (1, 2)},
        command=COMMAND,
        notes="A note.",
        confusion=np.array([[5, 1], [0, 6]]),
        class_names=("a", "b"),
        figures=[("Only this", workdir / "samples" / "real.png")],
    )
    (workdir / "report.html").unlink()
    logs.write_json(workdir / "config.json", config)
    logs.write_json(workdir / "summary.json", SUMMARY)
    done = _command_line(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(workdir / "report.html")
    assert (workdir / "report.html").read_text(encoding="utf-8") == expected


def test_the_command_line_refuses_in_one_paragraph(tmp_path):
    done = _command_line("--workdir", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "nowhere" in done.stderr and done.stderr.count("\n") == 1


def test_unfinished_and_damaged_runs(workdir, capsys):
    (workdir / "config.json").write_text('{"seed": 0}')
    assert "not finished" in report.regenerate(workdir).read_text(encoding="utf-8")
    (workdir / "summary.json").write_text('{"test_acc')
    with pytest.raises(UserError, match="summary.json"):
        report.regenerate(workdir)
    assert page.main(["--workdir", str(workdir)]) == 1
    assert "summary.json" in capsys.readouterr().err
    logs.write_json(workdir / "summary.json", {"test_accuracy": 0.9, "checksum": "0123"})
    with pytest.raises(UserError, match="its checksum does not fit"):
        report.regenerate(workdir)
    (workdir / "summary.json").unlink()
    (workdir / "samples" / "real.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"real\.png"):
        report.regenerate(workdir)
    with pytest.raises(UserError, match="gone.png"):
        _write(workdir, figures=[("gone", workdir / "gone.png")])


def test_a_report_written_again_shows_no_picture_from_outside(workdir, tmp_path_factory):
    _write(workdir)
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    save_png(secret, np.zeros((4, 4), np.uint8))
    (workdir / "link.png").symlink_to(secret)
    (workdir / "summary.json").write_text("{}")
    written = json.loads((workdir / "report.json").read_text())
    for name in (str(secret), os.path.relpath(secret, workdir), "link.png"):
        (workdir / "report.json").write_text(json.dumps({**written, "figures": [["", name]]}))
        with pytest.raises(UserError, match="which is not in the workdir"):
            report.regenerate(workdir)
    (workdir / "report.json").unlink()
    (workdir / "samples" / "real.png").unlink()
    (workdir / "samples" / "real.png").symlink_to(secret)
    page = _Page(report.regenerate(workdir).read_text(encoding="utf-8"))
    assert (4, 4) not in [picture.shape for picture in page.pictures()]


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report.regenerate(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_of_a_run_are_those_it_has_something_for(tmp_path):
    dataset = data.load("digits", per_class=8)

    # Nine of a class, of which eight are shown.
    drawn, found = np.random.default_rng(0).integers(0, 256, (2, 90, 8, 8, 1), np.uint8)
    samples = Samples(np.repeat(np.arange(10), 9), drawn)
    weaken, darken = (lambda key, x: x), (lambda key, x: x / 2)
    cases = {
        "real": {},
        "generated": {"samples": samples},
        "found": {"samples": samples._replace(found=found)},
        "views": {"samples": samples, "views": (weaken, darken)},
    }
    written = {}
    for name, arguments in cases.items():
        pictures.write_samples(jax.random.key(1), tmp_path / name, dataset, **arguments)
        written[name] = {p.name: p.read_bytes() for p in (tmp_path / name / "samples").iterdir()}
    assert [sorted(names) for names in written.values()] == [
        ["1_real.png"],
        ["1_real.png", "2_generated.png"],
        ["1_real.png", "2_generated.png", "3_found.png"],
        ["1_real.png", "2_generated.png", "4_views.png"],
    ]
    assert len({written[name]["2_generated.png"] for name in ("generated", "found", "views")}) == 1
    shown = np.arange(90).reshape(10, 9)[:, :8].ravel()
    names = list(dataset.class_names)
    for images, file in ((drawn, "2_generated.png"), (found, "3_found.png")):
        with Image.open(tmp_path / "found" / "samples" / file) as picture:
            expected = grid(images[shown] / 255, columns=8, row_labels=names)
            np.testing.assert_array_equal(np.asarray(picture), expected.squeeze())


@pytest.mark.parametrize("predicted", [False, True])
def test_the_picture_of_a_perturbation_has_its_length(tmp_path, predicted):
    dataset = data.load("digits", per_class=2)
    model = gr.models.make("convnet", num_classes=10, widths=(4,))
    x = jnp.asarray(dataset.train.images[:1] / np.float32(255))
    params, model_state = model.init(jax.random.key(0), x)
    losses = []

    def perturb(key, flow, loss_fn, x, labels, z):
        assert flow is None and z is None and x.dtype == jnp.float32
        jax.debug.callback(losses.append, loss_fn(x))
        return jnp.clip(x + 0.25, 0, 1)

    pictures.write_perturbed(
        jax.random.key(1),
        tmp_path,
        dataset,
        model,
        params,
        model_state,
        perturb,
        kind="shifted",
        predicted_labels=predicted,
    )
    caption = read_caption(tmp_path / "samples" / "5_perturbed.png")
    assert "perturbed (shifted)" in caption and "full range 0.25" in caption
    outputs, _ = model.apply(
        params, model_state, _first_of_each_class(dataset), rng=None, train=False
    )
    chances = jax.nn.softmax(outputs.logits)
    of = chances.max(-1) if predicted else jnp.diagonal(chances)
    np.testing.assert_allclose(losses[0], -np.log(of), rtol=1e-4)


def _first_of_each_class(dataset):
    rows = [np.flatnonzero(dataset.train.labels == c)[0] for c in range(10)]
    return jnp.asarray(dataset.train.images[rows] / np.float32(255))
