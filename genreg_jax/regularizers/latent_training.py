"""The perturbed part of a training step: `latent` and `pgd` on the batch of a classifier."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genreg_jax.checks import check_choice, check_number
from genreg_jax.contract import Augment


@dataclasses.dataclass(frozen=True)
class Latent:
    """Perturbation of the real batch, between augmentation and the classifier.

    Attributes:
      perturb: `(key, flow, loss_fn, x, labels, z) -> images`; see `perturbation`. `loss_fn` is the
        cross-entropy `[B]` of the classifier in training mode, with running statistics that it does
        not update.
      labels: of `loss_fn`: `true`, or `predicted` for the classifier's own on the clean batch, at
        the price of that prediction.
      mix: weight of the clean batch in the loss.
      augment: augmentation after the perturbation.

    Example:
      >>> import genreg_jax as gr
      >>> attack = gr.perturbation("pgd", epsilon=0.5, step_size=0.25, num_steps=2)
      >>> gr.Latent(attack, labels="true", mix=0.0, augment=lambda key, x: x).mix
      0.0
    """

    perturb: Callable[..., jax.Array]
    labels: str
    mix: float
    augment: Augment


def make_perturb(latent: Latent, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Builds the perturbed part of a training step.

    Args:
      latent: the stage.
      forward: `(params, model_state, images, rng) -> (outputs, model_state)`, the classifier in
        training mode.

    Returns:
      `perturbed(params, model_state, key, images, batch, flow, loss_on)`: the loss on the perturbed
      images, mixed with that on the clean ones, as `loss_on(images) -> (loss, (model_state,
      metrics))` gives both. With a clean share it is the clean pass that updates `model_state`.
      Gradients flow to `params` through the losses, not through the perturbation.
    """
    check_choice("latent.labels", latent.labels, ("true", "predicted"))
    check_number("latent.mix", latent.mix, maximum=1)
    augment_after, part = latent.augment, latent.mix

    def move(params, model_state, key, images, batch, flow):
        """The perturbed images, constant but for a traced radius, and metrics."""
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

    def perturbed(params, model_state, key, images, batch, flow, loss_on):
        key_latent, key_after = jax.random.split(key)
        moved, before = move(params, model_state, key_latent, images, batch, flow)
        loss, (new_model_state, attacked) = loss_on(augment_after(key_after, moved))
        metrics = {**attacked, **before, "train/attacked_accuracy": attacked["train/accuracy"]}
        if part:
            clean_loss, (new_model_state, clean) = loss_on(augment_after(key_after, images))
            share = lambda attacked, clean: (1 - part) * attacked + part * clean
            metrics |= {name: share(attacked[name], clean[name]) for name in clean}
            metrics["train/accuracy"] = clean["train/accuracy"]
            loss = share(loss, clean_loss)
        return loss, (new_model_state, metrics)

    return perturbed
