r"""The layers of an image flow, each a bijector over a plain dict of parameters.

The contract that they keep is `genreg_jax.flows.chain.Bijector`.

Sources: Dinh et al., "Density estimation using Real NVP" (2017); Kingma and Dhariwal, "Glow:
Generative Flow with Invertible 1x1 Convolutions" (2018).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from genreg_jax.flows.chain import Bijector
from genreg_jax.flows.convolution import conv3x3, conv3x3_planes
from genreg_jax.flows.layout import column

_HIGHEST = lax.Precision.HIGHEST


def _sum_per_example(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _per_example(scalar: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(scalar, x.shape[:1])


def _per_channel(c: jax.Array) -> jax.Array:
    """`[C]` to `[1, 1, 1, C]`: broadcasting is spelt out, so strict rank promotion is fine."""
    return c[None, None, None, :]


@dataclasses.dataclass(frozen=True)
class Logit(Bijector):
    """Pixels in [0, 1] to the real line.

        u = ((n - 1) x + 1/2) / n,   v = (1 + bound (2 u - 1)) / 2,   z = log v - log(1 - v)

    With `n = 256` bins a pixel `k / 255` of an 8-bit image goes to the centre `(k + 1/2) / 256` of
    its bin. `bound < 1` keeps black and white at a finite distance. Decoding can leave [0, 1] by at
    most `(1 / bound - 1) / 2` and a bin; it is exact, so it does not clip.

    Attributes:
      num_bins: number of grey levels of the images.
      bound: the share of (0, 1) that `v` may use.
    """

    num_bins: int = 256
    bound: float = 0.9

    def init(self, key, x, y=None):
        """No parameters."""
        del key
        return {}, self.forward_and_log_det({}, x, y)[0]

    def forward_and_log_det(self, params, x, y=None, key=None):
        """Pixels to logits."""
        u = ((self.num_bins - 1) * x + 0.5) / self.num_bins
        v = 0.5 + self.bound * (u - 0.5)
        log_v, log_not_v = jnp.log(v), jnp.log1p(-v)
        slope = math.log(self.bound * (self.num_bins - 1) / self.num_bins)
        return log_v - log_not_v, _sum_per_example(slope - log_v - log_not_v)

    def inverse_and_log_det(self, params, z, y=None):
        """Logits to pixels."""
        u = 0.5 + (jax.nn.sigmoid(z) - 0.5) / self.bound
        x = (self.num_bins * u - 0.5) / (self.num_bins - 1)
        slope = math.log(self.bound * (self.num_bins - 1) / self.num_bins)
        log_det = _sum_per_example(jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - slope)
        return x, log_det

    def freeze(self, params):
        """No parameters."""
        return {}

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """Elementwise, so planes will do; XLA drops the log-determinant."""
        method = self.inverse_and_log_det if inverse else self.forward_and_log_det
        return method({}, h)[0]


@dataclasses.dataclass(frozen=True)
class ActNorm(Bijector):
    """An affine map per channel, `z = x exp(log_scale) + bias`.

    Initialised so that the first batch leaves with mean 0 and variance 1 per channel; after that
    the scale and the bias are ordinary parameters. A channel that is constant over the batch is
    only centred.
    """

    def init(self, key, x, y=None):
        """Mean and standard deviation of the batch, per channel."""
        del key
        mean, std = jnp.mean(x, (0, 1, 2)), jnp.std(x, (0, 1, 2))
        log_scale = -jnp.log(jnp.where(std > 1e-4, std, 1.0))
        params = {"log_scale": log_scale, "bias": -mean * jnp.exp(log_scale)}
        return params, self.forward_and_log_det(params, x, y)[0]

    def forward_and_log_det(self, params, x, y=None, key=None):
        """Scale and shift."""
        z = x * _per_channel(jnp.exp(params["log_scale"])) + _per_channel(params["bias"])
        return z, _per_example(x.shape[1] * x.shape[2] * jnp.sum(params["log_scale"]), x)

    def inverse_and_log_det(self, params, z, y=None):
        """Shift back and scale back."""
        x = (z - _per_channel(params["bias"])) * _per_channel(jnp.exp(-params["log_scale"]))
        return x, _per_example(-z.shape[1] * z.shape[2] * jnp.sum(params["log_scale"]), z)

    def freeze(self, params):
        """The scale and its inverse."""
        log_scale = params["log_scale"]
        scales = {"scale": jnp.exp(log_scale), "inverse_scale": jnp.exp(-log_scale)}
        return scales | {"bias": params["bias"]}

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """Scale and shift, or back."""
        if inverse:
            return (h - column(frozen["bias"])) * column(frozen["inverse_scale"])
        return h * column(frozen["scale"]) + column(frozen["bias"])

    def fuse(self, following):
        """Folds into an invertible convolution."""
        return NormedConv(following) if isinstance(following, InvertibleConv) else None


@functools.cache
def _rotation_plu(channels: int, seed: int):
    """A random rotation `Q = P L (S + U)`: the permutation `P`, `L`, `U`, the pivots `S`."""
    rng = np.random.default_rng([seed, channels])
    rotation, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
    upper, order = rotation.copy(), np.arange(channels)
    lower = np.zeros_like(upper)
    for k in range(channels):  # Gaussian elimination with partial pivoting
        pivot = k + int(np.argmax(np.abs(upper[k:, k])))
        for rows in (upper, lower, order):
            rows[[k, pivot]] = rows[[pivot, k]]
        lower[k + 1 :, k] = upper[k + 1 :, k] / upper[k, k]
        upper[k + 1 :] -= np.outer(lower[k + 1 :, k], upper[k])
    return np.argsort(order).astype(np.int32), lower, np.triu(upper, 1), np.diag(upper).copy()


@dataclasses.dataclass(frozen=True)
class InvertibleConv(Bijector):
    """The invertible 1x1 convolution of Glow, `z[b, r, c] = W x[b, r, c]`.

        W = P L (U + diag(sign * exp(log_diagonal))),   log |det| = H W sum(log_diagonal)

    `P` and `sign` are constants from `seed`, `L` is unit lower and `U` strictly upper triangular.
    The log-parametrised diagonal cannot reach zero, so `W` stays invertible whatever the optimiser
    does, and the determinant costs a sum. Starts as a random rotation.

    Attributes:
      channels: number of channels.
      seed: of the rotation; the permutation is part of the layer, not of the parameters.
    """

    channels: int
    seed: int = 0

    def init(self, key, x, y=None):
        """The factors of a rotation."""
        del key
        _, lower, upper, pivots = _rotation_plu(self.channels, self.seed)
        params = {
            "lower": jnp.asarray(lower, x.dtype),
            "upper": jnp.asarray(upper, x.dtype),
            "log_diagonal": jnp.asarray(np.log(np.abs(pivots)), x.dtype),
        }
        return params, self.forward_and_log_det(params, x, y)[0]

    def _factors(self, params):
        rows, _, _, pivots = _rotation_plu(self.channels, self.seed)
        identity = jnp.eye(self.channels, dtype=params["lower"].dtype)
        lower = jnp.tril(params["lower"], -1) + identity
        diagonal = np.sign(pivots).astype(identity.dtype) * jnp.exp(params["log_diagonal"])
        upper = jnp.triu(params["upper"], 1) + jnp.diag(diagonal)
        return rows, lower, upper

    def matrix(self, params) -> jax.Array:
        """`W`, `[C, C]`."""
        rows, lower, upper = self._factors(params)
        return jnp.matmul(lower, upper, precision=_HIGHEST)[rows]

    def inverse_matrix(self, params) -> jax.Array:
        """`W^-1` by two triangular solves, `[C, C]`."""
        rows, lower, upper = self._factors(params)
        identity = jnp.eye(self.channels, dtype=lower.dtype)
        solve = jax.scipy.linalg.solve_triangular
        inverse = solve(upper, solve(lower, identity, lower=True, unit_diagonal=True))
        return inverse[:, rows]

    def forward_and_log_det(self, params, x, y=None, key=None):
        """Mix the channels."""
        z = jnp.matmul(x, self.matrix(params).T, precision=_HIGHEST)
        return z, _per_example(x.shape[1] * x.shape[2] * jnp.sum(params["log_diagonal"]), x)

    def inverse_and_log_det(self, params, z, y=None):
        """Unmix the channels."""
        x = jnp.matmul(z, self.inverse_matrix(params).T, precision=_HIGHEST)
        return x, _per_example(-z.shape[1] * z.shape[2] * jnp.sum(params["log_diagonal"]), z)

    def freeze(self, params):
        """`W` and its inverse."""
        return {"matrix": self.matrix(params), "inverse": self.inverse_matrix(params)}

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """One product."""
        return jnp.tensordot(frozen["inverse" if inverse else "matrix"], h, 1, precision=_HIGHEST)


@dataclasses.dataclass(frozen=True)
class NormedConv:
    """An `ActNorm` and the `conv` after it, frozen as one: `z = matrix x + bias`.

    Attributes:
      conv: the invertible convolution.
    """

    conv: InvertibleConv

    def freeze(self, norm_params, conv_params):
        """The product of the two maps, and the matrix of its inverse."""
        scale = jnp.exp(norm_params["log_scale"])
        matrix, inverse = self.conv.matrix(conv_params), self.conv.inverse_matrix(conv_params)
        return {
            "matrix": matrix * scale[None, :],
            "inverse": inverse / scale[:, None],
            "bias": jnp.matmul(matrix, norm_params["bias"], precision=_HIGHEST),
        }

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """One product and a shift, or back."""
        if inverse:
            h = h - column(frozen["bias"])
            return jnp.tensordot(frozen["inverse"], h, 1, precision=_HIGHEST)
        z = jnp.tensordot(frozen["matrix"], h, 1, precision=_HIGHEST)
        return z + column(frozen["bias"])


def checkerboard(height: int, width: int, flip: bool) -> np.ndarray:
    """Which pixels a checkerboard coupling changes, bool `[H, W]`; the odd ones without `flip`."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    return (rows + columns) % 2 == (0 if flip else 1)


