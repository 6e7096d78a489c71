"""Checkpoints: a thin adapter over orbax, the only module that knows it."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one directory: a pytree of arrays and a JSON dict per step.

    Saving is asynchronous; leaving the context waits for it.

    Args:
      directory: created when the first checkpoint is saved.
      keep: number of most recent checkpoints kept.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from genreg_jax.checkpoint import Checkpoints
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(folder) as checkpoints:
      ...         checkpoints.save(3, {"w": jnp.arange(2)}, {"note": "third"})
      ...     with Checkpoints(folder) as checkpoints:
      ...         step, tree, extra = checkpoints.restore({"w": jnp.zeros(2, jnp.int32)})
      >>> step, tree["w"].tolist(), extra
      (3, [0, 1], {'note': 'third'})
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=False, enable_async_checkpointing=True
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def save(self, step: int, tree: Any, extra: dict[str, Any]) -> None:
        """Saves `tree` and `extra` under `step`."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(tree), extra=ocp.args.JsonSave(extra)
            ),
        )

    def wait(self) -> None:
        """Returns once everything saved is on disk."""
        self._manager.wait_until_finished()

    def extra(self) -> dict[str, Any] | None:
        """The JSON dict of the latest checkpoint, None without one."""
        step = self._manager.latest_step()
        if step is None:
            return None
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["extra"]

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The latest `(step, tree, extra)`, None without one; `like` gives structure and types."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
            ),
        )
        return step, restored["tree"], restored["extra"]
