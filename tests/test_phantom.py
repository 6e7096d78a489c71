"""Phantom embeddings: against loops in NumPy, at every edge, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import genreg_jax as gr
from genreg_jax.build import embedding_term_of
from genreg_jax.config import from_config
from genreg_jax.contract import Batch, Model, Outputs
from genreg_jax.objective import make_train_step
from genreg_jax.regularizers.phantom import READINGS, phantom_term
from genreg_jax.state import TrainState

KEY = jax.random.key(7)
# One class of one, two of two, one of many, and rows that take no part.
LABELS = np.array([2, 0, 0, 3, 2, -1, 0, 3, 0, 1, 0, -1])
CLASSES = 5
DRAWS = [
    {}, {"subset_size": 2}, {"weighting": "uniform"}, {"subset_size": 1, "weighting": "uniform"},
]  # fmt: skip


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weights_of(labels, key=KEY, **options):
    """The weights that were drawn, read off phantoms of unit vectors."""
    phantoms, where = gr.phantom_embeddings(key, np.eye(len(labels), dtype=np.float32), labels,
                                            **options)  # fmt: skip
    return np.asarray(phantoms), np.asarray(where)


def l2(a, b):
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b)) / len(a)


def cosine(a, b):
    return 1 - float(np.dot(a, b)) / float(np.linalg.norm(a) * np.linalg.norm(b))


def cross_entropy(logits, label):
    logits = np.asarray(logits, np.float64)
    return np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[label]


# --------------------------------------------------------------------------------------- phantoms


@pytest.mark.parametrize("options", DRAWS)
def test_weights_are_convex_over_other_samples_of_the_class(options):
    weights, where = weights_of(LABELS, **options)
    size = options.get("subset_size") or len(LABELS)
    for i, label in enumerate(LABELS):
        partners = {j for j, other in enumerate(LABELS) if other == label and j != i}
        partners = partners if label >= 0 else set()
        chosen = set(np.flatnonzero(weights[i]))
        assert where[i] == bool(partners)
        assert chosen <= partners and len(chosen) == min(size, len(partners))
        assert np.all(weights[i] >= 0)
        if partners:
            np.testing.assert_allclose(weights[i].sum(), 1, rtol=1e-6)
        if options.get("weighting") == "uniform":
            np.testing.assert_allclose(weights[i][list(chosen)], 1 / max(len(chosen), 1), rtol=1e-6)


@functools.cache
def many_draws(size, weighting):
    """Weights of one anchor with five partners under 4,000 keys."""
    labels, eye = jnp.zeros(6, jnp.int32), jnp.eye(6)
    draw = lambda key: gr.phantom_embeddings(
        key, eye, labels, subset_size=size, weighting=weighting
    )[0]
    keys = jax.random.split(KEY, 4000)
    return np.asarray(jax.jit(jax.vmap(draw))(keys))[:, 0, 1:]


def test_every_subset_is_equally_likely_and_dirichlet_is_flat_on_the_simplex():
    chosen = many_draws(2, "dirichlet") > 0
    pairs = np.unique(chosen, axis=0, return_counts=True)[1]
    assert len(pairs) == 10 and np.all(np.abs(pairs - 400) < 5 * np.sqrt(400))
    weights = many_draws(None, "dirichlet")
    # Of Dirichlet(1, ..., 1) in five dimensions: mean 1/5, variance 4/150, covariance -1/150.
    np.testing.assert_allclose(weights.mean(0), np.full(5, 0.2), atol=0.015)
    covariance = np.cov(weights.T)
    expected = np.full((5, 5), -1 / 150) + np.eye(5) * 5 / 150
    np.testing.assert_allclose(covariance, expected, atol=0.003)
    # The rows of one batch are drawn apart from each other.
    assert len(np.unique(weights_of(np.zeros(6, np.int32))[0].round(5))) > 20


@pytest.mark.parametrize("options", DRAWS)
def test_all_leaves_of_a_tree_are_mixed_with_the_same_weights_as_a_loop_does(options):
    tree = {
        "a": normal(0, 12, 5), "b": (normal(1, 12, 2, 3), normal(2, 12)),
        "half": jnp.asarray(normal(3, 12, 4), jnp.bfloat16),
    }  # fmt: skip
    weights, where = weights_of(LABELS, **options)
    phantoms, same = gr.phantom_embeddings(KEY, tree, LABELS, **options)
    np.testing.assert_array_equal(same, where)

    def slow(leaf):
        leaf = np.asarray(leaf, np.float64)
        rows = np.zeros_like(leaf)
        for i in range(12):
            for j in range(12):
                rows[i] += weights[i, j] * leaf[j]
        return rows

    for leaf, expected in zip(jax.tree.leaves(phantoms), map(slow, jax.tree.leaves(tree))):
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


def test_the_key_decides_and_jit_and_vmap_change_nothing():
    e = normal(4, 12, 5)
    draw = functools.partial(gr.phantom_embeddings, labels=LABELS, subset_size=2)
    plain, _ = draw(KEY, e)
    np.testing.assert_allclose(jax.jit(draw)(KEY, e)[0], plain, rtol=1e-6, atol=1e-6)
    assert np.any(draw(jax.random.key(8), e)[0] != plain)
    keys, batches = jax.random.split(KEY, 3), normal(5, 3, 12, 5)
    loop = np.stack([draw(k, b)[0] for k, b in zip(keys, batches)])
    np.testing.assert_allclose(jax.vmap(draw)(keys, batches)[0], loop, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(("distance", "slow"), [("l2", l2), ("cosine", cosine)])
def test_attraction_equals_a_loop(distance, slow):
    e, p = normal(10, 6, 5), 3 * normal(11, 6, 5)
    where = np.array([True, True, False, True, False, True])
    expected = [slow(a, b) if w else 0.0 for a, b, w in zip(e, p, where)]
    losses = gr.attraction_loss(e, p, distance=distance, where=where)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    layers, other = (e, normal(12, 6, 2, 2)), (p, normal(13, 6, 2, 2))
    second = [slow(a.ravel(), b.ravel()) for a, b in zip(layers[1], other[1])]
    expected = [(a + b) / 2 if w else 0 for a, b, w in zip(expected, second, where)]
    losses = gr.attraction_loss(layers, other, distance=distance, where=where)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("distance", "slow"), [("l2", l2), ("cosine", cosine)])
@pytest.mark.parametrize("options", DRAWS[1:3])
def test_separation_equals_a_loop(distance, slow, options):
    e = normal(14, 12, 4)
    key_own, key_class = jax.random.split(KEY)
    own, where = weights_of(LABELS, key_own, **options)
    losses = gr.separation_loss(
        KEY, e, LABELS, num_classes=CLASSES, temperature=0.7, distance=distance, **options
    )
    others = {c: class_weights(key_class, c, **options) @ e for c in (0, 1, 2, 3)}
    for i, label in enumerate(LABELS):
        expected = 0.0
        if where[i]:
            distances = {c: slow(e[i], p) for c, p in others.items()}
            distances[label] = slow(e[i], own[i] @ e)
            expected = cross_entropy([-distances[c] / 0.7 for c in (0, 1, 2, 3)], label)
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)


def class_weights(key, c, *, subset_size=None, weighting="dirichlet"):
    """What row c of a draw over the members of class c gives, by the rule of the docstring."""
    key_subset, key_weights = jax.random.split(jax.random.fold_in(key, c))
    members = np.flatnonzero(LABELS == c)
    if subset_size is not None:
        draws = np.asarray(jax.random.uniform(key_subset, (12,)))
        members = members[np.argsort(draws[members])][:subset_size]
    weights = np.zeros(12)
    weights[members] = 1.0
    if weighting == "dirichlet":
        weights *= np.asarray(jax.random.exponential(key_weights, (12,)))
    return weights / weights.sum()


def test_classification_and_combination_equal_a_loop_and_reduce_to_each_other():
    logits, phantom_logits = normal(16, 12, CLASSES), normal(17, 12, CLASSES)
    where = LABELS >= 0
    slow = lambda x: [cross_entropy(a, c) if w else 0 for a, c, w in zip(x, LABELS, where)]
    losses = gr.classification_loss(phantom_logits, LABELS)
    np.testing.assert_allclose(losses, slow(phantom_logits), rtol=1e-5)
    mixed = lambda ratio: gr.combination_loss(logits, phantom_logits, LABELS, ratio=ratio)
    expected = slow(0.3 * logits + 0.7 * phantom_logits)
    np.testing.assert_allclose(mixed(0.3), expected, rtol=1e-5)
    np.testing.assert_allclose(mixed(1.0), slow(logits), rtol=1e-5)
    np.testing.assert_array_equal(mixed(0.0), losses)


def test_an_affine_head_commutes_with_the_mixing():
    e, head, bias = normal(18, 12, 4), normal(19, 4, CLASSES), normal(20, CLASSES)
    mixed, where = gr.phantom_embeddings(KEY, (e, e @ head + bias[None]), LABELS)
    p, q = (np.asarray(a)[np.asarray(where)] for a in mixed)
    np.testing.assert_allclose(q, p @ head + bias[None], rtol=1e-4, atol=1e-5)


def test_equal_embeddings_have_no_attraction_and_one_class_has_no_separation():
    same = np.tile(normal(21, 1, 4), (6, 1))
    labels = np.zeros(6, np.int32)

    @functools.partial(jax.jit, static_argnames="distance")
    def both(same, other, distance):
        p, where = gr.phantom_embeddings(KEY, same, labels)
        yet = gr.attraction_loss(same, p, distance=distance, where=where)
        return yet, gr.separation_loss(KEY, other, labels, num_classes=3, distance=distance)

    for distance in ("l2", "cosine"):
        for losses in both(same, normal(22, 6, 4), distance):
            np.testing.assert_allclose(losses, np.zeros(6), atol=1e-6)


# -------------------------------------------------------------------------------------- gradients

TERMS = {
    f"{reading}-{distance}": phantom_term(
        reading, num_classes=CLASSES, distance=distance, subset_size=2
    )
    for reading, distance in (
        ("attraction", "l2"), ("attraction", "cosine"), ("separation", "l2"),
        ("separation", "cosine"), ("classification", "l2"), ("combination", "l2"),
    )
}  # fmt: skip
every_term = pytest.mark.parametrize("name", TERMS)


@functools.cache
def compiled(name, half=False):
    def total(e, logits, labels):
        if half:
            e, logits = e.astype(jnp.bfloat16), logits.astype(jnp.bfloat16)
        losses = TERMS[name](KEY, Outputs(logits, e), labels)
        return jnp.mean(losses), losses

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


@every_term
def test_gradients_agree_with_finite_differences(name):
    def mean(e, logits):
        return jnp.mean(TERMS[name](KEY, Outputs(logits, e), LABELS))

    e, logits = normal(30, 12, 4), normal(31, 12, CLASSES)
    check_grads(jax.jit(mean), (e, logits), order=1, modes=["rev"], eps=1e-2, rtol=2e-2, atol=1e-4)


EDGES = {
    "no partners": (normal(40, 12, 4), np.arange(12) % 12 - 3),
    "one class": (normal(41, 12, 4), np.full(12, 3)),
    "nobody takes part": (normal(42, 12, 4), np.full(12, -1)),
    "all equal": (np.ones((12, 4), np.float32), LABELS),
    "zeros": (np.zeros((12, 4), np.float32), LABELS),
    "some zeros": (normal(43, 12, 4) * (LABELS != 0)[:, None], LABELS),
    "an axis": (np.eye(4, dtype=np.float32)[np.arange(12) % 4] * 3, LABELS),
    "huge": (1e18 * normal(44, 12, 4), LABELS),
    "too huge": (1e37 * normal(45, 12, 4), LABELS),
    "tiny": (1e-30 * normal(46, 12, 4), LABELS),
    "huge and tiny": (10.0 ** (12 * normal(47, 12, 4)).clip(-37, 37), LABELS),
}


@every_term
def test_values_and_gradients_are_finite_at_every_edge(name):
    for edge, (e, labels) in EDGES.items():
        e = jnp.asarray(e, jnp.float32)
        logits = e @ normal(50, 4, CLASSES) if edge != "too huge" else normal(51, 12, CLASSES)
        (_, losses), grads = compiled(name)(e, logits, jnp.asarray(labels, jnp.int32))
        assert np.all(np.isfinite(losses)) and np.all(np.asarray(losses) >= -1e-6), edge
        assert all(np.all(np.isfinite(g)) for g in grads), edge
        alone = np.array([np.sum(labels == c) < 2 or c < 0 for c in labels])
        assert np.all(np.asarray(losses)[alone] == 0), edge


@pytest.mark.parametrize("name", ["attraction-cosine", "separation-l2", "combination-l2"])
def test_one_example_has_no_loss(name):
    outputs = Outputs(np.ones((1, CLASSES), np.float32), np.ones((1, 4), np.float32))
    losses = jax.jit(TERMS[name])(KEY, outputs, np.array([0]))
    np.testing.assert_array_equal(losses, [0.0])


@pytest.mark.parametrize("scale", [1e-7, 1e18])
def test_huge_and_small_embeddings_have_the_right_losses(scale):
    e, p = normal(52, 5, 4), normal(53, 5, 4)
    to = lambda x: np.float32(scale) * x
    cosines = [cosine(a, b) for a, b in zip(e, p)]
    np.testing.assert_allclose(
        gr.attraction_loss(to(e), to(p), distance="cosine"), cosines, rtol=1e-4
    )
    squares = [scale**2 * l2(a, b) for a, b in zip(e, p)]
    np.testing.assert_allclose(gr.attraction_loss(to(e), to(p)), squares, rtol=1e-4)


def test_a_zero_vector_and_a_masked_row_get_no_gradient():
    e, p = normal(54, 3, 4), normal(55, 3, 4)
    e[0], p[1] = 0, np.nan

    def total(e, p):
        where = np.array([True, False, True])
        losses = gr.attraction_loss(e, p, distance="cosine", where=where)
        return jnp.sum(losses), losses

    grads, losses = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(e, p)
    assert losses[0] == 1 and losses[1] == 0
    for grad in grads:
        assert np.all(grad[:2] == 0) and np.all(np.abs(grad[2]) > 0)


def test_gradients_reach_the_partners_unless_they_are_stopped():
    e, labels = normal(56, 3, 4), np.zeros(3, np.int32)

    def first(e, stop):
        p, where = gr.phantom_embeddings(KEY, e, labels)
        p = jax.lax.stop_gradient(p) if stop else p
        return gr.attraction_loss(e, p, where=where)[0]

    through, stopped = jax.jit(lambda e: [jax.grad(first)(e, stop) for stop in (False, True)])(e)
    assert np.all(np.any(through != 0, axis=1))
    assert np.any(stopped[0] != 0) and np.all(stopped[1:] == 0)
    np.testing.assert_allclose(through[0], stopped[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["attraction-cosine", "separation-l2"])
def test_bfloat16_goes_in_and_float32_comes_out(name):
    e, logits = (jnp.asarray(x, jnp.bfloat16) for x in (normal(57, 12, 4), normal(58, 12, CLASSES)))
    exact = [x.astype(jnp.float32) for x in (e, logits)]
    (_, half), grads = compiled(name, half=True)(*exact, LABELS)
    (_, whole), _ = compiled(name)(*exact, LABELS)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, whole, rtol=1e-5, atol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in grads)


# ----------------------------------------------------------------------------------------- memory


def test_a_memory_keeps_the_last_rows_and_gives_partners_without_gradient():
    e = normal(60, 3, 4)
    memory = gr.PhantomMemory.empty(e, size=5)
    assert np.all(memory.labels == -1) and memory.embeddings.shape == (5, 4)
    _, where = jax.jit(gr.phantom_embeddings)(KEY, e, np.array([0, 1, 2]), memory=memory)
    assert not np.any(where)
    push = jax.jit(gr.PhantomMemory.push)
    memory = push(push(memory, e, np.array([0, 1, 2])), 2 * e, np.array([3, 3, 0]))
    assert memory.labels.tolist() == [1, 2, 3, 3, 0]
    np.testing.assert_array_equal(memory.embeddings, np.concatenate([e[1:], 2 * e]))
    anchors, labels = normal(61, 2, 4), np.array([0, 3])
    draw = jax.jit(functools.partial(gr.phantom_embeddings, weighting="uniform"))
    phantoms, where = draw(KEY, anchors, labels, memory=memory)
    np.testing.assert_allclose(phantoms, [2 * e[2], e[0] + e[1]], rtol=1e-5)
    assert np.all(where)
    # More rows than it has places, and several layers.
    tree = (normal(62, 7, 2), normal(63, 7, 1, 3))
    memory = push(gr.PhantomMemory.empty(tree, size=5), tree, np.arange(7))
    np.testing.assert_array_equal(memory.embeddings[1], tree[1][2:])

    def total(old):
        memory = gr.PhantomMemory.empty(old, size=3).push(old, np.array([0, 0, 1]))
        losses = gr.separation_loss(KEY, e, np.array([0, 1, 1]), num_classes=2, memory=memory)
        phantoms, _ = gr.phantom_embeddings(KEY, e, np.array([0, 1, 1]), memory=memory)
        return jnp.sum(losses) + jnp.sum(phantoms)

    assert not jax.jit(jax.grad(total))(e).any()


def test_what_is_not_finite_is_remembered_as_nothing():
    e, labels = normal(64, 4, 3), np.array([0, 0, 1, 1])
    e[0, 1], e[3, 2] = np.nan, np.inf
    memory = gr.PhantomMemory.empty(e, size=4).push(e, labels)
    assert memory.labels.tolist() == [-1, 0, 1, -1]
    narrow = gr.PhantomMemory.empty(e.astype(np.float16), size=2)
    narrow = narrow.push(np.array([[1e6, 0, 0], [1, 2, 3]], np.float32), labels[:2])
    assert narrow.labels.tolist() == [-1, 0] and narrow.embeddings.dtype == jnp.float16
    phantoms, where = gr.phantom_embeddings(KEY, e[1:3], labels[1:3], memory=memory)
    np.testing.assert_allclose(phantoms, e[1:3], rtol=1e-6)
    assert where.all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
def test_labels_mean_the_same_in_every_type(dtype):
    e, labels = normal(65, 6, 4), np.array([0, 0, 1, 1, 100, 100])
    for num_classes in (2, 101, 128, 256):
        whole, narrow = (
            gr.separation_loss(KEY, e, labels.astype(d), num_classes=num_classes)
            for d in (np.int32, dtype)
        )
        np.testing.assert_array_equal(whole, narrow)
        assert (np.asarray(whole[4:]) == 0).all() == (num_classes == 2)


def test_labels_of_masked_rows_may_be_anything_outside_of_jit_too():
    logits, where = normal(66, 3, 4), np.array([True, True, False])
    labels = np.array([0, 3, 255])
    losses = gr.classification_loss(logits, labels, where=where)
    np.testing.assert_array_equal(
        losses, jax.jit(gr.classification_loss)(logits, labels, where=where)
    )
    assert losses[2] == 0
    with pytest.raises(ValueError, match="labels has 255"):
        gr.classification_loss(logits, labels, where=~where)


# ---------------------------------------------------------------------------------------- devices


def sharded_losses(axis_name=None):
    """All that depends on the axis, of one device's part of a batch."""

    def run(key, e, labels, memory):
        phantoms, where = gr.phantom_embeddings(
            key, e, labels, subset_size=2, axis_name=axis_name, memory=memory
        )
        losses = gr.attraction_loss(e, phantoms, where=where) + gr.separation_loss(
            key, e, labels, num_classes=CLASSES, axis_name=axis_name, memory=memory
        )
        return losses, phantoms, where, memory.push(e, labels, axis_name=axis_name)

    return run


