"""Candidates drawn uniformly from the catalog."""

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
from candid.samplers.on_device import OnDevice
from candid.samplers.support import check_set_size


class Uniform:
    """n draws with replacement from Q(d) = 1/V, shared by all rows.

    Expected count n/V, or 1 - (1 - 1/V)^n for the distinct items among the draws.

    Args:
        num_items: V, the size of the catalog.
        num_candidates: n, the number of draws; with ``distinct`` fewer candidates may come.
        distinct: keep one of each item.

    Raises:
        ConfigError: ``num_items`` or ``num_candidates`` is less than 1, or ``num_candidates``
            is more than V for a distinct set.
    """

    class Config(SamplerConfig):
        """Settings of ``Uniform``."""

        num_candidates: int = Field(256, ge=1, description="draws a step")
        distinct: bool = Field(False, description="keep one of each item drawn")

        def candidates_per_row(self, batch_rows: int) -> int:
            """``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def is_set(self) -> bool:
            """``distinct``; see ``SamplerConfig``."""
            return self.distinct

        def build(self, counts: Tensor) -> Uniform:
            """Build for a catalog of ``len(counts)`` items."""
            return Uniform(len(counts), self.num_candidates, self.distinct)

    def __init__(self, num_items: int, num_candidates: int, distinct: bool = False) -> None:
        if num_items < 1 or num_candidates < 1:
            raise ConfigError(
                f"num_items and num_candidates must be at least 1, "
                f"got {num_items} and {num_candidates}"
            )
        if distinct:
            check_set_size(num_candidates, num_items)
        self.num_items = num_items
        self.num_candidates = num_candidates
        self.distinct = distinct
        self._left_out = OnDevice(torch.empty(0, dtype=torch.int64))

    def excluding(self, exact_ids: Tensor) -> Uniform:
        """Draw from the other items alone; see ``Avoiding.outside``."""
        left_out = joined(self._left_out(exact_ids.device), exact_ids)
        if len(left_out) == self.num_items:
            return self
        others = copy(self)
        others._left_out = OnDevice(left_out)
        return others

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
        left_out = self._left_out(ids.device)
        log_q = torch.tensor(-math.log(self.num_items - len(left_out)), dtype=torch.float64)
        expected = log_expected_count(log_q, self.num_candidates, self.distinct).item()
        counts = torch.full(ids.shape, expected, device=ids.device)
        return counts.masked_fill(torch.isin(ids, left_out), -math.inf) if len(left_out) else counts

    def _draw_ids(self, device: torch.device, generator: torch.Generator | None) -> Tensor:
        left_out = self._left_out(device)
        places = torch.randint(
            self.num_items - len(left_out),
            (self.num_candidates,),
            generator=generator,
            device=device,
        )
        return Gaps(left_out, torch.ones_like(left_out)).widened(places)
