"""Which settings can be learned, from the config to the words of the report."""

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from genreg_jax.augment.spec import magnitude_of, with_magnitude
from genreg_jax.augment.transforms import MAX_MAGNITUDE
from genreg_jax.checks import short
from genreg_jax.errors import ConfigError
from genreg_jax.settings import Settings
from genreg_jax.strengths import LEAST_START, Strength, Tune

_LIMIT = 1e6  # of the settings themselves
# After the name of a strength of which each class, or each weight of the classifier, has its own.
PER_CLASS, PER_LAYER = "[class]", "[layer]"


class _Learnable(NamedTuple):
    """A setting that can be learned.

    Attributes:
      start: its configured value, of the settings; None where nothing in the run has it.
      needs: what the run must have, in words.
      upper: what it stays below, of the settings.
      each: what may have one of its own, `PER_CLASS`, `PER_LAYER` or "".
    """

    start: Callable[[Settings], float | None]
    needs: str
    upper: Callable[[Settings], float] = lambda s: _LIMIT
    each: str = ""


LEARNABLE = {
    "phantom.weight": _Learnable(
        lambda s: None if s.phantom.loss == "none" else s.phantom.weight,
        "a config.phantom.loss",
        each=PER_CLASS,
    ),
    "synthetic.weight": _Learnable(
        lambda s: None if s.synthetic.loss == "none" else s.synthetic.weight,
        "a config.synthetic.loss",
        each=PER_CLASS,
    ),
    "latent.epsilon": _Learnable(
        lambda s: s.latent.epsilon if s.uses_latent else None,
        "a config.latent.kind, and a ratio above 0",
        lambda s: 1.0 if s.latent.kind == "interpolation" else _LIMIT,
    ),
    "augment.magnitude": _Learnable(
        lambda s: None if s.uses_latent and not s.latent.mix else magnitude_of(s.augment.train),
        "a randaugment in config.augment.train, one only, and no config.latent.kind but with a "
        "clean share (config.latent.mix), since no derivative passes through what perturbs",
        lambda s: float(MAX_MAGNITUDE),
    ),
    "augment.label_smoothing": _Learnable(lambda s: s.augment.label_smoothing, "", lambda s: 1.0),
    "optimizer.weight_decay": _Learnable(lambda s: s.optimizer.weight_decay, "", each=PER_LAYER),
}


def without_each(name: str) -> str:
    """The setting of a strength's name, which may be followed by what has one of its own."""
    return name.removesuffix(PER_CLASS).removesuffix(PER_LAYER)


def learned(settings: Settings, num_classes: int = 1, num_layers: int = 1) -> dict[str, Strength]:
    """The strengths of `config.tune.learn`, by name; none where it is empty.

    Args:
      settings: of the run.
      num_classes: K, of those of which each class has its own.
      num_layers: likewise of the classifier's weights.

    Raises:
      ConfigError: a name that is not known or given twice, a strength that the run does not have,
        or one that does not start within its range.

    Example:
      >>> from genreg_jax.config import from_config
      >>> from genreg_jax.learned import learned
      >>> config = {"phantom": {"loss": "attraction", "weight": 2.0},
      ...           "tune": {"learn": "phantom.weight,optimizer.weight_decay"}}
      >>> {name: strength.start for name, strength in learned(from_config(config)).items()}
      {'phantom.weight': 2.0, 'optimizer.weight_decay': 0.0005}
    """
    found: dict[str, Strength] = {}
    where = "config.tune.learn"
    names = [name.strip() for name in settings.tune.learn.split(",")] if settings.tune.learn else []
    for name in names:
        base = without_each(name)
        known = LEARNABLE.get(base)
        if known is None or name not in (base, base + known.each):
            allowed = [n + f" and {n}{k.each}" * bool(k.each) for n, k in LEARNABLE.items()]
            raise ConfigError(
                f"{where} names {short(name)}, which cannot be learned; what can: "
                f"{', '.join(allowed)}.",
                where,
            )
        if {base, base + known.each} & found.keys():
            raise ConfigError(f"{where} names {base!r} twice; name it once.", where)
        start, upper = known.start(settings), known.upper(settings)
        if start is None:
            raise ConfigError(
                f"{where} names {name!r}, but the run has none: it needs {known.needs}.", where
            )
        if base != name and base == "synthetic.weight" and not _has_labels(settings):
            raise ConfigError(
                f"{where} names {name!r}, but samples of an unconditional flow's prior are of no "
                "class; choose another config.synthetic.source, or condition the flow.",
                where,
            )
        try:
            strength = Strength(start, upper)
        except ValueError:
            reason = ": a strength of 0 has no factor by which it could grow" * (start <= 0)
            raise ConfigError(
                f"{where} names {name!r}, which starts at its setting, and that is {start:g}; "
                f"allowed is a number above {LEAST_START:g} and below {upper:g}{reason}.",
                where,
            ) from None
        if base != name:
            start = np.full(num_classes if known.each == PER_CLASS else num_layers, start)
            if not start.size:
                raise ConfigError(
                    f"{where} names {name!r}, but the classifier has no weights.", where
                )
            strength = Strength(start, upper)
        found[name] = strength
    return found