@dataclasses.dataclass(frozen=True)
class AffineCoupling(Bijector):
    """Half of the input scales and shifts the other half.

        s, t = net(a, y)      z_a = a,   z_b = b exp(scale tanh(s)) + t,     log |det| = sum(s)

    `net` is 3x3 -> 1x1 -> 3x3 with `width` channels and ReLUs; its last layer starts at zero, so
    the coupling starts as the identity. The labels enter as an embedding added after the first
    layer.

    Attributes:
      width: channels of the network.
      mask: "channel" splits the channels in halves, "checkerboard" the pixels like the squares of
        a chess board.
      flip: which half changes; the second half (the odd pixels) if False.
      scale: bound on `|log scale|`.
      num_classes: None, or the number of classes.
      dropout: share of the network's last channels dropped, per example, when a key is given.
    """

    width: int
    mask: str = "channel"
    flip: bool = False
    scale: float = 2.0
    num_classes: int | None = None
    dropout: float = 0.0

    def init(self, key, x, y=None):
        """He-normal, and zero at the end."""
        c = x.shape[-1]
        if self.mask == "checkerboard":
            c_in, c_changed = c, c
        else:
            c_in = c - c // 2 if self.flip else c // 2
            c_changed = c - c_in
        first, second = jax.random.split(key)
        params = {
            "w1": jax.random.normal(first, (3, 3, c_in, self.width), x.dtype)
            * math.sqrt(2 / (9 * c_in)),
            "b1": jnp.zeros(self.width, x.dtype),
            "w2": jax.random.normal(second, (self.width, self.width), x.dtype)
            * math.sqrt(2 / self.width),
            "b2": jnp.zeros(self.width, x.dtype),
            "w3": jnp.zeros((3, 3, self.width, 2 * c_changed), x.dtype),
            "b3": jnp.zeros(2 * c_changed, x.dtype),
        }
        if self.num_classes is not None:
            params["class_embedding"] = jnp.zeros((self.num_classes, self.width), x.dtype)
        return params, x

    def _scale_and_shift(self, params, a, y, key):
        h = conv3x3(a, params["w1"]) + _per_channel(params["b1"])
        if self.num_classes is not None:
            h = h + params["class_embedding"][y][:, None, None, :]
        h = jnp.matmul(jax.nn.relu(h), params["w2"], precision=_HIGHEST)
        h = jax.nn.relu(h + _per_channel(params["b2"]))
        if key is not None and self.dropout > 0:
            # Whole channels: stronger than single features, and hardly any random numbers to draw.
            shape = (h.shape[0], 1, 1, h.shape[-1])
            kept = jax.random.bernoulli(key, 1 - self.dropout, shape)
            h = jnp.where(kept, h / (1 - self.dropout), 0)
        out = conv3x3(h, params["w3"]) + _per_channel(params["b3"])
        raw, shift = jnp.split(out, 2, axis=-1)
        return self.scale * jnp.tanh(raw), shift

    def _split(self, x):
        """The half that is read, and the half that changes."""
        if self.mask == "checkerboard":
            changed = checkerboard(x.shape[1], x.shape[2], self.flip)[None, :, :, None]
            return jnp.where(changed, 0, x), jnp.where(changed, x, 0), changed
        c = x.shape[-1] // 2
        if self.flip:
            return x[..., c:], x[..., :c], None
        return x[..., :c], x[..., c:], None

    def _merge(self, a, b):
        if self.mask == "checkerboard":
            return a + b
        return jnp.concatenate((b, a) if self.flip else (a, b), axis=-1)

    def forward_and_log_det(self, params, x, y=None, key=None):
        """Scale and shift the second half."""
        a, b, changed = self._split(x)
        log_scale, shift = self._scale_and_shift(params, a, y, key)
        if changed is not None:
            log_scale, shift = jnp.where(changed, log_scale, 0), jnp.where(changed, shift, 0)
        z = self._merge(a, b * jnp.exp(log_scale) + shift)
        return z, _sum_per_example(log_scale)

    def inverse_and_log_det(self, params, z, y=None):
        """Shift back and scale back."""
        a, b, changed = self._split(z)
        log_scale, shift = self._scale_and_shift(params, a, y, None)
        if changed is not None:
            log_scale, shift = jnp.where(changed, log_scale, 0), jnp.where(changed, shift, 0)
        x = self._merge(a, (b - shift) * jnp.exp(-log_scale))
        return x, -_sum_per_example(log_scale)

    def freeze(self, params):
        """The first bias and the class embedding as one."""
        frozen = {name: params[name] for name in ("w1", "b1", "w2", "b2", "w3", "b3")}
        if self.num_classes is not None:
            frozen["b1"] = params["b1"][None, :] + params["class_embedding"]
        return frozen

    def scale_and_shift_planes(self, frozen, a, y=None, coupling_dtype=None):
        """The network, frozen, on the planes that it reads."""
        dtype = a.dtype if coupling_dtype is None else jnp.dtype(coupling_dtype)
        precision = _HIGHEST if coupling_dtype is None else None
        p = jax.tree.map(lambda leaf: leaf.astype(dtype), frozen)
        h = conv3x3_planes(a.astype(dtype), p["w1"], precision=precision)
        if self.num_classes is None:
            h = h + column(p["b1"])
        else:
            h = h + p["b1"][y].T[:, :, None, None]
        h = jnp.tensordot(p["w2"].T, jax.nn.relu(h), 1, precision=precision) + column(p["b2"])
        out = conv3x3_planes(jax.nn.relu(h), p["w3"], precision=precision) + column(p["b3"])
        raw, shift = jnp.split(out.astype(a.dtype), 2)
        return self.scale * jnp.tanh(raw), shift

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """Scale and shift the half that changes, or back."""
        network = functools.partial(
            self.scale_and_shift_planes, frozen, y=y, coupling_dtype=coupling_dtype
        )
        if self.mask == "checkerboard":
            changed = checkerboard(h.shape[2], h.shape[3], self.flip)[None, None]
            log_scale, shift = network(jnp.where(changed, 0, h))
            log_scale, shift = jnp.where(changed, log_scale, 0), jnp.where(changed, shift, 0)
            return (h - shift) * jnp.exp(-log_scale) if inverse else h * jnp.exp(log_scale) + shift
        c = h.shape[0] // 2
        a, b = (h[c:], h[:c]) if self.flip else (h[:c], h[c:])
        log_scale, shift = network(a)
        b = (b - shift) * jnp.exp(-log_scale) if inverse else b * jnp.exp(log_scale) + shift
        return jnp.concatenate((b, a) if self.flip else (a, b))


