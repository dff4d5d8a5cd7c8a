"""Candidates drawn by popularity, tempered by an exponent."""

from __future__ import annotations

import math
from copy import copy

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates, Positives
from candid.errors import ConfigError
from candid.samplers.config import SamplerConfig
from candid.samplers.excluding import Gaps, joined
from candid.samplers.expected_count import log_expected_count
from candid.samplers.frequency import Counts, checked_counts
from candid.samplers.on_device import OnDevice
from candid.samplers.support import check_set_size, check_support


class Popularity:
    """n draws with replacement from Q(d) ∝ count(d)^exponent, shared by all rows.

    Expected count n·Q(d), or 1 - (1 - Q(d))^n for the distinct items among the draws. A draw
    costs O(log V). An item with count 0 is never drawn, whatever exponent is, and has a log
    expected count of -inf: its share of the partition function is missed. Where such items are
    in the catalog, give them a ``min_count`` or add a uniform component (see ``Mixture``). Since a
    mixture may well have such a part, it is not this class that refuses them unasked, but what
    puts a whole sampler to use: training, and ``SampledSoftmaxLoss``.

    Args:
        counts: [V], how often each item is a training target.
        num_candidates: n, the number of draws; with ``distinct`` fewer candidates may come.
        exponent: exponent, 1 for popularity itself, 0 for uniform over the items with a count.
        distinct: keep one of each item.
        min_count: least count of an item: fewer count as so many.
        every_item: refuse here and now counts by which an item could never be drawn.

    Raises:
        ConfigError: ``num_candidates`` is less than 1, or more than V for a distinct set;
            ``exponent`` or ``min_count`` negative or not finite; or, with ``every_item``, an item that
            cannot be drawn: names it.
        DataError: the counts are not a vector of finite non-negative numbers with a
            positive sum.
    """

    class Config(SamplerConfig):
        """Settings of ``Popularity``."""

        num_candidates: int = Field(256, ge=1, description="draws a step")
        exponent: float = Field(
            1.0,
            ge=0,
            description="exponent of the counts: 1 draws by popularity, 0 uniformly",
        )
        distinct: bool = Field(False, description="keep one of each item drawn")
        min_count: float = Field(
            0.0,
            ge=0,
            description="least count of an item: above 0, items without a count are drawn too",
        )
        every_item: bool = Field(
            False,
            description="refuse a catalog in which this sampler by itself can never draw an "
            "item; a softmax refuses what the whole sampler cannot draw in any case",
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def is_set(self) -> bool:
            """``distinct``; see ``SamplerConfig``."""
            return self.distinct

        def build(self, counts: Tensor) -> Popularity:
            """Build for a catalog with these training counts."""
            return Popularity(
                counts,
                self.num_candidates,
                self.exponent,
                self.distinct,
                self.min_count,
                self.every_item,
            )

    def __init__(
        self,
        counts: Counts,
        num_candidates: int,
        exponent: float = 1.0,
        distinct: bool = False,
        min_count: float = 0.0,
        every_item: bool = False,
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
        # The largest weight is 1, so that no exponent overflows. -inf · 0 would be nan: a count
        # of 0 keeps its -inf.
        log_weights = torch.where(
            log_counts.isneginf(), log_counts, exponent * (log_counts - log_counts.max())
        )
        self.num_items = len(log_weights)
        self.num_candidates = num_candidates
        self.exponent = exponent
        self.distinct = distinct
        cumulative = log_weights.exp().cumsum(0)
        self._cumulative = OnDevice(cumulative)
        self._log_q = OnDevice(log_weights - cumulative[-1].log())
        self._left_out = OnDevice(torch.empty(0, dtype=torch.int64))

    def excluding(self, exact_ids: Tensor) -> Popularity:
        """Draw from the other items alone; see ``Avoiding.outside``."""
        others = copy(self)
        left_out = joined(self._left_out(exact_ids.device), exact_ids)
        others._left_out = OnDevice(left_out)
        whole = self._cumulative(exact_ids.device)[-1]
        # What differences of sums leave of less than this is their rounding.
        is_nothing = others._gaps(exact_ids.device).remaining(whole) < 1e-12 * whole
        return self if bool(is_nothing) else others

    def sample(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw the candidates of one step; see ``Sampler.draw``."""
        ids = self._draw_ids(batch.positive_ids.device, generator)
        if self.distinct:
            ids = torch.unique(ids)
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, batch),
            log_expected_count_positive=self.log_expected_count_of(batch.positive_ids, batch),
            num_samples=None if self.distinct else self.num_candidates,
        )

    def log_expected_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items; see ``Sampler.log_expected_count_of``."""
        log_q, left_out = self._log_q(ids.device)[ids], self._left_out(ids.device)
        if len(left_out):
            whole = self._cumulative(ids.device)[-1]
            share = self._gaps(ids.device).remaining(whole) / whole
            # Q of the one item left may round to just above 1.
            log_q = (log_q - share.log()).clamp(max=0.0)
            log_q = log_q.masked_fill(torch.isin(ids, left_out), -math.inf)
        return log_expected_count(log_q, self.num_candidates, self.distinct)

    def support(self, is_positive: Tensor) -> Tensor:
        """Items with a count, or a min_count; see ``HasSupport.support``."""
        cpu = torch.device("cpu")
        can = ~self._log_q(cpu).isneginf()
        can[self._left_out(cpu)] = False
        return can

    def _draw_ids(self, device: torch.device, generator: torch.Generator | None) -> Tensor:
        cumulative, gaps = self._cumulative(device), self._gaps(device)
        points = torch.rand(
            self.num_candidates, generator=generator, device=device, dtype=torch.float64
        )
        points = gaps.widened(points * gaps.remaining(cumulative[-1]))
        # What rounds up to the total would fall beyond the last item. What rounds into a gap
        # falls on an item of the head, and is dropped like any draw of the head.
        below_total = torch.nextafter(cumulative[-1], torch.zeros_like(cumulative[-1]))
        return torch.searchsorted(cumulative, torch.minimum(points, below_total), right=True)

    def _gaps(self, device: torch.device) -> Gaps:
        cumulative, left_out = self._cumulative(device), self._left_out(device)
        begins = torch.where(left_out > 0, cumulative[left_out - 1], 0.0)
        return Gaps(begins, cumulative[left_out] - begins)
