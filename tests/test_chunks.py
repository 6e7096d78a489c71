"""A mean in chunks against the mean in one piece, in value, gradient and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genreg_jax.chunks import chunked_mean

KEY = jax.random.key(5)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def problem(count):
    params = {"w": normal(0, 6, 8), "v": normal(1, 8)}
    rows = {"x": normal(2, count, 2, 3), "y": normal(3, count)}
    return params, rows


def losses(params, rows):
    hidden = jnp.tanh(rows["x"].reshape(len(rows["y"]), -1) @ params["w"])
    return (hidden @ params["v"] - rows["y"]) ** 2


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("count", "chunk"), [(12, 4), (11, 4), (7, 1), (9, 8), (1, 3), (5, 5)])
def test_value_and_gradient_are_those_of_the_whole_mean(count, chunk, scan):
    params, rows = problem(count)
    whole = lambda params, rows: jnp.mean(losses(params, rows))
    parts = lambda params, rows: chunked_mean(
        KEY, lambda key, rows: losses(params, rows), rows, chunk=chunk, scan=scan
    )
    expected, expected_grads = jax.value_and_grad(whole, argnums=(0, 1))(params, rows)
    value, grads = jax.jit(jax.value_and_grad(parts, argnums=(0, 1)))(params, rows)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads, expected_grads
    )


@pytest.mark.parametrize("scan", [False, True])
def test_mixed_second_derivatives_pass_through(scan):
    """What a hypergradient takes: the derivative along the parameters of the gradient in phi."""
    params, rows = problem(7)
    phi, direction = normal(4, 6), jax.tree.map(lambda p: p + 1, params)

    def moved(params, phi, rows):
        return losses(params, {**rows, "x": rows["x"] + phi.reshape(1, 2, 3)})

    def along(inner):
        return jax.jvp(lambda p: jax.grad(inner, argnums=1)(p, phi), (params,), (direction,))[1]

    whole = lambda params, phi: jnp.mean(moved(params, phi, rows))
    parts = lambda params, phi: chunked_mean(
        KEY, lambda key, rows: moved(params, phi, rows), rows, chunk=2, scan=scan
    )
    np.testing.assert_allclose(along(parts), along(whole), rtol=1e-4, atol=1e-5)


def test_chunks_are_as_equal_as_they_can_be_and_keep_the_order():
    seen = []

    def record(key, rows):
        seen.append(rows.shape[0])
        return rows * jnp.arange(1.0, 1 + rows.shape[0])

    value = chunked_mean(KEY, record, jnp.arange(1.0, 12.0), chunk=4)
    assert set(seen) == {4, 3}
    expected = 1 + 4 + 9 + 16 + 5 + 12 + 21 + 32 + 9 + 20 + 33
    assert float(value) == pytest.approx(expected / 11)
    seen.clear()
    chunked_mean(KEY, record, jnp.arange(9.0), chunk=8)
    assert set(seen) == {5, 4}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_every_chunk_has_its_own_key_and_the_first_has_the_given_one(scan, raw):
    key = jax.random.PRNGKey(5) if raw else KEY
    draw = lambda key, rows: rows + jax.random.normal(key, rows.shape)
    value = chunked_mean(key, draw, jnp.zeros(6), chunk=2, scan=scan)
    keys = [key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)]
    expected = np.mean([np.asarray(jax.random.normal(k, (2,))) for k in keys])
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_one_chunk_is_the_plain_mean_bit_for_bit():
    draw = lambda key, rows: rows * jax.random.normal(key, rows.shape)
    rows = normal(6, 7)
    one = jax.jit(lambda rows: chunked_mean(KEY, draw, rows, chunk=7))(rows)
    np.testing.assert_array_equal(one, jax.jit(lambda rows: jnp.mean(draw(KEY, rows)))(rows))


def test_the_backward_pass_holds_the_activations_of_one_chunk():
    w = normal(7, 16, 512)

    def deep(w, x):
        for _ in range(4):
            x = jnp.tanh(jnp.tanh(x @ w) @ w.T)
        return jnp.sum(x**2, axis=1)

    def temporary(chunk):
        f = lambda w, x: chunked_mean(KEY, lambda key, x: deep(w, x), x, chunk=chunk, scan=True)
        compiled = jax.jit(jax.grad(f)).lower(w, jnp.zeros((1024, 16))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(128) < 0.3 * temporary(1024)


@pytest.mark.parametrize(
    ("rows", "chunk", "function", "message"),
    [
        (np.ones(4), 0, lambda key, x: x, "chunk is 0"),
        (np.ones(4), 1.5, lambda key, x: x, "chunk is 1.5"),
        ((np.ones(4), np.ones(3)), 2, lambda key, x: x[0], r"rows .*\(4,\), \(3,\)"),
        (np.ones(0), 2, lambda key, x: x, r"rows .*\(0,\)"),
        (np.float32(1), 2, lambda key, x: x, r"rows .*\(\)"),
        ((), 2, lambda key, x: x, r"rows .*\[\]"),
        (np.ones(4), 2, lambda key, x: jnp.sum(x), r"losses of shape \(\).*\(2,\)"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(rows, chunk, function, message):
    with pytest.raises(ValueError, match=message):
        chunked_mean(KEY, function, rows, chunk=chunk)
