"""Maximum-likelihood training of a flow, early stopping included.

    minimise   E_x E_u [ -log2 p(x + dequantisation noise u | y) ] / (H W C)

On a few hundred images a flow overfits within seconds: its best parameters are those of an early
step, and an average over recent steps is better than any of them. `fit` therefore evaluates an
exponential moving average on held-out images and returns the best.

A training is saved at its evaluations and where it is stopped, and continues bit for bit.
"""

import functools
import math
import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genreg_jax import checks
from genreg_jax.devices import check_mesh, everywhere, on_one_device, splitter
from genreg_jax.flows.chain import Chain, Level, Repeat
from genreg_jax.flows.flow import Flow, _standard_normal_log_prob, dequantize
from genreg_jax.flows.layout import squeeze, unsqueeze


class FlowFit(NamedTuple):
    """What `fit` returns.

    Attributes:
      params: the best parameters, an exponential moving average; with no validation images, those
        of the last step.
      history: one dict per evaluation: `step`, `seconds`, `bits_per_dim` on the training batches
        since the last, and `validation_bits_per_dim` if there are validation images.
      best_step: the step `params` are from.
      bits_per_dim: on the validation images, or on the last training batches without them.
      seconds: wall time, compilation included.
      compile_seconds: the part of it until the first step was done.
      images_per_second: while training, compilation and evaluation excluded; 0 where nothing was
        left to train.
      steps: updates made; fewer than asked for where `stop` ended the training.

    Example:
      >>> from genreg_jax import flows
      >>> result = flows.FlowFit(params=(), history=[], best_step=40, bits_per_dim=3.2, seconds=9.0,
      ...                        compile_seconds=2.0, images_per_second=800.0, steps=50)
      >>> result
      FlowFit(best_step=40, bits_per_dim=3.2, steps=50, seconds=9.0)
    """

    params: Any
    history: list[dict[str, float]]
    best_step: int
    bits_per_dim: float
    seconds: float
    compile_seconds: float
    images_per_second: float
    steps: int

    def __repr__(self) -> str:
        """One line without the parameters."""
        return (
            f"FlowFit(best_step={self.best_step}, bits_per_dim={self.bits_per_dim:.4g}, "
            f"steps={self.steps}, seconds={self.seconds:.1f})"
        )


class _State(NamedTuple):
    # The parameters are one vector here: a flow has hundreds of small leaves, and an optimiser that
    # goes through them one by one doubles the time it takes to compile a step.
    params: jax.Array
    average: jax.Array
    opt_state: Any
    bits: jax.Array  # summed over the steps since the last evaluation
    first_bad: jax.Array  # the first step whose loss or gradient was not finite


def _as_unit_floats(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def _decay_mask(params) -> jax.Array:
    """1 where weight decay applies, as the parameter vector.

    Kernels and class tables shrink towards "no coupling" and "no class". Scales, biases and the
    factors of a rotation have no such zero to shrink to.
    """
    decays = lambda path, leaf: np.full_like(leaf, path[-1].key.startswith(("w", "class_")))
    return ravel_pytree(jax.tree_util.tree_map_with_path(decays, params))[0]


@functools.lru_cache(maxsize=8)
def _compiled(flow: Flow, settings: tuple, augment, mesh: Mesh | None):
    """The jitted step and evaluation; cached, so a second `fit` of the same kind compiles none."""
    steps, optimizer, learning_rate, weight_decay, warmup, grad_clip, ema_decay = settings
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(min(warmup, steps - 1), 1), max(steps, 2), learning_rate * 0.02
    )
    dummy = jax.eval_shape(
        lambda: flow.bijector.init(
            jax.random.key(0),
            jnp.zeros((1, *flow.image_shape)),
            None if flow.num_classes is None else jnp.zeros(1, jnp.int32),
        )[0]
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), dummy)
    unravel, decays = jax.jit(ravel_pytree(zeros)[1]), _decay_mask(zeros)
    tx = optax.chain(
        optax.clip_by_global_norm(grad_clip),
        {"adam": optax.scale_by_adam, "adamax": optax.scale_by_adamax}[optimizer](),
        optax.stateless(lambda updates, params: updates + weight_decay * decays * params),
        optax.scale_by_learning_rate(schedule),
    )
    to_bits = 1 / (flow.dimensions * math.log(2))
    split = whole = lambda tree: tree
    if mesh is not None:
        replicated = NamedSharding(mesh, PartitionSpec())
        split = splitter(mesh)
        whole = lambda tree: jax.lax.with_sharding_constraint(tree, replicated)

    def bits_per_dim(params, x, y, noise_key, dropout_key):
        x = dequantize(noise_key, x, num_bins=flow.num_bins)
        z, log_det = flow.bijector.forward_and_log_det(params, x, y, dropout_key)
        return math.log2(flow.num_bins - 1) - to_bits * (_standard_normal_log_prob(z) + log_det)

    def batch(key, step, images, labels, index):
        augment_key, noise_key, dropout_key = jax.random.split(jax.random.fold_in(key, step), 3)
        x = _as_unit_floats(images[index])
        if augment is not None:
            x = augment(augment_key, x)
        return x, None if labels is None else labels[index], noise_key, dropout_key

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: _State, key, step, images, labels, index) -> _State:
        x, y, noise_key, dropout_key = batch(key, step, images, labels, split(index))
        x, y = split((x, y))

        def loss(params):
            return jnp.mean(bits_per_dim(unravel(params), x, y, noise_key, dropout_key))

        bits, grads = jax.value_and_grad(loss)(state.params)
        ok = jnp.isfinite(bits) & jnp.isfinite(jnp.vdot(grads, grads))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        # The average of the first steps is a plain mean, so that it forgets the initialisation.
        decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
        average = decay * state.average + (1 - decay) * params
        kept = lambda new, old: jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
        new = _State(
            kept(params, state.params),
            kept(average, state.average),
            kept(opt_state, state.opt_state),
            state.bits + bits,
            jnp.where(ok, state.first_bad, jnp.minimum(state.first_bad, step)),
        )
        return whole(new)

    @jax.jit
    def evaluate_chunk(params, key, images, labels, index, inside):
        index, inside = split((index, inside))
        x, y = split((_as_unit_floats(images[index]), None if labels is None else labels[index]))
        bits = bits_per_dim(unravel(params), x, y, key, None)
        return jnp.sum(jnp.where(inside, bits, 0))

    return tx, unravel, batch, train_step, evaluate_chunk


