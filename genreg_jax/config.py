"""From a config to checked settings, and what identifies a run.

`default_config()` is what configs and command-line overrides edit; `from_config` turns an edited
one into `Settings` and checks it before any device work.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from genreg_jax import models
from genreg_jax.checks import is_text, short
from genreg_jax.errors import ConfigError
from genreg_jax.learned import learned
from genreg_jax.models.pretrained import ORIGINS, PACKAGES
from genreg_jax.settings import Settings

# Where the data lie and what is shown do not change what is computed, nor does `nonfinite` until it
# is needed: a run that stopped there can go on.
_NOT_IDENTITY = (
    ("data", "dir"),
    ("data", "download"),
    ("data", "stream"),
    ("train", "progress"),
    ("train", "devices"),
    ("train", "nonfinite"),
    ("train", "environment"),
)
_ADDED = tuple(
    (group.name, field.name, field.default)
    for group in dataclasses.fields(Settings)
    if dataclasses.is_dataclass(group.default)
    for field in dataclasses.fields(group.default)
    if field.metadata.get("added")
)


_ANOTHER_RUN = "another run"


def default_config() -> Any:
    """The defaults of every setting as an `ml_collections.ConfigDict`, locked against new keys.

    Example:
      >>> from genreg_jax.config import default_config, from_config
      >>> config = default_config()
      >>> config.data.per_class = 10
      >>> from_config(config).data.per_class
      10
    """
    import ml_collections

    return ml_collections.ConfigDict(dataclasses.asdict(Settings())).lock()


def from_config(config: Any) -> Settings:
    """Builds and checks the settings of a run.

    Args:
      config: a `ConfigDict`, a nested mapping (missing keys take their defaults), or `Settings`.

    Returns:
      The checked `Settings`.

    Raises:
      ConfigError: an unknown key, a value of the wrong type, or one outside what is allowed.

    Example:
      >>> from_config({"train": {"epochs": 0}})
      Traceback (most recent call last):
        ...
      genreg_jax.errors.ConfigError: config.train.epochs must be at least 1, got 0.
    """
    if isinstance(config, Settings):
        settings = config
    else:
        config = config.to_dict() if hasattr(config, "to_dict") else config
        settings = _build(Settings, config, "config")
    _check(settings)
    return settings


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a group of settings, got {short(values)}.", path)
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{path} has no setting {key!r}; it has {', '.join(sorted(hints))}.{hint}",
                f"{path}.{key}",
            )
    return cls(
        **{key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()}
    )


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Checks one value against its annotation.

    What converts: int to float, list to tuple, and NumPy's scalars and arrays to Python's.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(
                f"{path} must be one of {', '.join(allowed)}, got {short(value)}.", path
            )
        return value
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{path} must be a list of integers, got {short(value)}.", path)
        return tuple(_convert(typing.get_args(hint)[0], v, path) for v in value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} must be of type {hint.__name__}, got {short(value)}.", path)
    if hint is str and not is_text(value):
        raise ConfigError(f"{path} must be text without NUL, got {short(value)}.", path)
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{path} must be a finite number, got {short(value)}.", path)
    return value


def _check(s: Settings) -> None:
    """Checks that all values are in their ranges, and what holds between two of them."""
    _check_ranges(s, "config")

    def need(ok: bool, path: str, rule: str) -> None:
        if not ok:
            value: Any = s
            for name in path.split("."):
                value = getattr(value, name)
            raise ConfigError(
                f"config.{path} must be {rule}, got {short(value)}.", f"config.{path}"
            )

    need(len(s.name) <= 200 and s.name.isprintable(), "name", "up to 200 characters to print")
    known = ("none", *models.MODELS)
    need(s.model.name in known, "model.name", f"one of {', '.join(known)}")
    need(1 <= len(s.model.widths) <= 64, "model.widths", "1 to 64 numbers")
    need(len(s.meta.hidden) <= 64, "meta.hidden", "at most 64 numbers")
    need(
        s.train.epochs * max(s.train.steps_per_epoch, 1) < 2**31,
        "train.epochs",
        "below 2**31 updates in all",
    )
    if s.model.name == "wide_resnet":
        fits = s.model.depth >= 10 and (s.model.depth - 4) % 6 == 0
        need(fits, "model.depth", "6n + 4 for a wide_resnet (10, 16, 22, 28, ...)")
        need(
            s.model.width == type(s.model)().width,
            "model.width",
            "left alone for a wide_resnet, whose widening factor is config.model.widening",
        )
    if s.latent.kind in ("adversarial", "pgd"):
        need(s.latent.norm != "none", "latent.norm", "l2 or linf for an attack")
    if s.latent.kind == "interpolation":
        need(s.latent.epsilon <= 1, "latent.epsilon", "a share of the way, at most 1")
    if s.uses_flow or s.flow_only:
        factor = 2**s.flow.levels
        need(
            s.flow.image_size % factor == 0,
            "flow.image_size",
            f"a multiple of {factor}, which is 2 ** config.flow.levels, or 0",
        )
    if s.flow.images == "all" and s.flow.conditional:
        raise ConfigError(
            "config.flow.images = 'all' trains the flow on images without labels, but "
            "config.flow.conditional is True; set it to False, or images to 'labelled'.",
            "config.flow.images",
        )
    if s.data.per_class and s.data.fraction < 1:
        raise ConfigError(
            f"config.data.per_class = {s.data.per_class} and config.data.fraction = "
            f"{s.data.fraction} both choose the labelled subset; leave one at its default (0, 1).",
            "config.data.per_class",
        )
    if s.model.pretrained:
        need(not s.model.init_from, "model.init_from", "empty where config.model.pretrained is set")
        need(
            s.model.name in ORIGINS,
            "model.name",
            f"{' or '.join(ORIGINS)} where config.model.pretrained is set",
        )
        package = PACKAGES.get(s.model.pretrained)
        need(
            package is None or package.model == s.model.name,
            "model.name",
            f"{package and package.model} for the weights {s.model.pretrained!r}",
        )
    learned(s)
    if s.tune.learn and s.flow_only:
        raise ConfigError(
            "config.model.name = 'none' trains a flow and no classifier, and config.tune.learn "
            f"= {s.tune.learn!r} is learned with one; name a classifier, or leave it empty.",
            "config.tune.learn",
        )
    if s.flow_only:
        for start in ("init_from", "pretrained"):
            need(
                not getattr(s.model, start),
                f"model.{start}",
                "empty where no classifier is trained",
            )
        for on, name, value in (
            (s.uses_synthetic, "synthetic.loss", s.synthetic.loss),
            (s.uses_phantom, "phantom.loss", s.phantom.loss),
            (s.uses_latent, "latent.kind", s.latent.kind),
        ):
            if on:
                raise ConfigError(
                    "config.model.name = 'none' trains a flow and no classifier, but "
                    f"config.{name} = {value!r} regularises one; name a classifier or set "
                    f"config.{name} to 'none'.",
                    f"config.{name}",
                )
    need(s.synthetic.low <= s.synthetic.high, "synthetic.low", "at most config.synthetic.high")
    need(s.meta.radius >= 0 or s.meta.radius == -1, "meta.radius", "at least 0, or -1 for no bound")
    if s.meta.enabled and s.meta.search != "finder":
        need(s.meta.radius >= 0, "meta.radius", f"at least 0 for the search {s.meta.search}")
    if (
        s.synthetic.loss == "cross_entropy"
        and s.uses_synthetic
        and s.synthetic.source == "prior"
        and not s.flow.conditional
    ):
        raise ConfigError(
            "config.synthetic.loss = 'cross_entropy' needs labels, and the samples that an "
            "unconditional flow (config.flow.conditional = False) draws have none; "
            "set config.synthetic.source to 'renoised' or 'interpolated', whose labels are those "
            "of real images, or condition the flow.",
            "config.synthetic.source",
        )
    if s.meta.enabled and s.synthetic.loss == "none":
        raise ConfigError(
            "config.meta.enabled = True needs synthetic samples to choose, but "
            "config.synthetic.loss is 'none'; set it to 'pcr' (that is MGR) or turn meta off.",
            "config.meta.enabled",
        )


def _check_ranges(group: Any, path: str) -> None:
    for field in dataclasses.fields(group):
        value, where = getattr(group, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            _check_ranges(value, where)
            continue
        allowed = field.metadata.get("range")
        values = value if isinstance(value, tuple) else (value,)
        if allowed is None or all(v in allowed for v in values):
            continue
        beyond = max(values) > allowed.limit
        rule = f"at most {allowed.limit}" if beyond else allowed
        raise ConfigError(f"{where} must be {rule}, got {short(value)}.", where)


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings as a JSON-ready nested dict."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def identity(settings: Settings, *, flow_hash: str = "", init_hash: str = "") -> dict[str, Any]:
    """What decides the outcome: the settings without where data lie and what is shown.

    A flow or a classifier that is taken from another run counts by its own hash, not by the name of
    its folder; a setting that was added later counts where it does not have its default.

    Args:
      settings: of the run.
      flow_hash: of the flow of `config.flow.workdir`, as the summary has it; empty where the run
        trains its own.
      init_hash: of the run in `config.model.init_from` or of the weights in
        `config.model.pretrained`; empty where there are none.
    """
    values = to_dict(settings)
    for start in ("init_from", "pretrained"):
        if getattr(settings.model, start):
            values["model"][start] = init_hash or _ANOTHER_RUN
    for group, key in _NOT_IDENTITY:
        del values[group][key]
    for group, name, default in _ADDED:
        if values[group][name] == default:
            del values[group][name]
    values = {name: value for name, value in values.items() if value != {}}
    values["flow"]["workdir"] = flow_hash or (
        _ANOTHER_RUN if settings.flow.workdir and settings.uses_flow else ""
    )
    return values


def config_hash(settings: Settings, **hashes: str) -> str:
    """First 12 hexadecimal digits of the SHA-256 of `identity`, which `hashes` are for."""
    text = json.dumps(identity(settings, **hashes), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    path: str = "config",
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Lines `config.a.b: old -> new` for every leaf in which two nested dicts differ.

    What one of them lacks has its value in `defaults`, where that has one.
    """
    lines = []
    for key in sorted({*old, *new}):
        default, where = (defaults or {}).get(key, "absent"), f"{path}.{key}"
        a, b = old.get(key, default), new.get(key, default)
        if isinstance(a, Mapping) != isinstance(b, Mapping) and "absent" in (a, b):
            a, b = (value if isinstance(value, Mapping) else {} for value in (a, b))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, where, default if isinstance(default, Mapping) else None)
        elif a != b:
            lines.append(f"{where}: {a!r} -> {b!r}")
    return lines
