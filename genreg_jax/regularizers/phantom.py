"""Phantom embeddings: same-class mixtures in the embedding space, and four losses that use them.

    S_i   a random subset of the other samples of the anchor's class
    p_i = sum_j w_ij e_j,  j in S_i,  w_ij >= 0,  sum_j w_ij = 1           the phantom of anchor i

The abstract leaves open what is done with `p_i`; each reading follows some of its words:

| reading | loss of anchor i | follows the words |
|---|---|---|
| `attraction_loss` | `d(e_i, p_i)` | "high intra-class correlation" |
| `separation_loss` | `-log softmax_c(-d(e_i, p_c))[y_i]` | "decrease the inter-class similarity" |
| `classification_loss` | `CE(h(p_i), y_i)` | phantoms as further samples |
| `combination_loss` | `CE(h(a e_i + (1 - a) p_i), y_i)` | "a combination of their embedding" |

An anchor without a partner has no phantom; its loss and its gradients are zero. A negative label
takes its row out altogether: no anchor, nobody's partner. Everything is computed in float32.

The weights of a row depend on the key and on the row's index in the whole batch alone, so that a
batch spread over devices (`axis_name`) gives what one device gives.

Reductions, each a test: equal embeddings have no attraction; a batch of one class has no
separation; `combination_loss` is the plain cross-entropy at `ratio` 1 and `classification_loss` at
`ratio` 0.

Source: Phantom Embeddings, arXiv:2304.07262.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genreg_jax import bounds
from genreg_jax.checks import (
    as_array,
    check_choice,
    check_key,
    check_number,
    is_concrete,
    is_number,
    short,
    split,
    widened,
)

DISTANCES = ("l2", "cosine")
WEIGHTINGS = ("dirichlet", "uniform")
READINGS = ("attraction", "separation", "classification", "combination")

_NO_CLASS = -1  # label of what takes no part
_LARGE = 1e19  # its square is the largest power of ten in float32


class PhantomMemory(NamedTuple):
    """Embeddings of recent batches, further partners where a batch has few of a class.

    The memory is explicit state: make it once, hand it to `phantom_embeddings`, push every batch.
    No gradient flows to what is remembered.

    Attributes:
      embeddings: pytree of `[M, ...]`, oldest first.
      labels: int32 `[M]`, negative where nothing has been remembered yet.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> e, y = jnp.eye(3), jnp.array([0, 1, 2])  # nobody has a partner
      >>> memory = gr.PhantomMemory.empty(e, size=6).push(2 * e, y)
      >>> phantoms, where = gr.phantom_embeddings(jax.random.key(0), e, y, memory=memory)
      >>> where.tolist(), bool(jnp.all(phantoms == 2 * e))
      ([True, True, True], True)
    """

    embeddings: Any
    labels: jax.Array

    @classmethod
    def empty(cls, embeddings: Any, *, size: int) -> "PhantomMemory":
        """A memory of `size` rows for embeddings like these `[B, ...]`, with nothing in it."""
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size!r}.")
        rows = lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype)
        return cls(jax.tree.map(rows, embeddings), jnp.full(size, _NO_CLASS, jnp.int32))

    def push(self, embeddings: Any, labels: jax.Array, *, axis_name: Any = None) -> "PhantomMemory":
        """The memory after a batch, which takes the place of the oldest rows.

        A row that is not finite is nobody's partner.

        Args:
          embeddings: pytree of `[B, ...]`, like the memory's.
          labels: int `[B]`.
          axis_name: remember the batches of all devices along this axis, on each of them.
        """
        new = PhantomMemory(embeddings, _check(embeddings, labels))
        new = jax.tree.map(lambda old, new: jnp.asarray(new).astype(old.dtype), self, new)
        for rows in _matrices(new.embeddings):  # what is not finite would be in every phantom
            finite = jnp.all(jnp.isfinite(rows), axis=1)
            new = new._replace(labels=jnp.where(finite, new.labels, _NO_CLASS))
        size = len(self.labels)
        append = lambda old, new: jnp.concatenate([old, new])[-size:]
        return jax.tree.map(append, self, _gather_alike(new, axis_name))


def phantom_embeddings(
    key: jax.Array,
    embeddings: Any,
    labels: jax.Array,
    *,
    subset_size: int | None = None,
    weighting: str = "dirichlet",
    axis_name: Any = None,
    memory: PhantomMemory | None = None,
) -> tuple[Any, jax.Array]:
    """Mixes, for each example, the embeddings of others of its class.

    Args:
      key: a PRNG key; the same on all devices where there are several.
      embeddings: `[B, ...]`, or a pytree of such arrays (several layers, or embedding and logits),
        which are all mixed with the same weights.
      labels: int `[B]`; a row with a negative label takes no part.
      subset_size: number of partners drawn for each anchor without replacement; where its class has
        fewer, and with None, all are taken.
      weighting: `dirichlet`: flat on the simplex, `w ~ Dir(1, ..., 1)`. `uniform`: the mean.
      axis_name: name of a mapped axis (`pmap`, `shard_map`, `vmap`); partners then come from the
        batches of all devices along it.
      memory: further partners.

    Returns:
      `(phantoms, where)`: phantoms like `embeddings`, in float32, zero where an anchor has no
      partner, and bool `[B]`, False there.

    Raises:
      ValueError: labels that do not fit the embeddings, a `subset_size` below 1, an unknown
        `weighting`, an `axis_name` that is not bound, or a memory of other embeddings.

    Gradients flow to the partners' embeddings, unless the caller puts `jax.lax.stop_gradient`
    around the phantoms. A row of the batch that is not finite makes all phantoms so, unless its
    label is negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> e = jnp.array([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0], [7.0, 7.0]])
      >>> phantoms, where = gr.phantom_embeddings(
      ...     jax.random.key(0), e, jnp.array([0, 0, 0, 1]), weighting="uniform")
      >>> phantoms.tolist()
      [[4.0, 3.0], [3.0, 2.0], [2.0, 1.0], [0.0, 0.0]]
      >>> where.tolist()
      [True, True, True, False]

    Source: Phantom Embeddings, arXiv:2304.07262, "create phantom embeddings from a subset of
    homogenous samples".
    """
    labels = _check(embeddings, labels)
    rows, pool, pool_labels = _pool(embeddings, labels, axis_name, memory)
    same = (labels[:, None] == pool_labels[None, :]) & (labels >= 0)[:, None]
    partners = same & (rows[:, None] != jnp.arange(len(pool_labels))[None, :])
    weights = _weights(key, rows, partners, subset_size, weighting)
    return _mix(weights, pool), jnp.any(partners, axis=1)


def attraction_loss(
    embeddings: Any, phantoms: Any, *, distance: str = "l2", where: jax.Array | None = None
) -> jax.Array:
    """Distance of each embedding to its phantom: samples of a class move together.

    `l2`: `|e - p|^2 / D`, divided by the width so that a weight carries over between networks; it
    is right up to differences of 1e19 and stays there.
    `cosine`: `1 - <e, p> / (|e| |p|)`, in [0, 2]; a vector shorter than 1e-8 has no direction, so
    that its distance is 1 and no gradient flows to it.

    Args:
      embeddings: `[B, ...]`, or a pytree of such arrays, whose distances are averaged.
      phantoms: like `embeddings`.
      distance: `l2` or `cosine`.
      where: bool `[B]`; the loss is 0 where it is False.

    Returns:
      Per-example losses `[B]`, float32.

    Raises:
      ValueError: unknown distance, or phantoms or `where` that do not fit the embeddings.

    Gradients flow to both; `jax.lax.stop_gradient(phantoms)` moves the anchors alone.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> e, p = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 4.0], [9.0, 9.0]])
      >>> gr.attraction_loss(e, p, where=jnp.array([True, False])).tolist()
      [12.5, 0.0]
      >>> print(gr.attraction_loss(e, p, distance="cosine").round(3))
      [1.    0.293]

    Source: Phantom Embeddings, arXiv:2304.07262, "high intra-class correlation".
    """
    check_choice("distance", distance, DISTANCES)
    pairs = _pairs("embeddings", embeddings, "phantoms", phantoms)
    where = _mask(where, len(pairs[0][0]))
    losses = _mean([_DISTANCES[distance](*_only(where, e, p)) for e, p in pairs])
    return jnp.where(where, losses, 0.0)


def separation_loss(
    key: jax.Array,
    embeddings: Any,
    labels: jax.Array,
    *,
    num_classes: int,
    temperature: float = 1.0,
    subset_size: int | None = None,
    weighting: str = "dirichlet",
    distance: str = "l2",
    axis_name: Any = None,
    memory: PhantomMemory | None = None,
) -> jax.Array:
    """Cross-entropy of each embedding among one phantom of every class that is present.

    `-log softmax_c(-d(e_i, p_c) / t)` at `c = y_i`. The phantoms of the other classes are drawn
    once for the batch; the anchor's own is drawn for it and leaves it out. Classes without a sample
    are left out of the softmax.

    Args:
      key: a PRNG key; the same on all devices where there are several.
      embeddings: `[B, ...]`, or a pytree of such arrays, whose distances are averaged.
      labels: int `[B]`, in `[0, num_classes)`; other rows take no part.
      num_classes: K.
      temperature: t, positive.
      subset_size: as in `phantom_embeddings`.
      weighting: as in `phantom_embeddings`.
      distance: `l2` or `cosine`, as in `attraction_loss`.
      axis_name: as in `phantom_embeddings`.
      memory: as in `phantom_embeddings`.

    Returns:
      Per-example losses `[B]`, float32, 0 for an anchor without a partner.

    Raises:
      ValueError: as `phantom_embeddings`; unknown distance, `temperature` not positive or
        `num_classes` below 1.

    Gradients flow to the anchors and to all phantoms.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> e = jnp.array([[0.0], [0.0], [9.0], [9.0], [5.0]])
      >>> gr.separation_loss(
      ...     jax.random.key(0), e, jnp.array([0, 0, 2, 2, 1]), num_classes=4).round(3).tolist()
      [0.0, 0.0, 0.0, 0.0, 0.0]

    Source: Phantom Embeddings, arXiv:2304.07262, "decrease the inter-class similarity".
    """
    check_choice("distance", distance, DISTANCES)
    check_number("num_classes", num_classes, minimum=1, integer=True)
    if is_concrete(temperature) and not (is_number(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive, got {short(temperature)}.")
    labels = _check(embeddings, labels)
    labels = jnp.where(labels < num_classes, labels, _NO_CLASS)
    key_own, key_classes = split(key)
    own, where = phantom_embeddings(
        key_own,
        embeddings,
        labels,
        subset_size=subset_size,
        weighting=weighting,
        axis_name=axis_name,
        memory=memory,
    )
    _, pool, pool_labels = _pool(embeddings, labels, axis_name, memory)
    classes = jnp.arange(num_classes)
    members = classes[:, None] == pool_labels[None, :]
    weights = _weights(key_classes, classes, members, subset_size, weighting)
    others = _mix(weights, pool)

    measure = _DISTANCES[distance]
    to_own = attraction_loss(embeddings, own, distance=distance, where=where)
    to_others = _mean(
        [
            measure(_only(where, e)[0][:, None, :], p[None, :, :])
            for e, p in zip(_matrices(embeddings), _matrices(others))
        ]
    )
    is_own = labels[:, None] == classes[None, :]
    to_all = jnp.where(is_own, to_own[:, None], to_others) / temperature
    present = jnp.any(members, axis=1)[None, :]
    # Large but finite, so that neither a diverged nor an empty row makes a NaN.
    logits = jnp.where(present, -bounds.minimum(to_all, _LARGE), -(_LARGE**1.5))
    losses = jax.nn.logsumexp(logits, axis=1) + bounds.minimum(to_own / temperature, _LARGE)
    return jnp.where(where, losses, 0.0)


def classification_loss(
    phantom_logits: jax.Array, labels: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of the head's answer to the phantoms, which are samples of the anchor's class.

    The weights of a phantom sum to 1, so an affine head commutes with the mixing: mix the logits
    along with the embeddings, `phantom_embeddings(key, (embedding, logits), labels)`. Put the
    phantoms through any other head.

    Args:
      phantom_logits: `[B, K]`.
      labels: int `[B]`, of the anchors.
      where: bool `[B]`; the loss is 0 where it is False.

    Returns:
      Per-example losses `[B]`, float32.

    Raises:
      ValueError: labels or `where` that do not fit the logits.

    Gradients flow to the logits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> logits, y = jnp.array([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0, 1])
      >>> phantoms, where = gr.phantom_embeddings(jax.random.key(0), logits, y)
      >>> print(gr.classification_loss(phantoms, y, where=where).round(3))
      [0.693 0.127 0.   ]

    Source: Phantom Embeddings, arXiv:2304.07262.
    """
    labels = _check(phantom_logits, labels, name="phantom_logits")
    if phantom_logits.ndim != 2:
        raise ValueError(f"phantom_logits must be [B, K], got shape {phantom_logits.shape}.")
    where = _mask(where, len(labels)) & (labels >= 0)
    labels = jnp.where(where, labels, 0)  # what is masked may be anything
    if is_concrete(labels) and labels.size and int(np.max(labels)) >= phantom_logits.shape[1]:
        raise ValueError(
            f"labels has {int(np.max(labels))}; allowed is below K = {phantom_logits.shape[1]}."
        )
    logits = jnp.where(where[:, None], widened(phantom_logits), 0.0)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.where(where, losses, 0.0)


