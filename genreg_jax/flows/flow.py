"""`Flow`: everything a user does with a flow, derived from one bijector."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax import bounds, checks
from genreg_jax.arcs import cosine_of, great_arc
from genreg_jax.flows.checks import call
from genreg_jax.flows.layout import from_planes, to_planes


def dequantize(key: jax.Array, x: jax.Array, *, num_bins: int = 256) -> jax.Array:
    """Spreads each pixel uniformly over its bin: `x + (u - 1/2) / (num_bins - 1)`, `u ~ U(0, 1)`.

    With the logit's `((n - 1) x + 1/2) / n` this is the usual `(255 x + u) / 256`.

    Args:
      key: of the noise.
      x: images `[B, H, W, C]` in [0, 1].
      num_bins: number of grey levels.

    Returns:
      Images of the same shape, outside of [0, 1] by at most half a bin.

    Gradients flow to `x`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = dequantize(jax.random.key(0), jnp.full((1, 2, 2, 1), 100 / 255))
      >>> bool((jnp.floor(255 * x + 0.5) == 100).all())
      True
    """
    return x + (jax.random.uniform(key, x.shape, x.dtype) - 0.5) / (num_bins - 1)


def _standard_normal_log_prob(z: jax.Array) -> jax.Array:
    return jnp.sum(-0.5 * (z**2 + math.log(2 * math.pi)), axis=(1, 2, 3))


def _jit(function):
    """`jit` with the bijector, the first argument, static: eager calls are then one dispatch."""
    return jax.jit(function, static_argnums=0)


@_jit
def _init(bijector, key, x, y):
    return bijector.init(key, x, y)[0]


@_jit
def _freeze(bijector, params):
    return bijector.freeze(params)


@_jit
def _encode(bijector, params, x, y):
    return bijector.forward_and_log_det(params, x, y)


@_jit
def _decode(bijector, params, z, y):
    return bijector.inverse_and_log_det(params, z, y)


@functools.partial(jax.jit, static_argnames=("bijector", "inverse", "coupling_dtype"))
def _apply_frozen(bijector, params, x, y, *, inverse, coupling_dtype):
    options = dict(inverse=inverse, coupling_dtype=coupling_dtype)
    return from_planes(bijector.apply_frozen(params, to_planes(x), y, **options))


# The two below return no log-determinant, so XLA removes what only it needed.
@_jit
def _encode_only(bijector, params, x, y):
    return bijector.forward_and_log_det(params, x, y)[0]


@_jit
def _decode_only(bijector, params, z, y):
    return bijector.inverse_and_log_det(params, z, y)[0]


@dataclasses.dataclass(frozen=True)
class Flow:
    r"""An exact flow on images: pure functions over a parameter pytree of plain dicts.

        z = f(x),   x = f^-1(z),   log p(x | y) = log N(z; 0, I) + log |det dz / dx|

    `x` are images `[B, H, W, C]` in [0, 1]; `z` has the same shape and is standard normal, for
    every class of a conditional flow. The object holds constants only; it is hashable and may be
    a static argument of `jit`. All methods compute in float32 (float64 if given it), work under
    `jit`, `vmap` and `grad`, and treat the examples of a batch independently. Build one with
    `genreg_jax.flows.glow` or `genreg_jax.flows.realnvp`.

    Attributes:
      image_shape: `(H, W, C)`.
      bijector: from pixels to latents.
      num_classes: number of classes, or None for an unconditional flow.
      num_bins: number of grey levels, for dequantisation and bits per dimension.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax import flows
      >>> flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
      >>> params = flow.init(jax.random.key(1), x)
      >>> z, log_det = flow.encode(params, x)
      >>> bool(jnp.abs(flow.decode(params, z)[0] - x).max() < 1e-5)
      True
    """

    image_shape: tuple[int, int, int]
    bijector: Any
    num_classes: int | None = None
    num_bins: int = 256

    @property
    def dimensions(self) -> int:
        """`H W C`."""
        return int(np.prod(self.image_shape))

    def _images(self, x, y, name="x"):
        x = checks.as_images(x, self.image_shape, name)
        return x, checks.as_labels(y, x.shape[0], self.num_classes)

    def _latents(self, z, y):
        z = checks.as_images(z, self.image_shape, "z", in_range=False)
        return z, checks.as_labels(y, z.shape[0], self.num_classes)

    def init(self, key: jax.Array, x, y=None) -> dict:
        """Data-dependent initialisation: ActNorm standardises what the batch `x` brings it.

        A pure function of its arguments. Couplings and class embeddings start as the identity,
        1x1 convolutions as rotations.

        Args:
          key: for the couplings' weights and the dequantisation of `x`.
          x: images `[B, H, W, C]` in [0, 1]; some hundred are better than a few.
          y: labels `[B]`, for a conditional flow.

        Returns:
          The parameters, nested dicts of arrays.

        Raises:
          ValueError: on a wrong shape, dtype, range or label.
        """
        x, y = self._images(x, y)
        checks.check_key(key)
        noise_key, init_key = jax.random.split(key)
        return _init(self.bijector, init_key, dequantize(noise_key, x, num_bins=self.num_bins), y)

    def encode(self, params, x, y=None) -> tuple[jax.Array, jax.Array]:
        """`z = f(x)` and `log |det dz / dx|`; deterministic.

        Args:
          params: from `init` or `fit`.
          x: images `[B, H, W, C]` in [0, 1].
          y: labels `[B]`, for a conditional flow.

        Returns:
          `z` `[B, H, W, C]` and the log-determinant `[B]` of the whole map, the logit included.

        Raises:
          ValueError: on a wrong shape, dtype, range or label.

        Gradients flow to `params` and `x`.
        """
        x, y = self._images(x, y)
        return call(self, _encode, params, x, y)

    def decode(self, params, z, y=None) -> tuple[jax.Array, jax.Array]:
        """`x = f^-1(z)` and `log |det dx / dz|`; the exact inverse of `encode`.

        Args:
          params: from `init` or `fit`.
          z: latents `[B, H, W, C]`.
          y: labels `[B]`, for a conditional flow.

        Returns:
          Images `[B, H, W, C]`, not clipped: they may leave [0, 1] by 6 % of the range and a bin.
          The log-determinant is `[B]`. In float32, latents far beyond the typical norm saturate
          at those bounds.

        Raises:
          ValueError: on a wrong shape, dtype or label, or latents that are not finite.

        Gradients flow to `params` and `z`.
        """
        z, y = self._latents(z, y)
        return call(self, _decode, params, z, y)

    def log_prob(self, params, x, y=None, *, key: jax.Array | None = None) -> jax.Array:
        """Log-density of the images, in nats: `log N(f(x); 0, I) + log |det df / dx|`.

        Args:
          params: from `init` or `fit`.
          x: images `[B, H, W, C]` in [0, 1].
          y: labels `[B]`, for a conditional flow.
          key: None for the density at `x`, each pixel at the centre of its bin; a key for uniform
            dequantisation, which bounds the probability of 8-bit images and is what to train on.

        Returns:
          `[B]`, with respect to `x` in [0, 1].

        Raises:
          ValueError: on a wrong shape, dtype, range or label.

        Gradients flow to `params` and `x`.
        """
        x, y = self._images(x, y)
        if key is not None:
            checks.check_key(key)
            x = dequantize(key, x, num_bins=self.num_bins)
        z, log_det = call(self, _encode, params, x, y)
        return _standard_normal_log_prob(z) + log_det

    def bits_per_dim(self, params, x, y=None, *, key: jax.Array | None = None) -> jax.Array:
        """Bits per pixel and channel: `log2(n - 1) - log2 p(x) / (H W C)`, `n` grey levels.

        The `n - 1` turns the density over [0, 1] into the probability of a bin `1 / (n - 1)` wide,
        so 8-bit images get the number that papers report.

        Args:
          params: from `init` or `fit`.
          x: images `[B, H, W, C]` in [0, 1].
          y: labels `[B]`, for a conditional flow.
          key: for uniform dequantisation; papers use it.

        Returns:
          `[B]`.

        Raises:
          ValueError: on a wrong shape, dtype, range or label.

        Gradients flow to `params` and `x`.
        """
        nats = self.log_prob(params, x, y, key=key)
        return math.log2(self.num_bins - 1) - nats / (self.dimensions * math.log(2))

    def sample(
        self, params, key: jax.Array, n: int, y=None, *, temperature: float = 1.0
    ) -> jax.Array:
        """`n` images `f^-1(temperature * e)`, `e ~ N(0, I)`.

        Args:
          params: from `init` or `fit`.
          key: of the latents.
          n: how many.
          y: labels `[n]`, or one label for all, for a conditional flow.
          temperature: below 1 for cleaner and less varied images.

        Returns:
          `[n, H, W, C]`, clipped to [0, 1].

        Raises:
          ValueError: if `n` is not positive, `temperature` is negative or the labels do not fit.

        Gradients flow to `params` and `temperature`, except where an image is clipped.
        """
        checks.check_positive(n=n)
        checks.check_key(key)
        if not isinstance(temperature, jax.Array) or temperature.shape:
            checks.check_number("temperature", temperature)
        one = y is not None and not isinstance(y, str | dict | list) and np.ndim(y) == 0
        y = checks.as_labels([y] * n if one else y, n, self.num_classes)
        dtypes = [getattr(leaf, "dtype", bool) for leaf in jax.tree.leaves(params)]
        dtype = jnp.result_type("float32", *(d for d in dtypes if jnp.issubdtype(d, jnp.floating)))
        z = temperature * jax.random.normal(key, (n, *self.image_shape), dtype)
        return bounds.clip(call(self, _decode_only, params, z, y), 0, 1)

    def interpolate(self, params, x0, x1, y=None, *, num: int = 8) -> jax.Array:
        """Images between `x0` and `x1`: decoded points of the great arc between their latents.

        `z_t = sin((1 - t) a) / sin(a) z_0 + sin(t a) / sin(a) z_1` with `a` the angle between
        the latents, `t = 0, ..., 1`. A straight line would pass through latents shorter than any
        the flow has seen.

        Args:
          params: from `init` or `fit`.
          x0: images `[B, H, W, C]` in [0, 1].
          x1: images of the same shape.
          y: labels `[B]` of both, for a conditional flow.
          num: number of images on the path, both ends included.

        Returns:
          `[num, B, H, W, C]`, clipped to [0, 1]; the first are `x0`, the last `x1`.

        Raises:
          ValueError: on a wrong shape, dtype, range or label, or `num` below 2.

        Gradients flow to `params`, `x0` and `x1`, except where an image is clipped.
        """
        checks.check_number("num", num, minimum=2, maximum=10_000, integer=True)
        x0, y = self._images(x0, y, "x0")
        x1, _ = self._images(x1, y, "x1")
        if x0.shape != x1.shape:
            raise ValueError(f"x1 has shape {x1.shape}; allowed is that of x0, {x0.shape}.")
        z0 = call(self, _encode_only, params, x0, y)
        z1 = call(self, _encode_only, params, x1, y)
        cosine = cosine_of(z0, z1)
        images = []
        for t in np.linspace(0, 1, num).astype(np.float32):
            z = great_arc(z0, z1, t, cosine)
            images.append(bounds.clip(call(self, _decode_only, params, z, y), 0, 1))
        return jnp.stack(images)

    def freeze(self, params, *, coupling_dtype: str | None = None) -> "FrozenFlow":
        """The flow with these parameters, folded for speed.

        ActNorm goes into the 1x1 convolution, the inverse of each is computed once, no
        log-determinant is computed, and on CPU the activations are laid out for speed.

        Args:
          params: from `init` or `fit`.
          coupling_dtype: None for exactness; "bfloat16" runs the couplings' networks in it, which
            is faster on accelerators and worsens the round trip to about 1e-2.

        Returns:
          A `FrozenFlow`.

        Raises:
          ValueError: if `coupling_dtype` is not a floating point type.

        Gradients flow to `params`.
        """
        if coupling_dtype is not None:
            dtype = checks.as_dtype(coupling_dtype)
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(
                    f"coupling_dtype={checks.short(coupling_dtype)} must be None or a floating "
                    "point type."
                )
            coupling_dtype = dtype.name
        params = call(self, _freeze, params)
        return FrozenFlow(params, self.bijector, self.image_shape, self.num_classes, coupling_dtype)

    def as_distrax(self, params, y=None):
        """A `distrax.Bijector` from latents to images, for `distrax.Transformed` and the like.

        Args:
          params: from `init` or `fit`.
          y: labels `[B]`, or one label for all, for a conditional flow.

        Returns:
          A bijector over the last three axes: `forward` decodes, `inverse` encodes.

        Raises:
          ValueError: if the labels do not fit.
          ImportError: if distrax is not installed.

        Gradients flow to `params`.
        """
        from genreg_jax.flows import distrax_bijector  # distrax is heavy: only on demand

        if y is not None or self.num_classes is not None:
            flat = None if y is None else jnp.ravel(jnp.asarray(y))
            checks.as_labels(flat, 0 if flat is None else flat.size, self.num_classes)
        return distrax_bijector.FlowBijector(self, params, y)

    def encode_decoded(self, params, x, y=None) -> tuple[jax.Array, jax.Array]:
        """`encode` of what `decode` gave, which leaves [0, 1] by up to 6 %; NaN beyond that."""
        x = checks.as_images(x, self.image_shape, in_range=False)
        return call(self, _encode, params, x, checks.as_labels(y, len(x), self.num_classes))


@dataclasses.dataclass(frozen=True)
class FrozenFlow:
    """A flow with its parameters, folded for speed: `encode` and `decode` and nothing else.

    It is a pytree whose leaves are the folded parameters: pass it to a jitted function as an
    argument, which keeps the parameters from being compiled in as constants.

    Attributes:
      params: the folded parameters.
      bijector: that of the flow.
      image_shape: `(H, W, C)`.
      num_classes: number of classes, or None.
      coupling_dtype: of the couplings' networks, or None for that of the images.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax import flows
      >>> flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
      >>> frozen = flow.freeze(flow.init(jax.random.key(1), x))
      >>> bool(jnp.abs(frozen.decode(frozen.encode(x)) - x).max() < 1e-5)
      True
    """

    params: Any
    bijector: Any = dataclasses.field(metadata={"static": True})
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})
    num_classes: int | None = dataclasses.field(metadata={"static": True})
    coupling_dtype: str | None = dataclasses.field(default=None, metadata={"static": True})

    def _apply(self, x, y, inverse: bool) -> jax.Array:
        options = dict(inverse=inverse, coupling_dtype=self.coupling_dtype)
        return _apply_frozen(self.bijector, self.params, x, y, **options)

    def encode(self, x, y=None) -> jax.Array:
        """`z = f(x)`, `[B, H, W, C]`; deterministic.

        Args:
          x: images `[B, H, W, C]` in [0, 1].
          y: labels `[B]`, for a conditional flow.

        Returns:
          Latents of the images' shape.

        Raises:
          ValueError: on a wrong shape, dtype, range or label.

        Gradients flow to `x`, and to the folded parameters.
        """
        x = checks.as_images(x, self.image_shape)
        y = checks.as_labels(y, x.shape[0], self.num_classes)
        return self._apply(x, y, inverse=False)

    def decode(self, z, y=None) -> jax.Array:
        """`x = f^-1(z)`, `[B, H, W, C]`, not clipped; the exact inverse of `encode`.

        Args:
          z: latents `[B, H, W, C]`.
          y: labels `[B]`, for a conditional flow.

        Returns:
          Images of the latents' shape.

        Raises:
          ValueError: on a wrong shape, dtype or label, or latents that are not finite.

        Gradients flow to `z`, and to the folded parameters.
        """
        z = checks.as_images(z, self.image_shape, "z", in_range=False)
        y = checks.as_labels(y, z.shape[0], self.num_classes)
        return self._apply(z, y, inverse=True)


jax.tree_util.register_dataclass(
    FrozenFlow,
    data_fields=["params"],
    meta_fields=["bijector", "image_shape", "num_classes", "coupling_dtype"],
)
