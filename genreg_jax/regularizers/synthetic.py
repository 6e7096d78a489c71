"""Synthetic latents: where they come from, how far a search may move them, and what became of them.

Sources. Every row keeps the label of the real image that it was made from; `z = F(x, y)` is that
image's encoding, and `eps ~ N(0, I)`.

    prior          eps
    renoised       sqrt(1 - s) z + sqrt(s) eps,      s ~ U(low, high)
    interpolated   from z along the arc towards a mixture of other encodings of the class

Searches. Each proposes an offset from the latent, and `restore_norm` brings the sum back to the
latent's norm, so that they differ in nothing but the direction:

    none      0
    finder    bounded_offset(z, mlp(z, y))           learned by meta pseudo sampling
    hard      radius |z| g / |g|                     g: gradient of the prediction's entropy in z
    random    radius |z| u / |u|                     u ~ N(0, I)

A source or a search sees latents as arrays `[B, ...]` of any shape, and no generator.

Row `i` draws from `fold_in(key, i)`, with `i` its index in the whole batch, so that what happens to
it does not depend on how the batch is laid out over devices.

Reductions, each a test: `s = 0` and `strength = 0` are `z`, `s = 1` is the prior, a class of one
image is that image, and `radius = 0` is the source, all bit for bit; `radius = inf` bounds nothing.

Sources: re-noised real images, Yamaguchi et al., ACML 2024; mixtures of a class, Phantom
Embeddings, arXiv:2304.07262; the finder, arXiv:2307.13899. The bound on the offset is this
library's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax import bounds
from genreg_jax.arcs import great_arc
from genreg_jax.checks import (
    as_array,
    at_least_float32,
    check_key,
    check_number,
    is_concrete,
    split,
    widened,
)
from genreg_jax.regularizers.phantom import PhantomMemory, phantom_embeddings

# ----------------------------------------------------------------------------------------- sources


def renoised_latents(
    key: jax.Array,
    z: jax.Array,
    *,
    low: float,
    high: float,
    temperature: float = 1.0,
    indices: jax.Array | None = None,
) -> jax.Array:
    """Encodings of real images, partly replaced by noise.

        sqrt(1 - s) z + sqrt(s) temperature eps,     s ~ U(low, high) for each row

    Where `z` is N(0, I) and the temperature 1, so is the result, whatever `s`: the expected squared
    norm is `(1 - s) |z|^2 + s D`.

    Args:
      key: of the shares and of the noise.
      z: latents `[B, ...]`, floating point.
      low: least share of noise.
      high: largest share of noise; `0 <= low <= high <= 1`.
      temperature: standard deviation of the noise.
      indices: global numbers of the rows, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Latents of the shape and dtype of `z`: `z` itself at `s = 0`, the noise alone at `s = 1`.

    Raises:
      ValueError: `low` and `high` that are not such a range, a negative temperature, latents that
        are not floats `[B, ...]`, or indices that do not fit them.

    Gradients flow to `z`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> z = jax.random.normal(jax.random.key(0), (4, 50))
      >>> near = gr.renoised_latents(jax.random.key(1), z, low=0.1, high=0.2)
      >>> far = gr.renoised_latents(jax.random.key(1), z, low=0.7, high=0.9)
      >>> bool(jnp.sum((near - z) ** 2) < jnp.sum((far - z) ** 2))
      True
      >>> bool(jnp.all(gr.renoised_latents(jax.random.key(1), z, low=0.0, high=0.0) == z))
      True

    Source: partly re-noised real images, Yamaguchi et al., ACML 2024, through a diffusion model; an
    exact flow needs one pass each way.
    """
    z = _check_latents(z)
    check_number("low", low, maximum=1)
    check_number("high", high, maximum=1)
    if low > high:
        raise ValueError(f"low is {low!r}, above high = {high!r}; allowed: 0 <= low <= high <= 1.")
    check_number("temperature", temperature)
    rows = _check_indices(indices, z)
    key_share, key_noise = split(key)
    wide = at_least_float32(z.dtype)
    u = _draw(key_share, rows, (1,) * (z.ndim - 1), wide, jax.random.uniform)
    share = jnp.clip(low + (high - low) * u, low, high)  # rounding may not leave the range
    noise = temperature * _draw(key_noise, rows, z.shape[1:], wide, jax.random.normal)
    return (jnp.sqrt(1 - share) * z.astype(wide) + jnp.sqrt(share) * noise).astype(z.dtype)


def interpolated_latents(
    key: jax.Array,
    z: jax.Array,
    labels: jax.Array,
    *,
    strength: float,
    subset_size: int | None = None,
    weighting: str = "dirichlet",
    axis_name: Any = None,
    memory: PhantomMemory | None = None,
) -> jax.Array:
    """Encodings of real images, moved towards mixtures of other encodings of their class.

        p = sum_j w_j z_j,   m = sum_j w_j |z_j|        phantom_embeddings' weights of row i
        q = m p / |p|                                   the phantom, on the shell of its parts
        sin((1 - t) a) / sin(a) z + sin(t a) / sin(a) q,     t ~ U(0, strength),  a = angle(z, q)

    A convex mixture of k independent latents is sqrt(k) times too short, and a generator has not
    seen the inside of the shell that latents lie on: it decodes to a blurred average. Hence the
    mixture gives the direction alone, and the path is the arc and not the chord. With one partner
    it is that of `latent_interpolation`.

    Args:
      key: of the weights and of `t`; the same on all devices where there are several.
      z: latents `[B, ...]`, floating point.
      labels: int `[B]`, which are also those of the result; a row with a negative label takes no
        part and comes back as it is.
      strength: largest share of the way, in [0, 1].
      subset_size: number of partners of each row, as in `phantom_embeddings`; None for all.
      weighting: of the partners, `dirichlet` or `uniform`, as in `phantom_embeddings`.
      axis_name: name of a mapped axis, as in `phantom_embeddings`.
      memory: further partners `[M, ...]`, such as cached encodings of all training images where a
        batch has few of a class. A row's own encoding in it is a partner, too.

    Returns:
      Latents of the shape and dtype of `z`; a row without a partner is that of `z`, bit for bit.

    Raises:
      ValueError: a `strength` outside of [0, 1], latents that are not floats `[B, ...]`, and as
        `phantom_embeddings`.

    Gradients flow to `z`, of the partners too, but not to `memory`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> z, labels = jnp.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), jnp.array([0, 0, 1])
      >>> mixed = gr.interpolated_latents(jax.random.key(0), z, labels, strength=0.5)
      >>> jnp.linalg.norm(mixed[:2], axis=1).round(4).tolist(), mixed[2].tolist()
      ([1.0, 1.0], [5.0, 5.0])

    Source: Phantom Embeddings, arXiv:2304.07262, "a subset of homogenous samples", here in the
    latent space of a flow.
    """
    z = _check_latents(z)
    check_number("strength", strength, maximum=1)
    key_phantom, key_share = split(key)
    with_norm = lambda rows: (rows, row_norms(rows))
    if memory is not None:
        memory = PhantomMemory(with_norm(_wide_rows(memory.embeddings)), memory.labels)
    rows = _wide_rows(z)
    (phantom, length), where = phantom_embeddings(
        key_phantom,
        with_norm(rows),
        labels,
        subset_size=subset_size,
        weighting=weighting,
        axis_name=axis_name,
        memory=memory,
    )
    where = where[:, None] & jnp.any(phantom != 0, axis=1, keepdims=True)
    target = length * _unit(phantom)
    start = jax.lax.axis_index(axis_name) * len(rows) if axis_name is not None else 0
    numbers = start + jnp.arange(len(rows))
    share = strength * _draw(key_share, numbers, (1,), target.dtype, jax.random.uniform)
    cosine = jnp.sum(_unit(rows.astype(target.dtype)) * _unit(target), axis=1, keepdims=True)
    arc = great_arc(rows, target, share, cosine)
    moved = jnp.where(where & (share > 0), arc.astype(z.dtype), _rows(z))
    return moved.reshape(z.shape)


# ---------------------------------------------------------------------------------------- searches


def bounded_offset(z: jax.Array, offset: jax.Array, *, radius: float) -> jax.Array:
    """An offset, shortened smoothly to less than a radius relative to the latent's norm.

        offset R / sqrt(|offset|^2 + R^2),     R = radius |z|, row by row

    Short offsets pass as they are, with the identity as the derivative at 0; long ones approach
    length R. The derivative is positive definite everywhere: `c` across the offset and `c^3` along
    it, with `c = R / sqrt(|offset|^2 + R^2)`. (A projection on the ball has no derivative along the
    offset once outside, so that what has left learns only to turn, and a kink at the border.)

    Args:
      z: latents `[B, ...]`, floating point.
      offset: of the shape of `z`.
      radius: largest relative length; 0 gives zeros, `inf` the offset as it is.

    Returns:
      Offsets of the shape and dtype of `offset`; zero where `z` is zero and the radius finite.

    Raises:
      ValueError: a radius that is not a number >= 0, or arrays that are not floats of one shape
        `[B, ...]`.

    Gradients flow to both.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> z, offset = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]])
      >>> print(gr.bounded_offset(z, offset, radius=0.3))  # 2 * 1.5 / sqrt(4 + 2.25)
      [[0.  1.2]]
      >>> print(gr.bounded_offset(z, 1e6 * offset, radius=0.3))
      [[0.  1.5]]

    Source: none.
    """
    z, offset = _check_latents(z), _check_latents(offset, "offset")
    if z.shape != offset.shape:
        raise ValueError(f"offset has shape {offset.shape}; allowed is that of z, {z.shape}.")
    check_radius(radius)
    if radius == jnp.inf:
        return offset
    if radius == 0:
        return jnp.zeros_like(offset)
    rows = _wide_rows(offset)
    bound = (radius * row_norms(_wide_rows(z))).astype(rows.dtype)
    # The formula is homogeneous: divided by its largest number first, no square overflows.
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    scale = jax.lax.stop_gradient(jnp.maximum(largest, bound))
    rows, relative = rows / scale, bound / scale
    bounded = rows * (bound / jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True) + relative**2))
    moves = jnp.any(_rows(z) != 0, axis=1, keepdims=True)
    return jnp.where(moves, bounded, 0).astype(offset.dtype).reshape(offset.shape)


def restore_norm(moved: jax.Array, z: jax.Array) -> jax.Array:
    """Latents scaled, row by row, to the norms of those they were made from.

    `moved |z| / |moved|`: a high-dimensional normal draw lies on a thin shell, and so does what a
    generator was trained on. An offset of at most `radius |z|`, `radius < 1`, turns a latent by at
    most `arcsin(radius)`; after this it is at most `radius sqrt(2 / (1 + sqrt(1 - radius^2)))`
    norms away, 0.3035 for 0.3.

    Args:
      moved: latents `[B, ...]`, floating point.
      z: of the shape of `moved`.

    Returns:
      Latents like `moved`; where `moved` is `z`, it is `z` bit for bit.

    Raises:
      ValueError: arrays that are not floats of one shape `[B, ...]`.

    Gradients flow to both; they are finite at zero vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> gr.restore_norm(jnp.array([[6.0, 8.0]]), jnp.array([[0.0, 5.0]])).tolist()
      [[3.0, 4.0]]

    Source: none; StyleGAN, the generator of arXiv:2307.13899, normalises its latents itself.
    """
    moved, z = _check_latents(moved, "moved"), _check_latents(z)
    if z.shape != moved.shape:
        raise ValueError(f"moved has shape {moved.shape}; allowed is that of z, {z.shape}.")
    rows = _wide_rows(moved)
    # Exactly 1 where nothing was moved. The maximum changes no number, but keeps XLA from making
    # a / sqrt(b) into a rsqrt(b), which is not.
    scaled = rows * (row_norms(_wide_rows(z)) / bounds.maximum(row_norms(rows), 1e-6))
    return scaled.astype(moved.dtype).reshape(moved.shape)


def entropy_offset(
    logits_fn: Callable[[jax.Array], jax.Array], z: jax.Array, *, radius: float
) -> jax.Array:
    """One normalised ascent step on the entropy of the classifier's prediction, in latent space.

        radius |z| g / |g|,     g = d/dz H(softmax(logits_fn(z))),  H(p) = -sum_k p_k log p_k

    `restore_norm(z + entropy_offset(...), z)` are hard samples, at the price of one gradient of the
    classifier and of the generator in `z`, and without a bilevel problem: the cheap rival of a
    finder of the same radius.

    Args:
      logits_fn: latents like `z` -> logits `[B, K]` of what they decode to.
      z: latents `[B, ...]`, floating point.
      radius: length of the step relative to the norm of each latent, finite.

    Returns:
      Offsets of the shape and dtype of `z`; zero where the gradient is zero.

    Raises:
      ValueError: a radius that is not a finite number >= 0, latents that are not floats `[B, ...]`,
        or logits that are not `[B, K]`.

    Gradients flow neither to `z` nor to what `logits_fn` closes over: the result is wrapped in
    `stop_gradient`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> z = jnp.array([[2.0, 0.0], [-3.0, 4.0]])  # the first number decides the class
      >>> logits = lambda z: jnp.stack([z[:, 0], -z[:, 0]], axis=1)
      >>> print(gr.entropy_offset(logits, z, radius=0.5))
      [[-1.   0. ]
       [ 2.5  0. ]]

    Source: none.
    """
    z = _check_latents(z)
    check_number("radius", radius)

    def total_entropy(z):
        logits = logits_fn(z)
        if logits.ndim != 2 or logits.shape[0] != z.shape[0]:
            raise ValueError(
                f"logits_fn returned logits of shape {logits.shape}; allowed: [B, K] with B = "
                f"{z.shape[0]}, one row for each latent."
            )
        log_p = jax.nn.log_softmax(widened(logits))
        return -jnp.sum(jnp.exp(log_p) * log_p)

    gradient = jax.grad(total_entropy)(jax.lax.stop_gradient(z))
    return jax.lax.stop_gradient(_step(gradient, z, radius))


def random_offset(
    key: jax.Array, z: jax.Array, *, radius: float, indices: jax.Array | None = None
) -> jax.Array:
    """A step of the length of `entropy_offset`'s in a uniformly random direction.

    `radius |z| u / |u|`, `u ~ N(0, I)`: what a search of this radius must beat.

    Args:
      key: of the directions.
      z: latents `[B, ...]`, floating point.
      radius: length of the step relative to the norm of each latent, finite.
      indices: global numbers of the rows, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Offsets of the shape and dtype of `z`.

    Raises:
      ValueError: a radius that is not a finite number >= 0, latents that are not floats `[B, ...]`,
        or indices that do not fit them.

    Gradients do not flow to `z`: the result is wrapped in `stop_gradient`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> z = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 10.0]])
      >>> offset = gr.random_offset(jax.random.key(0), z, radius=0.2)
      >>> jnp.linalg.norm(offset, axis=1).round(4).tolist()
      [1.0, 2.0]

    Source: none.
    """
    z = _check_latents(z)
    check_number("radius", radius)
    rows = _check_indices(indices, z)
    direction = _draw(key, rows, z.shape[1:], at_least_float32(z.dtype), jax.random.normal)
    return jax.lax.stop_gradient(_step(direction, z, radius))


# ------------------------------------------------------------------------------------- diagnostics


def latent_diagnostics(
    draws: jax.Array, found: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    """How different the found latents of a class still are, and how far each is from its draw.

        spread    sqrt(mean_i |f_i - f(y_i)|^2 / mean_i |z_i - z(y_i)|^2),   f(c), z(c): class means
        distance  mean_i |f_i - z_i| / |z_i|

    A spread of 1 is that of the draws; at 0 all draws of a class are mapped to one latent. An
    offset of at most `r |z|` bounds it from below. For many draws of N(0, I) to a class it is at
    least `1 - r`; with `restore_norm` at least `sqrt(2 sqrt(1 - r^2) - 1)`, which is 0.953 for 0.3,
    since latents that keep their norms come together only by what their class mean gains.

    Args:
      draws: latents `[B, ...]`, floating point.
      found: what became of them, of the same shape.
      labels: int `[B]`.

    Returns:
      `spread` and `distance`, scalars in float32 or better. The spread is 1 where the draws
      themselves have none, with one row to a class or with equal rows.

    Raises:
      ValueError: arrays that are not floats of one shape `[B, ...]`, or labels that are not
        integers `[B]`.

    No gradients flow: the result is wrapped in `stop_gradient`.

    Example:
      >>> import jax.numpy as jnp
      >>> from genreg_jax.regularizers.synthetic import latent_diagnostics
      >>> draws, labels = jnp.array([[1.0], [3.0], [-2.0], [-4.0]]), jnp.array([0, 0, 1, 1])
      >>> result = latent_diagnostics(draws, jnp.array([[2.0], [2.0], [-2.0], [-4.0]]), labels)
      >>> {name: round(float(value), 4) for name, value in result.items()}
      {'spread': 0.7071, 'distance': 0.3333}

    Source: none.
    """
    draws, found = _check_latents(draws, "draws"), _check_latents(found, "found")
    if draws.shape != found.shape:
        raise ValueError(f"found has shape {found.shape}; allowed is that of draws, {draws.shape}.")
    labels = as_array(labels, "labels", "integers [B]")
    if labels.shape != draws.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; allowed: integers of shape "
            f"{draws.shape[:1]}, one for each latent."
        )
    wide = at_least_float32(draws.dtype)
    draws, found = (jax.lax.stop_gradient(_rows(a.astype(wide))) for a in (draws, found))
    same = (labels[:, None] == labels[None, :]).astype(wide)
    same = same / jnp.sum(same, axis=1, keepdims=True)

    def variance(rows):
        means = jnp.matmul(same, rows, precision="highest")
        return jnp.mean(jnp.sum((rows - means) ** 2, axis=1))

    # One row to a class, and each of equal ones, is its own mean up to rounding.
    of_draws = variance(draws)
    alone = of_draws <= 1e-10 * jnp.mean(jnp.sum(draws**2, axis=1))
    spread = jnp.sqrt(variance(found) / jnp.where(alone, 1, of_draws))
    distance = jnp.mean(jnp.linalg.norm(found - draws, axis=1, keepdims=True) / row_norms(draws))
    return {"spread": jnp.where(alone, 1, spread), "distance": distance}


# --------------------------------------------------------------------------------------------------


def check_radius(radius: float) -> None:
    """Raises a `ValueError` unless the radius is a number >= 0; infinity is allowed."""
    if not isinstance(radius, (int, float)) or isinstance(radius, bool) or not radius >= 0:
        raise ValueError(f"radius is {radius!r}; allowed: a number >= 0, or inf for no bound.")


def _rows(z):
    return z.reshape(z.shape[0], -1)


def _wide_rows(z):
    """As float32 at least: the squares of float16 overflow at norms of 256."""
    return _rows(widened(z))


def row_norms(rows):
    """Norms `[B, 1]`, at least 1e-6; the gradient is finite at zero."""
    return jnp.sqrt(bounds.maximum(jnp.sum(rows**2, axis=1, keepdims=True), 1e-12))


def _unit(rows):
    """Rows of norm 1, and zero where a row is zero."""
    # Scaled by the largest entry first: the square of a small gradient is zero in float32.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1, keepdims=True))
    rows = rows / jnp.where(largest > 0, largest, 1)
    return rows / jnp.where(largest > 0, row_norms(rows), 1)


def _step(direction, z, radius):
    """Offsets of length `radius |z|`; a zero direction is a zero step."""
    rows = _wide_rows(z)
    length = radius * jnp.where(jnp.any(rows != 0, axis=1, keepdims=True), row_norms(rows), 0)
    return (length * _unit(_wide_rows(direction))).astype(z.dtype).reshape(z.shape)


def _draw(key, rows, shape, dtype, sampler):
    """Draws `[B, *shape]`, each row's from a key of its own."""
    check_key(key)
    return jax.vmap(lambda i: sampler(jax.random.fold_in(key, i), shape, dtype))(rows)


def _check_latents(z, name="z"):
    z = as_array(z, name, "floating point [B, ...]")
    if z.ndim < 2 or 0 in z.shape or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            f"{name} has shape {z.shape} and dtype {z.dtype}; allowed: floating point [B, ...]."
        )
    if is_concrete(z) and not np.isfinite(np.asarray(z, np.float32)).all():
        raise ValueError(f"{name} contains NaN or infinity; allowed are finite values.")
    return z


def _check_indices(indices, z):
    indices = jnp.arange(z.shape[0]) if indices is None else jnp.asarray(indices)
    if indices.shape != z.shape[:1] or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}; allowed: integers of "
            f"shape {z.shape[:1]}, one for each row."
        )
    return indices
