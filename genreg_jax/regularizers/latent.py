"""Latent perturbations: training images moved along the data manifold, through an exact flow.

    z = F(x),    x~ = F^-1(z + delta),    the classifier is trained on (x~, y)

    random         delta ~ N(0, epsilon^2) per dimension, projected on the ball
    away           delta = sign(z) |N(0, epsilon^2)|, away from the latent centre
    adversarial    repeat  delta <- project(delta + step(d loss(F^-1(z + delta)) / d delta))
    interpolation  z + delta on the great arc towards another image of the same class
    pgd            the baseline, `pgd.py`: adversarial with the identity in the place of F

With `difference`, `x~ = x + F^-1(z + delta) - F^-1(z)`: only what the perturbation changes is added
to the image, which keeps what the flow cannot show, as a flow of a smaller size
(`genreg_jax.flows.resized`); `epsilon = 0` is then the image itself.

`project` maps on the ball `|delta| <= epsilon`, image by image. `step` is `step_size g / |g|` in l2
and `step_size sign(g)` in linf; a zero gradient is a zero step. The image is then clipped to a ball
around `x` if asked, and clamped to [0, 1]. In the attack both pass gradients straight through: a
pixel at black or white, of which some data sets have many, would otherwise stop counting.

Reductions, each a test: `epsilon = 0` is the image to the flow's rounding, `ratio = 0` is the image
bit for bit.

Image `i` of a batch draws from `fold_in(key, indices[i])`, so what happens to it depends neither on
the size of the batch nor on how it is laid out over devices.

Source: Yuksel et al., Semantic Perturbations with Normalizing Flows for Improved Generalization,
arXiv:2108.07958.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genreg_jax.arcs import cosine_of, great_arc
from genreg_jax.checks import (
    as_array,
    as_images,
    check_choice,
    check_strength,
    is_frozen,
    short,
    split,
)
from genreg_jax.regularizers import ball
from genreg_jax.regularizers.pgd import image_pgd

KINDS = ("random", "away", "adversarial", "pgd", "interpolation")


def random_latent_perturbation(
    key: jax.Array,
    frozen: Any,
    x: jax.Array,
    *,
    epsilon: float,
    norm: str = "l2",
    relative: bool = False,
    y: jax.Array | None = None,
    z: jax.Array | None = None,
    ratio: float = 1.0,
    clip: float | None = None,
    clip_norm: str = "linf",
    difference: bool = False,
    indices: jax.Array | None = None,
) -> jax.Array:
    """Decodes latents with noise: `F^-1(F(x) + delta)`, `delta = project(N(0, epsilon^2))`.

    In many dimensions the l2 projection always binds, and `delta` is a uniform direction of length
    `epsilon`.

    Args:
      key: of the noise.
      frozen: a flow with its parameters, `flow.freeze(params)`: `encode(x, y)`, `decode(z, y)`.
      x: images `[B, H, W, C]` in [0, 1].
      epsilon: radius of the ball in latent space, and the noise's standard deviation per dimension.
      norm: `l2`, `linf`, or `none` for no ball.
      relative: measure l2 radii per dimension: the ball has radius `epsilon sqrt(H W C)`, with the
        sizes of a latent, a share of its typical norm, which carries over between flows and sizes.
      y: labels `[B]`, for a conditional flow.
      z: `frozen.encode(x, y)` where it is known already.
      ratio: probability of an image to be perturbed at all; the others are returned as they are.
      clip: largest change in image space, or None.
      clip_norm: norm of that change, `linf` or `l2`.
      difference: add `F^-1(z + delta) - F^-1(z)` to the image, instead of taking what is decoded.
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images of the shape and dtype of `x`, in [0, 1].

    Raises:
      ValueError: a negative radius, an unknown norm, a ratio outside of [0, 1], images or latents
        of another shape than the flow's, or labels that the flow lacks or has no use for.

    Gradients flow neither to `x` nor to the flow, and to `epsilon` where it is traced, through the
    projection.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> flow = gr.flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
      >>> frozen = flow.freeze(flow.init(jax.random.key(1), x))
      >>> near = gr.random_latent_perturbation(jax.random.key(2), frozen, x, epsilon=0.1)
      >>> far = gr.random_latent_perturbation(jax.random.key(2), frozen, x, epsilon=2.0)
      >>> bool(jnp.abs(near - x).mean() < jnp.abs(far - x).mean())
      True

    Source: arXiv:2108.07958; on CIFAR-10 l2 with `epsilon` 20.
    """
    key_noise, key_ratio = split(key)
    images, z, decode = _latents(frozen, x, y, z, difference)
    radius = ball.radius(epsilon, norm, relative, z, allowed=(*ball.NORMS, "none"))
    finish = ball.make_finish(images, clip, clip_norm)
    noise = radius * ball.draw(key_noise, z, indices, jax.random.normal)
    decoded = decode(z + ball.project(noise, radius, norm))
    return ball.choose(key_ratio, x, finish(decoded), ratio, indices, epsilon)


def away_latent_perturbation(
    key: jax.Array,
    frozen: Any,
    x: jax.Array,
    *,
    epsilon: float,
    norm: str = "none",
    relative: bool = False,
    y: jax.Array | None = None,
    z: jax.Array | None = None,
    ratio: float = 1.0,
    clip: float | None = None,
    clip_norm: str = "linf",
    difference: bool = False,
    indices: jax.Array | None = None,
) -> jax.Array:
    """Decodes latents moved outwards: `F^-1(z + sign(z) |N(0, epsilon^2)|)`, `z = F(x)`.

    Args:
      epsilon: standard deviation of the noise per dimension, and the ball's radius if there is one.
      norm: `none` for no ball, as the authors have it; `l2` or `linf`.
      relative: the ball's l2 radius is `epsilon sqrt(H W C)`.
      key, frozen, x, y, z, ratio, clip, clip_norm, difference, indices: as
        `random_latent_perturbation`.

    Returns:
      Images of the shape and dtype of `x`, in [0, 1].

    Raises:
      ValueError: as `random_latent_perturbation`.

    Gradients flow neither to `x` nor to the flow, and to `epsilon` where it is traced, through the
    projection.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> flow = gr.flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
      >>> frozen = flow.freeze(flow.init(jax.random.key(1), x))
      >>> moved = gr.away_latent_perturbation(jax.random.key(2), frozen, x, epsilon=0.15)
      >>> bool(jnp.abs(frozen.encode(moved)).mean() > jnp.abs(frozen.encode(x)).mean())
      True

    Source: arXiv:2108.07958; on CIFAR-10 no ball, `epsilon` 0.15.
    """
    key_noise, key_ratio = split(key)
    images, z, decode = _latents(frozen, x, y, z, difference)
    radius = ball.radius(epsilon, norm, relative, z, allowed=(*ball.NORMS, "none"))
    finish = ball.make_finish(images, clip, clip_norm)
    noise = jnp.sign(z) * jnp.abs(epsilon * ball.draw(key_noise, z, indices, jax.random.normal))
    decoded = decode(z + ball.project(noise, radius, norm))
    return ball.choose(key_ratio, x, finish(decoded), ratio, indices, epsilon)


def adversarial_latent_perturbation(
    key: jax.Array,
    frozen: Any,
    loss_fn: ball.LossFn,
    x: jax.Array,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    norm: str = "l2",
    random_start: bool = True,
    relative: bool = False,
    y: jax.Array | None = None,
    z: jax.Array | None = None,
    ratio: float = 1.0,
    clip: float | None = None,
    clip_norm: str = "linf",
    difference: bool = False,
    indices: jax.Array | None = None,
) -> jax.Array:
    """Projected gradient ascent on the classifier's loss, in the flow's latent space.

        delta <- project(delta + step_size g / |g|)       l2; sign(g) in linf
        g = d loss_fn(F^-1(F(x) + delta)) / d delta       image by image

    Args:
      key: of the random start and of `ratio`.
      loss_fn: images `[B, H, W, C]` in [0, 1] -> losses `[B]` to be increased. The authors use the
        cross-entropy to the classifier's own predictions, so that no label leaks.
      epsilon: radius of the ball in latent space.
      step_size: length of a step, in the units of `epsilon`.
      num_steps: number of steps, at least 1.
      norm: `l2` or `linf`.
      random_start: start from uniform noise in [-epsilon, epsilon] per dimension, projected,
        instead of from 0.
      relative: measure l2 radii per dimension: `epsilon` and `step_size` times `sqrt(H W C)`.
      frozen, x, y, z, ratio, clip, clip_norm, difference, indices: as
        `random_latent_perturbation`.

    Returns:
      Images of the shape and dtype of `x`, in [0, 1].

    Raises:
      ValueError: as `random_latent_perturbation`; fewer than one step, a negative step size, or
        losses that are not `[B]`.

    Gradients flow neither to `x` nor to the flow nor to what `loss_fn` closes over, and to
    `epsilon` where it is traced, through the projections: directions of steps are constants.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> flow = gr.flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
      >>> frozen = flow.freeze(flow.init(jax.random.key(1), x))
      >>> brightness = lambda images: images.mean((1, 2, 3))
      >>> attacked = gr.adversarial_latent_perturbation(
      ...     jax.random.key(2), frozen, brightness, x, epsilon=1.0, step_size=0.5, num_steps=3)
      >>> bool(jnp.all(brightness(attacked) > brightness(x)))
      True

    Source: arXiv:2108.07958; on CIFAR-10 l2, `epsilon` 1.0, `step_size` 0.5, 3 steps.
    """
    key_start, key_ratio = split(key)
    images, z, decode = _latents(frozen, x, y, z, difference)
    radius = ball.radius(epsilon, norm, relative, z)
    length = ball.radius(step_size, norm, relative, z, name="step_size")
    finish = ball.make_finish(images, clip, clip_norm)

    def step(delta):
        held = jax.lax.stop_gradient(delta)
        decoded, pullback = jax.vjp(lambda delta: decode(z + delta), held)
        gradient = pullback(ball.loss_gradient(loss_fn, finish(decoded)).astype(decoded.dtype))[0]
        return ball.project(delta + length * ball.direction(gradient, norm), radius, norm)

    delta = ball.start(key_start, z, radius, norm, random_start, indices)
    delta = ball.repeated(step, delta, num_steps)
    return ball.choose(key_ratio, x, finish(decode(z + delta)), ratio, indices, epsilon)


def latent_interpolation(
    key: jax.Array,
    frozen: Any,
    x: jax.Array,
    labels: jax.Array,
    *,
    epsilon: float,
    y: jax.Array | None = None,
    z: jax.Array | None = None,
    ratio: float = 1.0,
    clip: float | None = None,
    clip_norm: str = "linf",
    difference: bool = False,
    indices: jax.Array | None = None,
) -> jax.Array:
    """Moves each latent towards that of another image of its class in the batch: a latent mixup.

        z_t = sin((1 - t) a) / sin(a) z + sin(t a) / sin(a) z',     t ~ U(0, epsilon)

    with `a` the angle between `z` and the latent `z'` of the partner. The label stays, and the arc
    stays where latents have their typical norm. An image without a partner is decoded as it is.

    Args:
      key: of the partners and of `t`.
      labels: classes `[B]`, integers; partners share them.
      epsilon: largest share of the way, in [0, 1].
      frozen, x, y, z, ratio, clip, clip_norm, difference, indices: as
        `random_latent_perturbation`.

    Returns:
      Images of the shape and dtype of `x`, in [0, 1].

    Raises:
      ValueError: as `random_latent_perturbation`; labels that are not integers `[B]`, or a share
        above 1.

    Gradients flow neither to `x` nor to the flow, and to `epsilon` where it is traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> flow = gr.flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
      >>> frozen = flow.freeze(flow.init(jax.random.key(1), x))
      >>> between = gr.latent_interpolation(
      ...     jax.random.key(2), frozen, x, jnp.arange(8) % 4, epsilon=0.5)
      >>> between.shape
      (8, 4, 4, 1)

    Source: none; interpolation as in `genreg_jax.flows.Flow.interpolate`.
    """
    key_partner, key_share, key_ratio = jax.random.split(key, 3)
    images, z, decode = _latents(frozen, x, y, z, difference)
    check_strength("epsilon", epsilon, maximum=1)
    labels = as_array(labels, "labels", "integers [B]")
    if labels.shape != z.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; allowed: integers of shape "
            f"{z.shape[:1]}, one for each image."
        )
    finish = ball.make_finish(images, clip, clip_norm)
    batch = len(labels)
    scores = ball.draw(key_partner, jnp.zeros((batch, batch), z.dtype), indices, jax.random.uniform)
    others = (labels[:, None] == labels[None]) & ~jnp.eye(batch, dtype=bool)
    partner = z[jnp.argmax(jnp.where(others, scores, -1), axis=1)]
    share = jnp.zeros((batch, 1, 1, 1), z.dtype)
    share = epsilon * ball.draw(key_share, share, indices, jax.random.uniform)
    stays = ~jnp.any(others, axis=1).reshape(-1, 1, 1, 1) | (share == 0)
    arc = great_arc(z, partner, share, cosine_of(z, partner))
    decoded = decode(jnp.where(stays, z, arc))
    return ball.choose(key_ratio, x, finish(decoded), ratio, indices, epsilon)


def perturbation(
    kind: str,
    *,
    epsilon: float,
    norm: str = "l2",
    relative: bool = False,
    step_size: float = 0.5,
    num_steps: int = 3,
    random_start: bool = True,
    difference: bool = False,
    **common: Any,
) -> Callable[..., jax.Array]:
    """One of `KINDS` by its name, all behind one signature.

    Args:
      kind: `random`, `away`, `adversarial`, `pgd` or `interpolation`.
      epsilon: radius; for `interpolation` the largest share of the way.
      norm: of the ball.
      relative: l2 radii per dimension.
      step_size: of `adversarial` and `pgd`.
      num_steps: of `adversarial` and `pgd`.
      random_start: of `adversarial` and `pgd`.
      difference: of all but `pgd`.
      **common: `ratio`, `clip` and `clip_norm`.

    Returns:
      `perturb(key, frozen, loss_fn, x, labels, z) -> images`. `frozen` and `z` are not used by
      `pgd`, `loss_fn` only by it and by `adversarial`. A conditional flow gets the labels.

    Raises:
      ValueError: `kind` is not one of them.

    Example:
      >>> perturb = perturbation("random", epsilon=1.0)
      >>> perturbation("randon", epsilon=1.0)
      Traceback (most recent call last):
      ...
      ValueError: kind must be one of ('random', 'away', 'adversarial', 'pgd', 'interpolation'), \