def _first_non_finite(bijector, params, x, y, name="flow") -> tuple[str | None, jax.Array]:
    """Name of the first layer whose parameters or output are not finite, walking forward."""
    bad = lambda tree: any(not bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(tree))
    if isinstance(bijector, Chain):
        for key, layer in zip(bijector.names(), bijector.layers):
            found, x = _first_non_finite(layer, params[key], x, y, f"{name}.{key}")
            if found:
                return found, x
        return None, x
    if isinstance(bijector, Repeat):
        for k in range(bijector.times):
            one = jax.tree.map(operator.itemgetter(k), params)
            found, x = _first_non_finite(bijector.layer, one, x, y, f"{name}[{k}]")
            if found:
                return found, x
        return None, x
    if isinstance(bijector, Level):
        found, h = _first_non_finite(bijector.body, params["body"], squeeze(x), y, f"{name}.body")
        if found is None and bijector.inner is not None:
            on, out = jnp.split(h, 2, axis=-1)
            found, on = _first_non_finite(bijector.inner, params["inner"], on, y, f"{name}.inner")
            h = jnp.concatenate((on, out), axis=-1)
        return found, unsqueeze(h)
    if bad(params):
        return name, x
    z, log_det = bijector.forward_and_log_det(params, x, y)
    return (name if bad((z, log_det)) else None), z


class _Batches:
    """Row indices of each step: a pure function of the key and the step, epoch by epoch."""

    def __init__(self, key, rows: int, batch_size: int):
        self._entropy = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        self._rows, self._batch_size = rows, batch_size
        self._per_epoch = rows // batch_size
        self._epoch, self._order = -1, np.arange(0)

    def __call__(self, step: int) -> np.ndarray:
        epoch, batch = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self._entropy, epoch])
            self._epoch, self._order = epoch, rng.permutation(self._rows).astype(np.int32)
        return self._order[batch * self._batch_size :][: self._batch_size]


