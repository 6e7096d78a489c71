"""What is checked of an argument, and of a setting. Arrays are looked at outside of `jit` only."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genreg_jax.errors import UserError

# Decoded and re-encoded pixels may leave [0, 1] by rounding; the logit has room for far more.
_TOLERANCE = 1e-3


def is_number(value: Any) -> bool:
    """Whether it is a finite real number, of Python's or NumPy's, and not a bool."""
    kinds = (int, float, np.integer, np.floating)
    try:
        return (
            isinstance(value, kinds) and not isinstance(value, bool) and np.isfinite(float(value))
        )
    except OverflowError:
        return False


def short(value: Any) -> str:
    """A value for an error, in a line that ends."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and np.ndim(value):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr of the caller's own, or a number with too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_folder(workdir: Any) -> None:
    """Checks that it can be the folder of a run."""
    if not isinstance(workdir, str | os.PathLike) or not isinstance(os.fspath(workdir), str):
        raise TypeError(f"workdir is {short(workdir)}; it must be the folder of a run.")
    if not os.fspath(workdir) or not is_text(os.fspath(workdir)):
        raise UserError(
            f"The workdir is {short(os.fspath(workdir))}, which cannot be the name of a run's "
            "folder: that is text, not empty, in UTF-8. Choose another one."
        )


def path_of(name: str | os.PathLike[str]) -> Path:
    """What a user names, whose `~` is the home folder where a shell has not said so already."""
    return Path(os.path.expanduser(name))


def check_no_mask(array: Any, name: str) -> None:
    """Refuses an array of which NumPy hides a part, which would be taken for the rest."""
    if np.ma.is_masked(array):
        raise UserError(
            f"{name} is a masked array; what it masks would be used like the rest. Fill it, or "
            "leave those images out."
        )


def is_text(value: str) -> bool:
    """Whether it has neither NUL nor halves of characters, as names in another encoding have."""
    try:
        return "\0" not in value and value.encode() is not None
    except UnicodeEncodeError:
        return False


def as_array(x: Any, name: str, allowed: str) -> jax.Array:
    """An array, or a `ValueError` that names the argument."""
    try:
        if x is None:
            raise TypeError
        return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {short(x)}; allowed: {allowed}.") from None


def as_dtype(value: Any) -> Any:
    """The `dtype` that a name or a type stands for, None where it stands for none."""
    try:
        array = isinstance(value, np.ndarray | jax.Array)
        return None if value is None or array else jnp.dtype(value)
    except (TypeError, ValueError):
        return None


def check_key(key: Any, name: str = "key") -> None:
    """Checks that it is one PRNG key, a new-style one or an old-style `uint32` array."""
    if isinstance(key, jax.Array | np.ndarray):
        new = key.ndim == 0 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if new or (key.ndim == 1 and key.dtype == jnp.uint32):
            return
    raise ValueError(f"{name} is {short(key)}; allowed: one PRNG key, such as jax.random.key(0).")


def split(key: Any) -> jax.Array:
    """`jax.random.split` of a checked key."""
    check_key(key)
    return jax.random.split(key)


def is_frozen(flow: Any) -> bool:
    """Whether it is a flow with its parameters, `flow.freeze(params)`, and not a flow alone."""
    names = ("encode", "decode", "image_shape")
    return all(hasattr(flow, name) for name in names) and not hasattr(flow, "freeze")


def check_optimizer(tx: Any, name: str = "tx") -> None:
    """Checks that it is an optimiser of optax."""
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ValueError(
            f"{name} is {short(tx)}; allowed: an optax.GradientTransformation, such as "
            "optax.sgd(0.1)."
        )


def check_opt_state(tx: Any, opt_state: Any, params: Any, name: str, tx_name: str = "tx") -> None:
    """Checks that it is a state of this optimiser, for these parameters."""
    check_optimizer(tx, tx_name)
    like = jax.eval_shape(tx.init, params)
    wanted, given = (jax.tree.structure(tree) for tree in (like, opt_state))
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (like, opt_state)]
    if wanted != given or shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} is {short(opt_state)}, which is no state of {tx_name} for these parameters; "
            f"make it with {tx_name}.init, of the same optimiser and the same parameters."
        )


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Checks that it is one of some names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {short(value)}.")


def check_number(name, value, *, minimum=0, maximum=None, integer=False):
    """Raises a `ValueError` unless `value` is a finite number (or an integer) within the bounds."""
    right = is_number(value) and (not integer or isinstance(value, (int, np.integer)))
    if not right or value < minimum or (maximum is not None and value > maximum):
        kind = "an integer" if integer else "a number"
        bounds = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} is {short(value)}; allowed: {kind} {bounds}.")


def check_strength(name, value, *, maximum=None):
    """As `check_number`, of a value that may be an array of no axes, or traced and unknown."""
    if (
        isinstance(value, jax.Array)
        and value.shape == ()
        and jnp.isdtype(value.dtype, "real floating")
    ):
        if not is_concrete(value):
            return
        value = float(value)
    check_number(name, value, maximum=maximum)


def is_concrete(x) -> bool:
    """Whether the values of `x` can be read, which they cannot under a transformation."""
    return not isinstance(x, Tracer)


def at_least_float32(dtype: Any) -> Any:
    """float32, or a wider floating point type as it is; also where promotion is strict.

    Example:
      >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.dtype("float64"))
      (<class 'jax.numpy.float32'>, dtype('float64'))
    """
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits > 32
    return dtype if wide else jnp.float32


