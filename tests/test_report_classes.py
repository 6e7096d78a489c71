"""What the report shows of the test set, and names of classes in any script."""

import base64
import html
import io
import itertools
import json
import re
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, features

import genreg_jax as gr
from genreg_jax import logs, report, results
from genreg_jax.data import Split
from genreg_jax.data.pictures import shown
from genreg_jax.errors import UserError
from genreg_jax.evaluate import calibration_error, reliability
from genreg_jax.report import classes, fonts, svg

# Japanese, Arabic, Devanagari, Persian with a joiner, emoji; code, paths and mathematics.
NAMES = [
    "猫と犬", "كلب كبير", "हिन्दी", "می\u200cخواهم", "🐸 frog", "<script>alert('x')</script>",
    "two\nlines", "../../x", "$x^2$", "a very long name of a class that goes on & on & on",
]  # fmt: skip


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine that has no font but matplotlib's own."""
    monkeypatch.setattr(fonts, "_candidates", lambda: [OWN])
    fonts._path_for.cache_clear()
    yield
    fonts._path_for.cache_clear()


OWN = font_manager.findfont("DejaVu Sans")


def _texts_of(page):
    """The texts of all SVGs of a page, which must be well-formed, with where they stand."""
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        yield from ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")


# ------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_guo_et_al_in_float64(seed):
    rng = np.random.default_rng(seed)
    confidences = rng.beta(3, 1.2, 400).astype(np.float32)
    confidences[:2] = 1, 0
    correct = rng.random(400) < confidences.astype(np.float64) ** 2
    expected, counts = 0.0, []
    for m in range(15):
        inside = (confidences > np.float64(m) / 15) & (confidences <= np.float64(m + 1) / 15)
        inside |= (m == 0) & (confidences == 0)
        counts.append(inside.sum())
        if inside.any():
            gap = correct[inside].mean() - confidences[inside].mean(dtype=np.float64)
            expected += inside.sum() / 400 * abs(gap)
    sums = reliability(confidences, correct)
    np.testing.assert_array_equal(sums["images"], counts)
    assert sums["images"].sum() == 400 and sums["right"].sum() == correct.sum()
    assert calibration_error(sums) == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_where_it_is_known():
    assert calibration_error(reliability(np.ones(5), np.ones(5, bool))) == 0
    assert calibration_error(reliability(np.ones(5), np.zeros(5, bool))) == 1
    # Errors of one part cancel, those of two do not.
    assert calibration_error(reliability([0.7, 0.7], [True, False])) == pytest.approx(0.2)
    apart = reliability([0.2, 0.8, 0.8, 0.8, 0.8], [True, True, True, True, False])
    assert calibration_error(apart) == pytest.approx(0.8 / 5 + 0.05 * 4 / 5)
    # What lies on a border belongs to the part below.
    borders = reliability(np.arange(1, 16) / 15, np.arange(15) == 3)
    assert borders["images"].tolist() == [1] * 15 and borders["right"].nonzero()[0] == [3]
    assert np.isnan(calibration_error(reliability([], [])))
    assert np.isnan(calibration_error(reliability([np.nan, 0.5], [True, True])))


def test_the_interval_of_a_share_is_wilsons():
    for right, n in ((0, 7), (3, 4), (17, 60), (950, 1000), (5, 5)):
        p = np.linspace(0, 1, 200_001)
        z = 1.959964
        inside = p[np.abs(right / n - p) <= z * np.sqrt(p * (1 - p) / n) + 1e-12]
        np.testing.assert_allclose(classes.wilson(right, n), (inside[0], inside[-1]), atol=1e-5)


# --------------------------------------------------------------------------------------- the table


