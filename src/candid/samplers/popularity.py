"""Candidates sampled by item popularity, tempered by an exponent."""

from __future__ import annotations

import copy
import math
from typing import Final

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates, is_among
from candid.errors import ConfigError
from candid.samplers.config import DISTINCT, SamplerConfig
from candid.samplers.excluded import ExcludedIntervals, union_of_ids
from candid.samplers.expected_count import log_expected_count
from candid.samplers.frequency import Counts, checked_counts
from candid.samplers.sampler import Sampler
from candid.samplers.support import check_set_size, check_support

EXPONENT: Final = 1.0
"""Default of ``exponent``."""

MIN_COUNT: Final = 0.0
"""Default of ``min_count``."""

EVERY_ITEM: Final = False
"""Default of ``every_item``."""


class Popularity(Sampler):
    """n samples with replacement from Q(d) ∝ count(d)^exponent, shared by all rows.

    Expected count n·Q(d), or 1 - (1 - Q(d))^n for the distinct items among the samples. A
    sample costs O(log V).

    An item with count 0 is never sampled, for any exponent, and has log expected count -inf:
    the estimate misses its share of the partition function. If the catalog has such items, set
    ``min_count`` or add a uniform component (``Mixture``). This class accepts them, because a
    mixture may contain a component that samples them; training and ``SampledSoftmaxLoss``
    refuse a whole sampler that cannot draw an item.

    Args:
        counts: [V], how often each item is a target in an epoch.
        num_candidates: n, the number of samples; with ``distinct`` there may be fewer
            candidates.
        exponent: power of the counts: 1 is popularity itself, 0 is uniform over the items with
            a count.
        distinct: keep each item once.
        min_count: lower bound of the counts; lower ones are raised to it.
        every_item: refuse counts with which an item can never be sampled.

    Raises:
        ConfigError: ``num_candidates`` is less than 1, or more than V for a distinct set;
            ``exponent`` or ``min_count`` is negative or not finite; or, with ``every_item``, an
            item can never be sampled (named).
        DataError: the counts are not a vector of finite non-negative numbers with a
            positive sum.

    Example:
        >>> import torch
        >>> from candid.samplers import Popularity
        >>> sampler = Popularity(torch.tensor([5, 3, 1, 1]), num_candidates=8, exponent=0.75)
        >>> sampler.sample(torch.tensor([0, 1])).ids.shape
        torch.Size([8])
    """

    class Config(SamplerConfig):
        """Settings of ``Popularity``."""

        num_candidates: int = Field(256, ge=1, le=2**31, description="samples per step")
        exponent: float = Field(
            EXPONENT,
            ge=0,
            description="power of the counts: 1 samples by popularity, 0 uniformly",
        )
        distinct: bool = Field(DISTINCT, description="keep each sampled item once")
        min_count: float = Field(
            MIN_COUNT,
            ge=0,
            description="lower bound of the counts: above 0, items without a count are sampled too",
        )
        every_item: bool = Field(
            EVERY_ITEM,
            description="refuse a catalog in which this sampler alone can never sample an item; "
            "a softmax always refuses items that the whole sampler cannot sample",
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return ``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def is_set(self) -> bool:
            """``distinct``; see ``SamplerConfig``."""
            return self.distinct

        def build(self, counts: Tensor) -> Popularity:
            """Build for a catalog with these training counts."""
            return Popularity(
                counts,
                num_candidates=self.num_candidates,
                exponent=self.exponent,
                distinct=self.distinct,
                min_count=self.min_count,
                every_item=self.every_item,
            )

    _cumulative: Tensor
    _log_q: Tensor
    _excluded_ids: Tensor

    reads_query = False

    def __init__(
        self,
        counts: Counts,
        *,
        num_candidates: int,
        exponent: float = EXPONENT,
        distinct: bool = DISTINCT,
        min_count: float = MIN_COUNT,
        every_item: bool = EVERY_ITEM,
    ) -> None:
        if num_candidates < 1:
            raise ConfigError(f"num_candidates must be at least 1, got {num_candidates}")
        for key, value in (("exponent", exponent), ("min_count", min_count)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{key} must be a finite number of at least 0, got {value}")
        log_counts = checked_counts(counts).clamp(min=min_count).log()
        if distinct:
            check_set_size(num_candidates, len(log_counts))
        if every_item:
            check_support(log_counts)
        super().__init__(len(log_counts))
        self.num_candidates = num_candidates
        self.exponent = exponent
        self.distinct = distinct
        self.min_count = min_count
        # The largest weight is 1, so that no exponent overflows. -inf · 0 would be NaN: a count
        # of 0 keeps its -inf.
        log_weights = torch.where(
            log_counts.isneginf(), log_counts, exponent * (log_counts - log_counts.max())
        )
        cumulative = log_weights.exp().cumsum(0)
        self.register_buffer("_cumulative", cumulative, persistent=False)
        self.register_buffer("_log_q", log_weights - cumulative[-1].log(), persistent=False)
        no_ids = torch.empty(0, dtype=torch.int64, device=cumulative.device)
        self.register_buffer("_excluded_ids", no_ids, persistent=False)

    def excluding(self, ids: Tensor) -> Popularity:
        """Return a sampler of the other items; see ``Sampler.excluding``."""
        others = copy.copy(self)
        others._excluded_ids = union_of_ids(self._excluded_ids, ids)
        total = self._cumulative[-1]
        # A smaller remainder is only the rounding error of differences of sums.
        is_empty = others._excluded().remaining_length(total) < 1e-12 * total
        return self if bool(is_empty) else others

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
        """Sample the candidates of one step; see ``Sampler.sample``."""
        ids = self._sample_ids(positive_ids.device, generator)
        if self.distinct:
            ids = torch.unique(ids)
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, positive_ids),
            log_expected_count_positive=self.log_expected_count_of(positive_ids, positive_ids),
            num_samples=None if self.distinct else self.num_candidates,
        )

    def log_expected_count_of(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Return the log expected count of items; see ``Sampler.log_expected_count_of``."""
        log_q = self._log_q[ids]
        if len(self._excluded_ids):
            total = self._cumulative[-1]
            share = self._excluded().remaining_length(total) / total
            # Q of a single remaining item may round to just above 1.
            log_q = (log_q - share.log()).clamp(max=0.0)
            log_q = log_q.masked_fill(is_among(ids, self._excluded_ids), -math.inf)
        return log_expected_count(log_q, self.num_candidates, self.distinct)

    def support(self, is_positive: Tensor) -> Tensor:
        """Items with a count or a ``min_count``; see ``Sampler.support``."""
        support = ~self._log_q.cpu().isneginf()
        support[self._excluded_ids.cpu()] = False
        return support

    def _sample_ids(self, device: torch.device, generator: torch.Generator | None) -> Tensor:
        cumulative, excluded = self._cumulative, self._excluded()
        points = torch.rand(
            self.num_candidates, generator=generator, device=device, dtype=torch.float64
        )
        points = excluded.to_full_line(points * excluded.remaining_length(cumulative[-1]))
        # A point that rounds up to the total would fall beyond the last item. A point that
        # rounds into an excluded interval gives an excluded item, which the loss drops.
        below_total = torch.nextafter(cumulative[-1], torch.zeros_like(cumulative[-1]))
        return torch.searchsorted(cumulative, torch.minimum(points, below_total), right=True)

    def _excluded(self) -> ExcludedIntervals:
        cumulative, excluded_ids = self._cumulative, self._excluded_ids
        begins = torch.where(excluded_ids > 0, cumulative[excluded_ids - 1], 0.0)
        return ExcludedIntervals(begins, cumulative[excluded_ids] - begins)
