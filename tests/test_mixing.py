"""Mixup and CutMix: exact proportions, conserved labels, and the plain batch at alpha 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genreg_jax.regularizers import mixing
from genreg_jax.regularizers.mixing import cutmix, mixup

JITTED = {
    (mix, per_example): jax.jit(functools.partial(mix, alpha=1.0, per_example=per_example))
    for mix in (mixup, cutmix)
    for per_example in (False, True)
}
BOTH = pytest.mark.parametrize("mix", [mixup, cutmix])
PER_EXAMPLE = pytest.mark.parametrize("per_example", [False, True])


def batch(size=8, dtype=jnp.float32):
    """Image `i` is constant, with value `i / size`, and has the label `i`."""
    x = jnp.arange(size) / size
    return jnp.tile(x[:, None, None, None], (1, 10, 14, 3)).astype(dtype), jnp.eye(size)


def pairs(y):
    """The proportion kept, and the partner, of every example, read off its label."""
    y = np.asarray(y)
    kept = np.diag(y)
    rest = y - np.diag(kept)
    return kept, np.where(rest.max(1) > 0, rest.argmax(1), np.arange(len(y)))


@BOTH
@PER_EXAMPLE
def test_alpha_zero_is_the_identity_bit_for_bit(mix, per_example):
    x = jax.random.normal(jax.random.key(0), (5, 4, 6, 3))
    y = jax.nn.softmax(jax.random.normal(jax.random.key(1), (5, 7)))
    for run in (mix, jax.jit(mix, static_argnames=("alpha", "per_example"))):
        mixed_x, mixed_y = run(jax.random.key(2), x, y, alpha=0, per_example=per_example)
        np.testing.assert_array_equal(mixed_x, x)
        np.testing.assert_array_equal(mixed_y, y)


@PER_EXAMPLE
def test_mixup_mixes_images_as_it_mixes_labels(per_example):
    x, y = batch()
    for seed in range(5):
        mixed_x, mixed_y = JITTED[mixup, per_example](jax.random.key(seed), x, y)
        # The images are linear in the label here: value i / 8 for label i.
        expected = mixed_y @ (jnp.arange(8) / 8)
        np.testing.assert_allclose(mixed_x.mean(axis=(1, 2, 3)), expected, atol=1e-5)
        np.testing.assert_allclose(mixed_x.std(axis=(1, 2, 3)), 0, atol=1e-5)


@PER_EXAMPLE
def test_cutmix_labels_are_the_pasted_area(per_example):
    x, y = batch()
    areas = []
    for seed in range(20):
        mixed_x, mixed_y = JITTED[cutmix, per_example](jax.random.key(seed), x, y)
        kept, partner = pairs(mixed_y)
        for i in range(8):
            pasted = np.asarray(mixed_x[i] != x[i])[..., 0]
            if partner[i] == i:  # paired with itself, or nothing pasted
                assert not pasted.any()
                continue
            np.testing.assert_array_equal(np.asarray(mixed_x[i])[pasted], partner[i] / 8)
            np.testing.assert_allclose(1 - kept[i], pasted.mean(), atol=1e-6)
            rows, columns = pasted.any(1), pasted.any(0)
            assert (pasted == rows[:, None] & columns[None, :]).all()  # one rectangle
            assert np.diff(np.flatnonzero(rows)).max(initial=1) == 1
            assert np.diff(np.flatnonzero(columns)).max(initial=1) == 1
            areas.append(pasted.mean())
    assert min(areas) < 0.15 and max(areas) > 0.6


@BOTH
@PER_EXAMPLE
def test_label_mass_is_conserved_and_partners_are_a_permutation(mix, per_example):
    x, y = batch()
    for seed in range(5):
        _, mixed_y = JITTED[mix, per_example](jax.random.key(seed), x, y)
        np.testing.assert_allclose(mixed_y.sum(axis=1), 1, atol=1e-6)
        # The mass of every label over the batch too, where the proportion is shared.
        if not per_example:
            np.testing.assert_allclose(mixed_y.sum(axis=0), 1, atol=1e-6)
        kept, partner = pairs(mixed_y)
        mixed = partner != np.arange(8)
        assert len(set(partner[mixed])) == mixed.sum()
        assert mixed_y.min() >= 0


@BOTH
def test_one_proportion_a_batch_or_one_an_example(mix):
    x, y = batch()
    kept, partner = pairs(JITTED[mix, False](jax.random.key(3), x, y)[1])
    assert np.ptp(kept[partner != np.arange(8)]) < 1e-6
    kept, partner = pairs(JITTED[mix, True](jax.random.key(3), x, y)[1])
    assert np.ptp(kept[partner != np.arange(8)]) > 0.05


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_proportions_follow_the_beta_distribution(alpha):
    lam = np.asarray(mixing._proportion(jax.random.key(0), 20000, alpha, True))
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha), whose mean is 1/2
    assert abs(lam.mean() - 0.5) < 4 * np.sqrt(variance / 20000)
    assert abs(lam.var() / variance - 1) < 0.05
    assert lam.min() >= 0 and lam.max() <= 1


@BOTH
def test_dtype_determinism_and_compilation(mix):
    traces = []

    @jax.jit
    def run(*args):
        traces.append(args)
        return mix(*args, alpha=0.5)

    x, y = batch(dtype=jnp.bfloat16)
    first, again = run(jax.random.key(0), x, y), run(jax.random.key(0), x, y)
    assert first[0].dtype == jnp.bfloat16 and first[1].dtype == jnp.float32
    assert first[0].shape == x.shape and first[1].shape == y.shape
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = run(jax.random.key(1), x, y)
    assert len(traces) == 1, "no recompilation"
    assert not np.array_equal(first[1], other[1])
    assert 0 <= first[0].min() and first[0].max() <= 1


@BOTH
def test_gradients_reach_images_and_labels_and_nothing_is_lost(mix):
    x, y = batch()
    weight = jax.random.normal(jax.random.key(1), x.shape)

    @jax.jit
    @jax.grad
    def gradient(xy):
        mixed_x, mixed_y = mix(jax.random.key(0), *xy, alpha=1.0)
        return (mixed_x * weight).sum() + mixed_y[:, 0].sum()

    for_x, for_y = gradient((x, y))
    assert (for_x != weight).any()
    np.testing.assert_allclose(for_x.sum(), weight.sum(), rtol=1e-3)
    np.testing.assert_allclose(for_y.sum(axis=0), [8] + [0] * 7, atol=1e-4)


def test_mixup_takes_inputs_of_any_rank():
    x, y = jnp.arange(8.0)[:, None], jnp.eye(8)
    mixed_x, mixed_y = mixup(jax.random.key(0), x, y, alpha=1.0)
    np.testing.assert_allclose(mixed_x[:, 0], mixed_y @ jnp.arange(8.0), rtol=1e-5)


def test_wrong_arguments_are_refused_by_name():
    key, (x, y) = jax.random.key(0), batch()
    cases = {
        "alpha is -1": lambda: mixup(key, x, y, alpha=-1),
        "alpha is nan": lambda: cutmix(key, x, y, alpha=float("nan")),
        "x has shape .* uint8": lambda: mixup(key, x.astype(jnp.uint8), y, alpha=1.0),
        r"x has shape \(8, 1\)": lambda: cutmix(key, jnp.zeros((8, 1)), y, alpha=1.0),
        r"y_onehot has shape \(8,\)": lambda: mixup(key, x, jnp.arange(8), alpha=1.0),
        r"y_onehot has shape \(7, 8\)": lambda: cutmix(key, x, y[:7], alpha=1.0),
        "y_onehot has .* int32": lambda: cutmix(key, x, y.astype(jnp.int32), alpha=1.0),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
