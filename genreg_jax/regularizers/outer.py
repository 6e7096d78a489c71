"""The outer problem of a training step: one hypergradient for the finder and for the strengths.

    theta' = one optimiser step from theta on L(theta, phi, r)
    phi   <- one optimiser step on d/d phi CE(f_theta'(x_v), y_v)       the finder's parameters
    r     <- one optimiser step on d/d r   CE(f_theta'(x_v), y_v)       of the strengths s(r)

With strengths CE is that at the temperature which makes it least.

Whichever of the two there is; with both, one pass computes both derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genreg_jax.checks import widened
from genreg_jax.contract import Batch, to_float
from genreg_jax.hypergradient import hypergradient
from genreg_jax.regularizers.mgr import Meta
from genreg_jax.state import TrainState
from genreg_jax.strengths import Tune, calibrated_cross_entropy


def make_search(
    forward: Callable[..., Any], meta: Meta | None, tune: Tune | None
) -> Callable[..., tuple[dict[str, Any], dict[str, jax.Array]]]:
    """Builds the outer problem's part of a training step.

    Args:
      forward: `(params, model_state, images, rng) -> (outputs, model_state)`, the classifier in
        training mode.
      meta: the finder, or None.
      tune: the strengths, or None. With both, the outer batch is augmented and the hypergradient
        computed as this says.

    Returns:
      `search(state, key, inner_loss, tx, outer, constant_grads) -> (changes, metrics)`: the fields
      of the state that it changes, of the finder and of the strengths, and scalars by name.
      `inner_loss` is `(params, ((finder_params, gate), r)) -> scalar`; `tx` and `constant_grads`
      are as `hypergradient` takes them.
    """
    view = tune or meta
    assert view is not None

    def search(
        state: TrainState, key: jax.Array, inner_loss: Any, tx: Any, outer: Batch, constant_grads
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        labels = outer.labels
        if view.shuffle:
            labels = jax.random.permutation(jax.random.fold_in(key, 2), labels)

        def outer_loss(params):
            key_augment, key_model = jax.random.split(key)
            images = view.augment(key_augment, to_float(outer.images))
            outputs, _ = forward(params, state.model_state, images, key_model)
            logits = widened(outputs.logits)
            if tune is not None and tune.calibrated:
                return calibrated_cross_entropy(logits, labels)
            return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))

        h = hypergradient(
            inner_loss,
            outer_loss,
            state.params,
            ((state.finder_params, jnp.float32(1)), state.strengths),
            tx,
            state.opt_state,
            mode=view.mode,
            constant_grads=constant_grads,
        )
        (finder_grads, slope), strength_grads = h.grads
        changes: dict[str, Any] = {}
        metrics = {
            "train/outer_loss": h.outer_loss,
            "train/hypergradient_norm": optax.tree.norm((finder_grads, strength_grads)),
        }
        if meta is not None:
            metrics["train/outer_decrease"] = outer_loss(state.params) - h.outer_loss
            metrics["train/search_gain"] = -slope
            updates, opt_state = meta.tx.update(
                finder_grads, state.finder_opt_state, state.finder_params
            )
            changes["finder_params"] = optax.apply_updates(state.finder_params, updates)
            changes["finder_opt_state"] = opt_state
        if tune is not None:
            metrics |= tune.metrics(state.strengths)
            changes["strengths"], changes["strengths_opt_state"] = tune.update(
                strength_grads, state.strengths_opt_state, state.strengths
            )
        return changes, metrics

    return search