@functools.cache
def whole_batch():
    e, labels = normal(70, 24, 4), np.random.default_rng(71).integers(-1, CLASSES - 1, 24)
    memory = gr.PhantomMemory.empty(e, size=30).push(normal(72, 5, 4), np.array([0, 4, 1, 4, 2]))

    def mean(e):
        losses, *rest = sharded_losses()(KEY, e, labels, memory)
        return jnp.mean(losses), (losses, *rest)

    grads, outputs = jax.jit(jax.grad(mean, has_aux=True))(e)
    return (e, labels, memory), grads, outputs


def assert_same(tree, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tree, expected
    )


def test_shard_map_over_eight_devices_equals_one_device():
    (e, labels, memory), grads, expected = whole_batch()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = P("data")

    def mean(e):
        run = jax.shard_map(
            sharded_losses("data"),
            mesh=mesh,
            in_specs=(P(), rows, rows, P()),
            out_specs=(rows, rows, rows, P()),  # every device remembers the same
        )
        return (lambda losses, *rest: (jnp.mean(losses), (losses, *rest)))(
            *run(KEY, e, labels, memory)
        )

    found, outputs = jax.jit(jax.grad(mean, has_aux=True))(e)
    assert_same((found, *outputs), (grads, *expected))


def test_pmap_over_eight_devices_equals_one_device():
    (e, labels, memory), grads, expected = whole_batch()
    split = lambda leaf: leaf.reshape(8, 3, *leaf.shape[1:])

    def part(e, labels):
        def mean(e):
            losses, *rest = sharded_losses("data")(KEY, e, labels, memory)
            return jnp.sum(losses) / 24, (losses, *rest)

        return jax.grad(mean, has_aux=True)(e)

    found, outputs = jax.pmap(part, axis_name="data")(split(e), split(labels))
    together = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (found, outputs[:3]))
    assert_same(together, (grads, expected[:3]))