def combination_loss(
    logits: jax.Array,
    phantom_logits: jax.Array,
    labels: jax.Array,
    *,
    ratio: float = 0.5,
    where: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of the head's answer to anchors that are mixed with their phantoms.

    `CE(a h(e) + (1 - a) h(p), y)`, which for an affine head h is `CE(h(a e + (1 - a) p), y)`.

    Args:
      logits: `[B, K]`, of the anchors.
      phantom_logits: `[B, K]`, as in `classification_loss`.
      labels: int `[B]`.
      ratio: a, the anchor's part, in [0, 1].
      where: bool `[B]`; the loss is 0 where it is False.

    Returns:
      Per-example losses `[B]`, float32.

    Raises:
      ValueError: `ratio` outside [0, 1], or arrays that do not fit each other.

    Gradients flow to both logits.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> logits, phantom_logits = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]])
      >>> print(gr.combination_loss(logits, phantom_logits, jnp.array([0])).round(3))
      [0.693]

    Source: Phantom Embeddings, arXiv:2304.07262, "a combination of their embedding".
    """
    if is_concrete(ratio) and not (is_number(ratio) and 0 <= ratio <= 1):
        raise ValueError(f"ratio must be in [0, 1], got {short(ratio)}.")
    ((e, p),) = _pairs("logits", logits, "phantom_logits", phantom_logits)
    return classification_loss(ratio * e + (1 - ratio) * p, labels, where=where)


def phantom_term(
    reading: str,
    *,
    num_classes: int,
    subset_size: int | None = None,
    weighting: str = "dirichlet",
    distance: str = "l2",
    temperature: float = 1.0,
    ratio: float = 0.5,
    stop_gradient: bool = False,
) -> Callable[[jax.Array, Any, jax.Array], jax.Array]:
    """One of the four readings as a term of a training step.

    Args:
      reading: `attraction`, `separation`, `classification` or `combination`.
      num_classes: K.
      subset_size: as in `phantom_embeddings`.
      weighting: as in `phantom_embeddings`.
      distance: of `attraction_loss` and `separation_loss`.
      temperature: of `separation_loss`.
      ratio: of `combination_loss`.
      stop_gradient: hold the phantoms of `attraction` and `combination` fixed.

    Returns:
      `(key, outputs, labels) -> losses [B]`, with `outputs` as a model returns them (the contract's
      `Outputs`); the last two readings take the head to be affine.

    Raises:
      ValueError: unknown reading.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> from genreg_jax.regularizers.phantom import phantom_term
      >>> term = phantom_term("attraction", num_classes=2)
      >>> outputs = gr.Outputs(logits=jnp.zeros((2, 2)), embedding=jnp.array([[0.0], [3.0]]))
      >>> term(jax.random.key(0), outputs, jnp.array([1, 1])).tolist()
      [9.0, 9.0]
    """
    check_choice("reading", reading, READINGS)
    draws: dict[str, Any] = {"subset_size": subset_size, "weighting": weighting}
    hold = jax.lax.stop_gradient if stop_gradient else lambda phantoms: phantoms

    def attraction(key, outputs, labels):
        phantoms, where = phantom_embeddings(key, outputs.embedding, labels, **draws)
        return attraction_loss(outputs.embedding, hold(phantoms), distance=distance, where=where)

    def separation(key, outputs, labels):
        return separation_loss(
            key,
            outputs.embedding,
            labels,
            num_classes=num_classes,
            temperature=temperature,
            distance=distance,
            **draws,
        )

    def classification(key, outputs, labels):
        phantom_logits, where = phantom_embeddings(key, outputs.logits, labels, **draws)
        return classification_loss(phantom_logits, labels, where=where)

    def combination(key, outputs, labels):
        phantom_logits, where = phantom_embeddings(key, outputs.logits, labels, **draws)
        return combination_loss(
            outputs.logits, hold(phantom_logits), labels, ratio=ratio, where=where
        )

    return {f.__name__: f for f in (attraction, separation, classification, combination)}[reading]


# ------------------------------------------------------------------------------------- distances


def _l2(a, b):
    """`|a - b|^2 / D` over the last axis; huge differences saturate instead of overflowing."""
    difference = bounds.clip(a - b, -_LARGE, _LARGE)
    return jnp.sum(difference**2 / difference.shape[-1], axis=-1)


def _cosine(a, b):
    return 1 - jnp.sum(_unit(a) * _unit(b), axis=-1)


def _unit(x):
    """`x / |x|` over the last axis, 0 for what is shorter than 1e-8; no overflow, no NaN."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(scale > 0, scale, 1.0)
    squared = jnp.sum(x**2, axis=-1, keepdims=True)  # in [1, D] unless x is zero
    norm = jnp.sqrt(jnp.where(scale > 0, squared, 1.0))
    return jnp.where(scale * norm > 1e-8, x / norm, 0.0)


