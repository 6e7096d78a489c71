"""What perturbations and attacks share: a ball of changes, steps in it, and the resulting images.

Everything is image by image. Image `i` of a batch draws from `fold_in(key, indices[i])`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax import bounds
from genreg_jax.checks import check_choice, check_number, check_strength, is_concrete, short
from genreg_jax.conv_layout import canonical

NORMS = ("l2", "linf")
LossFn = Callable[[jax.Array], jax.Array]  # images [B, H, W, C] -> losses [B]


def radius(value, norm, relative, x, *, name="epsilon", allowed=NORMS):
    """The radius, checked; `value` per dimension if l2 radii are `relative`."""
    check_strength(name, value)
    check_choice("norm", norm, allowed)
    if isinstance(value, np.generic):
        value = value.item()  # which takes the type of what it meets
    return value * float(np.sqrt(np.prod(x.shape[1:]))) if relative and norm == "l2" else value


def draw(key, like, indices, sampler):
    """Draws of the shape and dtype of `like`, each example's from a key of its own."""
    indices = jnp.arange(like.shape[0]) if indices is None else jnp.asarray(indices)
    if indices.shape != like.shape[:1] or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}; allowed: integers of "
            f"shape {like.shape[:1]}, one for each image."
        )
    draw = lambda i: sampler(jax.random.fold_in(key, i), like.shape[1:], like.dtype)
    return jax.vmap(draw)(indices)


def _length(delta):
    """Of each image's change; its derivative at 0 is 0."""
    squares = jnp.sum(delta**2, (1, 2, 3), keepdims=True)
    return jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def project(delta, radius, norm):
    """The nearest point in the ball, for each image."""
    if norm == "linf":
        # On the boundary the radius has the gradient, as below.
        return bounds.minimum(radius, bounds.maximum(-radius, delta))
    if norm == "l2":
        return delta * bounds.minimum(radius / bounds.maximum(_length(delta), 1e-30), 1)
    return delta


def direction(gradient, norm):
    """The unit step of steepest ascent for each image; zero where the gradient is zero.

    Constant for all derivatives.
    """
    gradient = jax.lax.stop_gradient(gradient)
    if norm == "linf":
        return jnp.sign(gradient)
    # Scaled by the largest entry first: the square of a small gradient is zero in float32.
    largest = jnp.max(jnp.abs(gradient), (1, 2, 3), keepdims=True)
    gradient = gradient / jnp.where(largest > 0, largest, 1)
    return gradient / jnp.maximum(_length(gradient), 1)


def start(key, like, radius, norm, random_start, indices):
    """Where an attack starts: uniform noise, projected, or 0."""
    if not random_start:
        return jnp.zeros_like(like)
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1)
    return project(radius * draw(key, like, indices, uniform), radius, norm)


def repeated(step, delta, num_steps):
    """`step` so many times, in a loop; on CPU with convolutions that are fast in loops.

    Outside `jit` a loop would be compiled at each call; on CPU steps are made one by one there.
    """
    check_number("num_steps", num_steps, minimum=1, integer=True)
    cpu = jax.default_backend() == "cpu"
    if num_steps == 1 or (cpu and is_concrete(delta)):
        for _ in range(num_steps):
            delta = step(delta)
        return delta
    step = canonical(step) if cpu else step
    return jax.lax.scan(lambda delta, _: (step(delta), None), delta, length=num_steps)[0]


def loss_gradient(loss_fn, images):
    """Gradient of each image's loss, in the images."""

    if not callable(loss_fn):
        raise ValueError(f"loss_fn is {short(loss_fn)}; allowed: a function, images -> losses [B].")

    def total(images):
        losses: Any = loss_fn(images)
        if jnp.shape(losses) != images.shape[:1]:
            raise ValueError(
                f"loss_fn returned losses of shape {jnp.shape(losses)}; allowed: one for each "
                f"image, {images.shape[:1]}."
            )
        return jnp.sum(losses)

    return jax.grad(total)(images)


def make_finish(images, clip, clip_norm):
    """What is done to every decoded batch: clip around the images if asked, and clamp."""
    if clip is not None:
        check_number("clip", clip)
    check_choice("clip_norm", clip_norm, NORMS)

    def finish(decoded):
        if clip is not None:
            decoded = images + project(decoded - images, clip, clip_norm)
        return bounds.clip(decoded, 0, 1)

    return finish


def choose(key, x, perturbed, ratio, indices, epsilon):
    """The result: the perturbed images, or the given ones where the lot does not fall on them.

    Constant for all derivatives but those in an `epsilon` that is traced.
    """
    check_number("ratio", ratio, maximum=1)
    perturbed = perturbed.astype(jnp.result_type(x))
    if ratio < 1:
        lots = draw(key, jnp.zeros((perturbed.shape[0], 1, 1, 1)), indices, jax.random.uniform)
        perturbed = jnp.where(lots < ratio, perturbed, jax.lax.stop_gradient(jnp.asarray(x)))
    return jax.lax.stop_gradient(perturbed) if is_concrete(epsilon) else perturbed
