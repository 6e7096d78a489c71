"""What `report.json` may hold, which is read back from files that may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genreg_jax.errors import UserError


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_plane(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"points", "explained", "labels"}:
        return False
    points, explained, labels = value["points"], value["explained"], value["labels"]
    return (
        _is_list(points, lambda point: _is_list(point, _is_number) and len(point) == 2)
        and _is_list(explained, _is_number)
        and len(explained) == 2
        and _is_list(labels, lambda label: type(label) is int)
        and len(labels) == len(points)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_mistake(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"image", "name", "label", "predicted", "probability"}
        and _is_text(value["image"])
        and re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", value["image"]) is not None
        and _is_text(value["name"])
        and all(_is_count(value[name]) for name in ("label", "predicted"))
        and _is_share(value["probability"])
    )


def _is_calibration(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"images", "right", "confidence"}:
        return False
    images, right, confidence = value["images"], value["right"], value["confidence"]
    return (
        _is_list(images, _is_count)
        and _is_list(right, _is_count)
        and _is_list(confidence, lambda n: _is_number(n) and n >= 0)
        and 0 < len(images) == len(right) == len(confidence) <= 1000
        and all(r <= n for r, n in zip(right, images))
        and all((c > 0) <= (n > 0) for c, n in zip(confidence, images))
    )


# What `report.json` may hold; each entry may be null, but for the title.
_EXTRAS: dict[str, Callable[[Any], bool]] = {
    "title": _is_text,
    "command": _is_text,
    "notes": lambda value: _is_text(value) or _is_list(value, _is_text),
    "defaults": lambda value: isinstance(value, dict),
    "figures": lambda value: _is_list(value, lambda f: _is_list(f, _is_text) and len(f) == 2),
    "class_names": lambda value: _is_list(value, _is_text),
    "confusion": lambda value: _is_list(
        value,
        lambda row: _is_list(row, lambda n: type(n) is int and n >= 0) and len(row) == len(value),
    ),
    "embeddings": _is_plane,
    "per_class": lambda value: _is_list(
        value, lambda pair: _is_list(pair, _is_count) and len(pair) == 2 and pair[0] <= pair[1]
    ),
    "mistakes": lambda value: _is_list(value, _is_mistake),
    "calibration": _is_calibration,
    "drawing_seconds": lambda value: _is_number(value) and value >= 0,
}


def check_extras(path: Path, extras: Mapping[str, Any]) -> None:
    """Refuses a `report.json` that holds something else than `write_report` takes.

    Raises:
      UserError: it does.
    """
    for name, value in extras.items():
        right = name in _EXTRAS and (_EXTRAS[name](value) or (value is None and name != "title"))
        if not right:
            raise UserError(
                f"{path} is damaged: its {name[:60]!r} is not what a report has there. Put the "
                "file back, or remove it: the page is then written without what it holds."
            )
    names = extras.get("class_names")
    if names is None:
        return
    for what, of in (("confusion", "a confusion matrix"), ("per_class", "accuracies")):
        counts = extras.get(what)
        if counts is not None and len(names) != len(counts):
            raise UserError(
                f"{path} is damaged: it has {len(names)} class names and {of} of {len(counts)}. "
                "Put the file back, or remove it."
            )