# ------------------------------------------------------------------------------------------- step


def perceptron():
    def apply(params, model_state, x, *, rng, train):
        e = jnp.tanh(x.reshape(len(x), -1) @ params["w"])
        return Outputs(e @ params["head"], e), model_state

    return Model(init=lambda key, x: None, apply=apply)


@functools.cache
def run_step(term=None):
    tx = optax.sgd(0.3, momentum=0.9)
    params = {"w": jnp.asarray(normal(80, 4, 6)), "head": jnp.asarray(normal(81, 6, 3))}
    state = TrainState(jnp.int32(3), params, {}, tx.init(params), (), (), KEY)
    rng = np.random.default_rng(82)
    images = jnp.asarray(rng.integers(0, 256, (8, 2, 2, 1), np.uint8))
    batch = Batch(images, jnp.asarray(rng.integers(0, 3, 8), jnp.int32))
    noise = lambda key, x: x + 0.1 * jax.random.normal(key, x.shape)
    step = make_train_step(perceptron(), tx, num_classes=3, augment=noise, embedding_term=term)
    return (*jax.jit(step)(state, batch, None, ()), state, batch)


def settings_with(**phantom):
    return from_config({"phantom": phantom})


@pytest.mark.promotes
def test_the_term_is_added_to_the_loss_and_to_the_gradient():
    base, base_metrics, state, batch = run_step()

    def term(key, outputs, labels, step):
        return 0.2 * jnp.sum(outputs.embedding**2, axis=1) * (labels + 1) * (step == 3)

    new, metrics, *_ = run_step(term)
    assert metrics["train/cross_entropy"] == base_metrics["train/cross_entropy"]
    total = metrics["train/cross_entropy"] + metrics["train/embedding_loss"]
    np.testing.assert_allclose(metrics["train/loss"], total, rtol=1e-6)
    # The term does not know the head: its step is the base's bit for bit.
    np.testing.assert_array_equal(new.params["head"], base.params["head"])

    @jax.jit
    def by_hand(w):
        key = jax.random.split(jax.random.split(jax.random.fold_in(state.key, 3), 3)[0], 3)[0]
        x = batch.images / np.float32(255)
        x = (x + 0.1 * jax.random.normal(key, x.shape)).reshape(8, -1)
        mean = lambda w: jnp.mean(0.2 * jnp.sum(jnp.tanh(x @ w) ** 2, axis=1) * (batch.labels + 1))
        return jax.value_and_grad(mean)(w)

    loss, extra = by_hand(state.params["w"])
    np.testing.assert_allclose(metrics["train/embedding_loss"], loss, rtol=1e-5)
    found = new.params["w"] - base.params["w"]
    np.testing.assert_allclose(found, -0.3 * extra, rtol=1e-3, atol=1e-6)


