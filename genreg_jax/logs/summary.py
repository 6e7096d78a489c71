"""The result of a run: `summary.json`, and what a notebook shows of it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genreg_jax.errors import UserError
from genreg_jax.logs.files import check_types, read_json, to_json
from genreg_jax.logs.progress import format_seconds


class Summary(dict[str, Any]):
    """The result of a run, a dict that shows itself in one line.

    Example:
      >>> Summary({"name": "base", "dataset": "digits", "test_accuracy": 0.9312, "steps": 300,
      ...          "seconds": 75.0, "seed": 0})
      Summary(base on digits: test_accuracy 0.9312, steps 300, seed 0, 1 min 15 s)
      >>> sorted(Summary({"steps": 3}).items())
      [('steps', 3)]
    """

    def __repr__(self) -> str:
        """One line; the entries are those of a dict."""
        names = ("test_accuracy", "validation_accuracy", "test_bits_per_dim", "steps", "seed")
        parts = [f"{n} {self[n]:.4g}" for n in names if isinstance(self.get(n), (int, float))]
        if isinstance(self.get("seconds"), (int, float)):
            parts.append(format_seconds(self["seconds"]))
        return f"Summary({self.get('name')} on {self.get('dataset')}: {', '.join(parts)})"


_NUMBER = (int, float, type(None))
_COUNT = (int, type(None))
_TEXT = (str, type(None))
# What is read back of a summary; an earlier version may not have written some of it.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("test_accuracy", "validation_accuracy", "test_bits_per_dim"), _NUMBER),
    **dict.fromkeys(("test_loss", "test_calibration_error", "seconds"), _NUMBER),
    **dict.fromkeys(("steps", "seed", "validation_examples", "test_examples"), _COUNT),
    **dict.fromkeys(("name", "dataset", "fingerprint", "config_hash", "init_hash"), _TEXT),
    "checksum": str,
    "subset_hash": str,
    "own": (list, type(None)),
    "own_hashes": (dict, type(None)),
    "flow": (dict, type(None)),
}


def read_summary(workdir: Path, **types: Any) -> Summary:
    """The summary of a finished run, whose checksum is verified; `types` as of `read_json`.

    Raises:
      UserError: it is damaged.
    """
    path = workdir / "summary.json"
    summary = read_json(path, **types)
    check_types(path, summary, _TYPES)
    check_types(path, summary.get("flow") or {}, {"hash": _TEXT})
    own = {str(i): name for i, name in enumerate(summary.get("own") or ())}
    check_types(path, own, dict.fromkeys(own, str))
    # Earlier versions wrote neither.
    if ("checksum" in summary or "stages" in summary) and (
        summary.get("checksum") != checksum(summary)
    ):
        raise UserError(
            f"{path} is damaged: its checksum does not fit the rest of it. Put the file back, or "
            "remove it: the same command then makes it again from the last checkpoint."
        )
    return Summary(summary)


def checksum(summary: Mapping[str, Any]) -> str:
    """Of a summary's other entries."""
    content = {name: value for name, value in summary.items() if name != "checksum"}
    text = json.dumps(to_json(content), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
