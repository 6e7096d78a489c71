"""The memorisation report against loops in float64, on grey and colour images of both kinds."""

import math

import numpy as np
import pytest

from genreg_jax.memorisation import memorisation_report, nearest


def images(seed, count, *, channels=1, dtype="uint8", side=3):
    made = np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)
    return made if dtype == "uint8" else (made / 255).astype(dtype)


def as_lists(batch):
    scale = 255 if batch.dtype == np.uint8 else 1
    return [[float(v) / scale for v in image.ravel()] for image in batch]


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))


def nearest_by_loop(queries, references):
    table = [[distance(a, b) for b in as_lists(references)] for a in as_lists(queries)]
    return [min(row) for row in table], [row.index(min(row)) for row in table]


def diversity_by_loop(batch, labels, classes):
    means = []
    for c in classes:
        part = [image for image, label in zip(as_lists(batch), labels) if label == c]
        pairs = [distance(a, b) for i, a in enumerate(part) for b in part[:i]]
        means.append(sum(pairs) / len(pairs))
    return sum(means) / len(means)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kinds", [("float32", "uint8"), ("uint8", "float32"), ("float64",) * 2])
@pytest.mark.parametrize("block", [4, 7, 1000])
def test_the_report_is_the_loops(channels, kinds, block):
    synthetic = images(0, 11, channels=channels, dtype=kinds[0])
    train, held_out = (
        images(seed, count, channels=channels, dtype=kinds[1]) for seed, count in ((1, 17), (2, 13))
    )
    labels = np.array([0, 0, 1, 1, 1, 2, 4, 4, 4, 0, 1])
    train_labels = np.array([0] * 4 + [1] * 5 + [2] * 3 + [3] * 4 + [4])
    predictions = np.array([0, 1, 1, 1, 2, 2, 4, 0, 4, 0, 0])
    report = memorisation_report(
        synthetic,
        train,
        held_out,
        labels=labels,
        train_labels=train_labels,
        predictions=predictions,
        quantile=0.3,
        block=block,
    )
    made, _ = nearest_by_loop(synthetic, train)
    real, _ = nearest_by_loop(held_out, train)
    # Classes 0 and 1 have two images of both kinds; 2, 3 and 4 have not.
    spreads = [
        diversity_by_loop(synthetic, labels, [0, 1]),
        diversity_by_loop(train, train_labels, [0, 1]),
    ]
    limit = np.quantile(real, 0.3)
    expected = {
        "synthetic_distance": np.median(made),
        "held_out_distance": np.median(real),
        "distance_ratio": np.median(made) / np.median(real),
        "copies": sum(d < limit for d in made) / 11,
        "duplicates": 0.0,
        "label_agreement": 7 / 11,
        "synthetic_diversity": spreads[0],
        "train_diversity": spreads[1],
        "diversity_ratio": spreads[0] / spreads[1],
    }
    assert list(report) == list(expected)
    assert all(type(value) is float for value in report.values())
    for name, value in expected.items():
        assert report[name] == pytest.approx(value, rel=1e-6), name


def test_copies_are_seen_and_so_are_near_copies():
    train, held_out = images(3, 40), images(4, 40)
    report = memorisation_report(train[5:25], train, held_out)
    assert report["synthetic_distance"] == 0 and report["copies"] == report["duplicates"] == 1
    half = np.concatenate([train[:10], images(5, 10)])
    report = memorisation_report(half, train, held_out)
    assert 0.5 <= report["copies"] <= 0.7 and report["duplicates"] == 0.5
    # A copy as a float is the same image; one that differs by two levels is near, but another.
    exact = memorisation_report((train / 255).astype(np.float32), train, held_out)
    assert exact["duplicates"] == exact["copies"] == 1
    other = np.where(train > 128, train - 2, train + 2).astype(np.uint8)
    report = memorisation_report(other, train, held_out)
    assert report["duplicates"] == 0 and report["copies"] == 1 and report["distance_ratio"] < 0.1


