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

from genreg_jax.checks import (
    check_batch,
    check_number,
    check_opt_state,
    short,
    widened,
)
from genreg_jax.contract import A_MODEL, Augment, Batch, EmbeddingTerm, Generator, Model, to_float
from genreg_jax.regularizers.latent_training import Latent, make_perturb
from genreg_jax.regularizers.mgr import Meta, Regularizer, Synthetic, make_regularizer
from genreg_jax.regularizers.outer import make_search
from genreg_jax.regularizers.synthetic import latent_diagnostics
from genreg_jax.state import TrainState
from genreg_jax.strengths import Tune

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


def _check_arguments(state, batch, outer, generator, generator_params):
    """Refuses arguments of a step that are of another kind."""
    if not isinstance(state, TrainState):
        raise ValueError(f"state is {short(state)}; allowed: what TrainState.create returns.")
    for name, value in (("batch", batch), ("outer", outer)):
        if not (isinstance(value, Batch) or (value is None and name == "outer")):
            raise ValueError(f"{name} is {short(value)}; allowed: a gr.Batch(images, labels).")
    wanted = [] if generator is None else jax.tree.leaves(generator.params)
    if wanted and not jax.tree.leaves(generator_params):
        raise ValueError(
            f"generator_params is {short(generator_params)}; allowed: those of the generator, "
            "step(state, batch, outer, generator.params)."
        )


