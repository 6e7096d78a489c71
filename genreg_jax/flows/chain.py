r"""What a layer of an image flow is, and layers put together: in a row, repeated, multi-scale.

The contract. A bijector is a frozen dataclass that holds only constants: shapes, masks,
permutations, hyper-parameters. It is hashable, so it can be a static argument of `jit`. Its
parameters live outside, in a dict. It maps images `[B, H, W, C]` to images of the *same* shape and
has two primitive methods,

    z, log_det = forward_and_log_det(params, x, y, key=None)     log_det = log |det dz / dx|   [B]
    x, log_det = inverse_and_log_det(params, z, y)               log_det = log |det dx / dz|   [B]

plus `init(key, x, y) -> (params, z)`, the data-dependent initialisation: a pure function that sees
the activations `x` arriving at the layer and passes on what leaves it. `y` are labels `[B]`, or
None; `key` turns on dropout, where a layer has any. Densities and samples are derived from these.

Freezing computes once what the parameters alone decide, and runs without log-determinants:

    frozen = freeze(params)
    h = apply_frozen(frozen, h, y, inverse=False, coupling_dtype=None)

on planes `h` `[C, B, H, W]`, see `layout`; `coupling_dtype` is that of the couplings' networks,
None for that of `h`. A layer that folds into the one after it says so in `fuse`: `Chain` then
freezes and runs what that returns in the place of both. Gradients flow to `params`, `frozen` and
`h`.

A squeeze changes shapes, so it is not a layer: `Level` squeezes, works and unsqueezes again. That
keeps one shape law for all layers, puts the factored-out latents back where their pixels are, and
makes the latent of a multi-scale flow an image-shaped array.

Sources: Dinh et al., "Density estimation using Real NVP" (2017); Kingma and Dhariwal, "Glow:
Generative Flow with Invertible 1x1 Convolutions" (2018).
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from genreg_jax.flows.layout import squeeze, squeeze_planes, unsqueeze, unsqueeze_planes

Params = Any


class Bijector(abc.ABC):
    """What every layer offers; see the module's docstring for the contract."""

    @abc.abstractmethod
    def init(self, key, x, y=None) -> tuple[Params, jax.Array]:
        """Parameters for the activations `x`, and the layer's output on them."""

    @abc.abstractmethod
    def forward_and_log_det(self, params, x, y=None, key=None) -> tuple[jax.Array, jax.Array]:
        """`z = f(x)` and `log |det dz / dx|` per example."""

    @abc.abstractmethod
    def inverse_and_log_det(self, params, z, y=None) -> tuple[jax.Array, jax.Array]:
        """`x = f^-1(z)` and `log |det dx / dz|` per example."""

    @abc.abstractmethod
    def freeze(self, params) -> Params:
        """The folded parameters that `apply_frozen` takes."""

    @abc.abstractmethod
    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None) -> jax.Array:
        """`f(h)`, or `f^-1(h)` with `inverse`, on planes `[C, B, H, W]`."""

    def fuse(self, following: Any) -> Any:
        """None, or what takes the place of this layer and `following` in a frozen chain.

        Its `freeze` takes the parameters of both.
        """
        del following
        return None


def _fold_in(key, i):
    return None if key is None else jax.random.fold_in(key, i)


@dataclasses.dataclass(frozen=True)
class Chain(Bijector):
    """Layers in a row, `z = f_n(... f_1(x))`; the log-determinants add up.

    Attributes:
      layers: the bijectors, first applied first.
    """

    layers: tuple[Any, ...]

    def names(self) -> tuple[str, ...]:
        """The key of each layer in the parameter dict, such as `"02_affinecoupling"`."""
        return tuple(f"{i:02d}_{type(f).__name__.lower()}" for i, f in enumerate(self.layers))

    def init(self, key, x, y=None):
        """Layer by layer, each on what the one before it lets through."""
        params = {}
        for i, (name, layer) in enumerate(zip(self.names(), self.layers)):
            params[name], x = layer.init(jax.random.fold_in(key, i), x, y)
        return params, x

    def forward_and_log_det(self, params, x, y=None, key=None):
        """First to last."""
        total = jnp.zeros(x.shape[:1], x.dtype)
        for i, (name, layer) in enumerate(zip(self.names(), self.layers)):
            x, log_det = layer.forward_and_log_det(params[name], x, y, _fold_in(key, i))
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, params, z, y=None):
        """Last to first."""
        total = jnp.zeros(z.shape[:1], z.dtype)
        for name, layer in reversed(tuple(zip(self.names(), self.layers))):
            z, log_det = layer.inverse_and_log_det(params[name], z, y)
            total = total + log_det
        return z, total

    def frozen_steps(self) -> list[tuple[tuple[str, ...], Any]]:
        """What a frozen chain runs, and the names of the layers in it: two where they fuse.

        The first of the names is the key of the step's frozen parameters.
        """
        names, layers = self.names(), self.layers
        steps, i = [], 0
        while i < len(layers):
            fused = layers[i].fuse(layers[i + 1]) if i + 1 < len(layers) else None
            size = 1 if fused is None else 2
            steps.append((names[i : i + size], layers[i] if fused is None else fused))
            i += size
        return steps

    def freeze(self, params):
        """Step by step."""
        return {
            names[0]: step.freeze(*(params[name] for name in names))
            for names, step in self.frozen_steps()
        }

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """First to last, or last to first."""
        for names, step in self.frozen_steps()[:: -1 if inverse else 1]:
            h = step.apply_frozen(
                frozen[names[0]], h, y, inverse=inverse, coupling_dtype=coupling_dtype
            )
        return h


