"""The positives of the other rows as candidates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates, Positives
from candid.errors import ConfigError
from candid.samplers.config import SamplerConfig
from candid.samplers.expected_count import log_expected_count
from candid.samplers.frequency import (
    Counts,
    ExactFrequency,
    Frequency,
    FrequencyComponent,
    StreamFrequency,
    check_positives,
)


class InBatch:
    """The batch's own positives, taken as draws from the item frequency Q.

    With repetitions the expected count is n·Q(d) for n candidates. A row's own positive (and
    with ``exclude_same_user`` every positive of the row's user) is masked by the loss, which
    then counts the candidates that are left: exact for each row, whatever its user's share
    of the batch.

    As a set, an item is a candidate of a row where some row of *another* user has it, with
    inclusion probability 1 - (1 - Q(d))^m for m rows of other users (m = rows - 1 where users
    do not matter): the row's own positive is given, not drawn. An item of several users
    has owner -1 and is masked for no row, since another user's row always vouches for it; an
    item of one user is masked for that user's rows. The counts are shared by all rows, so m
    is the average over the rows: exact where all users have equally many rows, or without
    ``exclude_same_user``; otherwise the count of a rare item is off by the factor
    (a row's own m) / (average m), and that of a frequent item by less.

    The positives count as independent draws from Q. Rows of one user are not quite that: the
    frequency of an item among *other* users is taken to be Q as well.

    Args:
        frequency: item counts [V], or any ``Frequency``.
        exclude_same_user: mask the other positives of a row's own user.
        distinct: keep one of each item.
        num_candidates: take this many of the batch's positives, drawn without replacement
            (all where the batch has no more); None for all.

    Raises:
        ConfigError: ``num_candidates`` is less than 1.
        DataError: counts that are not a vector of finite non-negative numbers with a
            positive sum.
    """

    class Config(SamplerConfig):
        """Settings of ``InBatch``."""

        exclude_same_user: bool = Field(
            True, description="never take a user's other positives as that user's negatives"
        )
        distinct: bool = Field(False, description="keep one of each item")
        num_candidates: int | None = Field(
            None, ge=1, description="positives to take of the batch; all where not set"
        )
        frequency: FrequencyComponent = Field(
            default_factory=ExactFrequency.Config,
            description="how often each item is a positive: 'exact', from the training counts, "
            "or learnt from the stream of batches",
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """``num_candidates``, or the rows of the batch; see ``SamplerConfig``."""
            return self.num_candidates or batch_rows

        @property
        def is_set(self) -> bool:
            """``distinct``; see ``SamplerConfig``."""
            return self.distinct

        @property
        def reads_batch(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> InBatch:
            """Build with the frequency for a catalog with these training counts."""
            frequency = self.frequency.build(counts)
            return InBatch(frequency, self.exclude_same_user, self.distinct, self.num_candidates)

    def __init__(
        self,
        frequency: Frequency | Counts,
        exclude_same_user: bool = True,
        distinct: bool = False,
        num_candidates: int | None = None,
    ) -> None:
        if num_candidates is not None and num_candidates < 1:
            raise ConfigError(f"num_candidates must be at least 1, got {num_candidates}")
        self.frequency: Frequency = (
            frequency if isinstance(frequency, Frequency) else ExactFrequency(frequency)
        )
        self.exclude_same_user = exclude_same_user
        self.distinct = distinct
        self.num_candidates = num_candidates

    def sample(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Take the candidates of one step; see ``Sampler.draw``.

        Raises:
            DataError: a positive that the frequency says never occurs (checked on the CPU,
                where it needs no device synchronisation).
        """
        ids, user_ids = batch.positive_ids, batch.user_ids
        num_samples = self._num_samples(batch)
        if num_samples < len(ids):
            rows = torch.randperm(len(ids), generator=generator, device=ids.device)[:num_samples]
            ids, user_ids = ids[rows], user_ids[rows]
        if self.distinct:
            ids, user_ids = _distinct(ids, user_ids)
        check_positives(self.frequency, ids)
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, batch),
            log_expected_count_positive=self.log_expected_count_of(batch.positive_ids, batch),
            num_samples=None if self.distinct else num_samples,
            owner=user_ids if self.exclude_same_user else None,
            row_user_ids=batch.user_ids if self.exclude_same_user else None,
        )

    def log_expected_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items; see ``Sampler.log_expected_count_of``."""
        num_samples: int | Tensor = self._num_samples(batch)
        if self.distinct:
            num_samples = num_samples * self._share_of_others(batch)
        return log_expected_count(self.frequency.log_q(ids), num_samples, self.distinct)

    def support(self, is_positive: Tensor) -> Tensor:
        """Items that are ever a positive, and no others; see ``HasSupport.support``."""
        return is_positive.clone()

    def observe(self, batch: Positives) -> None:
        """Let the frequency learn from a batch, where it learns; see ``Observer.observe``."""
        if isinstance(self.frequency, StreamFrequency):
            self.frequency.observe(batch.positive_ids)

    def state(self) -> dict[str, Tensor]:
        """What the frequency has learnt, nothing where it is exact; see ``Stateful.state``."""
        return self.frequency.state() if isinstance(self.frequency, StreamFrequency) else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give the frequency back what it had learnt; see ``Stateful.restore``."""
        if isinstance(self.frequency, StreamFrequency):
            self.frequency.restore(state)

    def _num_samples(self, batch: Positives) -> int:
        num_rows = len(batch.positive_ids)
        return num_rows if self.num_candidates is None else min(self.num_candidates, num_rows)

    def _share_of_others(self, batch: Positives) -> Tensor:
        """Average over the rows of the share of rows that count as another's."""
        num_rows = max(1, len(batch.positive_ids))
        if not self.exclude_same_user:
            row_candidates = torch.tensor(1.0 / num_rows, dtype=torch.float64)
        else:
            rows_of_user = torch.unique(batch.user_ids, return_counts=True)[1].double()
            row_candidates = rows_of_user.square().sum() / num_rows**2
        return 1.0 - row_candidates


def _distinct(ids: Tensor, user_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct items, each with its user, or -1 where several users have it."""
    distinct, group = torch.unique(ids, return_inverse=True)
    shape = (len(distinct),)
    lowest = user_ids.new_zeros(shape).scatter_reduce(
        0, group, user_ids, "amin", include_self=False
    )
    highest = user_ids.new_zeros(shape).scatter_reduce(
        0, group, user_ids, "amax", include_self=False
    )
    return distinct, torch.where(lowest == highest, lowest, -1)
