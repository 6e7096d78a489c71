"""Strengths of regularisers that a run learns: what they start from, and where they stay.

    s(r) = s_0 e^r / (1 + (s_0 / u) (e^r - 1))        in (0, u); for u = inf it is s_0 e^r

`r` starts at 0, where `s` is `s_0` bit for bit, and is held within +- log 1000: a positive strength
stays within a thousandth and a thousand times its start, and a share of `u` likewise in its odds.
Equal steps of `r` are equal factors, so one learning rate serves weights of 0.0005 and of 30.

    h = d/dr min_T CE(f_theta'(x_v) / T, y_v)    theta' = one optimiser step on the loss with s(r)
    r <- one step of its own optimiser on h

`theta'` is what the classifier becomes in any case, so beside the outer loss and its gradient this
costs one mixed product. The temperature T is there because most regularisers make a classifier
less sure of itself, which cross-entropy counts as a loss and accuracy does not. The new strengths
hold from the next update on. See `outer.py` for the step, and `genreg_jax.hypergradient` for h.

Reductions, each a test: with a learning rate of 0 the step is that of the fixed strengths; a
strength whose loss has no part in the update has a hypergradient of exactly zero.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genreg_jax import bounds
from genreg_jax.checks import is_number, short, widened
from genreg_jax.contract import Augment

_FARTHEST, _ENOUGH, _WIDEST = math.log(1000.0), 30.0, math.log(8.0)
LEAST_START = 1e-34  # a thousandth of it is a float32 that no CPU flushes to 0


@dataclasses.dataclass(frozen=True, eq=False)
class Strength:
    """One strength that is learned, or one of each class.

    Attributes:
      start: a number above 1e-34, or an array of such `[K]`.
      upper: above all of them; infinity for none.

    Raises:
      ValueError: a start that is not finite, above 1e-34 and below `upper`, in float32.

    Example:
      >>> import genreg_jax as gr
      >>> share = gr.Strength(0.1, upper=1.0)
      >>> [round(float(share.value(r)), 4) for r in (0.0, 1.0, 100.0)]
      [0.1, 0.232, 1.0]
    """

    start: Any
    upper: float = math.inf

    def __post_init__(self):
        if not (is_number(self.upper) or self.upper == math.inf) or not self.upper > 0:
            raise ValueError(f"upper is {short(self.upper)}; allowed: a number above 0, or inf.")
        values = np.asarray(self.start)
        right = values.ndim <= 1 and values.size and values.dtype.kind in "iuf"
        with np.errstate(over="ignore"):
            values = values.astype(np.float32) if right else values
            upper = np.float32(self.upper)
        if not right or not np.all((values > LEAST_START) & (values < upper)):
            below = f" and below {self.upper:g}" if self.upper < math.inf else ""
            raise ValueError(
                f"start is {short(self.start)}; allowed: finite float32 numbers above "
                f"{LEAST_START:g}{below}, one or [K]. A strength of 0 has no factor by which it "
                "could grow."
            )

    def raw(self) -> jax.Array:
        """Where `r` starts: zeros of the shape of `start`."""
        return jnp.zeros(np.shape(self.start), jnp.float32)

    def value(self, raw: Any) -> jax.Array:
        """The strength of `r`."""
        start = jnp.asarray(self.start, jnp.float32)
        growth = jnp.exp(bounds.clip(jnp.asarray(raw, jnp.float32), -_ENOUGH, _ENOUGH))
        value = start * growth / (1 + start / self.upper * (growth - 1))
        if self.upper == math.inf:
            return value
        return bounds.minimum(value, np.nextafter(np.float32(self.upper), np.float32(0)))

    def held(self, raw: jax.Array) -> jax.Array:
        """`r` where it is allowed to be."""
        return jnp.clip(raw, -_FARTHEST, _FARTHEST)


def calibrated_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy at the temperature that makes it least: `min_T CE(logits / T, labels)`.

    How sure of itself a classifier is makes no difference, only how it ranks the classes, image by
    image. T is found by bisection in `[1/8, 8]`; the loss is convex in 1/T.

    Args:
      logits: `[B, K]`.
      labels: integers `[B]`.

    Returns:
      A scalar.

    Gradients flow to `logits`, with T where it is: at its least no derivative passes through it.

    Example:
      >>> import jax.numpy as jnp
      >>> from genreg_jax.strengths import calibrated_cross_entropy
      >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), jnp.array([0, 1, 1])
      >>> one, other = (calibrated_cross_entropy(s * logits, labels) for s in (1.0, 3.0))
      >>> round(float(one), 4), round(float(other), 4)
      (0.575, 0.575)

    Source: temperature scaling as in Guo et al., arXiv:1706.04599.
    """
    logits = widened(logits)
    held = jax.lax.stop_gradient(logits)
    true = jnp.take_along_axis(held, labels[:, None], axis=1)[:, 0]

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        mean = jnp.sum(jax.nn.softmax(jnp.exp(middle) * held) * held, axis=1)
        falls = jnp.mean(mean - true) < 0  # the derivative in 1/T
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    # Made of the logits, so that within `shard_map` they are each device's own as these are.
    zero = jnp.zeros_like(true[0])
    low, high = jax.lax.fori_loop(0, 20, halve, (zero - _WIDEST, zero + _WIDEST))
    sharpened = jnp.exp((low + high) / 2) * logits
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(sharpened, labels))


