"""What a run refuses of the parts that its caller brings: a classifier, a flow, a generator."""

from typing import Any

import jax
import jax.numpy as jnp

from genreg_jax.checks import is_frozen, short
from genreg_jax.contract import A_MODEL, Generator, Model, Outputs
from genreg_jax.data import Dataset
from genreg_jax.errors import ConfigError, UserError
from genreg_jax.flow_run import flow_for
from genreg_jax.settings import Settings


def check_own(settings: Settings, own: dict[str, Any], dataset: Dataset) -> None:
    """Refuses parts that do not fit the run; `own` has None for those that are not the caller's."""
    check_model(settings, own["model"], dataset)
    check_flow(own["flow"], dataset)
    check_generator(settings, own["generator"], dataset)
    if settings.flow_only or any(wants(settings, own)):
        flow_for(settings, dataset)
    term = own["embedding_term"]
    if not (term is None or callable(term)):
        raise UserError(
            f"embedding_term is {short(term)}; it must be a function "
            "(key, outputs, labels, step) -> losses [B]."
        )


def wants(settings: Settings, own: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a run needs a trained flow as its generator, and as what perturbs latents."""
    return (
        settings.uses_synthetic and own["generator"] is None,
        settings.perturbs_latents and own["flow"] is None,
    )


def check_model(settings: Settings, model: Model | None, dataset: Dataset) -> None:
    """Refuses a classifier of the caller's own that does not return what the contract says."""
    if model is None:
        return
    if not isinstance(model, Model):
        raise UserError(f"model is {short(model)}; it must be {A_MODEL}.")
    for name, value, unset in (
        ("config.model.pretrained", settings.model.pretrained, ""),
        ("config.model.freeze", settings.model.freeze, "none"),
        ("config.optimizer.head_factor", settings.optimizer.head_factor, 1.0),
    ):
        if value != unset:
            raise ConfigError(
                f"{name} is for classifiers of config.model, and one was given; leave the setting "
                f"at {unset!r}, and give a model that does it itself.",
                name,
            )

    def run(key, x):
        params, model_state = model.init(key, x)
        return model.apply(params, model_state, x, rng=None, train=False)

    x = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
    found = jax.eval_shape(run, jax.random.key(0), x)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Outputs)):
        raise UserError(
            "model.apply must return (Outputs(logits [B, K], embedding [B, D]), model_state); for "
            f"two images it returned {found}."
        )
    logits, embedding = found[0]
    if logits.shape != (2, dataset.num_classes) or embedding.ndim != 2 or len(embedding) != 2:
        raise UserError(
            f"For two images of {dataset.name}, which has {dataset.num_classes} classes, the model "
            f"returns logits of shape {logits.shape} and an embedding of shape {embedding.shape}; "
            f"needed are (2, {dataset.num_classes}) and (2, D)."
        )


def check_flow(flow: Any, dataset: Dataset) -> None:
    """Refuses a flow of the caller's own that is for other images."""
    if flow is None:
        return
    if not (is_frozen(flow) and hasattr(flow, "num_classes")):
        raise UserError(
            f"flow is {short(flow)}; it must be a frozen one, flow.freeze(params) with the "
            "parameters that flows.fit has found."
        )
    if tuple(flow.image_shape) != dataset.image_shape:
        raise UserError(
            f"The flow is for images of shape {tuple(flow.image_shape)}, but those of "
            f"{dataset.name} have {dataset.image_shape}; give a flow for these images, or "
            "flows.resized(flow, image_shape)."
        )
    if flow.num_classes not in (None, dataset.num_classes):
        raise UserError(
            f"The flow is conditioned on {flow.num_classes} classes, but {dataset.name} has "
            f"{dataset.num_classes}; give a flow for as many, or an unconditional one."
        )


def check_generator(settings: Settings, generator: Generator | None, dataset: Dataset) -> None:
    """Refuses a generator of the caller's own that cannot do what the config asks of it."""
    if generator is None or not settings.uses_synthetic:
        return
    if not isinstance(generator, Generator):
        raise UserError(
            f"generator is {short(generator)}; it must be a gr.Generator, such as "
            "gr.flows.as_generator(flow, params) makes of a flow."
        )
    z = jax.ShapeDtypeStruct((2, *generator.latent_shape), jnp.float32)
    y = jax.ShapeDtypeStruct((2,), jnp.int32)
    found = jax.eval_shape(generator.apply, generator.params, z, y)
    if getattr(found, "shape", None) != (2, *dataset.image_shape):
        raise UserError(
            f"For two latents the generator returns {found}; needed are images of shape "
            f"{(2, *dataset.image_shape)}, as those of {dataset.name}."
        )
    if generator.encode is None and settings.synthetic.source != "prior":
        raise UserError(
            f"config.synthetic.source = {settings.synthetic.source!r} starts from encodings of "
            "real images, and the generator that was given has no `encode`. Without one it "
            "supports the source 'prior'; give it `encode(params, x, y) -> z`, or leave it out to "
            "use a flow."
        )