got 'randon'.
    """
    in_ball = {"epsilon": epsilon, "norm": norm, "relative": relative, **common}
    ascent = {"step_size": step_size, "num_steps": num_steps, "random_start": random_start}
    ascent |= in_ball

    def given(frozen, labels, z):
        y = None if getattr(frozen, "num_classes", None) is None else labels
        return {"y": y, "z": z, "difference": difference}

    def random(key, frozen, loss_fn, x, labels, z):
        return random_latent_perturbation(key, frozen, x, **in_ball, **given(frozen, labels, z))

    def away(key, frozen, loss_fn, x, labels, z):
        return away_latent_perturbation(key, frozen, x, **in_ball, **given(frozen, labels, z))

    def adversarial(key, frozen, loss_fn, x, labels, z):
        return adversarial_latent_perturbation(
            key, frozen, loss_fn, x, **ascent, **given(frozen, labels, z)
        )

    def pgd(key, frozen, loss_fn, x, labels, z):
        return image_pgd(key, loss_fn, x, **ascent)

    def interpolation(key, frozen, loss_fn, x, labels, z):
        return latent_interpolation(
            key, frozen, x, labels, epsilon=epsilon, **common, **given(frozen, labels, z)
        )

    by_name: dict[str, Any] = dict(zip(KINDS, (random, away, adversarial, pgd, interpolation)))
    check_choice("kind", kind, KINDS)
    return by_name[kind]


def _latents(
    frozen: Any, x: jax.Array, y: jax.Array | None, z: Any, difference: bool
) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
    """The images in float32 or better, their latents, and the function from latents to images."""
    if not is_frozen(frozen):
        raise ValueError(f"frozen is {short(frozen)}; allowed: flow.freeze(params).")
    frozen = jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, frozen
    )
    images = jax.lax.stop_gradient(as_images(x, frozen.image_shape))
    shape = getattr(frozen, "latent_shape", frozen.image_shape)
    z = frozen.encode(images, y) if z is None else as_images(z, shape, "z", in_range=False)
    z = jax.lax.stop_gradient(z)
    if len(z) != len(images):
        raise ValueError(
            f"z has shape {z.shape}; allowed is one latent for each of the {len(images)} images."
        )
    if not difference:
        return images, z, lambda moved: frozen.decode(moved, y)
    unmoved = frozen.decode(z, y)

    def add(moved):
        change = frozen.decode(moved, y) - unmoved
        # Two decodings of one latent can differ by rounding; the gradient there stays.
        still = jnp.all(moved == z, axis=(1, 2, 3), keepdims=True)
        return images + (change - jnp.where(still, jax.lax.stop_gradient(change), 0))

    return images, z, add