def fit(
    key: jax.Array,
    flow: Flow,
    images,
    labels=None,
    *,
    steps: int,
    batch_size: int = 64,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 50,
    grad_clip: float = 1.0,
    ema_decay: float = 0.99,
    validation: tuple[Any, Any] | None = None,
    eval_every: int = 100,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    on_progress: Callable[[int, dict[str, float]], None] | None = None,
    save: Callable[[int, Any, dict[str, Any]], None] | None = None,
    restore: Callable[[Any], tuple[int, Any, dict[str, Any]] | None] | None = None,
    stop: Callable[[int], bool] | None = None,
    mesh: Mesh | None = None,
) -> FlowFit:
    """Trains a flow by maximum likelihood and returns the best averaged parameters.

        minimise  E [ log2(n - 1) - log2 p(x + u | y) / (H W C) ],   u the dequantisation noise

    The learning rate rises linearly over `warmup` steps and falls to 2 % along a cosine. A step
    draws from `fold_in(key, step)`, its rows from `(key, step)`, so equal arguments give equal
    results. Only evaluations wait for the device, and nothing is compiled after the first of them.

    Args:
      key: of the initialisation, the batches, the noise, the dropout and the augmentation.
      flow: from `glow` or `realnvp`.
      images: `[N, H, W, C]`, uint8, or floating point in [0, 1]; held on the device.
      labels: `[N]`, for a conditional flow.
      steps: number of updates.
      batch_size: rows of an update, at most `N`.
      optimizer: "adam" or "adamax".
      learning_rate: the largest.
      weight_decay: of the couplings' kernels and the class tables.
      warmup: steps until the learning rate is reached.
      grad_clip: largest global norm of a gradient.
      ema_decay: of the moving average of the parameters.
      validation: `(images, labels)` of the same kind, to stop by; labels None if unconditional.
      eval_every: steps between evaluations.
      augment: `(key, x) -> x` on batches in [0, 1], such as `genreg_jax.augment.make` makes.
      on_progress: called as `on_progress(step, metrics)` after each evaluation, `metrics` the entry
        of the history.
      save: called as `save(step, tree, extra)` after each evaluation with all that is needed to
        continue: a pytree of arrays and a JSON dict.
      restore: called once as `restore(like)`, `like` a tree such as `save` was given; the training
        continues from the `(step, tree, extra)` it returns, or starts anew if that is None.
      stop: asked as `stop(step)` after each update; where it is true, `save` is called and the
        training ends there.
      mesh: from `genreg_jax.devices.data_mesh`: the devices that share each batch, of every process
        that calls this with equal arguments; by default JAX's own. Their number changes the results
        by rounding only. A batch that it does not divide is not split.

    Returns:
      A `FlowFit`, its parameters on JAX's default device.

    Raises:
      ValueError: on images, labels, settings or a mesh that do not fit, and when the loss or its
        gradient stops being finite; the message names the step and the layer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax import flows
      >>> flow = flows.glow((4, 4, 1), levels=1, steps=1, width=4)
      >>> x = jax.random.uniform(jax.random.key(0), (32, 4, 4, 1))
      >>> result = flows.fit(jax.random.key(1), flow, x, steps=4, batch_size=16, eval_every=2)
      >>> [entry["step"] for entry in result.history]
      [2, 4]
    """
    checks.check_positive(steps=steps, batch_size=batch_size, eval_every=eval_every)
    checks.check_key(key)
    if not isinstance(flow, Flow):
        raise ValueError(
            f"flow is {checks.short(flow)}; make one with flows.glow or flows.realnvp."
        )
    if not isinstance(optimizer, str) or optimizer not in ("adam", "adamax"):
        raise ValueError(f"optimizer={checks.short(optimizer)} must be 'adam' or 'adamax'.")
    for name, value, allowed in (
        ("learning_rate", learning_rate, lambda value: value > 0),
        ("grad_clip", grad_clip, lambda value: value > 0),
        ("weight_decay", weight_decay, lambda value: value >= 0),
        ("warmup", warmup, lambda value: value >= 0),
        ("ema_decay", ema_decay, lambda value: 0 <= value < 1),
    ):
        if not checks.is_number(value) or not allowed(value):
            raise ValueError(
                f"{name}={checks.short(value)} is out of range: learning_rate and grad_clip must "
                "be positive, weight_decay and warmup at least 0, ema_decay in [0, 1)."
            )
    start = time.perf_counter()
    check_mesh(mesh)
    images, labels = checks.as_split(images, labels, flow.image_shape, flow.num_classes)
    if validation is not None:
        validation = checks.as_split(
            *validation, flow.image_shape, flow.num_classes, prefix="validation "
        )
    batch_size = min(batch_size, images.shape[0])

    init_key, step_key, batch_key, noise_key = jax.random.split(key, 4)
    batches = _Batches(batch_key, images.shape[0], batch_size)
    settings = (steps, optimizer, learning_rate, weight_decay, warmup, grad_clip, ema_decay)
    tx, unravel, batch, train_step, evaluate_chunk = _compiled(flow, settings, augment, mesh)

    # A large batch for ActNorm's statistics, augmented as those of the training are.
    rows = np.concatenate([batches(i) for i in range(-(-256 // batch_size))])[:256]
    x = _as_unit_floats(images[rows])
    if augment is not None:
        x = jax.jit(augment)(jax.random.fold_in(init_key, 1), x)
    params, _ = ravel_pytree(flow.init(init_key, x, None if labels is None else labels[rows]))
    state = _State(
        params=params,
        average=jnp.copy(params),
        opt_state=tx.init(params),
        bits=jnp.zeros(()),
        first_bad=jnp.array(np.iinfo(np.int32).max, jnp.int32),
    )
    place = (lambda tree: tree) if mesh is None else functools.partial(everywhere, mesh)
    state, images, labels, validation, step_key, noise_key = place(
        (state, images, labels, validation, step_key, noise_key)
    )
    best = jnp.copy(state.params)

    def evaluate(params) -> float:
        assert validation is not None
        valid_images, valid_labels = validation
        n, total = valid_images.shape[0], 0.0
        chunk = min(n, 256)
        for first in range(0, n, chunk):
            index = np.arange(first, first + chunk)  # the last chunk repeats row n - 1
            inside, index = index < n, np.minimum(index, n - 1)
            # The same noise at every evaluation, so that their differences are the parameters'.
            chunk_key = jax.random.fold_in(noise_key, first)
            index, inside = place((index, inside))
            total += evaluate_chunk(params, chunk_key, valid_images, valid_labels, index, inside)
        return float(total) / n

    history: list[dict[str, float]] = []
    best_score, best_step = float("inf"), 0
    first_step, before, train_seconds, compile_seconds, began = 0, 0.0, 0.0, 0.0, start
    restored = restore(on_one_device((state, best))) if restore is not None else None
    if restored is not None:
        first_step, tree, extra = restored
        state, best = place(tree)
        history, best_step, before = extra["history"], extra["best_step"], extra["seconds"]
        best_score = float("inf") if extra["best_score"] is None else extra["best_score"]
        start -= before
    last_step = history[-1]["step"] if history else 0

    def save_here(step: int) -> None:
        if save is not None:
            extra = {
                "history": history,
                "best_score": best_score if history else None,
                "best_step": best_step,
                "seconds": time.perf_counter() - start,
            }
            save(step, on_one_device((state, best)), extra)

    done = first_step
    for step in range(first_step, steps):
        state = train_step(state, step_key, step, images, labels, place(batches(step)))
        if step == first_step:
            jax.block_until_ready(state.bits)
            began = time.perf_counter()
            compile_seconds = began - start - before
        done = step + 1
        stopped = stop is not None and stop(done)
        if done % eval_every and done != steps:
            if stopped:
                train_seconds += time.perf_counter() - began
                save_here(done)
                break
            continue
        first_bad = int(state.first_bad)
        train_seconds += time.perf_counter() - began
        if first_bad < done:
            given = (state.params, step_key, images, labels)
            params, key, images, labels = on_one_device(given)
            x, y, noise_key, _ = batch(key, first_bad, images, labels, batches(first_bad))
            x = dequantize(noise_key, x, num_bins=flow.num_bins)
            layer, _ = _first_non_finite(flow.bijector, unravel(params), x, y)
            where = f"the first layer to fail is {layer}" if layer else "in the gradient only"
            raise ValueError(
                f"The loss or its gradient is not finite at step {first_bad} ({where}). Lower "
                f"learning_rate={learning_rate!r} or grad_clip={grad_clip!r}, raise "
                f"warmup={warmup!r}, or make the flow with a smaller scale."
            )
        metrics = {
            "step": done,
            "seconds": time.perf_counter() - start,
            "bits_per_dim": float(state.bits) / (done - last_step),
        }
        state, last_step = state._replace(bits=jnp.zeros_like(state.bits)), done
        score = metrics["bits_per_dim"]
        if validation is not None:
            score = metrics["validation_bits_per_dim"] = evaluate(state.average)
        if validation is None or score < best_score:
            # A copy, because the next step overwrites the state's buffers.
            best_score, best_step, best = score, done, jnp.copy(state.average)
        history.append(metrics)
        if on_progress is not None:
            on_progress(done, metrics)
        save_here(done)
        if stopped:
            break
        began = time.perf_counter()
    if done == steps and not np.isfinite(best_score):
        raise ValueError(
            f"The validation bits per dimension were never finite in {steps} steps. Lower "
            f"learning_rate={learning_rate!r}."
        )
    return FlowFit(
        params=unravel(best if mesh is None else jnp.asarray(np.asarray(on_one_device(best)))),
        history=history,
        best_step=best_step,
        bits_per_dim=best_score,
        seconds=time.perf_counter() - start,
        compile_seconds=compile_seconds,
        images_per_second=max(done - first_step - 1, 0) * batch_size / max(train_seconds, 1e-9),
        steps=done,
    )
