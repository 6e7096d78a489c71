"""Projected gradient ascent on images: the baseline that latent perturbations are compared with.

    repeat  delta <- project(delta + step(d loss(x + delta) / d delta)),    x + delta in [0, 1]

`project`, `step`, clip and clamp are those of `genreg_jax.regularizers.latent`. Reductions, each a
test: `epsilon = 0` and `ratio = 0` are the image bit for bit.

Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks,
arXiv:1706.06083.
"""

import jax
import jax.numpy as jnp

from genreg_jax import bounds
from genreg_jax.checks import as_images, split
from genreg_jax.regularizers import ball


def image_pgd(
    key: jax.Array,
    loss_fn: ball.LossFn,
    x: jax.Array,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    norm: str = "l2",
    random_start: bool = True,
    relative: bool = False,
    ratio: float = 1.0,
    clip: float | None = None,
    clip_norm: str = "linf",
    indices: jax.Array | None = None,
) -> jax.Array:
    """Projected gradient ascent on the classifier's loss in image space: the baseline off-manifold.

    `adversarial_latent_perturbation` with the identity in the place of the flow; `delta` also stays
    where `x + delta` is an image.

    Args:
      epsilon: radius of the ball in image space.
      clip: a second bound on the change, in another norm, or None.
      clip_norm: that norm, `linf` or `l2`.
      key, loss_fn, x, step_size, num_steps, norm, random_start, relative, ratio, indices: as
        `adversarial_latent_perturbation`.

    Returns:
      Images of the shape and dtype of `x`, in [0, 1].

    Raises:
      ValueError: as `adversarial_latent_perturbation`.

    Gradients flow neither to `x` nor to what `loss_fn` closes over, and to `epsilon` where it is
    traced, through the projections: the directions of the steps are constants.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> x = jnp.full((2, 4, 4, 1), 0.5)
      >>> attacked = gr.image_pgd(
      ...     jax.random.key(0), lambda images: images.sum((1, 2, 3)), x, epsilon=0.1,
      ...     step_size=0.1, num_steps=2, norm="linf", random_start=False)
      >>> bool(jnp.allclose(attacked, 0.6))
      True

    Source: arXiv:1706.06083.
    """
    key_start, key_ratio = split(key)
    images = jax.lax.stop_gradient(as_images(x, jnp.shape(x)[1:]))
    radius = ball.radius(epsilon, norm, relative, images)
    length = ball.radius(step_size, norm, relative, images, name="step_size")
    finish = ball.make_finish(images, clip, clip_norm)

    def inside(delta):
        return bounds.clip(images + ball.project(delta, radius, norm), 0, 1) - images

    def step(delta):
        moved = finish(images + jax.lax.stop_gradient(delta))
        gradient = ball.loss_gradient(loss_fn, moved).astype(images.dtype)
        return inside(delta + length * ball.direction(gradient, norm))

    delta = inside(ball.start(key_start, images, radius, norm, random_start, indices))
    delta = ball.repeated(step, delta, num_steps)
    return ball.choose(key_ratio, x, finish(images + delta), ratio, indices, epsilon)
