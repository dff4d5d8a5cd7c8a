"""Candidates sampled uniformly from the catalog."""

from __future__ import annotations

import copy
import math

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates, is_among
from candid.errors import ConfigError
from candid.samplers.config import DISTINCT, SamplerConfig
from candid.samplers.excluded import ExcludedIntervals, union_of_ids
from candid.samplers.expected_count import log_expected_count
from candid.samplers.sampler import Sampler
from candid.samplers.support import check_set_size


class Uniform(Sampler):
    """n samples with replacement from Q(d) = 1/V, shared by all rows.

    Expected count n/V, or 1 - (1 - 1/V)^n for the distinct items among the samples.

    Args:
        num_items: V, the size of the catalog.
        num_candidates: n, the number of samples; with ``distinct`` there may be fewer
            candidates.
        distinct: keep each item once.

    Raises:
        ConfigError: ``num_items`` or ``num_candidates`` is less than 1, or ``num_candidates``
            is more than V for a distinct set.

    Example:
        >>> import torch
        >>> from candid.samplers import Uniform
        >>> sampler = Uniform(100, num_candidates=8)
        >>> sampler.sample(torch.tensor([3, 5])).ids.shape
        torch.Size([8])
    """

    class Config(SamplerConfig):
        """Settings of ``Uniform``."""

        num_candidates: int = Field(256, ge=1, le=2**31, description="samples per step")
        distinct: bool = Field(DISTINCT, description="keep each sampled item once")

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return ``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def is_set(self) -> bool:
            """``distinct``; see ``SamplerConfig``."""
            return self.distinct

        def build(self, counts: Tensor) -> Uniform:
            """Build for a catalog of ``len(counts)`` items."""
            return Uniform(len(counts), num_candidates=self.num_candidates, distinct=self.distinct)

    _excluded_ids: Tensor

    reads_query = False

    def __init__(self, num_items: int, *, num_candidates: int, distinct: bool = DISTINCT) -> None:
        if num_items < 1 or num_candidates < 1:
            raise ConfigError(
                f"num_items and num_candidates must be at least 1, "
                f"got {num_items} and {num_candidates}"
            )
        if distinct:
            check_set_size(num_candidates, num_items)
        super().__init__(num_items)
        self.num_candidates = num_candidates
        self.distinct = distinct
        no_ids = torch.empty(0, dtype=torch.int64)
        self.register_buffer("_excluded_ids", no_ids, persistent=False)

    def excluding(self, ids: Tensor) -> Uniform:
        """Return a sampler of the other items; see ``Sampler.excluding``."""
        excluded_ids = union_of_ids(self._excluded_ids, ids)
        if len(excluded_ids) == self.num_items:
            return self
        others = copy.copy(self)
        others._excluded_ids = excluded_ids
        return others

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
        num_excluded = len(self._excluded_ids)
        log_q = torch.tensor(-math.log(self.num_items - num_excluded), dtype=torch.float64)
        expected = log_expected_count(log_q, self.num_candidates, self.distinct).item()
        counts = torch.full(ids.shape, expected, device=ids.device)
        if num_excluded:
            counts.masked_fill_(is_among(ids, self._excluded_ids), -math.inf)
        return counts

    def support(self, is_positive: Tensor) -> Tensor:
        """Every item that is not excluded; see ``Sampler.support``."""
        support = torch.ones_like(is_positive)
        support[self._excluded_ids.cpu()] = False
        return support

    def _sample_ids(self, device: torch.device, generator: torch.Generator | None) -> Tensor:
        points = torch.randint(
            self.num_items - len(self._excluded_ids),
            (self.num_candidates,),
            generator=generator,
            device=device,
        )
        lengths = torch.ones_like(self._excluded_ids)
        return ExcludedIntervals(self._excluded_ids, lengths).to_full_line(points)