def test_weight_zero_is_the_base_step_bit_for_bit_and_runs_no_term():
    for reading in READINGS:
        assert embedding_term_of(settings_with(loss=reading, weight=0.0), 3, 10) is None
    assert embedding_term_of(settings_with(), 3, 10) is None
    base, metrics, *_ = run_step()
    term = lambda key, outputs, labels, step: 0.0 * jnp.sum(outputs.embedding, axis=1)
    zero, _, *_ = run_step(term)
    jax.tree.map(np.testing.assert_array_equal, zero.params, base.params)
    assert "train/embedding_loss" not in metrics


@pytest.mark.parametrize("reading", READINGS)
def test_each_reading_is_a_term_by_config_and_its_weight_warms_up(reading):
    def loss_at(step, **options):
        term = embedding_term_of(settings_with(loss=reading, **options), 3, 10)
        outputs = Outputs(jnp.asarray(normal(83, 12, 3)), jnp.asarray(normal(84, 12, 4)))
        return np.asarray(term(KEY, outputs, LABELS.clip(-1, 2), jnp.int32(step)))

    whole = loss_at(0)
    assert np.max(whole) > 0
    np.testing.assert_allclose(loss_at(0, weight=3.0), 3 * whole, rtol=1e-6)
    warm = {"warmup": 0.5, "weight": 2.0}
    for step, part in {0: 0.2, 1: 0.4, 4: 1.0, 9: 1.0}.items():
        np.testing.assert_allclose(loss_at(step, **warm), 2 * part * whole, rtol=1e-5)
    changes = {
        "attraction": {"distance": "cosine"}, "separation": {"temperature": 3.0},
        "classification": {"weighting": "uniform"}, "combination": {"ratio": 0.9},
    }  # fmt: skip
    for options in (changes[reading], {"subset_size": 1}):
        assert np.any(np.abs(loss_at(0, **options) - whole) > 1e-3)


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(4, np.int32)}, r"embeddings must be .* B = 4.*shape \(5, 3\)"),
        ({"labels": np.zeros(5)}, r"labels must be integers \[B\], got shape \(5,\) and .*float"),
        ({"labels": np.zeros((5, 1), np.int32)}, r"labels must be .* got shape \(5, 1\)"),
        ({"embeddings": np.zeros((5, 3), np.int32)}, r"embeddings must be floats .* int32"),
        ({"embeddings": ()}, r"embeddings must hold at least one array .* got \(\)"),
        ({"subset_size": -1}, "subset_size must be None or an integer >= 1, got -1"),
        ({"subset_size": 0}, "subset_size must be .* got 0"),
        ({"subset_size": 1.5}, "subset_size must be .* got 1.5"),
        ({"weighting": "gamma"}, "weighting must be one of .*'dirichlet', 'uniform'.* got 'gamma'"),
        ({"axis_name": "data"}, "axis_name = 'data' is not bound.*jax.pmap"),
        (
            {"memory": gr.PhantomMemory.empty(np.zeros((1, 4), np.float32), size=2)},
            r"memory must hold embeddings like .*\(5, 3\).* got \(2, 4\)",
        ),
    ],
)
def test_wrong_draws_are_named_with_their_value(change, message):
    arguments = {"embeddings": np.ones((5, 3), np.float32), "labels": np.zeros(5, np.int32)}
    arguments.update(change)
    with pytest.raises(ValueError, match=message):
        gr.phantom_embeddings(KEY, **arguments)
    with pytest.raises(ValueError, match=message):
        gr.separation_loss(KEY, num_classes=2, **arguments)