def test_accuracies_come_worst_first_with_their_counts():
    names = ["ant", "bee", "cow", "<dog>", "elk"]
    page = classes.draw_accuracies([[9, 10], [1, 8], [0, 0], [2, 16], [5, 5]], None, names)
    rows = re.findall(r"<bdi>(.*?)</bdi>.*?<td>(\S* %|no test images)</td>.*?<td>(\d+)</td>", page)
    assert rows == [
        ("&lt;dog&gt;", "12.5 %", "16"),  # of equal accuracies, the one with more images
        ("bee", "12.5 %", "8"),
        ("ant", "90.0 %", "10"),
        ("elk", "100.0 %", "5"),
        ("cow", "no test images", "0"),
    ]
    low, high = (100 * p for p in classes.wilson(9, 10))
    assert f"{low:.0f} to {high:.0f} %" in page and "<details>" not in page
    # A run of an earlier version has the confusion alone.
    confusion = np.array([[9, 1, 0], [3, 1, 4], [0, 0, 2]])
    found = classes.draw_accuracies(None, confusion, None)
    assert found == classes.draw_accuracies([[9, 10], [1, 8], [2, 2]], None, None)
    many = classes.draw_accuracies([[i, 2000] for i in range(1500)], None, None)
    assert many.count("<tr>") == 1 + 20 + 1 + 1000 and "The worst 1000 of 1500 classes" in many
    with pytest.raises(ValueError, match="class_names must have 2 names.*got 1"):
        classes.draw_accuracies([[1, 2], [1, 2]], None, ["a"])


def test_the_worst_mistakes_are_the_surest_ones_as_they_are():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 5, 7, 3), np.uint8)
    labels, predictions = rng.integers(0, 4, (2, 60))
    confidences = rng.random(60)
    split = Split(images, labels.astype(np.int32), tuple(f"{i}.png" for i in range(60)))
    found = results.worst_mistakes(split, predictions, confidences)
    wrong = [i for i in range(60) if labels[i] != predictions[i]]
    expected = sorted(wrong, key=lambda i: -confidences[i])[:16]
    assert len(wrong) > 16 and [m["name"] for m in found] == [f"{i}.png" for i in expected]
    for mistake, i in zip(found, expected):
        assert (mistake["label"], mistake["predicted"]) == (labels[i], predictions[i])
        assert mistake["probability"] == confidences[i]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(mistake["image"]))))
        assert shown.shape == (80, 112, 3)
        np.testing.assert_array_equal(shown[8::16, 8::16], images[i])
    large = Split(rng.integers(0, 256, (1, 600, 300, 1), np.uint8), np.zeros(1, np.int32))
    (mistake,) = results.worst_mistakes(large, np.ones(1, int), np.ones(1))
    assert Image.open(io.BytesIO(base64.b64decode(mistake["image"]))).size == (112, 224)
    assert results.worst_mistakes(split, labels, confidences) == []


# ----------------------------------------------------------------------------- colours and labels


