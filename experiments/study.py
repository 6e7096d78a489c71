"""What a study compares: rows, labels per class and seeds."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genreg_jax.config import from_config
from genreg_jax.settings import Settings

Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      config: makes a fresh `ConfigDict`.
      rows: row name to the settings that make it; the first row is the reference.
      candidates: row name to the list of changes tried in tuning, equally many for each row; empty
        where nothing is tuned.
      inherits: row name to the tuned rows whose choices it takes, for rows that are not tuned.
      pairs: further comparisons, each a row and the row that it is compared with.
      sizes: labels per class.
      seeds: of the table.
      tuning_size: labels per class in tuning.
      tuning_seeds: seeds of tuning, apart from those of the table.
      tuned_as: the study of the same folder whose choices this one takes; empty for its own.
      on_first: whether the other rows take the first row's choice, in tuning and in the table.
      halving: shares of the epochs; the first row's candidates run for the first share, the better
        half of them for the second, and so on. Empty where all run for all epochs.
      best: name to rows; the one that is best in tuning is a choice by that name, for `inherits`.
      members: row name to the number of networks whose probabilities it averages, where not one.
    """

    config: Callable[[], Any]
    rows: Mapping[str, Changes]
    candidates: Mapping[str, Sequence[Changes]]
    sizes: Sequence[int]
    seeds: Sequence[int]
    tuning_size: int
    tuning_seeds: Sequence[int]
    inherits: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] = ()
    tuned_as: str = ""
    on_first: bool = False
    halving: Sequence[float] = ()
    best: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    members: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def first(self) -> str:
        """The reference."""
        return next(iter(self.rows))

    def sources(self, row: str) -> Sequence[str]:
        """The choices that a row takes, by the names of tuned rows; its own where it is tuned."""
        own = self.inherits.get(row, (row,) if self.candidates else ())
        return (self.first, *own) if self.on_first and self.first not in own else own

    def changes(self, tuned: Mapping[str, Changes]) -> dict[str, Changes]:
        """Row name to its settings with the choices of tuning, for the rows that have theirs."""
        found = {}
        for row, fixed in self.rows.items():
            if all(source in tuned for source in self.sources(row)):
                taken = [tuned[s] for s in self.sources(row) if s != row]
                own = tuned.get(row, {}) if row not in self.inherits else {}
                parts = [*taken, fixed, own]
                found[row] = {k: v for part in parts for k, v in part.items()}
        return found


def shipped(method: str, dataset: str) -> Any:
    """The shipped config of a method on a data set, a `ConfigDict`."""
    return importlib.import_module(f"configs.{method}_{dataset}").get_config()


def settings_of(study: Study, changes: Changes, size: int, seed: int, data_dir: str) -> Settings:
    """The settings of one run."""
    config = study.config()
    config.update_from_flattened_dict({"data.per_class": size, "seed": seed, **changes})
    config.data.dir = data_dir
    config.train.progress = False
    return from_config(config)
