"""The classifier's optimiser from its settings."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genreg_jax.models.frozen import head_only
from genreg_jax.settings import OptimizerSettings

# Added under Adam's square root: without it the update has no derivative where a unit is dead,
# and the hypergradient would be NaN. Far too small to change a step.
_EPS_ROOT = 1e-16


def make_schedule(
    settings: OptimizerSettings, *, total_steps: int, steps_per_epoch: int
) -> Callable[[Any], Any]:
    """The learning rate as a function of the update's number.

    Args:
      settings: which schedule.
      total_steps: updates of the whole run.
      steps_per_epoch: updates an epoch.

    Returns:
      An optax schedule, `step -> learning rate`.

    Example:
      >>> from genreg_jax.optimizers import make_schedule
      >>> from genreg_jax.settings import OptimizerSettings
      >>> schedule = make_schedule(OptimizerSettings(learning_rate=0.1), total_steps=10,
      ...                          steps_per_epoch=5)
      >>> round(float(schedule(0)), 3), round(float(schedule(5)), 3), round(float(schedule(10)), 3)
      (0.1, 0.05, 0.0)
    """
    rate = settings.learning_rate
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, max(total_steps - warmup, 1))
    elif settings.schedule == "step":
        main = optax.piecewise_constant_schedule(
            rate,
            {e * steps_per_epoch - warmup: settings.step_factor for e in settings.step_epochs},
        )
    else:
        main = optax.constant_schedule(rate)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])


def weights_only(params: Any) -> Any:
    """True where weight decay acts: weights, not biases and scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _decayed(decay: Any) -> optax.GradientTransformation:
    """Weight decay; of an array `[L]` each weight's own, in the order of the tree."""
    if not jnp.ndim(decay):
        return optax.add_decayed_weights(decay, mask=weights_only)

    def update(updates: Any, params: Any) -> Any:
        leaves, tree = jax.tree.flatten(updates)
        weights = jax.tree.leaves(params)
        return tree.unflatten([u + d * w for u, d, w in zip(leaves, decay, weights, strict=True)])

    return optax.masked(optax.stateless(update), weights_only)


def make_optimizer(
    settings: OptimizerSettings, schedule, *, head_alone: bool = False, weight_decay: Any = None
) -> optax.GradientTransformation:
    """The optimiser: clipping, weight decay on weights only, then sgd, adam or adamw.

    Args:
      settings: which optimiser.
      schedule: learning rate as a function of the update's number.
      head_alone: updates of all parameters but the head's are zero.
      weight_decay: instead of the configured one, which is above 0; it may be traced. One number,
        or `[L]`, of each of the weights.

    Returns:
      An optax transformation whose update is differentiable in the gradient.
    """

    decay = settings.weight_decay if weight_decay is None else weight_decay
    parts = []
    if settings.grad_clip:
        parts.append(optax.clip_by_global_norm(settings.grad_clip))
    if settings.name == "adamw":
        adam, rate = optax.scale_by_adam(eps_root=_EPS_ROOT), optax.scale_by_learning_rate(schedule)
        parts.append(optax.chain(adam, _decayed(decay), rate))
    elif settings.weight_decay:
        parts.append(_decayed(decay))
    if settings.name == "adam":
        parts.append(optax.adam(schedule, eps_root=_EPS_ROOT))
    elif settings.name == "sgd":
        parts.append(
            optax.sgd(schedule, momentum=settings.momentum or None, nesterov=settings.nesterov)
        )
    if settings.head_factor != 1:
        parts.append(optax.masked(optax.scale(settings.head_factor), head_only))
    if head_alone:
        others = lambda params: jax.tree.map(operator.not_, head_only(params))
        parts.append(optax.masked(optax.set_to_zero(), others))
    return optax.chain(*parts)
