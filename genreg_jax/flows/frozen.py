"""A trained flow folded for speed: what the parameters alone decide is computed once.

`freeze_params` folds each ActNorm into the 1x1 convolution after it, inverts that once, and adds a
coupling's first bias to its class embedding. `apply` runs the folded flow in either direction
without log-determinants. Its activations are planes `[C, B, H, W]`: the thin tensors between two
couplings have few channels, and only with the pixels last do shifts, halves and elementwise
functions of them run at the speed of memory on CPU. Accelerators choose their own layout.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from genreg_jax.flows.chain import Chain, Level, Repeat
from genreg_jax.flows.convolution import conv3x3_planes
from genreg_jax.flows.layers import (
    ActNorm,
    AffineCoupling,
    ClassAffine,
    InvertibleConv,
    Logit,
    checkerboard,
)
from genreg_jax.flows.layout import column, squeeze_planes, unsqueeze_planes

_HIGHEST = lax.Precision.HIGHEST


def steps_of(chain: Chain) -> list[tuple[str, Any, InvertibleConv | None]]:
    """Layers of the chain by name; an ActNorm comes with the convolution it is folded into."""
    names, layers = chain.names(), chain.layers
    steps, i = [], 0
    while i < len(layers):
        following = layers[i + 1] if i + 1 < len(layers) else None
        folds = isinstance(layers[i], ActNorm) and isinstance(following, InvertibleConv)
        steps.append((names[i], layers[i], following if folds else None))
        i += 2 if folds else 1
    return steps


def freeze_params(bijector, params) -> Any:
    """The folded parameters that `apply` takes.

    Args:
      bijector: of a `Flow`.
      params: its parameters.

    Returns:
      Nested dicts of arrays.

    Raises:
      TypeError: the bijector has a layer that this module does not know.

    Gradients flow to `params`.
    """
    if isinstance(bijector, Chain):
        after = dict(zip(bijector.names(), bijector.names()[1:]))
        return {
            name: _fold(params[name], conv, params[after[name]])
            if conv is not None
            else freeze_params(layer, params[name])
            for name, layer, conv in steps_of(bijector)
        }
    if isinstance(bijector, Repeat):
        return jax.vmap(lambda p: freeze_params(bijector.layer, p))(params)
    if isinstance(bijector, Level):
        parts = {"body": bijector.body, "inner": bijector.inner}
        return {name: freeze_params(parts[name], p) for name, p in params.items()}
    if isinstance(bijector, ActNorm):
        log_scale = params["log_scale"]
        scales = {"scale": jnp.exp(log_scale), "inverse_scale": jnp.exp(-log_scale)}
        return scales | {"bias": params["bias"]}
    if isinstance(bijector, AffineCoupling):
        frozen = {name: params[name] for name in ("w1", "b1", "w2", "b2", "w3", "b3")}
        if bijector.num_classes is not None:
            frozen["b1"] = params["b1"][None, :] + params["class_embedding"]
        return frozen
    if isinstance(bijector, ClassAffine):
        # As planes: [classes, C, H, W].
        mean, log_scale = (
            jnp.transpose(params[name], (0, 3, 1, 2)) for name in ("class_mean", "class_log_scale")
        )
        return {"mean": mean, "scale": jnp.exp(log_scale), "inverse_scale": jnp.exp(-log_scale)}
    if isinstance(bijector, Logit):
        return {}
    raise TypeError(f"cannot freeze a {type(bijector).__name__}")


def _fold(actnorm_params, conv: InvertibleConv, conv_params) -> dict[str, jax.Array]:
    """`ActNorm` and the convolution after it as `z = matrix x + bias`, and the inverse matrix."""
    scale = jnp.exp(actnorm_params["log_scale"])
    matrix, inverse = conv.matrix(conv_params), conv.inverse_matrix(conv_params)
    return {
        "matrix": matrix * scale[None, :],
        "inverse": inverse / scale[:, None],
        "bias": jnp.matmul(matrix, actnorm_params["bias"], precision=_HIGHEST),
    }


def apply(bijector, params, h, y, *, inverse: bool, coupling_dtype: str | None = None) -> jax.Array:
    """Runs the folded flow.

    Args:
      bijector: of the `Flow`.
      params: from `freeze_params`.
      h: planes `[C, B, H, W]`.
      y: labels `[B]`, or None.
      inverse: False to encode, True to decode.
      coupling_dtype: of the couplings' networks; None for that of `h`.

    Returns:
      Planes of the same shape.

    Gradients flow to `params` and `h`.
    """

    def run(layer, params, h):
        return apply(layer, params, h, y, inverse=inverse, coupling_dtype=coupling_dtype)

    if isinstance(bijector, Chain):
        for name, layer, conv in steps_of(bijector)[:: -1 if inverse else 1]:
            p = params[name]
            if conv is None:
                h = run(layer, p, h)
            elif inverse:
                h = jnp.tensordot(p["inverse"], h - column(p["bias"]), 1, precision=_HIGHEST)
            else:
                h = jnp.tensordot(p["matrix"], h, 1, precision=_HIGHEST) + column(p["bias"])
        return h
    if isinstance(bijector, Repeat):
        step = lambda h, p: (run(bijector.layer, p, h), None)
        step = jax.checkpoint(step) if bijector.remat else step
        # A loop hides from XLA what it could leave out or fuse, which on CPU costs a tenth.
        scan = bijector.scan and jax.default_backend() != "cpu"
        unroll = 1 if scan else bijector.times
        return lax.scan(step, h, params, reverse=inverse, unroll=unroll)[0]
    if isinstance(bijector, Level):
        h = squeeze_planes(h)
        h = h if inverse else run(bijector.body, params["body"], h)
        if bijector.inner is not None:
            on, out = jnp.split(h, 2)
            h = jnp.concatenate((run(bijector.inner, params["inner"], on), out))
        h = run(bijector.body, params["body"], h) if inverse else h
        return unsqueeze_planes(h)
    if isinstance(bijector, ActNorm):
        if inverse:
            return (h - column(params["bias"])) * column(params["inverse_scale"])
        return h * column(params["scale"]) + column(params["bias"])
    if isinstance(bijector, AffineCoupling):
        return _coupling(bijector, params, h, y, inverse, coupling_dtype)
    if isinstance(bijector, ClassAffine):
        labels = jnp.zeros(1, jnp.int32) if bijector.num_classes is None else y
        mean, scale, inverse_scale = (
            jnp.swapaxes(params[name][labels], 0, 1) for name in ("mean", "scale", "inverse_scale")
        )
        return h * scale + mean if inverse else (h - mean) * inverse_scale
    assert isinstance(bijector, Logit)
    method = bijector.inverse_and_log_det if inverse else bijector.forward_and_log_det
    return method({}, h)[0]  # elementwise, so planes will do; XLA drops the log-determinant


def _coupling(coupling: AffineCoupling, params, h, y, inverse, coupling_dtype):
    if coupling.mask == "checkerboard":
        changed = checkerboard(h.shape[2], h.shape[3], coupling.flip)[None, None]
        log_scale, shift = scale_and_shift(
            coupling, params, jnp.where(changed, 0, h), y, coupling_dtype
        )
        log_scale, shift = jnp.where(changed, log_scale, 0), jnp.where(changed, shift, 0)
        return (h - shift) * jnp.exp(-log_scale) if inverse else h * jnp.exp(log_scale) + shift
    c = h.shape[0] // 2
    a, b = (h[c:], h[:c]) if coupling.flip else (h[:c], h[c:])
    log_scale, shift = scale_and_shift(coupling, params, a, y, coupling_dtype)
    b = (b - shift) * jnp.exp(-log_scale) if inverse else b * jnp.exp(log_scale) + shift
    return jnp.concatenate((b, a) if coupling.flip else (a, b))


def scale_and_shift(coupling: AffineCoupling, params, a, y=None, coupling_dtype=None):
    """The network of a coupling, on the planes that it reads."""
    dtype = a.dtype if coupling_dtype is None else jnp.dtype(coupling_dtype)
    precision = _HIGHEST if coupling_dtype is None else None
    p = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    h = conv3x3_planes(a.astype(dtype), p["w1"], precision=precision)
    if coupling.num_classes is None:
        h = h + column(p["b1"])
    else:
        h = h + p["b1"][y].T[:, :, None, None]
    h = jnp.tensordot(p["w2"].T, jax.nn.relu(h), 1, precision=precision) + column(p["b2"])
    out = conv3x3_planes(jax.nn.relu(h), p["w3"], precision=precision) + column(p["b3"])
    raw, shift = jnp.split(out.astype(a.dtype), 2)
    return coupling.scale * jnp.tanh(raw), shift
