"""The framework-free contract between a classifier, a generator and everything that uses them.

Losses, objectives and hypergradients of this library know a model only through

    apply(params, model_state, x, *, rng, train) -> (Outputs(logits, embedding), new_model_state)

so that a Linen, NNX, Equinox, Haiku or hand-written network needs one small adapter and no change
here. `params` is what the optimiser updates, `model_state` is what the forward pass updates
(BatchNorm's running statistics), and both are pytrees. A generator is a `Generator`, a batch a
`Batch`, an augmentation a function `(key, images) -> images`, and a term on embeddings an
`EmbeddingTerm`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# `(key, images [B, H, W, C] in [0, 1]) -> images`.
Augment = Callable[[jax.Array, jax.Array], jax.Array]


class Outputs(NamedTuple):
    """What a classifier returns: `logits` `[B, K]` and `embedding` `[B, D]`, the head's input.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> gr.Outputs(logits=jnp.zeros((2, 10)), embedding=jnp.ones((2, 64))).embedding.shape
      (2, 64)
    """

    logits: jax.Array
    embedding: jax.Array


def as_outputs(found: Any) -> Outputs:
    """What a network returns, as `Outputs`.

    Raises:
      ValueError: it is no pair.

    Example:
      >>> import jax.numpy as jnp
      >>> as_outputs((jnp.zeros((2, 10)), jnp.ones((2, 64)))).embedding.shape
      (2, 64)
    """
    if isinstance(found, tuple | list) and len(found) == 2:
        return Outputs(*found)
    shape = getattr(found, "shape", None)
    shape = "" if shape is None else f" of shape {shape}"
    raise ValueError(
        f"the network returns {type(found).__name__}{shape}; it must return the pair (logits [B, K]"
        ", embedding [B, D]), the embedding being what its last layer takes: `return head(e), e`"
    )


# What errors say that a classifier has to be.
A_MODEL = (
    "a gr.Model(init, apply), such as gr.from_linen(module) makes of a Flax module, and from_nnx, "
    "from_equinox and from_haiku of others"
)


class Model(NamedTuple):
    """A classifier as two pure functions.

    Attributes:
      init: `(key, x) -> (params, model_state)`.
      apply: `(params, model_state, x, *, rng, train) -> (Outputs, new_model_state)`; with
        `train=False` it returns `model_state` unchanged.

    Example:
      A linear classifier without state, in plain JAX:

      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> def init(key, x):
      ...     return jax.random.normal(key, (x[0].size, 10)), {}
      >>> def apply(params, model_state, x, *, rng, train):
      ...     embedding = x.reshape(len(x), -1)
      ...     return gr.Outputs(embedding @ params, embedding), model_state
      >>> model = gr.Model(init, apply)
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> model.apply(params, model_state, x, rng=None, train=True)[0].logits.shape
      (2, 10)
    """

    init: Callable[[jax.Array, jax.Array], tuple[Any, Any]]
    apply: Callable[..., tuple[Outputs, Any]]


def standardized(model: Model, mean: Any, std: Any) -> Model:
    """Puts per-channel standardisation in front of a model, so that it takes images in [0, 1].

    Args:
      model: a model for standardised images.
      mean: per-channel mean `[C]` of the training images in [0, 1].
      std: per-channel standard deviation `[C]`, positive.

    Returns:
      A model that computes `model((x - mean) / std)`. The two statistics are part of its
      `model_state`, so that a checkpoint holds all that a prediction needs. Gradients flow to the
      image. uint8 images are divided by 255 first; other integers are refused.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax.contract import Model, Outputs, standardized
      >>> plain = Model(lambda key, x: ({}, {}),
      ...               lambda p, s, x, *, rng, train: (Outputs(x, x), s))
      >>> model = standardized(plain, mean=[0.5], std=[0.25])
      >>> params, model_state = model.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> outputs, _ = model.apply(params, model_state, jnp.ones((1, 1)), rng=None, train=False)
      >>> float(outputs.logits[0, 0])
      2.0
    """
    statistics = {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}

    def standardize(statistics, x):
        if x.dtype == jnp.uint8:
            x = to_float(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"the images have the type {x.dtype}; they must be uint8, or floating point in "
                "[0, 1]"
            )
        shape = (1,) * (x.ndim - 1) + (-1,)
        mean, std = (statistics[k].reshape(shape).astype(x.dtype) for k in ("mean", "std"))
        return (x - mean) / std

    def init(key, x):
        params, model_state = model.init(key, standardize(statistics, x))
        return params, {"standardize": statistics, "model": model_state}

    def apply(params, model_state, x, *, rng, train):
        x = standardize(model_state["standardize"], x)
        outputs, inner = model.apply(params, model_state["model"], x, rng=rng, train=train)
        return outputs, {**model_state, "model": inner}

    return Model(init, apply)


# `(key, outputs, labels [B], step) -> per-example losses [B]`, the weight included.
EmbeddingTerm = Callable[[jax.Array, Outputs, jax.Array, jax.Array], jax.Array]


class Generator(NamedTuple):
    """Any frozen source of synthetic images.

    Attributes:
      apply: `(params, z [B, *latent_shape], y [B]) -> x [B, H, W, C]` in [0, 1], differentiable in
        `z`.
      params: pytree handed to `apply`.
      latent_shape: shape of one latent; its prior is N(0, I).
      encode: `(params, x [B, H, W, C], y [B]) -> z`, the inverse of `apply`, or None. Sources of
        samples that start from real images need it.

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
    encode: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None


class Batch(NamedTuple):
    """Images and their labels, as a training step takes them.

    Attributes:
      images: `[B, H, W, C]`, uint8, or floating point in [0, 1].
      labels: integers `[B]`.
      latents: of the images by the flow that perturbs them, `[B, H, W, C]`, where they are known;
        see `config.latent.cache`.
      encodings: of the images by the generator, `[B, *latent_shape]`, where they are known.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> gr.Batch(jnp.zeros((2, 8, 8, 1), jnp.uint8), jnp.array([3, 7])).latents is None
      True
    """

    images: jax.Array
    labels: jax.Array
    latents: jax.Array | None = None
    encodings: jax.Array | None = None


def to_float(images: jax.Array) -> jax.Array:
    """Images as float32 in [0, 1]; uint8 is divided by 255."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32)
