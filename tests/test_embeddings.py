"""Similarity of embeddings and their principal plane, against slow loops."""

import numpy as np
import pytest

from genreg_jax.evaluate import class_similarity, principal_plane
from genreg_jax.report import write_report


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_similarity_is_the_mean_cosine_over_pairs():
    x, y = normal(0, 9, 4) + 0.5, np.array([0, 2, 2, 0, 1, 2, 0, 0, 1])
    x[3] = 0
    pairs = {True: [], False: []}
    for i in range(9):
        for j in range(9):
            if i != j:
                lengths = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
                pairs[bool(y[i] == y[j])].append(x[i] @ x[j] / lengths if lengths else 0.0)
    found = class_similarity(x, y)
    np.testing.assert_allclose(found["intra_class_similarity"], np.mean(pairs[True]))
    np.testing.assert_allclose(found["inter_class_similarity"], np.mean(pairs[False]))


def test_without_pairs_there_is_no_similarity():
    assert np.isnan(class_similarity(normal(1, 3, 2), [0, 0, 0])["inter_class_similarity"])
    assert np.isnan(class_similarity(normal(1, 3, 2), [0, 1, 2])["intra_class_similarity"])


@pytest.mark.filterwarnings("error")
def test_one_image_of_each_class_has_no_similarity_within_whatever_rounding_leaves():
    for seed in range(20):
        found = class_similarity(normal(seed, 7, 5), np.arange(7))
        assert np.isnan(found["intra_class_similarity"])
        assert -1 <= found["inter_class_similarity"] <= 1


@pytest.mark.parametrize("shape", [(20, 5), (3, 40), (7, 2), (1, 3), (4, 1)])
def test_the_plane_holds_the_most_variance(shape):
    x = normal(2, *shape) * np.linspace(3, 1, shape[1])
    points, explained = principal_plane(x)
    assert points.shape == (shape[0], 2)
    centered = x - x.mean(0)
    variances = np.sort(np.linalg.eigvalsh(centered.T @ centered))[::-1]
    variances = np.concatenate([variances, [0.0]])[:2]
    np.testing.assert_allclose((points**2).sum(0), variances, atol=1e-9)
    total = (centered**2).sum()
    np.testing.assert_allclose(
        explained[: min(shape)], (variances / max(total, 1e-300))[: min(shape)], atol=1e-9
    )
    np.testing.assert_allclose(principal_plane(x)[0], points)


def test_the_report_draws_the_plane_and_can_be_written_again(tmp_path):
    points, explained = principal_plane(normal(3, 30, 4))
    plane = {"points": points, "explained": explained, "labels": np.arange(30) % 3}
    report = lambda **options: write_report(
        tmp_path, title="t", summary={}, config={"seed": 0}, **options
    ).read_text()
    page = report(embeddings=plane, class_names=["cat", "<dog>", "owl"])
    assert "Embeddings of the test set" in page and page.count("<svg") == 1
    assert "cat" in page and "&lt;dog&gt;" in page and "<dog>" not in page
    assert f"{100 * explained[0]:.0f} % of the variance" in page
    assert "Embeddings" not in report()
    with pytest.raises(ValueError, match=r"points \[N, 2\] for its 29 labels.*\(30, 2\)"):
        report(embeddings={**plane, "labels": np.arange(29)})
