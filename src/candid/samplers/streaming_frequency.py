"""Item frequency from the gaps between an item's occurrences in the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.samplers.frequency import FrequencyConfig, log_q_of_stream

_MASK = 2**64 - 1


class StreamingFrequency:
    """Q(d) as 1 / (the average gap between occurrences of d), in rows of the stream.

    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations"
    (RecSys 2019), algorithm 2: an item's bucket holds where the stream showed it last and a
    moving average of the gaps, gap ← (1 - rate)·gap + rate·(now - last). Items that share a
    bucket shorten each other's gaps, so that several arrays are kept, each with a hash of its
    own, and the largest gap is believed. The paper counts gaps in steps, where an item of
    every batch is as frequent as can be; here they are counted in rows, so that the average
    is that of the rows' order, however it is cut into batches.

    Until an item has been seen 1 / rate times its frequency is its count over T, the rows so
    far: a moving average would still remember its start. Later, an item that stays away
    becomes rarer as the gap that is still open grows beyond its average. An estimate from a
    moving average has a relative spread of about sqrt(rate / 2), 7 % at a rate of 0.01, and
    follows a change within about 1 / rate occurrences.

    Args:
        num_items: V.
        num_buckets: of each array, 16 bytes a bucket.
        num_hashes: arrays.
        rate: weight of the newest gap, above 0 and below 1.
        seed: of the hashes.

    Attributes:
        num_items: V.
        num_rows: T, rows observed.

    Raises:
        ConfigError: a setting out of its range.
    """

    class Config(FrequencyConfig):
        """Settings of ``StreamingFrequency``."""

        num_buckets: int = Field(
            262_144, ge=1, le=2**31, description="buckets of each array, 16 bytes each"
        )
        num_hashes: int = Field(
            3, ge=1, le=16, description="arrays; items seldom share a bucket in all of them"
        )
        rate: float = Field(
            0.01,
            gt=0,
            lt=1,
            description="weight of the newest gap in the moving average: lower is steadier, "
            "higher follows a changing popularity sooner",
        )
        seed: int = Field(0, ge=0, description="seed of the hashes")

        def build(self, counts: Tensor) -> StreamingFrequency:
            """Build for a catalog of ``len(counts)`` items; nothing is known at first."""
            return StreamingFrequency(
                len(counts), self.num_buckets, self.num_hashes, self.rate, self.seed
            )

    def __init__(
        self,
        num_items: int,
        num_buckets: int = 262_144,
        num_hashes: int = 3,
        rate: float = 0.01,
        seed: int = 0,
    ) -> None:
        if num_items < 1 or not 1 <= num_buckets <= 2**31 or num_hashes < 1:
            raise ConfigError(
                "num_items, num_buckets and num_hashes must be at least 1 (num_buckets at most "
                f"2^31), got {num_items}, {num_buckets} and {num_hashes}"
            )
        if not 0 < rate < 1:
            raise ConfigError(f"rate must be above 0 and below 1, got {rate}")
        self.num_items = num_items
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes
        self.rate = rate
        self.num_rows = 0
        self._hashes = _hashes(num_hashes, seed)
        shape = (num_hashes * num_buckets,)
        self._last_row = torch.zeros(shape, dtype=torch.int64)
        self._gap = torch.zeros(shape, dtype=torch.float32)
        self._times_seen = torch.zeros(shape, dtype=torch.int32)

    def log_q(self, ids: Tensor) -> Tensor:
        """Log probability of items; see ``Frequency.log_q``."""
        buckets = self._buckets(ids)
        last_row, gap, times_seen = (
            table.to(ids.device)[buckets] for table in (self._last_row, self._gap, self._times_seen)
        )
        average = gap.double()
        open_gap = (self.num_rows - last_row).double()
        is_new = times_seen <= self._num_counted
        estimate = torch.where(
            is_new,
            self.num_rows / times_seen.double(),
            torch.maximum(average, average + self.rate * (open_gap - average)),
        )
        # A count of 0 is an infinite gap: one array that never saw the item is proof enough.
        return log_q_of_stream(1.0 / estimate.amax(dim=0), self.num_rows, self.num_items)

    def observe(self, ids: Tensor) -> None:
        """Learn from the positives of a batch; see ``StreamFrequency.observe``.

        The result is that of one row after the other, repeated items included.
        """
        self._to(ids.device)
        ids = ids.flatten()
        rows = torch.arange(len(ids), device=ids.device) + (self.num_rows + 1)
        self.num_rows += len(ids)
        keys, order = torch.sort(self._buckets(ids).flatten(), stable=True)
        seen = _occurrences(keys, rows.repeat(self.num_hashes)[order])
        counted = self._times_seen[seen.buckets].long()

        previous = torch.where(
            seen.ordinal > 1, seen.rows.roll(1), self._last_row[seen.buckets][seen.group]
        )
        is_averaged = counted[seen.group] + seen.ordinal > self._num_counted
        keep = math.log1p(-self.rate)
        weight = self.rate * torch.exp(keep * (seen.sizes[seen.group] - seen.ordinal).double())
        newest = torch.where(is_averaged, weight * (seen.rows - previous), 0.0)

        num_counted = (self._num_counted - counted).clamp(min=0).minimum(seen.sizes)
        last_counted = seen.rows[seen.starts + (num_counted - 1).clamp(min=0)].double()
        start = torch.where(
            num_counted > 0,
            last_counted / (counted + num_counted).clamp(min=1),
            self._gap[seen.buckets].double(),
        )
        gap = start * torch.exp(keep * (seen.sizes - num_counted).double())
        gap = gap.index_add(0, seen.group, newest)

        self._gap[seen.buckets] = gap.float()
        self._last_row[seen.buckets] = seen.rows[seen.starts + seen.sizes - 1]
        self._times_seen[seen.buckets] = (counted + seen.sizes).clamp(max=2**31 - 1).int()

    def state(self) -> dict[str, Tensor]:
        """Return all that was learnt; see ``StreamFrequency.state``."""
        return {
            "gap": self._gap.clone(),
            "last_row": self._last_row.clone(),
            "times_seen": self._times_seen.clone(),
            "num_rows": torch.tensor(self.num_rows),
            "hashes": torch.tensor(self._hashes),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a ``state()``; see ``StreamFrequency.restore``."""
        if "gap" not in state:
            raise ArtifactError("there is no stored frequency of the stream to continue from")
        same_hashes = torch.equal(state["hashes"].cpu(), torch.tensor(self._hashes))
        if state["gap"].shape != self._gap.shape or not same_hashes:
            raise ArtifactError(
                "the stored frequency has other hashes than this one: continue with the "
                "num_buckets, num_hashes and seed it was made with"
            )
        device = self._gap.device
        self._gap = state["gap"].to(device, copy=True)
        self._last_row = state["last_row"].to(device, copy=True)
        self._times_seen = state["times_seen"].to(device, copy=True)
        self.num_rows = int(state["num_rows"])

    @property
    def _num_counted(self) -> int:
        """Occurrences that are counted before gaps are averaged."""
        return math.ceil(1.0 / self.rate)

    def _buckets(self, ids: Tensor) -> Tensor:
        """[num_hashes, *ids.shape] positions in the tables, one array after the other."""
        arrays = []
        for array, (factor, shift) in enumerate(self._hashes):
            # Products wrap around; the upper 32 of the 64 bits are the hash.
            upper = ((ids * factor + shift) >> 32) & 0xFFFFFFFF
            arrays.append(((upper * self.num_buckets) >> 32) + array * self.num_buckets)
        return torch.stack(arrays)

    def _to(self, device: torch.device) -> None:
        self._gap = self._gap.to(device)
        self._last_row = self._last_row.to(device)
        self._times_seen = self._times_seen.to(device)