def widened(x: Any) -> jax.Array:
    """As floating point of `at_least_float32`.

    Example:
      >>> widened(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    x = jnp.asarray(x)
    return x.astype(at_least_float32(x.dtype))


def check_positive(**values) -> None:
    """Checks that each keyword is a positive integer, and none that only a slip can have meant."""
    for name, value in values.items():
        whole = is_number(value) and isinstance(value, (int, np.integer))
        if not whole or not 1 <= value < 2**31:
            raise ValueError(f"{name}={short(value)} must be a positive integer.")


def as_images(x, image_shape, name: str = "x", *, in_range: bool = True) -> jax.Array:
    """Floating point images `[B, H, W, C]`, at least float32; a `ValueError` if they are not."""
    x = as_array(x, name, f"[B, H, W, C] with [H, W, C] = {tuple(image_shape)}")
    if x.ndim != 4 or x.shape[1:] != tuple(image_shape):
        raise ValueError(
            f"{name} has shape {x.shape}; allowed is [B, H, W, C] with [H, W, C] = "
            f"{tuple(image_shape)}."
        )
    if x.shape[0] == 0:
        raise ValueError(f"{name} has shape {x.shape}: the batch is empty.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {x.dtype}; allowed is floating point"
            + (" in [0, 1]: divide 8-bit images by 255." if in_range else ".")
        )
    x = widened(x)
    if is_concrete(x):
        values = np.asarray(x)  # NumPy, since jnp would trace a constant under jit
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{name} contains NaN or infinity; allowed are finite values.")
        if in_range and (low < -_TOLERANCE or high > 1 + _TOLERANCE):
            raise ValueError(f"{name} has values in [{low:g}, {high:g}]; allowed is [0, 1].")
    return x


def as_labels(y, batch: int, num_classes: int | None, name: str = "y") -> jax.Array | None:
    """Integer labels `[B]`, or None for an unconditional flow."""
    if num_classes is None:
        if y is not None:
            raise ValueError(
                f"{name} was given to an unconditional flow; allowed is None. Build the flow with "
                "num_classes to condition it on labels."
            )
        return None
    if y is None:
        raise ValueError(
            f"{name} is None, but the flow is conditional: integer labels [{batch}] in "
            f"[0, {num_classes}) are needed."
        )
    y = as_array(y, name, f"integer labels of shape ({batch},)")
    if y.shape != (batch,) or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {y.shape} and dtype {y.dtype}; allowed are integer labels of shape "
            f"({batch},). One-hot labels: {name}.argmax(-1)."
        )
    if is_concrete(y):
        values = np.asarray(y)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} has labels in [{low}, {high}]; allowed is [0, {num_classes - 1}]."
            )
    return y


def check_batch(images, labels, num_classes: int, name: str) -> None:
    """Checks a batch of a training step: images uint8 or floating point, labels integers `[B]`.

    That they lie in their ranges is checked outside of `jit` alone.
    """
    if images.ndim != 4 or images.shape[0] == 0:
        raise ValueError(
            f"{name}.images has shape {images.shape}; allowed is [B, H, W, C] with B >= 1."
        )
    if images.dtype != jnp.uint8:
        as_images(images, images.shape[1:], f"{name}.images")
    as_labels(labels, images.shape[0], num_classes, f"{name}.labels")


def as_split(images, labels, image_shape, num_classes: int | None, *, prefix: str = ""):
    """A whole split: images on the device, uint8 or floating point in [0, 1], and their labels."""
    name = f"{prefix}images"
    images = as_array(images, name, f"[N, H, W, C] with [H, W, C] = {tuple(image_shape)}")
    if images.dtype == jnp.uint8:
        as_images(images[:1].astype(jnp.float32) / 255, image_shape, name)
    else:
        images = as_images(images, image_shape, name)
    return images, as_labels(labels, images.shape[0], num_classes, f"{prefix}labels")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; of a tuple, each of its elements.

    `limit` is far above what is of use: beyond it a program takes hours to compile, or all memory,
    before anything is said. It is spoken of only to who has gone beyond.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    limit: float = math.inf

    def __contains__(self, value: float) -> bool:
        """Whether a number is allowed."""
        return (
            value <= self.limit
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words, such as `at least 0 and below 1`, or `from 0 to 1`."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least} to {self.at_most}"
        bounds = {name: getattr(self, name) for name in ("at_least", "above", "at_most", "below")}
        return " and ".join(
            f"{name.replace('_', ' ')} {bound}"
            for name, bound in bounds.items()
            if bound is not None
        )


def setting(default: Any, *, added: bool = False, **bounds: float) -> Any:
    """A field with a range.

    Args:
      default: its value where none is given.
      added: it came after runs had been published: where it has its default it is left out of what
        identifies a run, so that their hashes stay.
      **bounds: of `Range`: `at_least`, `above`, `at_most`, `below`, `limit`.

    Example:
      >>> import dataclasses
      >>> from genreg_jax.settings import TrainSettings
      >>> field = next(f for f in dataclasses.fields(TrainSettings) if f.name == "epochs")
      >>> str(field.metadata["range"])
      'at least 1'
    """
    return dataclasses.field(
        default=default, metadata={"range": Range(**bounds) if bounds else None, "added": added}
    )