_DISTANCES: dict[str, Callable] = {"l2": _l2, "cosine": _cosine}


# ---------------------------------------------------------------------------------------- drawing


def _pool(embeddings, labels, axis_name, memory):
    """Index of each anchor among all partners `[N, ...]`, these partners, and their labels."""
    rows = jnp.arange(len(labels))
    if axis_name is not None:
        try:
            rows = rows + jax.lax.axis_index(axis_name) * len(labels)
        except NameError:
            raise ValueError(
                f"axis_name = {axis_name!r} is not bound; it must name a mapped axis around this "
                "call, such as that of jax.pmap or jax.shard_map, or be None."
            ) from None
    pool, pool_labels = _gather((jax.tree.map(jnp.asarray, embeddings), labels), axis_name)
    pool = jax.tree.map(widened, pool)
    if memory is not None:
        try:
            remembered = jax.tree.map(lambda leaf: widened(jax.lax.stop_gradient(leaf)), memory[0])
            pool = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), pool, remembered)
        except (TypeError, ValueError):
            raise ValueError(
                f"memory must hold embeddings like the given ones {_shapes(embeddings)}, got "
                f"{_shapes(memory[0])}; make it with PhantomMemory.empty(embeddings, size=...)."
            ) from None
        pool_labels = jnp.concatenate([pool_labels, memory.labels])
    return rows, pool, pool_labels