@dataclasses.dataclass(frozen=True)
class ClassAffine(Bijector):
    """A Gaussian prior per class, as a layer: `z = (x - mean[y]) exp(-log_scale[y])`.

    `x | y ~ N(mean[y], exp(log_scale[y])^2)` per element is the same statement as `z ~ N(0, 1)`, so
    every class keeps the standard normal latent. Starts as the identity. Without classes there is
    one mean and one scale.

    Attributes:
      num_classes: None, or the number of classes.
    """

    num_classes: int | None = None

    def init(self, key, x, y=None):
        """Zeros."""
        del key
        shape = (self.num_classes or 1, *x.shape[1:])
        zeros = jnp.zeros(shape, x.dtype)
        return {"class_mean": zeros, "class_log_scale": zeros}, x

    def _of(self, params, x, y):
        labels = jnp.zeros(x.shape[:1], jnp.int32) if self.num_classes is None else y
        return params["class_mean"][labels], params["class_log_scale"][labels]

    def forward_and_log_det(self, params, x, y=None, key=None):
        """Standardise under the class's Gaussian."""
        mean, log_scale = self._of(params, x, y)
        return (x - mean) * jnp.exp(-log_scale), -_sum_per_example(log_scale)

    def inverse_and_log_det(self, params, z, y=None):
        """Back to the class's Gaussian."""
        mean, log_scale = self._of(params, z, y)
        return z * jnp.exp(log_scale) + mean, _sum_per_example(log_scale)

    def freeze(self, params):
        """The means and scales as planes `[classes, C, H, W]`."""
        mean, log_scale = (
            jnp.transpose(params[name], (0, 3, 1, 2)) for name in ("class_mean", "class_log_scale")
        )
        return {"mean": mean, "scale": jnp.exp(log_scale), "inverse_scale": jnp.exp(-log_scale)}

    def apply_frozen(self, frozen, h, y=None, *, inverse, coupling_dtype=None):
        """Standardise, or back."""
        labels = jnp.zeros(1, jnp.int32) if self.num_classes is None else y
        mean, scale, inverse_scale = (
            jnp.swapaxes(frozen[name][labels], 0, 1) for name in ("mean", "scale", "inverse_scale")
        )
        return h * scale + mean if inverse else (h - mean) * inverse_scale