def test_wrong_losses_are_named_with_their_value():
    e, y = np.ones((5, 3), np.float32), np.zeros(5, np.int32)
    with pytest.raises(ValueError, match="distance must be one of .*'l2', 'cosine'.* got 'l1'"):
        gr.attraction_loss(e, e, distance="l1")
    with pytest.raises(ValueError, match=r"phantoms must be like embeddings.*\(5, 3\).*\(5, 4\)"):
        gr.attraction_loss(e, np.ones((5, 4), np.float32))
    with pytest.raises(
        ValueError, match=r"where must be bool .* B = 5, got shape \(5,\) and .*int"
    ):
        gr.attraction_loss(e, e, where=y)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        gr.separation_loss(KEY, e, y, num_classes=2, temperature=0.0)
    with pytest.raises(ValueError, match="num_classes is 0; allowed: an integer >= 1"):
        gr.separation_loss(KEY, e, y, num_classes=0)
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\], got 2"):
        gr.combination_loss(e, e, y, ratio=2.0)
    with pytest.raises(ValueError, match="phantom_logits must be floats .* B = 4"):
        gr.classification_loss(e, y[:4])
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        gr.PhantomMemory.empty(e, size=0)
    with pytest.raises(ValueError, match="reading must be one of .*attraction.* got 'repulsion'"):
        phantom_term("repulsion", num_classes=2)