@dataclasses.dataclass(frozen=True)
class Repeat(Bijector):
    """`layer` applied `times` times, each time with parameters of its own, stacked `[times, ...]`.

    Runs as one `lax.scan`, so the time to compile does not grow with the depth. On CPU this costs
    little at run time, because a flow's convolutions are products there (see
    `genreg_jax.flows.convolution`): on one core 4 % of encoding and decoding through a frozen Glow
    of 3 levels of 8 steps, 7 % of an adversarial step with it, whose compilation it halves.

    Attributes:
      layer: the bijector.
      times: how often.
      scan: False to unroll the loop; the values are the same up to rounding.
      remat: whether to recompute the activations of a step in the backward pass and keep only its
        input, which trades a third of an accelerator's speed for memory. On CPU a loop recomputes a
        likelihood's in any case: the gradient is the same up to rounding, and storing them takes as
        long or longer (0.7 to 1.04 of the time for the flows of the shipped configs).
    """

    layer: Any
    times: int
    scan: bool = True
    remat: bool = False

    def init(self, key, x, y=None):
        """Step by step, each on what the one before it lets through."""

        def step(x, k):
            params, x = self.layer.init(jax.random.fold_in(key, k), x, y)
            return x, params

        x, params = lax.scan(step, x, jnp.arange(self.times))
        return params, x

    def _loop(self, step, x, inputs, reverse, remat=False):
        step = jax.checkpoint(step) if self.remat or remat else step
        unroll = 1 if self.scan else self.times
        return lax.scan(step, x, inputs, reverse=reverse, unroll=unroll)

    def _with_log_det(self, step, x, params, reverse):
        remat = self.scan and jax.default_backend() == "cpu"
        x, log_dets = self._loop(step, x, (params, jnp.arange(self.times)), reverse, remat)
        return x, jnp.sum(log_dets, axis=0)

    def forward_and_log_det(self, params, x, y=None, key=None):
        """First to last."""

        def step(x, inputs):
            return self.layer.forward_and_log_det(inputs[0], x, y, _fold_in(key, inputs[1]))

        return self._with_log_det(step, x, params, reverse=False)

    def inverse_and_log_det(self, params, z, y=None):
        """Last to first."""

        def step(z, inputs):
            return self.layer.inverse_and_log_det(inputs[0], z, y)

        return self._with_log_det(step, z, params, reverse=True)

    def freeze(self, params):
        """Each step's parameters, stacked."""
        # Not `vmap`: on CPU a batch of triangular solves is spread over XLA's own threads, and two
        # of them at once, of two levels of 16 steps on two cores, wait for each other for ever.
        return lax.map(self.layer.freeze, params)

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """First to last, or last to first."""
        options = dict(inverse=inverse, coupling_dtype=coupling_dtype)
        step = lambda h, p: (self.layer.apply_frozen(p, h, y, **options), None)
        return self._loop(step, h, frozen, reverse=inverse)[0]


@dataclasses.dataclass(frozen=True)
class Level(Bijector):
    """One scale of a multi-scale flow: squeeze, `body`, factor out half of the channels, unsqueeze.

    Half of the channels after `body` are finished latents; the other half go through `inner`, the
    next level. Both are put back together and unsqueezed, so the level maps `[B, H, W, C]` to the
    same shape and each latent sits where its pixels are.

    Attributes:
      body: bijector on the squeezed images `[B, H/2, W/2, 4C]`.
      inner: bijector on the kept half `[B, H/2, W/2, 2C]`, or None for the last level.
    """

    body: Any
    inner: Any = None

    def init(self, key, x, y=None):
        """`body` first, then `inner` on its half."""
        outer_key, inner_key = jax.random.split(key)
        params = {}
        params["body"], h = self.body.init(outer_key, squeeze(x), y)
        if self.inner is not None:
            on, out = jnp.split(h, 2, axis=-1)
            params["inner"], on = self.inner.init(inner_key, on, y)
            h = jnp.concatenate((on, out), axis=-1)
        return params, unsqueeze(h)

    def forward_and_log_det(self, params, x, y=None, key=None):
        """Squeeze, `body`, `inner` on the first half, unsqueeze."""
        h, total = self.body.forward_and_log_det(params["body"], squeeze(x), y, _fold_in(key, 0))
        if self.inner is not None:
            on, out = jnp.split(h, 2, axis=-1)
            on, log_det = self.inner.forward_and_log_det(params["inner"], on, y, _fold_in(key, 1))
            h, total = jnp.concatenate((on, out), axis=-1), total + log_det
        return unsqueeze(h), total

    def inverse_and_log_det(self, params, z, y=None):
        """The same, backwards."""
        h, total = squeeze(z), jnp.zeros(z.shape[:1], z.dtype)
        if self.inner is not None:
            on, out = jnp.split(h, 2, axis=-1)
            on, total = self.inner.inverse_and_log_det(params["inner"], on, y)
            h = jnp.concatenate((on, out), axis=-1)
        h, log_det = self.body.inverse_and_log_det(params["body"], h, y)
        return unsqueeze(h), total + log_det

    def freeze(self, params):
        """`body` and `inner`."""
        parts = {"body": self.body, "inner": self.inner}
        return {name: parts[name].freeze(p) for name, p in params.items()}

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """Squeeze, `body` and `inner` in the order of the direction, unsqueeze."""

        def run(name, h):
            part = {"body": self.body, "inner": self.inner}[name]
            return part.apply_frozen(
                frozen[name], h, y, inverse=inverse, coupling_dtype=coupling_dtype
            )

        h = squeeze_planes(h)
        h = h if inverse else run("body", h)
        if self.inner is not None:
            on, out = jnp.split(h, 2)
            h = jnp.concatenate((run("inner", on), out))
        h = run("body", h) if inverse else h
        return unsqueeze_planes(h)
