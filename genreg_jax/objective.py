"""One training step, composed from whatever the config turns on.

A regulariser acts on the input, on the embedding, or on the feature extractor through synthetic
data. `make_train_step` takes each as an optional argument; with none it is plain supervised
training, and there is no branch on a method's name anywhere.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from genreg_jax.hypergradient import hypergradient
from genreg_jax.models.contract import Model, Outputs
from genreg_jax.regularizers.mgr import pcr_loss
from genreg_jax.state import TrainState

Augment = Callable[[jax.Array, jax.Array], jax.Array]
# What a step checks, in the order in which one failure causes the next.
CHECKED = (
    "the cross-entropy",
    "the embedding term",
    "the gradient on the real batch",
    "the outer loss",
    "the hypergradient",
    "the synthetic term",
    "the gradient of the synthetic term",
    "the updated parameters",
)

EmbeddingTerm = Callable[[jax.Array, Outputs, jax.Array, jax.Array], jax.Array]


class Generator(NamedTuple):
    """Any frozen source of synthetic images.

    Attributes:
      apply: `(params, z [B, *latent_shape], y [B]) -> x [B, H, W, C]` in [0, 1], differentiable in
        `z`.
      params: pytree handed to `apply`.
      latent_shape: shape of one latent; its prior is N(0, I).

    Example:
      A generator of one's own, here a linear one:

      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> def apply(params, z, y):
      ...     return jax.nn.sigmoid(z @ params).reshape(len(z), 8, 8, 1)
      >>> generator = gr.Generator(apply, params=jnp.ones((5, 64)), latent_shape=(5,))
      >>> generator.apply(generator.params, jnp.zeros((2, 5)), jnp.array([0, 1])).shape
      (2, 8, 8, 1)
    """

    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    params: Any
    latent_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """The regulariser on synthetic samples.

    Attributes:
      loss: `pcr` (consistency of two views in the embedding) or `cross_entropy` (naive generative
        data augmentation, the baseline that MGR improves on).
      weight: lambda.
      distance: of the embeddings, for `pcr`.
      weak: augmentation of the first view (and of the samples under `cross_entropy`).
      strong: augmentation of the second view, for `pcr`.
      batch_size: number of synthetic samples a step.
      temperature: standard deviation of the latents.
    """

    loss: str
    weight: float
    distance: str
    weak: Augment
    strong: Augment
    batch_size: int
    temperature: float


@dataclasses.dataclass(frozen=True)
class Meta:
    """Meta pseudo sampling: the finder and how its hypergradient is computed.

    Attributes:
      apply: `(finder_params, z, y) -> z^`.
      tx: the finder's optimiser.
      mode: see `genreg_jax.hypergradient.hypergradient`.
      augment: augmentation of the outer batch.
    """

    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    tx: optax.GradientTransformation
    mode: str
    augment: Augment


@dataclasses.dataclass(frozen=True)
class Latent:
    """Perturbation of the real batch, between augmentation and the classifier.

    Attributes:
      perturb: `(key, flow, loss_fn, x, labels, z) -> images`; see
        `genreg_jax.regularizers.latent.perturbation`. `loss_fn` is the cross-entropy `[B]` of the
        classifier in training mode, with running statistics that it does not update.
      labels: of `loss_fn`: `true`, or `predicted` for the classifier's own on the clean batch, at
        the price of that prediction.
      mix: weight of the clean batch in the loss.
      augment: augmentation after the perturbation.
    """

    perturb: Callable[..., jax.Array]
    labels: str
    mix: float
    augment: Augment


class Batch(NamedTuple):
    """Images uint8 `[B, H, W, C]` or float in [0, 1], labels int `[B]`, maybe known latents."""

    images: jax.Array
    labels: jax.Array
    latents: jax.Array | None = None


def to_float(images: jax.Array) -> jax.Array:
    """Images as float32 in [0, 1]; uint8 is divided by 255."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32)