@dataclasses.dataclass(frozen=True)
class Tune:
    """Which strengths a training step learns, and how.

    Attributes:
      strengths: by name.
      parts: `values -> arguments`: those of `genreg_jax.make_train_step` that depend on the
        strengths, of `values`, a dict like `strengths`. It is called while the step is traced, and
        each time for the same arguments: `tx`, `augment`, `label_smoothing`, `embedding_term`,
        `synthetic`, `latent`.
      tx: the optimiser of all `r`.
      augment: of the outer batch.
      calibrated: the outer loss is `calibrated_cross_entropy`; with False it is the cross-entropy.
      mode: of the hypergradient; see `genreg_jax.hypergradient.hypergradient`.
      shuffle: permute the labels of the outer batch, a control that must not help.

    Example:
      The weight of a term of one's own, on a linear classifier:

      >>> import jax, jax.numpy as jnp, optax
      >>> import genreg_jax as gr
      >>> def apply(params, model_state, x, *, rng, train):
      ...     e = x.reshape(len(x), -1)
      ...     return gr.Outputs(e @ params, e), model_state
      >>> model = gr.Model(lambda key, x: (jnp.zeros((x[0].size, 3)), {}), apply)
      >>> def parts(values):
      ...     margin = lambda logits: logits[:, 0] - logits[:, 1]
      ...     return {"embedding_term": lambda key, outputs, labels, step: (
      ...         values["margin"] * margin(outputs.logits))}
      >>> tune = gr.Tune({"margin": gr.Strength(0.1)}, parts, optax.adam(0.05))
      >>> same, tx = lambda key, x: x, optax.sgd(0.1)
      >>> step = jax.jit(gr.make_train_step(model, tx, num_classes=3, augment=same, tune=tune))
      >>> batch = gr.Batch(jnp.arange(16.0).reshape(4, 2, 2, 1) / 16, jnp.array([0, 1, 2, 0]))
      >>> outer = gr.Batch(batch.images[::-1], jnp.array([2, 1, 0, 0]))
      >>> state = gr.TrainState.create(*model.init(jax.random.key(0), batch.images), tx,
      ...                              jax.random.key(1), tune=tune)
      >>> state, metrics = step(state, batch, outer)
      >>> round(float(metrics["train/strength/margin"]), 4)  # that of this update
      0.1
      >>> round(float(tune.values(state.strengths)["margin"]), 4)  # and of the next
      0.1051
    """

    strengths: Mapping[str, Strength]
    parts: Callable[[dict[str, jax.Array]], dict[str, Any]]
    tx: optax.GradientTransformation
    augment: Augment = lambda key, x: x
    calibrated: bool = True
    mode: str = "forward_over_reverse"
    shuffle: bool = False

    def init(self) -> dict[str, jax.Array]:
        """Where all `r` start."""
        return {name: strength.raw() for name, strength in self.strengths.items()}

    def values(self, raw: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The strengths of all `r`."""
        return {name: strength.value(raw[name]) for name, strength in self.strengths.items()}

    def update(self, grads: Any, opt_state: Any, raw: Any) -> tuple[Any, Any]:
        """All `r` and their optimiser's state after a step on their hypergradient."""
        updates, opt_state = self.tx.update(grads, opt_state, raw)
        moved: Any = optax.apply_updates(raw, updates)
        return {name: s.held(moved[name]) for name, s in self.strengths.items()}, opt_state

    def metrics(self, raw: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The strengths as scalars by name; of one of each class mean and range."""
        found = {}
        for name, value in self.values(raw).items():
            where = f"train/strength/{name}"
            if value.ndim:
                found |= {f"{where}/{f.__name__}": f(value) for f in (jnp.mean, jnp.min, jnp.max)}
            else:
                found[where] = value
        return found