def _gather(tree, axis_name):
    """Rows of all devices along an axis, in order."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), tree)


def _gather_alike(tree, axis_name):
    """`_gather`, without a gradient, as what `shard_map` knows to be the same on all devices."""
    if axis_name is None:
        return tree
    device, count = jax.lax.axis_index(axis_name), jax.lax.psum(1, axis_name)

    def gather(leaf):
        everything = jnp.zeros((count, *leaf.shape), leaf.dtype).at[device].set(leaf)
        return jax.lax.psum(everything, axis_name).reshape(-1, *leaf.shape[1:])

    return jax.tree.map(lambda leaf: gather(jax.lax.stop_gradient(leaf)), tree)


def _weights(key, rows, partners, subset_size, weighting):
    check_key(key)
    check_choice("weighting", weighting, WEIGHTINGS)
    whole = isinstance(subset_size, int) and 1 <= subset_size < 2**31
    if subset_size is not None and not whole:
        raise ValueError(f"subset_size must be None or an integer >= 1, got {short(subset_size)}.")
    return _draw_weights(key, rows, partners, subset_size, weighting)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _draw_weights(key, rows, partners, subset_size, weighting):
    """Convex weights `[R, N]` over the partners of each row, zero rows where there are none.

    A row's draws depend on its index in the whole batch and not on the device that it is on.
    """
    keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row)))(rows)
    shape = partners.shape[1:]
    if subset_size is not None:
        draws = jax.vmap(lambda k: jax.random.uniform(k, shape))(keys[:, 0])
        order = jnp.argsort(jnp.where(partners, draws, jnp.inf), axis=1)
        partners = partners & (jnp.argsort(order, axis=1) < subset_size)
    weights = partners.astype(jnp.float32)
    if weighting == "dirichlet":
        # Normalised exponentials; one that is exactly 0 would leave a lone partner without weight.
        draws = jax.vmap(lambda k: jax.random.exponential(k, shape))(keys[:, 1])
        weights = weights * jnp.maximum(draws, 1e-30)
    total = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def _mix(weights, pool):
    taken = jnp.any(weights > 0, axis=0)

    def mixed(leaf):
        # What nobody takes may be anything, and 0 times NaN is NaN.
        rows = jnp.where(taken[:, None], leaf.reshape(len(leaf), -1), 0.0)
        product = jnp.matmul(weights.astype(leaf.dtype), rows, precision="highest")
        return product.reshape(len(weights), *leaf.shape[1:])

    return jax.tree.map(mixed, pool)


# --------------------------------------------------------------------------------------- arguments


def _matrices(tree):
    return [widened(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)]


def _shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def _mean(values):
    return sum(values) / len(values)


def _only(where, *arrays):
    """The arrays with zeros where a row is masked, so that nothing in it can reach a gradient."""
    return [jnp.where(where[:, None], array, 0.0) for array in arrays]


def _check(embeddings, labels, name="embeddings"):
    """The labels as an array, after checking that they fit the embeddings."""
    labels = as_array(labels, "labels", "integers [B]")
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers [B], got shape {labels.shape} and dtype {labels.dtype}."
        )
    leaves = [as_array(leaf, name, "floats [B, ...]") for leaf in jax.tree.leaves(embeddings)]
    if not leaves:
        raise ValueError(f"{name} must hold at least one array [B, ...], got {embeddings!r}.")
    for leaf in leaves:
        if leaf.shape[:1] != labels.shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floats [B, ...] with B = {len(labels)}, the number of labels; got "
                f"shape {leaf.shape} and dtype {leaf.dtype}."
            )
    # In 8 bits neither "no class" nor a number of classes of 256 is what it says.
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def _pairs(name, a, other, b):
    """Leaf by leaf as float matrices, after checking that the two are alike."""
    if jax.tree.structure(a) != jax.tree.structure(b) or _shapes(a) != _shapes(b):
        raise ValueError(
            f"{other} must be like {name}, of shape {_shapes(a)}, got shape {_shapes(b)}."
        )
    pairs = list(zip(_matrices(a), _matrices(b)))
    if not pairs:
        raise ValueError(f"{name} must hold at least one array [B, ...], got {a!r}.")
    return pairs


def _mask(where, batch):
    if where is None:
        return jnp.ones(batch, bool)
    where = jnp.asarray(where)
    if where.shape != (batch,) or where.dtype != jnp.bool_:
        raise ValueError(
            f"where must be bool [B] with B = {batch}, got shape {where.shape} and dtype "
            f"{where.dtype}."
        )
    return where
