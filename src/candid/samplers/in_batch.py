"""The positives of the other rows as candidates."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import NO_OWNER, Candidates, num_of_others
from candid.errors import ConfigError
from candid.row_counts import RowCounts
from candid.samplers.config import DISTINCT, EXCLUDE_SAME_USER, SamplerConfig
from candid.samplers.expected_count import (
    BatchSource,
    CountParts,
    log_expected_count,
    make_row_counts,
)
from candid.samplers.frequency import (
    FREQUENCY_DESCRIPTION,
    Counts,
    ExactFrequency,
    Frequency,
    FrequencyComponent,
    as_frequency,
)
from candid.samplers.sampler import Sampler


class InBatch(Sampler):
    """The batch's own positives, treated as samples from the item frequency Q.

    With repetitions the expected count is n·Q(d) for n candidates. A row's own positive (and
    with ``exclude_same_user`` every positive of the row's user) is masked by the loss, which
    then counts the remaining candidates: exact for each row, for any share of its user in the
    batch. A loss that keeps accidental hits masks the row itself and the other rows of its user,
    and keeps other users' rows with the same item.

    As a set, an item is a candidate of a row where some row of *another* user has it, with
    inclusion probability 1 - (1 - Q(d))^m for m rows of other users (m = rows - 1 if users are
    not excluded): the row's own positive is given, not sampled. An item of several users has
    owner -1 and is masked for no row, since another user's row always has it; an item of one
    user is masked for that user's rows. A softmax uses the m of each row
    (``Candidates.row_counts``); ``log_expected_count`` has the average m over the rows.

    The positives count as independent samples from Q. Rows of one user are only approximately
    independent: the frequency of an item among *other* users is assumed to be Q as well.

    Args:
        frequency: item counts [V], or any ``Frequency``.
        exclude_same_user: mask the other positives of a row's own user.
        distinct: keep each item once.
        num_candidates: number of the batch's positives to take, sampled without replacement
            (all if the batch has no more); None for all.

    Raises:
        ConfigError: ``num_candidates`` is less than 1.
        DataError: counts that are not a vector of finite non-negative numbers with a
            positive sum.

    Example:
        >>> import torch
        >>> from candid.samplers import InBatch
        >>> sampler = InBatch(torch.tensor([5, 3, 1]))
        >>> sampler.sample(torch.tensor([0, 2])).ids
        tensor([0, 2])
    """

    class Config(SamplerConfig):
        """Settings of ``InBatch``."""

        exclude_same_user: bool = Field(
            EXCLUDE_SAME_USER, description="never use a user's other positives as negatives"
        )
        distinct: bool = Field(DISTINCT, description="keep each item once")
        num_candidates: int | None = Field(
            None, ge=1, description="positives of the batch to take; absent: all"
        )
        frequency: FrequencyComponent = Field(
            default_factory=ExactFrequency.Config, description=FREQUENCY_DESCRIPTION
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return ``num_candidates``, at most the rows of the batch; see ``SamplerConfig``."""
            return min(self.num_candidates or batch_rows, batch_rows)

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
            return InBatch(
                self.frequency.build(counts),
                exclude_same_user=self.exclude_same_user,
                distinct=self.distinct,
                num_candidates=self.num_candidates,
            )

    takes_batch_rows = True
    reads_query = False

    def __init__(
        self,
        frequency: Frequency | Counts,
        *,
        exclude_same_user: bool = EXCLUDE_SAME_USER,
        distinct: bool = DISTINCT,
        num_candidates: int | None = None,
    ) -> None:
        if num_candidates is not None and num_candidates < 1:
            raise ConfigError(f"num_candidates must be at least 1, got {num_candidates}")
        checked = as_frequency(frequency)
        super().__init__(checked.num_items)
        self.frequency: Frequency = checked
        self.exclude_same_user = exclude_same_user
        self.distinct = distinct
        self.num_candidates = num_candidates

    @property
    def is_set(self) -> bool:
        """``distinct``; see ``Sampler.is_set``."""
        return self.distinct

    def sample(
        self,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Take the candidates of one step; see ``Sampler.sample``.

        Raises:
            DataError: a positive has frequency 0 (checked on the CPU, where it needs no
                device synchronisation).
        """
        row_user_ids = self._row_user_ids(user_ids)
        ids, owner = positive_ids, row_user_ids
        num_samples = self._num_samples(positive_ids)
        rows = torch.arange(len(ids), device=ids.device)
        if num_samples < len(ids):
            rows = torch.randperm(len(ids), generator=generator, device=ids.device)[:num_samples]
            ids, owner = ids[rows], None if owner is None else owner[rows]
        row_counts = None
        if self.distinct:
            source = _set_source(rows, row_user_ids, len(positive_ids))
            ids, owner = _distinct(ids, owner)
            row_counts = self._row_counts(ids, positive_ids, user_ids, source)
        self.frequency.check_positives(ids)
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, positive_ids, user_ids),
            log_expected_count_positive=self.log_expected_count_of(
                positive_ids, positive_ids, user_ids
            ),
            num_samples=None if self.distinct else num_samples,
            owner=owner,
            row_user_ids=row_user_ids,
            source_rows=rows if owner is None and not self.distinct else None,
            row_counts=row_counts,
        )

    def log_expected_count_of(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Return the log expected count of items; see ``Sampler.log_expected_count_of``."""
        num_samples: int | Tensor = self._num_samples(positive_ids)
        if self.distinct:
            num_others = num_samples * self._share_of_others(positive_ids, user_ids)
            # Without a row of another user all candidates are masked in all rows; any finite
            # count serves, where log 0 would be taken for an impossible candidate.
            num_samples = torch.where(num_others > 0, num_others, 1.0)
        return log_expected_count(self.frequency.log_q(ids), num_samples, self.distinct)

    def count_parts(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> CountParts:
        """Return log Q: all candidates are rows of the batch; see ``Sampler.count_parts``."""
        return CountParts(None, (self.frequency.log_q(ids),))

    def support(self, is_positive: Tensor) -> Tensor:
        """Items that are ever a positive; see ``Sampler.support``."""
        return self.frequency.support(is_positive)

    def observe(self, positive_ids: Tensor, user_ids: Tensor | None = None) -> None:
        """Update a frequency that is estimated from the stream; see ``Sampler.observe``."""
        self.frequency.observe(positive_ids)

    def _row_counts(
        self, ids: Tensor, positive_ids: Tensor, user_ids: Tensor | None, source: BatchSource
    ) -> RowCounts:
        return make_row_counts(
            self.log_expected_count_of(ids, positive_ids, user_ids),
            self.count_parts(ids, positive_ids),
            self.count_parts(positive_ids, positive_ids),
            [source],
        )

    def _row_user_ids(self, user_ids: Tensor | None) -> Tensor | None:
        return user_ids if self.exclude_same_user else None

    def _num_samples(self, positive_ids: Tensor) -> int:
        num_rows = len(positive_ids)
        return num_rows if self.num_candidates is None else min(self.num_candidates, num_rows)

    def _share_of_others(self, positive_ids: Tensor, user_ids: Tensor | None) -> Tensor:
        """Return the share of rows that count as another user's, averaged over the rows."""
        num_rows = max(1, len(positive_ids))
        row_user_ids = self._row_user_ids(user_ids)
        if row_user_ids is None:
            own_share = torch.tensor(1.0 / num_rows, dtype=torch.float64)
        else:
            # Not torch.unique, whose number of results an accelerator must read.
            num_own = len(row_user_ids) - num_of_others(row_user_ids, row_user_ids)
            own_share = num_own.double().sum() / num_rows**2
        return 1.0 - own_share


def _set_source(rows: Tensor, row_user_ids: Tensor | None, num_rows: int) -> BatchSource:
    """Return the rows [n] taken from a batch of ``num_rows``, each of whose items is kept once."""
    if row_user_ids is None:
        others = num_of_others(rows, torch.arange(num_rows, device=rows.device))
        return BatchSource(others, True, len(rows), None)
    owner = row_user_ids[rows]
    return BatchSource(num_of_others(owner, row_user_ids), True, len(rows), owner)


def _distinct(ids: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the distinct items, each with its user, or -1 where several users have it."""
    distinct, group = torch.unique(ids, return_inverse=True)
    if owner is None:
        return distinct, None
    shape = (len(distinct),)
    lowest = owner.new_zeros(shape).scatter_reduce(0, group, owner, "amin", include_self=False)
    highest = owner.new_zeros(shape).scatter_reduce(0, group, owner, "amax", include_self=False)
    return distinct, torch.where(lowest == highest, lowest, NO_OWNER)
