"""Which images each update sees: a pure function of seed, epoch and the labels.

Computed on the host once an epoch; the images themselves are gathered by index on the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from genreg_jax.errors import UserError
from genreg_jax.settings import Settings


class EpochIndices(NamedTuple):
    """Indices into the training images: `inner` `[T, B]`, `outer` `[T, B_outer]` or None."""

    inner: np.ndarray
    outer: np.ndarray | None


class BatchPlan:
    """Draws the indices of an epoch's real and outer batches.

    Each epoch walks through fresh permutations of the images it may use, as many as it needs. With
    `config.train.balanced` each class is walked through on its own and the classes take turns, so
    that their numbers in a batch differ by one at most.

    Args:
      settings: `seed`, `train`, `meta` and `tune` are read.
      labels: int `[N]`, labels of the training images.
      validation: int `[V]`, labels of the validation images, for the outer batches of
        `config.tune.outer = "validation"`; their indices follow those of the training images.

    Attributes:
      steps_per_epoch: updates an epoch.
      train_examples: images that the classifier's own loss can see.

    Raises:
      UserError: a batch larger than the images, or a class too small to be split.

    Example:
      >>> import numpy as np
      >>> from genreg_jax.batches import BatchPlan
      >>> from genreg_jax.config import from_config
      >>> settings = from_config({"train": {"batch_size": 4}})
      >>> plan = BatchPlan(settings, np.arange(8) % 2)
      >>> sorted(plan.epoch(0).inner.ravel().tolist())
      [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self, settings: Settings, labels: np.ndarray, validation: Sequence[int] | np.ndarray = ()
    ):
        self._seed, self._meta = settings.seed, settings.meta
        self._batch, self._balanced = settings.train.batch_size, settings.train.balanced
        self._labels = np.concatenate([labels, np.asarray(validation, np.int64)])
        self._outer = settings.outer  # empty where there are no outer batches
        self._setting = f"config.{'tune' if settings.tune.learn else 'meta'}.outer"
        self._part = np.zeros(len(labels), np.int64)
        if self._outer == "folds":
            self._part = self._folds(labels)
        elif self._outer == "holdout":
            self._part = self._holdout(labels)
        elif self._outer == "validation" and not len(validation):
            raise UserError(
                f"{self._setting} = 'validation', and there are no validation images; keep some "
                "(config.data.validation_fraction), or choose 'folds' or 'holdout'."
            )
        smallest = self._pools(0)[0]
        self.train_examples = len(labels) if self._outer == "folds" else len(smallest)
        if self._batch > len(smallest):
            raise UserError(
                f"config.train.batch_size = {self._batch} is larger than the {len(smallest)} "
                f"training images that an epoch can draw from; choose at most {len(smallest)}, or "
                "keep more images (config.data.per_class, config.data.fraction)."
            )
        steps = max(len(smallest) // self._batch, settings.train.least_steps)
        self.steps_per_epoch = settings.train.steps_per_epoch or steps
        # One size for all epochs, although folds can differ in theirs.
        epochs = range(self._meta.folds if self._outer == "folds" else 1)
        outer = [len(self._pools(epoch)[1]) for epoch in epochs]
        self._outer_batch = min(self._meta.outer_batch_size or self._batch, *outer)

    def _class_orders(self, labels: np.ndarray, smallest: int):
        """For each class a random order of its images, after checking that there are enough."""
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            if len(members) < smallest:
                raise UserError(
                    f"Class {label} has {len(members)} training images, and {self._setting} = "
                    f"{self._outer!r} needs at least {smallest} of each class; use "
                    f"{self._setting} = 'train', fewer config.meta.folds, or more images."
                )
            yield np.random.default_rng((self._seed, 2, int(label))).permutation(members)

    def _folds(self, labels: np.ndarray) -> np.ndarray:
        """Spreads each class evenly over parts 0 .. folds - 1."""
        part = np.zeros(len(labels), np.int64)
        for order in self._class_orders(labels, self._meta.folds):
            part[order] = np.arange(len(order)) % self._meta.folds
        return part

    def _holdout(self, labels: np.ndarray) -> np.ndarray:
        """Part 0, the held-out images, is `outer_fraction` of each class; the rest is part 1."""
        part = np.ones(len(labels), np.int64)
        for order in self._class_orders(labels, 2):
            held = round(self._meta.outer_fraction * len(order))
            part[order[: min(max(held, 1), len(order) - 1)]] = 0
        return part

    def _pools(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The images that the real and the outer batches of an epoch are drawn from."""
        if self._outer in ("", "train"):
            everything = np.arange(len(self._part))
            return everything, everything
        if self._outer == "validation":
            training, validation = np.split(np.arange(len(self._labels)), [len(self._part)])
            return training, validation
        held_out = self._part == (epoch % self._meta.folds if self._outer == "folds" else 0)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def _draw(
        self, stream: int, epoch: int, pool: np.ndarray, batch: int, skip: int = 0
    ) -> np.ndarray:
        count = skip + self.steps_per_epoch * batch
        if self._balanced:
            order = self._turns((self._seed, stream, epoch), pool, count)
        else:
            order = self._walk((self._seed, stream, epoch), pool, count)
        return order[skip:count].astype(np.int32).reshape(-1, batch)

    def _walk(self, seed: tuple[int, ...], pool: np.ndarray, count: int) -> np.ndarray:
        """The first `count` of as many permutations of the pool as it takes."""
        passes = range(-(-count // len(pool)))
        order = [np.random.default_rng((*seed, p)).permutation(pool) for p in passes]
        return np.concatenate(order)[:count]

    def _turns(self, seed: tuple[int, ...], pool: np.ndarray, count: int) -> np.ndarray:
        """Walks through each class of the pool, one image of each in turn, in one random order."""
        labels = self._labels[pool]
        classes = np.random.default_rng((*seed, 0, 0)).permutation(np.unique(labels))
        rounds = -(-count // len(classes))
        walks = [self._walk((*seed, 1, int(c)), pool[labels == c], rounds) for c in classes]
        return np.stack(walks, axis=1).ravel()

    def epoch(self, epoch: int) -> EpochIndices:
        """The indices of one epoch, counted from 0."""
        inner_pool, outer_pool = self._pools(epoch)
        inner = self._draw(0, epoch, inner_pool, self._batch)
        if not self._outer:
            return EpochIndices(inner, None)
        batch = self._outer_batch
        if self._outer == "train" and batch == self._batch:
            # Half a pass away from the inner batch, so that the two share as little as possible.
            return EpochIndices(
                inner, self._draw(0, epoch, inner_pool, batch, skip=len(inner_pool) // 2)
            )
        return EpochIndices(inner, self._draw(1, epoch, outer_pool, batch))
