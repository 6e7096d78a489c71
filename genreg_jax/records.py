"""What the records in the checkpoints of a run hold, which are read back from anywhere."""

import dataclasses
from pathlib import Path
from typing import Any

from genreg_jax.config import config_hash
from genreg_jax.errors import UserError
from genreg_jax.fingerprints import digest_of, fingerprints, named
from genreg_jax.settings import Settings

_NUMBER = (int, float)
_TEXT = (str, type(None))
_PROCESS = {
    "step": int,
    "versions": {"*": _TEXT},
    "device": {"platform": str, "kind?": str, "count?": int},
    "numerics?": dict,
}
_IMAGES = {"class_names": [str], "image_shape": [range(1, 2**31)] * 3}

# Of a classifier. A question mark is behind what an earlier version did not write, and a star
# stands for every name.
CLASSIFIER = {
    "subset_hash": str,
    "fingerprint?": _TEXT,
    "test_names_hash?": str,
    "flow_hash?": _TEXT,
    "init_hash?": _TEXT,
    "seconds": _NUMBER,
    "stages?": {"*": _NUMBER},
    "history": [{"*": (*_NUMBER, type(None))}],
    "skipped": int,
    "processes?": [_PROCESS],
    "extended?": [{"step": int, "epochs_before": int}],
    "run?": {
        **_IMAGES,
        "own": [str],
        "own_hashes?": {"*": str},
        "config_hash?": str,
        "epochs?": int,
        "steps_per_epoch?": int,
        "dataset?": str,
    },
}
_TRAINED_WITH = {"settings": dict, "subset_hash": str}
# Of a flow that is trained, and of one that is being trained.
FLOW = {
    "trained_with": _TRAINED_WITH,
    "images?": _IMAGES,
    "bits_per_dim": _NUMBER,
    "updates": int,
    "best_update?": int,
    "seconds?": _NUMBER,
    "compile_seconds?": _NUMBER,
    "images_per_second?": _NUMBER,
    "processes?": [_PROCESS],
}
FLOW_TRAINING = {
    "trained_with": _TRAINED_WITH,
    "history": [{"step": int, "bits_per_dim": _NUMBER}],
    "best_score": (*_NUMBER, type(None)),
    "best_step": int,
    "seconds": _NUMBER,
    "step?": int,
    "processes?": [_PROCESS],
}


def fits(value: Any, shape: Any) -> bool:
    """Whether a JSON value is of a shape: a type or types, a range of whole numbers, a list of one
    or of each, or names.

    Example:
      >>> fits({"a": [1, 2], "b": 3}, {"a": [int], "c?": str}), fits([1, 2], [int, int, int])
      (True, False)
      >>> fits({"a": [1, "2"]}, {"a": [int]}), fits({}, {"a": [int]})
      (False, False)
    """
    if isinstance(shape, list):
        if not isinstance(value, list) or len(value) != len(shape) > 1:
            return False
        return all(fits(v, of) for v, of in zip(value, shape if shape[1:] else shape * len(value)))
    if isinstance(shape, range):
        return type(value) is int and value in shape
    if not isinstance(shape, dict):
        return isinstance(value, shape) and not (isinstance(value, bool) and shape is not bool)
    if not isinstance(value, dict):
        return False
    if "*" in shape:
        return all(fits(v, shape["*"]) for v in value.values())
    return all(
        fits(value[name.rstrip("?")], of) if name.rstrip("?") in value else name.endswith("?")
        for name, of in shape.items()
    )


def check_known(run: Any, workdir: Path) -> dict[str, Any]:
    """What a checkpoint says of its run; refuses one of which nothing is said."""
    if run is None:
        raise UserError(
            f"The run in {str(workdir)!r} is of an earlier version, whose checkpoints do not say "
            "what classes and images they are for; train it again in a new workdir."
        )
    return run


def check_same_config(run: dict[str, Any], settings: Settings, workdir: Path) -> None:
    """Refuses settings that are not those of a run's last checkpoint, but for the epochs.

    Args:
      run: what the checkpoint says of the run.
      settings: those of its config.json.
      workdir: of the run.
    """
    # A run that has just been given more epochs has its last checkpoint from before.
    epochs = run.get("epochs", settings.train.epochs)
    then = dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=epochs))
    if run.get("config_hash") not in (None, config_hash(then)):
        raise UserError(
            f"{workdir / 'config.json'} is not the config that the run was trained with. Put the "
            "file back."
        )


def check_same_run(run: Any, settings: Settings, own: dict[str, Any], workdir: Path) -> None:
    """`check_same_config` and `check_same_own` of what a checkpoint says of its run."""
    run = check_known(run, workdir)
    check_same_config(run, settings, workdir)
    check_same_own(run, own, workdir)


def check_same_own(record: dict[str, Any], own: dict[str, Any], workdir: Path) -> None:
    """Refuses to go on without a part of the caller's own, or with one, unlike the run before.

    Args:
      record: has `own`, names of the parts that were the caller's own, and `own_hashes`, or not.
      own: name to part, None where it is that of the config.
      workdir: of the run.
    """
    stored, now = record.get("own"), own_parts(own)
    if stored is not None and sorted(stored) != now:
        words = [", ".join(names) or "no part of its caller's own" for names in (stored, now)]
        raise UserError(
            f"The run in {workdir} was begun with {words[0]}, and now it is given {words[1]}. "
            "Nothing was changed; give it what it was begun with, or start in a new workdir."
        )
    hashes = own_hashes(own)
    for name, then in (record.get("own_hashes") or {}).items():
        if hashes.get(name, then) != then:
            raise UserError(
                f"The run in {workdir} was begun with another {name}: its arrays have the hash "
                f"{then}, and those of this one {hashes[name]}. Nothing was changed; give it what "
                "it was begun with, or start in a new workdir."
            )


def own_parts(own: dict[str, Any]) -> list[str]:
    """Names of the parts that are the caller's own: `model`, `generator` and so on."""
    return sorted(name for name, part in own.items() if part is not None)


def about_own(own: dict[str, Any]) -> dict[str, Any]:
    """What the record of a run says of the parts that are the caller's own."""
    return {"own": own_parts(own), "own_hashes": own_hashes(own)}


def own_hashes(own: dict[str, Any]) -> dict[str, str]:
    """Hashes of the arrays of a generator and a flow of the caller's own, which stay as they are.

    Example:
      >>> import numpy as np
      >>> len(own_hashes({"flow": {"w": np.zeros(3)}, "generator": None})["flow"])
      12
    """
    trees = {"generator": getattr(own.get("generator"), "params", None), "flow": own.get("flow")}
    found = {}
    for name, tree in trees.items():
        leaves = [(key, leaf) for key, leaf in named(tree) if hasattr(leaf, "dtype")]
        if leaves:
            found[name] = digest_of(fingerprints(dict(leaves)))[:12]
    return found