# ------------------------------------------------------------------------- what takes no part


@functools.cache
def value_and_grad_of(loss, distance):
    def losses(e, labels, memory):
        if loss == "attraction":
            phantoms, where = gr.phantom_embeddings(KEY, e, labels, weighting="uniform")
            return gr.attraction_loss(e, phantoms, distance=distance, where=where)
        draws = dict(weighting="uniform", num_classes=CLASSES, distance=distance, memory=memory)
        return gr.separation_loss(KEY, e, labels, **draws)

    @jax.jit
    def value_and_grad(e, labels, memory=None):
        value, pull_back = jax.vjp(lambda e: losses(e, labels, memory), e)
        return value, pull_back(jnp.ones_like(value))[0]

    return value_and_grad


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("loss", ["attraction", "separation", "memory"])
def test_rows_that_take_no_part_may_hold_anything(loss, distance, value):
    """Loss and gradients of the others are those without such rows."""
    e, labels = normal(3, 7, 5), np.array([0, 1, 0, 2, 1, 0, 2])
    strange = np.full((2, 5), value, np.float32)
    outside = {"attraction": [-1, -1], "separation": [CLASSES, -1], "memory": [-1, CLASSES + 2]}
    value_and_grad = value_and_grad_of(loss, distance)
    expected, expected_grad = value_and_grad(e, labels)
    if loss == "memory":
        memory = gr.PhantomMemory(jnp.asarray(strange), jnp.asarray(outside[loss], jnp.int32))
        found, grad = value_and_grad(e, labels, memory)
    else:
        together = np.concatenate([e, strange]), np.concatenate([labels, outside[loss]])
        found, grad = value_and_grad(*together)
        assert not found[7:].any() and not grad[7:].any()
    np.testing.assert_allclose(found[:7], expected, rtol=1e-6)
    np.testing.assert_allclose(grad[:7], expected_grad, rtol=1e-5, atol=1e-7)