def _has_labels(s: Settings) -> bool:
    """Whether synthetic samples are of the class that they are said to be of."""
    return s.synthetic.source != "prior" or s.flow.conditional


def as_overrides(settings: Settings, values: Mapping[str, Any]) -> list[str]:
    """Learned strengths as fixed settings of the command line; none of each class or layer.

    Args:
      settings: of the run that learned them.
      values: numbers by name, as its summary has them.

    Example:
      >>> from genreg_jax.settings import Settings
      >>> from genreg_jax.learned import as_overrides
      >>> as_overrides(Settings(), {"phantom.weight": 0.25})
      ['--config.phantom.weight=0.25', '--config.tune.learn=']
    """
    flags = []
    for name, value in values.items():
        if name == "augment.magnitude":
            spec = with_magnitude(settings.augment.train, value)
            flags.append(f"--config.augment.train={spec}")
        elif name == without_each(name):
            # Rounded down, so that a share that has come close to its end stays below it.
            digits = 5 - math.floor(math.log10(value))
            flags.append(f"--config.{name}={math.floor(value * 10.0**digits) / 10.0**digits:.6g}")
    return [*flags, "--config.tune.learn="]


def learned_values(tune: Tune | None, raw: Any) -> dict[str, Any] | None:
    """The strengths of a state as numbers and lists of them, None where nothing is learned."""
    if tune is None:
        return None
    return {name: np.asarray(value).tolist() for name, value in tune.values(raw).items()}


def learned_in_words(
    settings: Settings, values: Mapping[str, Any] | None, command: str | None
) -> list[str]:
    """What the report says of learned strengths, and the command that has them fixed."""
    if not values:
        return []
    starts = learned(settings)

    def now(name: str, value: Any) -> str:
        start = float(np.max(starts[name].start))
        if isinstance(value, list):
            return f"{name} from {start:.4g}, between {min(value):.4g} and {max(value):.4g} now"
        return f"{name} from {start:.4g} to {value:.4g}"

    text = "Strengths that the run learned: "
    text += "; ".join(now(name, value) for name, value in values.items()) + "."
    same = lambda a, b: np.all(np.float32(a) == np.float32(b))
    still = [name for name, value in values.items() if same(value, starts[name].start)]
    if still:
        text += (
            f" Nothing moved {', '.join(still)}: no part of the outer loss depends on it, or "
            "config.tune.learning_rate is 0."
        )
    flags = as_overrides(settings, values)
    if len(flags) <= len(values):
        text += " No setting has a strength of each class or layer."
    if command is not None and len(flags) > 1:
        text += " With the others fixed: " if len(flags) <= len(values) else " With them fixed: "
        text += _fixed(command, flags)
    return [text]


def _fixed(command: str, flags: list[str]) -> str:
    """The command of a run with other settings, in another workdir."""
    names = {flag.partition("=")[0] for flag in flags}
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        name, equals, _ = word.partition("=")
        name = f"-{name}" if name.startswith("-") and not name.startswith("--") else name
        if name in names or name == "--workdir":
            if not equals:
                next(words, None)  # its value
            if name == "--workdir":
                kept.append("--workdir=NEW")
        else:
            kept.append(word)
    return shlex.join([*kept, *flags])
