"""The whole state of a run as plain pytrees."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genreg_jax.checks import check_key, check_optimizer
from genreg_jax.strengths import Tune


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: int32 scalar, number of classifier updates made.
      params: the classifier's parameters.
      model_state: the classifier's running statistics.
      opt_state: state of the classifier's optimiser.
      finder_params: the finder's parameters, `()` without one.
      finder_opt_state: state of the finder's optimiser, `()` without one.
      key: the run's key; step t draws from `fold_in(key, t)` and the key itself never changes.
      strengths: what the learned strengths are made of, `()` without any; see
        `genreg_jax.strengths.Tune`.
      strengths_opt_state: state of their optimiser, `()` without any.

    Example:
      >>> import jax, optax
      >>> import genreg_jax as gr
      >>> state = gr.TrainState.create({"w": jnp.ones(3)}, {}, optax.adam(0.1), jax.random.key(0))
      >>> int(state.step), state.finder_params
      (0, ())
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    finder_params: Any
    finder_opt_state: Any
    key: jax.Array
    strengths: Any = ()
    strengths_opt_state: Any = ()

    @classmethod
    def create(
        cls,
        params: Any,
        model_state: Any,
        tx: optax.GradientTransformation,
        key: jax.Array,
        *,
        finder_params: Any = (),
        finder_tx: optax.GradientTransformation | None = None,
        tune: Tune | None = None,
    ) -> "TrainState":
        """The state before the first update.

        Args:
          params: the classifier's parameters.
          model_state: its running statistics, as `model.init` returns them.
          tx: its optimiser.
          key: of everything that the training draws.
          finder_params: the finder's parameters, for MGR.
          finder_tx: the finder's optimiser, for MGR.
          tune: the strengths that are learned.

        Raises:
          ValueError: `tx` or `finder_tx` is no optimiser, or `key` no PRNG key.
        """
        check_key(key)
        check_optimizer(tx)
        if finder_tx is not None:
            check_optimizer(finder_tx, "finder_tx")
        strengths = tune.init() if tune else ()
        return cls(
            step=jnp.int32(0),
            params=params,
            model_state=model_state,
            opt_state=tx.init(params),
            finder_params=finder_params,
            finder_opt_state=finder_tx.init(finder_params) if finder_tx else (),
            key=key,
            strengths=strengths,
            strengths_opt_state=tune.tx.init(strengths) if tune else (),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """The model that validation has chosen so far.

    Attributes:
      params: its parameters.
      model_state: its running statistics.
      accuracy: its validation accuracy in [0, 1], -1 before the first evaluation.
      loss: its validation loss; it decides between equal accuracies.
      epoch: int32 scalar, number of epochs after which it was evaluated.
    """

    params: Any
    model_state: Any
    accuracy: jax.Array
    loss: jax.Array
    epoch: jax.Array
