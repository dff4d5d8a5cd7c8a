"""Batches of an audit: the training rows beside an audited row, whose items are its candidates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints, ranges
from candid.errors import ConfigError


class TrainingRows(NamedTuple):
    """Rows of training: ``positive_ids`` [R] int64, and ``user_ids`` [R] int64."""

    positive_ids: Tensor
    user_ids: Tensor


class BatchContext(NamedTuple):
    """The random part of one step, given an audited row.

    Attributes:
        others: rows of the batch that belong to other units than the audited row.
        memory: rows of earlier batches, oldest first.
        num_own_rows: rows of the audited row's own unit, with the row itself; 0 where ``others``
            contain that unit.
    """

    others: TrainingRows
    memory: TrainingRows
    num_own_rows: int


class BatchSource(Protocol):
    """Source of random batches, each sampled anew."""

    @property
    def mean_other_rows(self) -> float:
        """Mean number of rows of other units beside an audited row."""

    def with_items(self, positive_ids: Tensor) -> BatchSource:
        """Return the same source with other ids of the items of its rows.

        Args:
            positive_ids: [R] int64.
        """

    def batch(self, generator: torch.Generator) -> TrainingRows:
        """Return one whole batch."""

    def beside_a_row(self, generator: torch.Generator, memory_rows: int = 0) -> BatchContext:
        """Return the rest of a batch, given that an audited row is in it.

        Args:
            generator: source of randomness.
            memory_rows: least number of rows of earlier batches to return.
        """


@dataclass(frozen=True, eq=False)
class IndependentRows:
    """Batches of rows that are sampled independently and with replacement.

    This is what the expected counts of in-batch candidates assume. It is right for real batches
    whose unit is one interaction; a unit of several rows, such as a window of a user's history,
    brings all its rows together (``UnitBatches``).

    Attributes:
        rows: the training rows.
        num_rows: other rows of each batch.
    """

    rows: TrainingRows
    num_rows: int

    @property
    def mean_other_rows(self) -> float:
        """``num_rows``; see ``BatchSource``."""
        return float(self.num_rows)

    def with_items(self, positive_ids: Tensor) -> IndependentRows:
        """Return the same rows with other ids of their items; see ``BatchSource``."""
        return replace(self, rows=self.rows._replace(positive_ids=positive_ids))

    def batch(self, generator: torch.Generator) -> TrainingRows:
        """Return ``num_rows`` rows; see ``BatchSource``."""
        return self._sample(self.num_rows, generator)

    def beside_a_row(self, generator: torch.Generator, memory_rows: int = 0) -> BatchContext:
        """Return ``num_rows`` other rows and ``memory_rows`` earlier ones; see ``BatchSource``."""
        memory = self._sample(memory_rows, generator)
        return BatchContext(self._sample(self.num_rows, generator), memory, num_own_rows=1)

    def _sample(self, num_rows: int, generator: torch.Generator) -> TrainingRows:
        chosen = torch.randint(len(self.rows.positive_ids), (num_rows,), generator=generator)
        return TrainingRows(self.rows.positive_ids[chosen], self.rows.user_ids[chosen])


@dataclass(frozen=True, eq=False)
class UnitBatches:
    """Batches of whole units without replacement, as a loader deals them.

    A loader permutes the units of an epoch and cuts the permutation into batches. Given that an
    audited row is in a batch, its unit stands at a random place of the permutation, and the rest
    of its batch is a random choice of the other units. The choice here is from all units, so
    that all audited rows can share it: a row's own unit is then among the others with a
    probability of about units_per_batch / W, and is masked there. This lowers the expected number
    of its candidates by the factor 1 - 1 / W, for W units in the data. If all units are in one
    batch, the rest of the batch is not random, and it is exact.

    Args:
        rows: the rows of all units, one unit after the other.
        offsets: [W + 1], unit w has the rows ``offsets[w]:offsets[w + 1]``.
        units_per_batch: U, the batch size of the loader.
        drop_last: whether the last batch of an epoch is left out if it is smaller.

    Raises:
        ConfigError: ``offsets`` do not cover the rows, or a batch has no unit.
    """

    rows: TrainingRows
    offsets: Ints
    units_per_batch: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        num_rows = len(self.rows.positive_ids)
        if self.offsets[0] != 0 or self.offsets[-1] != num_rows or np.any(self.lengths < 0):
            raise ConfigError(
                f"offsets of units must ascend from 0 to the {num_rows} rows, got "
                f"{self.offsets[0]} to {self.offsets[-1]}"
            )
        if self.units_per_batch < 1 or (self.drop_last and self.units_per_batch > self.num_units):
            raise ConfigError(
                f"units_per_batch must be 1 to {self.num_units}, got {self.units_per_batch}"
            )

    @cached_property
    def lengths(self) -> Ints:
        """[W], rows of each unit."""
        return np.diff(self.offsets)

    @property
    def num_units(self) -> int:
        """W, units in an epoch without ``drop_last``."""
        return len(self.offsets) - 1

    @property
    def mean_other_rows(self) -> float:
        """Mean number of rows of other units beside an audited row; see ``BatchSource``."""
        size, rest = self.units_per_batch, self._num_dealt % self.units_per_batch
        # A row is in the smaller last batch with the share of the units that the batch has.
        share = rest / self._num_dealt
        units = (1.0 - share) * (size - 1) + share * max(rest - 1, 0)
        return float(self.offsets[-1] / self.num_units * units)

    def with_items(self, positive_ids: Tensor) -> UnitBatches:
        """Return the same units with other ids of their items; see ``BatchSource``."""
        return replace(self, rows=self.rows._replace(positive_ids=positive_ids))

    def batch(self, generator: torch.Generator) -> TrainingRows:
        """Return one whole batch of full size; see ``BatchSource``."""
        size = min(self.units_per_batch, self.num_units)
        return self._rows_of(_rng(generator).choice(self.num_units, size, replace=False))

    def beside_a_row(self, generator: torch.Generator, memory_rows: int = 0) -> BatchContext:
        """Return the other units of a batch and the units dealt before it; see ``BatchSource``."""
        rng = _rng(generator)
        step = int(rng.integers(self._num_dealt)) // self.units_per_batch
        num_earlier = step * self.units_per_batch
        size = min(self.units_per_batch, self._num_dealt - num_earlier)
        if size == self.num_units:
            others, num_own_rows = np.arange(size), 0
            memory = self._newest_units(rng, np.empty(0, dtype=np.int64), memory_rows)
        else:
            num_chosen = size + (num_earlier if memory_rows else 0)
            chosen = rng.choice(self.num_units, num_chosen, replace=False)
            # The first one stands for the audited row's own unit.
            others, num_own_rows = chosen[1:size], int(self.lengths[chosen[0]])
            memory = self._newest_units(rng, chosen[size:], memory_rows)
        return BatchContext(self._rows_of(others), self._rows_of(memory[::-1]), num_own_rows)

    @property
    def _num_dealt(self) -> int:
        """Units in an epoch."""
        if not self.drop_last:
            return self.num_units
        return self.num_units // self.units_per_batch * self.units_per_batch

    def _newest_units(self, rng: np.random.Generator, units: Ints, num_rows: int) -> Ints:
        """Return the first of the units with ``num_rows`` rows, followed by earlier epochs'."""
        if num_rows == 0:
            return units[:0]
        lengths = self.lengths
        while lengths[units].sum() < num_rows:
            units = np.concatenate([units, rng.permutation(self.num_units)[: self._num_dealt]])
        return units[: int(np.searchsorted(lengths[units].cumsum(), num_rows)) + 1]

    def _rows_of(self, units: Ints) -> TrainingRows:
        positions = torch.from_numpy(ranges(self.offsets[units], self.lengths[units]))
        return TrainingRows(self.rows.positive_ids[positions], self.rows.user_ids[positions])


def _rng(generator: torch.Generator) -> np.random.Generator:
    """Return a generator of numpy, which samples without replacement in time of the sample."""
    return np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
