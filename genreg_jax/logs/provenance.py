"""Where a result came from: versions, device, JAX's settings and commit."""

from __future__ import annotations

import enum
import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "genreg-jax",
    "numpy",
    "dm-pix",
    "pillow",
)
# Settings of JAX that change numbers.
NUMERICS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_random_seed_offset",
    "jax_numpy_dtype_promotion",
    "jax_softmax_custom_jvp",
    "jax_high_dynamic_range_gumbel",
    "jax_disable_most_optimizations",
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
)
# Environment variables with options of the compiler and of the device's libraries.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def provenance() -> dict[str, Any]:
    """Returns what is needed to know which code and device made a result.

    Returns:
      `versions` (package name to version, None where one is not installed), `device` (`platform`,
      `kind`, `count`), `numerics` (settings of JAX and of the compiler that change numbers) and
      `commit`: of the checkout that the package lies in when the process first asks, with `-dirty`
      behind it if tracked Python files were changed, None for an installed wheel or without git.
      Nothing that identifies the machine or its user.

    Example:
      >>> sorted(provenance())
      ['commit', 'device', 'numerics', 'versions']
    """
    devices = jax.devices()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "numerics": {
            **{name: _plain(getattr(jax.config, name, None)) for name in NUMERICS},
            **{name: _options(os.environ.get(name, "")) for name in VARIABLES},
        },
        "commit": _commit_loaded(),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two records of `provenance` differ in that changes numbers, a line each.

    The number of devices, Python's version and the commit are not compared, nor what one of the
    two, of another version of this package, does not know.

    Example:
      >>> now = provenance()
      >>> changes({**now, "versions": {**now["versions"], "jax": "0.1"}}, now) == [
      ...     f"jax: 0.1 -> {now['versions']['jax']}"]
      True
    """
    sides = [
        {
            **record["versions"],
            "platform": record["device"]["platform"],
            **record["numerics"],
        }
        for record in (before, now)
    ]
    names = [name for name in sides[1] if name in sides[0] and name not in ("python", "genreg-jax")]
    values = [(name, *(side[name] for side in sides)) for name in names]
    return [f"{name}: {_shown(old)} -> {_shown(new)}" for name, old, new in values if old != new]


def _shown(value: Any) -> str:
    return "none" if value in ("", None) else str(value)


def _plain(value: Any) -> Any:
    """A setting of JAX as JSON has it."""
    return value.name.lower() if isinstance(value, enum.Enum) else value


def _options(text: str) -> str:
    """The options of a compiler's variable, but for paths and for how many devices there are."""
    options = [o for o in text.split() if "/" not in o and "device_count" not in o]
    return " ".join(sorted(options))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit_loaded() -> str | None:
    # Asked once: what is committed while a process runs is not the code that it has loaded.
    return _commit(Path(__file__).resolve().parents[1])


def _commit(directory: Path) -> str | None:
    # A wheel in a virtual environment may lie inside some other project's checkout; only a
    # checkout that tracks the package itself says which code this is.
    if _git(directory, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(directory, "rev-parse", "HEAD")
    # Results and notes may change while a study runs; what matters is the code.
    changed = _git(directory, "diff", "--name-only", "HEAD", "--", ":/*.py")
    return f"{commit}-dirty" if commit and changed else commit


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            # `git diff` would otherwise rewrite the index of a checkout others work in.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