def make_train_step(
    model: Model,
    tx: optax.GradientTransformation,
    *,
    num_classes: int,
    augment: Augment,
    mix: Callable | None = None,
    label_smoothing: float = 0.0,
    embedding_term: EmbeddingTerm | None = None,
    synthetic: Synthetic | None = None,
    generator: Generator | None = None,
    meta: Meta | None = None,
    latent: Latent | None = None,
    skip_nonfinite: bool = False,
    constrain: Callable[[Any], Any] = lambda tree: tree,
) -> Callable:
    """Builds the training step.

    Args:
      model: classifier for images in [0, 1].
      tx: its optimiser.
      num_classes: K.
      augment: `(key, images [B, H, W, C]) -> images`, applied to the real batch.
      mix: `(key, images, targets [B, K]) -> (images, targets)`, mixup or cutmix.
      label_smoothing: mass spread uniformly over the classes.
      embedding_term: `(key, outputs, labels [B], step) -> per-example losses [B]`, a term on what
        the model makes of the real batch, its weight included. The label of a mixed image is that
        of its larger part.
      synthetic: the term on synthetic samples; needs `generator`.
      generator: source of the synthetic samples. Its `params` are not used here but passed to the
        step, so that they are an argument of the compiled program and not constants inside it.
      meta: meta pseudo sampling; needs `synthetic`.
      latent: perturbation of the real batch.
      skip_nonfinite: count an update that is not finite as made; otherwise `state.step` stays, too,
        so that every later call fails alike.
      constrain: applied to every batch, real, outer and synthetic; such as a sharding constraint.

    Returns:
      `step(state, batch, outer, generator_params, flow=None) -> (state, metrics)`, pure. `outer` is
      the batch of the outer loss, used only with `meta`; `flow` is handed to `latent`. Only the
      pass over the real batch updates `model_state`; passes over synthetic and outer batches and
      those of an attack use their own batch statistics. `train/attacked_accuracy` is that on the
      perturbed images; `train/accuracy` is that on the clean ones wherever the step predicts them.
      Where a loss, a gradient or an updated parameter is not finite, the state stays as it was and
      `train/nonfinite` is 1 + the position of the first such in `CHECKED`; otherwise it is 0.

    Raises:
      ValueError: `synthetic` without `generator`, or `meta` without `synthetic`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import genreg_jax as gr
      >>> from genreg_jax.objective import Batch
      >>> from genreg_jax.state import TrainState
      >>> model = gr.models.make("convnet", num_classes=10, widths=(4, 8))
      >>> x, y = jnp.zeros((6, 8, 8, 1)), jnp.arange(6)
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> tx = optax.sgd(0.1)
      >>> state = TrainState(jnp.int32(0), params, model_state, tx.init(params), (), (),
      ...                    jax.random.key(1))
      >>> step = jax.jit(gr.make_train_step(model, tx, num_classes=10, augment=lambda key, x: x))
      >>> state, metrics = step(state, Batch(x, y), None, ())
      >>> int(state.step), sorted(metrics)[:2]
      (1, ['train/accuracy', 'train/cross_entropy'])
    """
    if synthetic is not None and generator is None:
        raise ValueError("generator is required when synthetic is given, got None.")
    if meta is not None and synthetic is None:
        raise ValueError("synthetic is required when meta is given, got None.")

    def forward(params, model_state, images, rng):
        return model.apply(params, model_state, images, rng=rng, train=True)

    def classify(params, model_state, key, images, labels, step):
        """The loss on real images; the only pass that updates model_state."""
        _, key_mix, key_model = jax.random.split(key, 3)
        targets = jax.nn.one_hot(labels, num_classes)
        if mix is not None:
            images, targets = mix(key_mix, images, targets)
        if label_smoothing:
            targets = optax.losses.smooth_labels(targets, label_smoothing)
        outputs, new_model_state = forward(params, model_state, images, key_model)
        loss = jnp.mean(optax.losses.softmax_cross_entropy(outputs.logits, targets))
        labels = jnp.argmax(targets, -1)
        accuracy = jnp.mean(jnp.argmax(outputs.logits, -1) == labels)
        metrics = {"train/cross_entropy": loss, "train/accuracy": accuracy}
        if embedding_term is not None:
            term = embedding_term(jax.random.fold_in(key, 4), outputs, labels, step)
            metrics["train/embedding_loss"] = jnp.mean(term)
            loss = loss + jnp.mean(term)
        return loss, (new_model_state, metrics)

    def perturbed(params, model_state, key, images, batch, flow):
        """What `latent` makes of the images, constant for all derivatives, and metrics."""
        assert latent is not None
        key_perturb, key_model = jax.random.split(key)
        params = jax.lax.stop_gradient(params)
        logits = lambda images: forward(params, model_state, images, key_model)[0].logits
        labels, metrics = batch.labels, {}
        if latent.labels == "predicted":
            labels = jnp.argmax(logits(images), -1)
            metrics["train/accuracy"] = jnp.mean(labels == batch.labels)

        def loss_fn(images):
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits(images), labels)

        moved = latent.perturb(key_perturb, flow, loss_fn, images, batch.labels, batch.latents)
        return moved, metrics

    def supervised(params, model_state, key, batch, flow, step):
        """The loss on the real batch, augmented and perturbed."""
        # What is optional draws from keys of its own, so that the rest draws the same without it.
        key_augment, _, _ = jax.random.split(key, 3)
        images = augment(key_augment, to_float(batch.images))
        if latent is None:
            return classify(params, model_state, key, images, batch.labels, step)
        key_latent, key_after = jax.random.split(jax.random.fold_in(key, 3))
        moved, before = perturbed(params, model_state, key_latent, images, batch, flow)
        augment_after = latent.augment

        def loss_on(images):
            images = augment_after(key_after, images)
            return classify(params, model_state, key, images, batch.labels, step)

        loss, (new_model_state, attacked) = loss_on(moved)
        metrics = {**attacked, **before, "train/attacked_accuracy": attacked["train/accuracy"]}
        part = latent.mix
        if part:
            clean_loss, (new_model_state, clean) = loss_on(images)
            share = lambda attacked, clean: (1 - part) * attacked + part * clean
            metrics |= {name: share(attacked[name], clean[name]) for name in clean}
            metrics["train/accuracy"] = clean["train/accuracy"]
            loss = share(loss, clean_loss)
        return loss, (new_model_state, metrics)

    def synthetic_term(params, finder_params, model_state, key, generator_params):
        """lambda times the mean synthetic loss, a function of the classifier and of the finder."""
        assert synthetic is not None and generator is not None
        key_z, key_y, key_weak, key_strong, key_model = jax.random.split(key, 5)
        shape = (synthetic.batch_size, *generator.latent_shape)
        z = synthetic.temperature * jax.random.normal(key_z, shape)
        y = jax.random.randint(key_y, (synthetic.batch_size,), 0, num_classes)
        z, y = constrain((z, y))
        if meta is not None:
            z = meta.apply(finder_params, z, y)
        images = generator.apply(generator_params, z, y)
        weak = synthetic.weak(key_weak, images)
        if synthetic.loss == "cross_entropy":
            outputs, _ = forward(params, model_state, weak, key_model)
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, y)
        else:
            views = jnp.concatenate([weak, synthetic.strong(key_strong, images)])
            outputs, _ = forward(params, model_state, views, key_model)
            losses = pcr_loss(*jnp.split(outputs.embedding, 2), distance=synthetic.distance)
        return synthetic.weight * jnp.mean(losses)

    def step(
        state: TrainState,
        batch: Batch,
        outer: Batch | None,
        generator_params: Any,
        flow: Any = None,
    ):
        batch, outer = constrain((batch, outer))
        key_real, key_synthetic, key_outer = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        (loss, (model_state, metrics)), grads = jax.value_and_grad(supervised, has_aux=True)(
            state.params, state.model_state, key_real, batch, flow, state.step
        )
        finder_params, finder_opt_state = state.finder_params, state.finder_opt_state
        checked = {
            "the cross-entropy": metrics["train/cross_entropy"],
            "the embedding term": metrics.get("train/embedding_loss", 0.0),
            "the gradient on the real batch": optax.tree.norm(grads),
        }

        if synthetic is not None:

            def term(params, finder_params):
                return synthetic_term(
                    params, finder_params, state.model_state, key_synthetic, generator_params
                )

            if meta is not None:
                assert outer is not None
                augment_outer = meta.augment

                def outer_loss(params):
                    key_augment, key_model = jax.random.split(key_outer)
                    images = augment_outer(key_augment, to_float(outer.images))
                    outputs, _ = forward(params, state.model_state, images, key_model)
                    return jnp.mean(
                        optax.losses.softmax_cross_entropy_with_integer_labels(
                            outputs.logits, outer.labels
                        )
                    )

                h = hypergradient(
                    term,
                    outer_loss,
                    state.params,
                    state.finder_params,
                    tx,
                    state.opt_state,
                    mode=meta.mode,
                    constant_grads=grads,
                )
                updates, finder_opt_state = meta.tx.update(
                    h.grads, state.finder_opt_state, state.finder_params
                )
                finder_params = optax.apply_updates(state.finder_params, updates)
                metrics["train/outer_loss"] = h.outer_loss
                metrics["train/hypergradient_norm"] = optax.tree.norm(h.grads)
                checked["the outer loss"] = h.outer_loss
                checked["the hypergradient"] = metrics["train/hypergradient_norm"]

            value, synthetic_grads = jax.value_and_grad(term)(state.params, finder_params)
            grads = jax.tree.map(jnp.add, grads, synthetic_grads)
            metrics["train/synthetic_loss"] = value
            checked["the synthetic term"] = value
            checked["the gradient of the synthetic term"] = optax.tree.norm(synthetic_grads)
            loss = loss + value

        metrics["train/loss"] = loss
        metrics["train/gradient_norm"] = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        checked["the updated parameters"] = optax.tree.norm((params, finder_params))
        bad = ~jnp.isfinite(jnp.stack([checked.get(name, 0.0) for name in CHECKED]))
        metrics["train/nonfinite"] = jnp.where(bad.any(), 1 + jnp.argmax(bad), 0)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            finder_params=finder_params,
            finder_opt_state=finder_opt_state,
            key=state.key,
        )
        old_state = dataclasses.replace(state, step=state.step + 1) if skip_nonfinite else state
        kept = lambda new, old: new if new is old else jnp.where(bad.any(), old, new)
        return jax.tree.map(kept, new_state, old_state), metrics

    return step