def _check_optimisers(state, tx, meta, tune):
    """Refuses states of other optimisers than those of a step."""
    check_opt_state(tx, state.opt_state, state.params, "state.opt_state")
    if meta is not None:
        own = state.finder_opt_state, state.finder_params
        check_opt_state(meta.tx, *own, "state.finder_opt_state", "meta.tx")
    if tune is not None:
        own = state.strengths_opt_state, state.strengths
        check_opt_state(tune.tx, *own, "state.strengths_opt_state", "tune.tx")


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
    tune: Tune | None = None,
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
      tune: strengths that are learned, and the arguments that depend on them.
      skip_nonfinite: count an update that is not finite as made; otherwise `state.step` stays, too,
        so that every later call fails alike.
      constrain: applied to every batch, real, outer and synthetic; such as a sharding constraint.

    Returns:
      `step(state, batch, outer=None, generator_params=(), flow=None) -> (state, metrics)`, pure.
      `outer` is the batch of the outer loss, used with `meta` or `tune`; `flow` is handed to
      `latent`.
      Only the pass over the real batch updates `model_state`; passes over synthetic and outer
      batches and those of an attack use their own batch statistics. `train/attacked_accuracy` is
      that on the perturbed images; `train/accuracy` is that on the clean ones wherever the step
      predicts them. Where a loss, a gradient or an updated parameter is not finite, the state stays
      as it was and `train/nonfinite` is 1 + the position of the first such in `CHECKED`; otherwise
      it is 0.

    Raises:
      ValueError: `synthetic` without `generator`, or `meta` without `synthetic`; a part of another
        kind, or a name in `synthetic` or `latent` that is not one of those it may be. When the step
        is traced: no `outer` where one is used, arguments of `tune.parts` that a step does not
        take, a state of another optimiser, logits of another number of classes, an embedding term
        that is not `[B]`, images that are not `[B, H, W, C]`, uint8 or floating point, or labels
        that are not integers `[B]`; without `jit` also values out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import genreg_jax as gr
      >>> model = gr.models.make("convnet", num_classes=10, widths=(4, 8))
      >>> x, y = jnp.zeros((6, 8, 8, 1)), jnp.arange(6)
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> tx = optax.sgd(0.1)
      >>> state = gr.TrainState.create(params, model_state, tx, jax.random.key(1))
      >>> step = jax.jit(gr.make_train_step(model, tx, num_classes=10, augment=lambda key, x: x))
      >>> state, metrics = step(state, gr.Batch(x, y))
      >>> int(state.step), sorted(metrics)[:2]
      (1, ['train/accuracy', 'train/cross_entropy'])
    """
    check_number("num_classes", num_classes, minimum=1, integer=True)
    if not isinstance(model, Model):
        raise ValueError(f"model is {short(model)}; allowed: {A_MODEL}.")
    functions = {"augment": augment, "mix": mix, "embedding_term": embedding_term}
    for name, function in functions.items():
        if not (callable(function) or (function is None and name != "augment")):
            raise ValueError(
                f"{name} is {short(function)}; allowed: a function, see the docstring."
            )
    if synthetic is not None and generator is None:
        raise ValueError("generator is required when synthetic is given, got None.")
    if meta is not None and synthetic is None:
        raise ValueError("synthetic is required when meta is given, got None.")

    def forward(params, model_state, images, rng):
        return model.apply(params, model_state, images, rng=rng, train=True)

    given = {
        "tx": tx,
        "augment": augment,
        "label_smoothing": label_smoothing,
        "embedding_term": embedding_term,
        "synthetic": synthetic,
        "latent": latent,
    }

    def build(*, tx, augment, label_smoothing, embedding_term, synthetic, latent) -> _Parts:
        """What a step is made of; these arguments may depend on strengths."""
        smooths = not isinstance(label_smoothing, int | float) or label_smoothing > 0
        perturb = None if latent is None else make_perturb(latent, forward)
        regularizer = None
        if synthetic is not None and generator is not None:
            regularizer = make_regularizer(
                forward, synthetic, generator, meta, num_classes=num_classes, constrain=constrain
            )

        def classify(params, model_state, key, images, labels, step):
            """The loss on real images; the only pass that updates model_state."""
            _, key_mix, key_model = jax.random.split(key, 3)
            targets = jax.nn.one_hot(labels, num_classes)
            if mix is not None:
                images, targets = mix(key_mix, images, targets)
            if smooths:
                targets = optax.losses.smooth_labels(targets, label_smoothing)
            outputs, new_model_state = forward(params, model_state, images, key_model)
            if outputs.logits.shape != targets.shape:
                raise ValueError(
                    f"num_classes is {num_classes}, but the model returns logits of shape "
                    f"{outputs.logits.shape} for {len(images)} images; allowed: {targets.shape}."
                )
            logits = widened(outputs.logits)
            loss = jnp.mean(optax.losses.softmax_cross_entropy(logits, targets))
            labels = jnp.argmax(targets, -1)
            accuracy = jnp.mean(jnp.argmax(outputs.logits, -1) == labels)
            metrics = {"train/cross_entropy": loss, "train/accuracy": accuracy}
            if embedding_term is not None:
                term = embedding_term(jax.random.fold_in(key, 4), outputs, labels, step)
                if term is None or jnp.shape(term) != labels.shape:
                    raise ValueError(
                        f"embedding_term returned {short(term)}; allowed: losses of shape "
                        f"{labels.shape}, one for each image, their weight included."
                    )
                metrics["train/embedding_loss"] = jnp.mean(term)
                loss = loss + jnp.mean(term)
            return loss, (new_model_state, metrics)

        def supervised(params, model_state, key, batch, flow, step):
            """The loss on the real batch, augmented and perturbed."""
            # What is optional draws from keys of its own, so that the rest draws the same without.
            key_augment, _, _ = jax.random.split(key, 3)
            images = augment(key_augment, to_float(batch.images))
            loss_on = lambda images: classify(params, model_state, key, images, batch.labels, step)
            if perturb is None:
                return loss_on(images)
            key_latent = jax.random.fold_in(key, 3)
            return perturb(params, model_state, key_latent, images, batch, flow, loss_on)

        return _Parts(tx, supervised, regularizer)

    def changed_by(strengths) -> dict[str, Any]:
        """The arguments that depend on the strengths, at these."""
        if tune is None:
            return {}
        if not isinstance(strengths, dict) or strengths.keys() != tune.strengths.keys():
            raise ValueError(
                f"state.strengths is {short(strengths)}; allowed are those of the step: give "
                "TrainState.create the same tune as make_train_step."
            )
        changed = tune.parts(tune.values(strengths))
        if not isinstance(changed, dict):
            raise ValueError(
                f"tune.parts returned {short(changed)}; allowed: a dict of arguments of "
                "make_train_step, such as {'embedding_term': term}."
            )
        unknown = changed.keys() - given.keys()
        if unknown:
            raise ValueError(
                f"tune.parts returned {', '.join(sorted(unknown))}; allowed: {', '.join(given)}."
            )
        return changed

    search = None if meta is None and tune is None else make_search(forward, meta, tune)
    build(**given)  # what is wrong with them is said now

    def step(
        state: TrainState,
        batch: Batch,
        outer: Batch | None = None,
        generator_params: Any = (),
        flow: Any = None,
    ):
        _check_arguments(state, batch, outer, generator, generator_params)
        check_batch(batch.images, batch.labels, num_classes, "batch")
        if outer is not None:
            check_batch(outer.images, outer.labels, num_classes, "outer")
        batch, outer = constrain((batch, outer))
        key_real, key_synthetic, key_outer = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        # What a step with these strengths is made of, and which of it depends on them.
        changed = changed_by(state.strengths)
        parts = build(**{**given, **changed})
        _check_optimisers(state, parts.tx, meta, tune)
        real = key_real, batch, flow, state.step
        (loss, (model_state, metrics)), grads = jax.value_and_grad(parts.supervised, has_aux=True)(
            state.params, state.model_state, *real
        )
        checked = {
            "the cross-entropy": metrics["train/cross_entropy"],
            "the embedding term": metrics.get("train/embedding_loss", 0.0),
            "the gradient on the real batch": optax.tree.norm(grads),
        }
        samples, finder_params = None, state.finder_params
        if parts.regularizer is not None:
            samples = parts.regularizer.draw(state, key_synthetic, batch, generator_params)
        changes = {}
        if search is not None:
            if outer is None:
                raise ValueError("outer is None; with meta or tune a step needs an outer batch.")
            constant = changed.keys() <= {"synthetic"}

            def inner_loss(params, searched):
                """The loss of the update, but for what nothing that is searched can change."""
                (finder_params, gate), strengths = searched
                now = build(**{**given, **changed_by(strengths)})
                value = 0.0
                if not constant:
                    value, _ = now.supervised(params, state.model_state, *real)
                if now.regularizer is not None:
                    value += now.regularizer.term(
                        params, finder_params, state, key_synthetic, samples, generator_params, gate
                    )
                return value

            now_tx = parts.tx
            if "tx" in changed:
                now_tx = lambda searched: changed_by(searched[1])["tx"]
            changes, about = search(
                state, key_outer, inner_loss, now_tx, outer, grads if constant else None
            )
            finder_params = changes.get("finder_params", finder_params)
            metrics |= about
            checked["the outer loss"] = about["train/outer_loss"]
            checked["the hypergradient"] = about["train/hypergradient_norm"]
        if parts.regularizer is not None:
            assert samples is not None
            moved = samples.z
            if meta is not None:
                moved = meta.apply(finder_params, samples.z, samples.y)
            if meta is not None or (synthetic and synthetic.search != "none"):
                diagnostics = latent_diagnostics(samples.drawn, moved, samples.y)
                metrics["train/search_spread"] = diagnostics["spread"]
                metrics["train/search_distance"] = diagnostics["distance"]
            value, synthetic_grads = jax.value_and_grad(parts.regularizer.term)(
                state.params, finder_params, state, key_synthetic, samples, generator_params
            )
            metrics["train/synthetic_loss"] = value
            checked["the synthetic term"] = value
            checked["the gradient of the synthetic term"] = optax.tree.norm(synthetic_grads)
            loss, grads = loss + value, jax.tree.map(jnp.add, grads, synthetic_grads)

        metrics["train/loss"] = loss
        metrics["train/gradient_norm"] = optax.tree.norm(grads)
        updates, opt_state = parts.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        checked["the updated parameters"] = optax.tree.norm((params, finder_params))
        bad = ~jnp.isfinite(jnp.stack([checked.get(name, 0.0) for name in CHECKED]))
        metrics["train/nonfinite"] = jnp.where(bad.any(), 1 + jnp.argmax(bad), 0)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            **changes,
        )
        old_state = dataclasses.replace(state, step=state.step + 1) if skip_nonfinite else state
        kept = lambda new, old: new if new is old else jnp.where(bad.any(), old, new)
        return jax.tree.map(kept, new_state, old_state), metrics

    return step


class _Parts(NamedTuple):
    """What a step is made of at given strengths."""

    tx: optax.GradientTransformation
    supervised: Callable[..., Any]
    regularizer: Regularizer | None