@dataclass(frozen=True, slots=True)
class _Occurrences:
    """Rows [R] grouped by bucket: G groups, each a run in the order of the stream.

    Attributes:
        buckets: [G].
        starts: [G], where each run begins.
        sizes: [G].
        group: [R], the group of each row.
        ordinal: [R], 1 for the first of its run.
        rows: [R], positions in the stream.
    """

    buckets: Tensor
    starts: Tensor
    sizes: Tensor
    group: Tensor
    ordinal: Tensor
    rows: Tensor


def _occurrences(keys: Tensor, rows: Tensor) -> _Occurrences:
    buckets, sizes = torch.unique_consecutive(keys, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    group = torch.repeat_interleave(torch.arange(len(buckets), device=keys.device), sizes)
    ordinal = torch.arange(len(keys), device=keys.device) - starts[group] + 1
    return _Occurrences(buckets, starts, sizes, group, ordinal, rows)


def _hashes(num_hashes: int, seed: int) -> list[tuple[int, int]]:
    """Multiply-shift hashes (Dietzfelbinger et al. 1997): odd factors and shifts, as int64."""
    pairs = []
    for array in range(num_hashes):
        factor, shift = (_mixed(seed * 2 * num_hashes + 2 * array + k) for k in range(2))
        pairs.append((_signed(factor | 1), _signed(shift)))
    return pairs


def _mixed(value: int) -> int:
    """SplitMix64 of an integer."""
    z = (value + 1) * 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