def test_new_images_are_copies_as_seldom_as_the_quantile_says():
    train, held_out, new = images(6, 200), images(7, 400), images(8, 400)
    report = memorisation_report(new, train, held_out, quantile=0.1)
    assert abs(report["copies"] - 0.1) < 0.05 and abs(report["distance_ratio"] - 1) < 0.05


def test_held_out_images_that_are_in_the_training_set_hide_no_copies():
    train = images(9, 20)
    report = memorisation_report(train, train, train)
    assert report["copies"] == 1 and math.isnan(report["distance_ratio"])


def test_collapse_shows_in_the_diversity():
    train, labels = images(10, 20), np.arange(20) % 2
    same = np.concatenate([train[:1]] * 5 + [train[1:2]] * 5)
    made = np.repeat([0, 1], 5)
    options = {"labels": made, "train_labels": labels}
    report = memorisation_report(same, train, images(11, 9), **options)
    assert report["diversity_ratio"] < 1e-6
    report = memorisation_report(train, train, images(11, 9), labels=labels, train_labels=labels)
    assert report["diversity_ratio"] == 1
    report = memorisation_report(same, train, images(11, 9), labels=made + 5, train_labels=labels)
    assert math.isnan(report["diversity_ratio"])


def test_distances_in_an_embedding():
    synthetic, train, held_out = images(12, 9), images(13, 8), images(14, 7)
    matrix = np.random.default_rng(15).normal(size=(9, 4))
    seen = []

    def embed(batch):
        seen.append((batch.dtype, len(batch), batch.max() <= 1))
        return batch.reshape(len(batch), -1) @ matrix

    report = memorisation_report(synthetic, train, held_out, embed=embed, block=5)
    points = [(a / 255).reshape(len(a), -1) @ matrix for a in (synthetic, train, held_out)]
    made, _ = nearest_by_loop(points[0], points[1])
    assert report["synthetic_distance"] == pytest.approx(np.median(made), rel=1e-5)
    assert "duplicates" not in report
    assert seen == [(np.float32, n, True) for n in (5, 4, 5, 3, 5, 2)]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_nearest_is_the_loop_and_exact_where_squares_cancel(block):
    rng = np.random.default_rng(16)
    references = (1000 + rng.normal(size=(12, 4))).astype(np.float32)
    queries = np.concatenate([references[[3, 7, 3]], references[:4] + np.float32(1e-3)])
    distances, index = nearest(queries, references, block=block)
    expected, at = nearest_by_loop(queries, references)
    np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-12)
    assert index.tolist() == at and distances[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synthetic": images(0, 4, channels=3)}, r"synthetic has images .*\(3, 3, 3\).*train"),
        ({"held_out": images(0, 4)[:0]}, r"held_out has shape \(0, 3, 3, 1\)"),
        ({"train": images(0, 4)[0]}, r"train has shape \(3, 3, 1\)"),
        ({"synthetic": images(0, 4).astype(int)}, "synthetic must be uint8 or floats.*int"),
        ({"synthetic": images(0, 4) / 100.0}, r"synthetic has values in .*\[0, 1\]"),
        ({"synthetic": np.full((4, 3, 3, 1), np.nan)}, r"synthetic has values in \[nan, nan\]"),
        ({"labels": np.zeros(3, int)}, r"labels has shape \(3,\).*\(4,\)"),
        ({"predictions": np.zeros(4)}, "predictions has shape .*float64"),
        ({"train_labels": np.zeros((4, 1), int)}, r"train_labels has shape \(4, 1\)"),
        ({"quantile": 1.5}, "quantile is 1.5"),
        ({"block": 0}, "block is 0"),
        ({"embed": lambda batch: np.ones((2, 3))}, r"embed returned .*\(2, 3\) for 4 images"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(changes, message):
    given = {name: images(i, 4) for i, name in enumerate(("synthetic", "train", "held_out"))}
    given |= changes
    positional = [given.pop(name) for name in ("synthetic", "train", "held_out")]
    with pytest.raises(ValueError, match=message):
        memorisation_report(*positional, **given)
