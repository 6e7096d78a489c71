"""MGR, meta generative regularisation: synthetic samples in the feature extractor, not in the loss.

    real batch (x, y), outer batch (x_v, y_v), z ~ N(0, I), y_s uniform over the classes
    1  L(theta, phi) = CE(f_theta(x), y) + lambda * PCR(G(F_phi(z), y_s); psi)
    2  theta' = one optimiser step from theta on L(theta, phi)
    3  phi   <- one optimiser step on d/d phi CE(f_theta'(x_v), y_v)           exact, through theta'
    4  the synthetic samples are generated again with the new phi
    5  theta <- one optimiser step from the OLD theta on L(theta, new phi); theta' is thrown away

PCR (pseudo consistency regularisation) is the distance between the embeddings of two views of one
synthetic sample; it does not see the label and does not touch the head. MPS (meta pseudo sampling)
is the finder F_phi with its hypergradient. `make_regularizer` has the samples and the term,
`outer.py` lines 2 and 3; `genreg_jax.objective` makes the step of them and of the real batch.

Reductions, each a test: lambda = 0 is the plain step; a finder that is not updated is PCR on
uniformly drawn samples; a `residual` finder starts there.

Sources: Yamaguchi et al., Regularizing Neural Networks with Meta-Learning Generative Models,
arXiv:2307.13899; the algorithm's lines and the cosine distance as written out in Yamaguchi,
Generative Semi-supervised Learning with Meta-Optimized Synthetic Samples, ACML 2023.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from genreg_jax.checks import as_array, check_choice, widened
from genreg_jax.chunks import chunked_mean
from genreg_jax.contract import Augment, Generator, to_float
from genreg_jax.regularizers.synthetic import (
    entropy_offset,
    interpolated_latents,
    random_offset,
    renoised_latents,
    restore_norm,
    row_norms,
)

DISTANCES = ("cosine", "l2")
_SEARCH = 2**20  # of the keys of a search, which no source folds in or splits off


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """The regulariser on synthetic samples.

    Attributes:
      loss: `pcr` (consistency of two views in the embedding) or `cross_entropy` (naive generative
        data augmentation, the baseline that MGR improves on).
      weight: lambda, or one of each class `[K]`.
      distance: of the embeddings, for `pcr`.
      weak: augmentation of the first view (and of the samples under `cross_entropy`).
      strong: augmentation of the second view, for `pcr`.
      batch_size: number of synthetic samples that are computed at once.
      temperature: standard deviation of the noise in the latents.
      source: `prior`, `renoised` or `interpolated`; see `genreg_jax.regularizers.synthetic`.
      low: least share of noise of `renoised`.
      high: largest share of noise of `renoised`.
      strength: largest share of the way of `interpolated`.
      factor: number of synthetic samples a step, in units of `batch_size`.
      search: `none`; `hard` or `random`, the rivals of a finder.
      radius: length of their step, relative to that of the latent.
      keep_norm: scale the latents that they moved to the norms they had.

    Example:
      >>> import genreg_jax as gr
      >>> same = lambda key, x: x
      >>> gr.Synthetic("pcr", 1.0, "l2", weak=same, strong=same, batch_size=8, temperature=1.0,
      ...              factor=2.5).total
      20
    """

    loss: str
    weight: Any
    distance: str
    weak: Augment
    strong: Augment
    batch_size: int
    temperature: float
    source: str = "prior"
    low: float = 0.0
    high: float = 0.2
    strength: float = 0.5
    factor: float = 1.0
    search: str = "none"
    radius: float = 0.0
    keep_norm: bool = True

    @property
    def total(self) -> int:
        """Number of synthetic samples a step."""
        return max(round(self.factor * self.batch_size), 1)


@dataclasses.dataclass(frozen=True)
class Meta:
    """Meta pseudo sampling: the finder and how its hypergradient is computed.

    Attributes:
      apply: `(finder_params, z, y) -> z^`.
      tx: the finder's optimiser.
      mode: see `genreg_jax.hypergradient.hypergradient`.
      augment: augmentation of the outer batch.
      shuffle: permute the labels of the outer batch, a control.

    Example:
      A training step with MGR of one's own: a linear classifier, a generator, a finder.

      >>> import jax, jax.numpy as jnp, optax
      >>> import genreg_jax as gr
      >>> same = lambda key, x: x
      >>> def apply(params, model_state, x, *, rng, train):
      ...     e = x.reshape(len(x), -1)
      ...     return gr.Outputs(e @ params, e), model_state
      >>> model = gr.Model(lambda key, x: (jnp.zeros((x[0].size, 3)), {}), apply)
      >>> decode = lambda params, z, y: jax.nn.sigmoid(z @ params).reshape(-1, 2, 2, 1)
      >>> generator = gr.Generator(decode, params=jnp.ones((5, 4)), latent_shape=(5,))
      >>> finder = gr.Finder(hidden=(8,), radius=0.3)
      >>> find = lambda params, z, y: finder.apply({"params": params}, z, y)
      >>> meta = gr.Meta(find, optax.adam(1e-3), "forward_over_reverse", augment=same)
      >>> synthetic = gr.Synthetic("pcr", 1.0, "l2", weak=same, strong=lambda key, x: x[:, ::-1],
      ...                          batch_size=6, temperature=1.0)
      >>> tx = optax.sgd(0.1)
      >>> step = jax.jit(gr.make_train_step(model, tx, num_classes=3, augment=same,
      ...                                   synthetic=synthetic, generator=generator, meta=meta))
      >>> batch = gr.Batch(jnp.ones((4, 2, 2, 1)), jnp.array([0, 1, 2, 0]))
      >>> found = finder.init(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros(1, int))["params"]
      >>> state = gr.TrainState.create(*model.init(jax.random.key(1), batch.images), tx,
      ...                              jax.random.key(2), finder_params=found, finder_tx=meta.tx)
      >>> outer = batch
      >>> state, metrics = step(state, batch, outer, generator.params)
      >>> int(state.step), bool(jnp.isfinite(metrics["train/loss"]))
      (1, True)
    """

    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    tx: optax.GradientTransformation
    mode: str
    augment: Augment
    shuffle: bool = False


class Regularizer(NamedTuple):
    """The synthetic part of a training step: lines 4 and 5, and what line 1 adds to the loss.

    Attributes:
      draw: `(state, key, batch, generator_params) -> Samples`.
      term: `(params, finder_params, state, key, samples, generator_params, gate=None) -> scalar`:
        lambda times the mean loss, a function of the classifier and of the finder. Its derivative
        in `gate`, at 1, is that in the length of the finder's offset.
    """

    draw: Callable[..., "Samples"]
    term: Callable[..., jax.Array]


class Samples(NamedTuple):
    """The latents of one step.

    Attributes:
      drawn: of the source, before any search.
      z: what a rival of the finder has made of them; `drawn` without one.
      y: their labels.
    """

    drawn: jax.Array
    z: jax.Array
    y: jax.Array


def make_regularizer(
    forward: Callable[..., Any],
    synthetic: Synthetic,
    generator: Generator,
    meta: Meta | None,
    *,
    num_classes: int,
    constrain: Callable[[Any], Any] = lambda tree: tree,
) -> Regularizer:
    """Builds the synthetic part of a training step.

    Args:
      forward: `(params, model_state, images, rng) -> (outputs, model_state)`, the classifier in
        training mode; what it makes of `model_state` here is thrown away.
      synthetic: the term.
      generator: source of the samples; its `params` are an argument of the result.
      meta: meta pseudo sampling, or None for draws from the source.
      num_classes: K.
      constrain: applied to the drawn latents and labels; such as a sharding constraint.

    Raises:
      ValueError: a source that starts from real images, and a generator without `encode`.
    """
    check_choice("synthetic.loss", synthetic.loss, ("pcr", "cross_entropy"))
    check_choice("synthetic.source", synthetic.source, ("prior", "renoised", "interpolated"))
    check_choice("synthetic.search", synthetic.search, ("none", "hard", "random"))
    if synthetic.source != "prior" and generator.encode is None:
        raise ValueError(
            f"source is {synthetic.source!r}, which encodes real images, but generator.encode is "
            "None; allowed without an encoder: 'prior'."
        )

    def source(key_z, key_y, batch, generator_params):
        """Latents and labels of the synthetic samples, before any search."""
        total = synthetic.total
        if synthetic.source == "prior":
            z = synthetic.temperature * jax.random.normal(key_z, (total, *generator.latent_shape))
            return z, jax.random.randint(key_y, (total,), 0, num_classes)
        labels, z = batch.labels, batch.encodings
        if z is None:
            assert generator.encode is not None
            z = generator.encode(generator_params, to_float(batch.images), labels)
        return source_latents(key_z, synthetic, z, labels, total)

    def search(key, params, model_state, z, y, generator_params):
        """What the rivals of a finder make of the latents, constant for all derivatives."""
        if synthetic.search == "none":
            return z
        if synthetic.search == "random":
            offset = random_offset(key, z, radius=synthetic.radius)
        else:
            logits_fn = lambda z: (
                forward(params, model_state, generator.apply(generator_params, z, y), key)[0].logits
            )
            offset = entropy_offset(logits_fn, z, radius=synthetic.radius)
        return restore_norm(z + offset, z) if synthetic.keep_norm else z + offset

    def draw(state, key, batch, generator_params):
        key_z, key_y, *_ = jax.random.split(key, 5)
        drawn, y = constrain(source(key_z, key_y, batch, generator_params))
        key_search = jax.random.fold_in(key_z, _SEARCH)
        z = search(key_search, state.params, state.model_state, drawn, y, generator_params)
        return Samples(drawn, z, y)

    def term(params, finder_params, state, key, samples, generator_params, gate=None):
        weight = synthetic.weight

        def losses_fn(key, rows):
            _, _, key_weak, key_strong, key_model = jax.random.split(key, 5)
            z, y = rows
            if meta is not None:
                found = meta.apply(finder_params, z, y)
                z = found if gate is None else found + (gate - 1) * (found - z)
            images = generator.apply(generator_params, z, y)
            weak = synthetic.weak(key_weak, images)
            if synthetic.loss == "cross_entropy":
                outputs, _ = forward(params, state.model_state, weak, key_model)
                logits = widened(outputs.logits)
                losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
            else:
                views = jnp.concatenate([weak, synthetic.strong(key_strong, images)])
                outputs, _ = forward(params, state.model_state, views, key_model)
                embeddings = jnp.split(outputs.embedding, 2)
                losses = pcr_loss(*embeddings, distance=synthetic.distance)
            return losses * weight[y] if jnp.ndim(weight) else losses

        rows = samples.z, samples.y
        mean = chunked_mean(key, losses_fn, rows, chunk=synthetic.batch_size)
        return mean if jnp.ndim(weight) else weight * mean

    return Regularizer(draw, term)


def source_latents(
    key: jax.Array, synthetic: Synthetic, z: jax.Array, labels: jax.Array, total: int
) -> tuple[jax.Array, jax.Array]:
    """Latents of a source of real images, and their labels.

    Args:
      key: of the draws.
      synthetic: whose `source` is `renoised` or `interpolated`.
      z: encodings of real images `[B, ...]`.
      labels: theirs, int `[B]`.
      total: number of latents; the images are gone through again where there are more.
    """
    rounds = -(-total // len(labels))
    repeated = jnp.tile(labels, rounds)[:total]
    if synthetic.source == "interpolated":
        rows = [
            interpolated_latents(jax.random.fold_in(key, i), z, labels, strength=synthetic.strength)
            for i in range(rounds)
        ]
        return jnp.concatenate(rows)[:total], repeated
    z = jnp.concatenate([z] * rounds)[:total]
    low, high, temperature = synthetic.low, synthetic.high, synthetic.temperature
    return renoised_latents(key, z, low=low, high=high, temperature=temperature), repeated


def pcr_loss(
    embedding_weak: jax.Array, embedding_strong: jax.Array, *, distance: str = "cosine"
) -> jax.Array:
    """Distance between the embeddings of two views of the same samples.

    `cosine`: `1 - <a, b> / (|a| |b|)`, in [0, 2], for norms from 1e-6 to 1e19; a vector shorter
    than that counts as one of norm 1e-6, and the gradient is finite at zero vectors.
    `l2`: `|a - b|^2 / D`, divided by the width so that a weight carries over between networks.

    Args:
      embedding_weak: `[B, D]`, embeddings of one view.
      embedding_strong: `[B, D]`, embeddings of the other view, row by row.
      distance: `cosine` or `l2`.

    Returns:
      Per-example losses `[B]`, float32.

    Raises:
      ValueError: unknown distance, or embeddings that are not `[B, D]` of one shape.

    Gradients flow to both embeddings; wrap one in `jax.lax.stop_gradient` for a one-sided loss.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> float(gr.pcr_loss(a, b)[0]), float(gr.pcr_loss(a, b, distance="l2")[0])
      (1.0, 2.5)
    """
    check_choice("distance", distance, DISTANCES)
    embedding_weak = as_array(embedding_weak, "embedding_weak", "embeddings [B, D]")
    embedding_strong = as_array(embedding_strong, "embedding_strong", "embeddings [B, D]")
    if embedding_weak.ndim != 2 or embedding_weak.shape != embedding_strong.shape:
        raise ValueError(
            f"embedding_weak and embedding_strong must share one shape [B, D], got "
            f"{embedding_weak.shape} and {embedding_strong.shape}."
        )
    a = embedding_weak.astype(jnp.float32)
    b = embedding_strong.astype(jnp.float32)
    if distance == "l2":
        return jnp.mean((a - b) ** 2, axis=1)
    # optax.losses.cosine_distance(epsilon=1e-12), whose clip can lose its gradient; see `bounds`.
    return 1 - jnp.sum(a / row_norms(a) * (b / row_norms(b)), axis=1)
