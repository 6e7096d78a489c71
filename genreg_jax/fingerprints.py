"""Trees of arrays by the names of their leaves, and what tells them apart."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from genreg_jax.devices import is_key


def named(tree: Any) -> list[tuple[str, Any]]:
    """Leaves by the names of their path, which containers of other types have in common."""
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def type_of(leaf: Any) -> list:
    """Shape and type of an array, as JSON has them."""
    return [list(np.shape(leaf)), str(leaf.dtype)]


def with_key_data(tree: Any) -> Any:
    """The tree with the data of its keys in their place."""

    def data(leaf):
        if not is_key(leaf):
            return leaf
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)

    return jax.tree.map(data, tree)


def with_keys(tree: Any, like: Any) -> Any:
    """The tree with its key data as keys, where `like` has keys."""
    wrap = jax.random.wrap_key_data
    return jax.tree.map(lambda a, b: wrap(a) if is_key(b) else a, tree, like)


def like_by_names(leaves: dict[str, Any], like: Any) -> Any:
    """Leaves by their names of `named`, in the containers of another tree with such leaves."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name, _ in named(like)])


def fingerprints(tree: Any) -> dict[str, list]:
    """Name of each leaf to its shape, type and a checksum of its bytes."""

    def data(leaf):
        leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
        return np.ascontiguousarray(leaf).tobytes()

    return {
        name: [*type_of(leaf), hashlib.blake2b(data(leaf), digest_size=16).hexdigest()]
        for name, leaf in named(tree)
    }


def digest_of(record: Any) -> str:
    """A hash of a JSON value."""
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