def _lab(colour):
    """CIE Lab of an sRGB colour under D65."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ c
    x, y, z = (
        np.cbrt(v) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29
        for v in xyz / (0.9505, 1, 1.089)
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)]), xyz[1]


def test_twenty_classes_have_colours_that_can_be_told_apart_on_both_pages():
    found = [_lab(svg.colour(i)) for i in range(20)]
    apart = [np.linalg.norm(a - b) for (a, _), (b, _) in itertools.combinations(found, 2)]
    assert min(apart) > 30  # 2.3 is a just noticeable difference
    for _, luminance in found:
        assert 1.05 / (luminance + 0.05) > 2.4, "on a white page"
        assert (luminance + 0.05) / (_lab("#14171b")[1] + 0.05) > 2.4, "on a dark page"
    assert len({(svg.colour(i), svg.marker(i)) for i in range(200)}) == 200


@pytest.mark.parametrize("spread", [0.0, 0.3, 20.0])
def test_labels_of_thirty_classes_do_not_lie_on_each_other(spread):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(30), 5)
    points = spread * rng.normal(size=(30, 2))[labels] + rng.normal(size=(150, 2))
    axes = Figure(figsize=(5.6, 4.4)).add_axes((0.06, 0.08, 0.92, 0.9))
    axes.scatter(*points.T)
    names = {c: f"class {c} with a long name" for c in range(30)}
    classes._label(axes, svg.Texts(), points, labels, names)
    boxes = [label.get_window_extent() for label in axes.texts]
    assert len(boxes) >= 9, "as many as there is room for"
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    room = axes.get_window_extent()
    assert all(room.x0 <= b.x0 and b.x1 <= room.x1 for b in boxes)
    assert all(room.y0 <= b.y0 and b.y1 <= room.y1 for b in boxes)


def test_labels_of_a_large_confusion_matrix_stand_apart():
    names = [f"{i} is the long name of a class" for i in range(60)]
    page = classes.draw_confusion(np.eye(60, dtype=int), names)
    shown = [e for e in _texts_of(page) if "…" in (e.text or "")]
    rows = sorted(
        float(
            re.search(
                r"([\d.]+)\)?$", e.attrib.get("y") or e.attrib["transform"].split(" rotate")[0]
            )[1]
        )
        for e in shown
        if "rotate(-90)" not in e.attrib.get("transform", "").replace("-90 ", "-90)")
    )
    assert len(shown) == 40 and len(rows) >= 20
    assert min(np.diff(rows)) > 9.5, "the size of the letters"


# ----------------------------------------------------------------------------------- any script


def _everything(k):
    rng = np.random.default_rng(0)
    labels = np.arange(12 * k) % k
    confusion = rng.integers(0, 9, (k, k))
    split = Split(rng.integers(0, 256, (12 * k, 4, 4, 1), np.uint8), labels.astype(np.int32))
    confidences = rng.random(12 * k)
    return {
        "confusion": confusion,
        "per_class": np.stack([np.diagonal(confusion), confusion.sum(1)], 1),
        "calibration": reliability(confidences, rng.random(12 * k) < confidences),
        "mistakes": results.worst_mistakes(split, rng.permutation(labels), confidences),
        "embeddings": {
            "points": 9 * rng.normal(size=(k, 2))[labels],
            "labels": labels,
            "explained": [0.5, 0.2],
        },
    }


def test_a_page_has_class_names_of_any_script_and_says_nothing(tmp_path, no_fonts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = report.write_report(
            tmp_path, title="t", summary={}, config={}, class_names=NAMES, **_everything(10)
        )
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    drawn = [element.text for element in _texts_of(page)]
    for name in NAMES:
        assert f"<bdi>{html.escape(name)}</bdi>" in page, "in full in the table"
        assert drawn.count(svg.short(name)) >= 2, "beside and below the confusion matrix"
    assert sum(svg.short(name, 14) in drawn for name in NAMES) >= 9, "and among the embeddings"
    # All is in report.json: a page written again is the same page.
    logs.write_json(tmp_path / "config.json", {})
    logs.write_json(tmp_path / "summary.json", {})
    assert report.regenerate(tmp_path).read_text(encoding="utf-8") == page


def test_names_in_pictures_have_a_font_or_a_number(no_fonts):
    shown, also = fonts.picture_names(["cat", "猫", "Ελληνικά", "a name of over sixteen letters"])
    assert shown == ["cat", "class 1", "Ελληνικά", "a name of over…"]
    assert also == " Class 1 is 猫, class 3 is a name of over sixteen letters."
    assert fonts.picture_names(["cat"]) == (["cat"], "")
    assert fonts.font_for("Ελληνικά", 13).getname()[0] == "DejaVu Sans"
    assert fonts.font_for("猫", 13) is None


def test_the_first_font_that_has_all_letters_is_taken(no_fonts, monkeypatch):
    serif = OWN.replace("DejaVuSans.ttf", "STIXGeneral.ttf")  # comes with matplotlib too
    monkeypatch.setattr(fonts, "_candidates", lambda: [__file__, "none.ttf", serif, OWN])
    assert fonts.font_for("é", 13).getname()[0] == "STIXGeneral"
    assert fonts.font_for("éكل", 13).getname()[0] == "DejaVu Sans"
    monkeypatch.undo()
    assert fonts._candidates()[0] == OWN
    assert not [path for path in fonts._candidates() if "LastResort" in path], "a font of boxes"


def test_letters_that_need_shaping_need_the_library_for_it(no_fonts, monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: False)
    assert fonts.font_for("كلب", 13) is None and fonts.font_for("é", 13) is not None


def test_joiners_belong_to_names_and_what_turns_text_around_does_not():
    images, labels = np.zeros((4, 4, 4, 1), np.uint8), np.arange(4) % 2
    make = lambda name: gr.data.from_arrays(
        images, labels, images, labels, class_names=["a", name], validation_fraction=0
    )
    assert make(NAMES[3]).class_names[1] == NAMES[3] == shown([NAMES[3]])
    for name in ("a\u202eb", "two\nlines"):
        with pytest.raises(UserError, match="that can be printed"):
            make(name)


# ------------------------------------------------------------------------- what is read back


def test_a_mutated_report_is_refused(tmp_path):
    report.write_report(
        tmp_path, title="t", summary={}, config={}, class_names=list("abc"), **_everything(3)
    )
    logs.write_json(tmp_path / "config.json", {})
    logs.write_json(tmp_path / "summary.json", {})
    whole = json.loads((tmp_path / "report.json").read_text())
    mistake, sums = whole["mistakes"][0], whole["calibration"]
    for name, value in [
        ("per_class", [[1, 2, 3]] * 3),
        ("per_class", [[3, 2]] * 3),
        ("per_class", [[1, 2]] * 4),
        ("per_class", [[-1, 2]] * 3),
        ("mistakes", [{**mistake, "image": '"><script>'}]),
        ("mistakes", [{**mistake, "image": mistake["image"] + "\n"}]),
        ("mistakes", [{**mistake, "label": -1}]),
        ("mistakes", [{**mistake, "probability": 2.0}]),
        ("mistakes", [{**mistake, "more": 1}]),
        ("mistakes", {}),
        ("calibration", {**sums, "right": [n + 1 for n in sums["images"]]}),
        ("calibration", {**sums, "confidence": [0.1]}),
        ("calibration", {**sums, "images": [1.5] * 15}),
        ("calibration", {"images": [], "right": [], "confidence": []}),
        ("drawing_seconds", "long"),
    ]:
        (tmp_path / "report.json").write_text(json.dumps({**whole, name: value}))
        with pytest.raises(UserError, match=r"report\.json is damaged"):
            report.regenerate(tmp_path)
    # A place beyond the names is a number; that of a page without names too.
    whole["mistakes"] = [{**mistake, "label": 2**62}]
    for names in (whole["class_names"], None):
        (tmp_path / "report.json").write_text(json.dumps({**whole, "class_names": names}))
        assert f"{2**62}" in report.regenerate(tmp_path).read_text(encoding="utf-8")


def test_the_time_is_that_of_all_stages_whatever_the_summary_holds(tmp_path):
    summary = {"seconds": 5.0, "stages": {"data": 60.0, "training": 3600.0, "<b>": 30.0}}
    write = lambda summary, **options: report.write_report(
        tmp_path, title="t", summary=summary, config={}, **options
    ).read_text(encoding="utf-8")
    page = write(summary, drawing_seconds=10.0)
    assert page.count("1 h 01 min") == 2, "in the headline and as the sum"
    for row in ("data</th><td>1 min 00 s</td><td>2 %", "report</th><td>10 s</td><td>0 %"):
        assert row in page
    assert "&lt;b&gt;</th><td>30 s" in page and "<b>" not in page
    for stages in (None, [1], {"data": None}, {"data": "x"}, {"data": -1}):
        page = write({**summary, "stages": stages})
        assert "Where the time went" not in page and "5.0 s" in page
