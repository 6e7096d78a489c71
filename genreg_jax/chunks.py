"""The mean of a loss over many rows in bounded memory: a batch in chunks, each computed again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genreg_jax.checks import check_number


def chunked_mean(
    key: jax.Array,
    losses_fn: Callable[[jax.Array, Any], jax.Array],
    rows: Any,
    *,
    chunk: int,
    scan: bool = False,
) -> jax.Array:
    """Mean of the losses of all rows, computed in chunks of about equal size.

    The rows are cut into the fewest chunks of at most `chunk`, whose sizes differ by at most one;
    no chunk is a small rest, on which batch statistics would mean little. With more than one, the
    backward pass computes each chunk's forward pass again (`jax.checkpoint`) and holds the
    activations of one chunk at a time, at the price of that pass.

    Every chunk is a batch of its own: it has its own key, and what couples rows, such as batch
    statistics, couples those of a chunk. For losses that depend on the row alone the result is the
    mean over all rows. The first chunk draws from `key` itself, so that a single chunk is
    `jnp.mean(losses_fn(key, rows))` bit for bit; chunk `i` draws from `fold_in(key, i)`.

    Args:
      key: of the chunks.
      losses_fn: `(key, rows) -> losses [b]`, any number of rows at a time.
      rows: pytree of arrays `[N, ...]`.
      chunk: largest number of rows at a time.
      scan: chunks of equal size in a `lax.scan`, which compiles one of them; by default a Python
        loop, since XLA's convolutions are about twenty times slower inside a scan on CPU.

    Returns:
      A scalar.

    Raises:
      ValueError: `chunk` below 1, rows that are not of one number N >= 1, or losses that are not
        `[b]`.

    Gradients flow to `rows` and to what `losses_fn` closes over, of any order.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from genreg_jax.chunks import chunked_mean
      >>> x = jnp.arange(7.0)
      >>> float(chunked_mean(jax.random.key(0), lambda key, x: x**2, x, chunk=3))
      13.0

    Source: none; rematerialisation as in Chen et al., arXiv:1604.06174.
    """
    check_number("chunk", chunk, minimum=1, integer=True)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(rows)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"rows must be arrays [N, ...] of one N >= 1, got shapes {shapes}.")
    ((total,),) = lengths

    def checked(key, part):
        losses = losses_fn(key, part)
        size = len(jax.tree.leaves(part)[0])
        if losses.shape != (size,):
            raise ValueError(
                f"losses_fn returned losses of shape {losses.shape}; allowed: one for each row, "
                f"{(size,)}."
            )
        return losses

    count = -(-total // chunk)
    if count == 1:
        return jnp.mean(checked(key, rows))
    keys = jnp.stack([key, *(jax.random.fold_in(key, i) for i in range(1, count))])
    size, longer = divmod(total, count)
    cut = longer * (size + 1)
    compute = jax.checkpoint(lambda key, part: jnp.sum(checked(key, part)))
    value = jnp.zeros(())
    for group_keys, first, last in ((keys[:longer], 0, cut), (keys[longer:], cut, total)):
        parts = _split(rows, first, last, len(group_keys))
        if scan and len(group_keys) > 1:
            add = lambda value, inputs: (value + compute(*inputs), None)
            value, _ = jax.lax.scan(add, value, (group_keys, parts))
        else:
            for i, group_key in enumerate(group_keys):
                value = value + compute(group_key, _take(parts, i))
    return value / total


def _split(rows, first, last, number):
    """Rows from first to last as `[number, (last - first) / number, ...]`."""
    size = (last - first) // max(number, 1)
    return jax.tree.map(lambda leaf: leaf[first:last].reshape(number, size, *leaf.shape[1:]), rows)


def _take(parts, i):
    return jax.tree.map(lambda leaf: leaf[i], parts)
