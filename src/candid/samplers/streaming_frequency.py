"""Item frequency from the gaps between an item's occurrences in the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.samplers.frequency import Frequency, FrequencyConfig, log_q_of_stream
from candid.samplers.table_module import scalar_tensor

_MASK = 2**64 - 1

NUM_BUCKETS: Final = 262_144
"""Default of ``num_buckets``."""

NUM_HASHES: Final = 3
"""Default of ``num_hashes``."""

RATE: Final = 0.01
"""Default of ``rate``."""

SEED: Final = 0
"""Default of ``seed``."""


class StreamingFrequency(Frequency):
    """Q(d) as 1 / (average gap between occurrences of d), with gaps counted in rows of the stream.

    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations"
    (RecSys 2019), algorithm 2: an item's bucket holds the row of its last occurrence and a
    moving average of the gaps, gap ← (1 - rate)·gap + rate·(now - last). Items that share a
    bucket shorten each other's gaps. There are several arrays with independent hashes, and the
    largest gap is used. The paper counts gaps in steps, where the frequency of an item of every
    batch saturates. Here gaps are counted in rows, so that the average depends on the order of
    the rows and not on how they are cut into batches.

    Until an item has been seen 1 / rate times its frequency is its count over T, the rows so
    far: a moving average would still depend on its start. Later, the estimate of an item that
    stays away falls as the gap that is still open grows beyond its average. An estimate from a
    moving average has a relative standard deviation of about sqrt(rate / 2), 7 % at a rate of
    0.01, and follows a change within about 1 / rate occurrences.

    Args:
        num_items: V.
        num_buckets: number of buckets of each array, 16 bytes each.
        num_hashes: number of arrays.
        rate: weight of the newest gap, above 0 and below 1.
        seed: of the hashes.

    Attributes:
        num_items: V.
        num_rows: T, rows observed.

    Raises:
        ConfigError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from candid.samplers import StreamingFrequency
        >>> frequency = StreamingFrequency(10, num_buckets=1000)
        >>> frequency.observe(torch.tensor([3, 3, 3, 1]))
        >>> frequency.log_q(torch.tensor([3, 1])).exp()
        tensor([0.7500, 0.2500])
    """

    class Config(FrequencyConfig):
        """Settings of ``StreamingFrequency``."""

        num_buckets: int = Field(
            NUM_BUCKETS, ge=1, le=2**31, description="buckets of each array, 16 bytes each"
        )
        num_hashes: int = Field(
            NUM_HASHES,
            ge=1,
            le=16,
            description="number of arrays; two items rarely share a bucket in all of them",
        )
        rate: float = Field(
            RATE,
            gt=0,
            lt=1,
            description="weight of the newest gap in the moving average: lower has less "
            "variance, higher follows a changing popularity sooner",
        )
        seed: int = Field(SEED, ge=0, lt=2**63, description="seed of the hashes")

        def build(self, counts: Tensor) -> StreamingFrequency:
            """Build for a catalog of ``len(counts)`` items; the counts are not used."""
            return StreamingFrequency(
                len(counts),
                num_buckets=self.num_buckets,
                num_hashes=self.num_hashes,
                rate=self.rate,
                seed=self.seed,
            )

    extra_tensor_names: ClassVar[tuple[str, ...]] = ("num_rows", "hashes")

    gap: Tensor
    last_row: Tensor
    times_seen: Tensor

    def __init__(
        self,
        num_items: int,
        *,
        num_buckets: int = NUM_BUCKETS,
        num_hashes: int = NUM_HASHES,
        rate: float = RATE,
        seed: int = SEED,
    ) -> None:
        if num_items < 1 or not 1 <= num_buckets <= 2**31 or num_hashes < 1:
            raise ConfigError(
                "num_items, num_buckets and num_hashes must be at least 1 (num_buckets at most "
                f"2^31), got {num_items}, {num_buckets} and {num_hashes}"
            )
        if not 0 < rate < 1:
            raise ConfigError(f"rate must be above 0 and below 1, got {rate}")
        super().__init__(num_items)
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes
        self.rate = rate
        self.num_rows = 0
        self._hashes = _hashes(num_hashes, seed)
        shape = (num_hashes * num_buckets,)
        self.register_buffer("last_row", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("gap", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("times_seen", torch.zeros(shape, dtype=torch.int32))

    def log_q(self, ids: Tensor) -> Tensor:
        """Return the log probability of items; see ``Frequency.log_q``."""
        buckets = self._buckets(ids)
        times_seen = self.times_seen[buckets]
        average = self.gap[buckets].double()
        open_gap = (self.num_rows - self.last_row[buckets]).double()
        is_new = times_seen <= self._num_counted
        estimate = torch.where(
            is_new,
            self.num_rows / times_seen.double(),
            torch.maximum(average, average + self.rate * (open_gap - average)),
        )
        # A count of 0 gives an infinite gap: one array without the item proves that it is new.
        return log_q_of_stream(1.0 / estimate.amax(dim=0), self.num_rows, self.num_items)

    def observe(self, ids: Tensor) -> None:
        """Update the estimate with the positives of a batch; see ``Frequency.observe``.

        The result is that of one row after the other, repeated items included.
        """
        ids = ids.flatten()
        rows = torch.arange(len(ids), device=ids.device) + (self.num_rows + 1)
        self.num_rows += len(ids)
        keys, order = torch.sort(self._buckets(ids).flatten(), stable=True)
        runs = _occurrences(keys, rows.repeat(self.num_hashes)[order])
        earlier_counts = self.times_seen[runs.buckets].long()

        previous = torch.where(
            runs.ordinal > 1, runs.rows.roll(1), self.last_row[runs.buckets][runs.group]
        )
        is_averaged = earlier_counts[runs.group] + runs.ordinal > self._num_counted
        log_decay = math.log1p(-self.rate)
        weight = self.rate * torch.exp(log_decay * (runs.sizes[runs.group] - runs.ordinal).double())
        newest = torch.where(is_averaged, weight * (runs.rows - previous), 0.0)

        num_counted = (self._num_counted - earlier_counts).clamp(min=0).minimum(runs.sizes)
        last_counted = runs.rows[runs.starts + (num_counted - 1).clamp(min=0)].double()
        start = torch.where(
            num_counted > 0,
            last_counted / (earlier_counts + num_counted).clamp(min=1),
            self.gap[runs.buckets].double(),
        )
        gap = start * torch.exp(log_decay * (runs.sizes - num_counted).double())
        gap = gap.index_add(0, runs.group, newest)

        self.gap[runs.buckets] = gap.float()
        self.last_row[runs.buckets] = runs.rows[runs.starts + runs.sizes - 1]
        self.times_seen[runs.buckets] = (earlier_counts + runs.sizes).clamp(max=2**31 - 1).int()

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the number of rows, and the hashes, which a state must share."""
        return {"num_rows": scalar_tensor(self.num_rows), "hashes": torch.tensor(self._hashes)}

    def set_extra_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state with the same hashes."""
        if not torch.equal(state["hashes"].cpu(), torch.tensor(self._hashes)):
            raise ArtifactError(
                "the stored frequency has other hashes than this one: load it with the "
                "num_buckets, num_hashes and seed that it was created with"
            )
        self.num_rows = int(state["num_rows"])

    @property
    def _num_counted(self) -> int:
        """Occurrences of an item that are counted before its gaps are averaged."""
        return math.ceil(1.0 / self.rate)

    def _buckets(self, ids: Tensor) -> Tensor:
        """Return [num_hashes, *ids.shape] positions in the tables, one array after the other."""
        arrays = []
        for array, (factor, shift) in enumerate(self._hashes):
            # Products wrap around; the upper 32 of the 64 bits are the hash.
            upper = ((ids * factor + shift) >> 32) & 0xFFFFFFFF
            arrays.append(((upper * self.num_buckets) >> 32) + array * self.num_buckets)
        return torch.stack(arrays)


@dataclass(frozen=True, slots=True)
class _Occurrences:
    """Rows [R] grouped by bucket: G groups, each a run in the order of the stream.

    Attributes:
        buckets: [G].
        starts: [G], the start of each run.
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
    """Return multiply-shift hashes (Dietzfelbinger et al. 1997): odd factors, shifts, int64."""
    pairs = []
    for array in range(num_hashes):
        factor, shift = (_splitmix64(seed * 2 * num_hashes + 2 * array + k) for k in range(2))
        pairs.append((_to_signed(factor | 1), _to_signed(shift)))
    return pairs


def _splitmix64(value: int) -> int:
    """Return SplitMix64 of an integer."""
    z = (value + 1) * 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _to_signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
