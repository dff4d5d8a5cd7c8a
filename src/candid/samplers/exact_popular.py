"""Some items exactly, the rest by draws: the most popular, or a head of another kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates, ExactCandidates, Positives
from candid.errors import ConfigError
from candid.samplers.adaptive import Compound
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.excluding import excluding
from candid.samplers.frequency import Counts, checked_counts
from candid.samplers.on_device import OnDevice
from candid.samplers.popularity import Popularity
from candid.samplers.sampler import Sampler
from candid.samplers.support import support


class ExactAndSampled(Compound, ABC):
    """A head with expected count 1, shared by all rows or each row's own, and draws for the rest.

    The estimate of Z' is unbiased for *any* head that is settled before the tail is drawn: what
    is in it is summed, what is not is estimated, and only the draws are random. So the head may
    be stale, silly or made from the very rows that it serves. It may even hold a row's positive:
    the loss masks it there as it does among the draws, Z' being a sum over the *other* items.

    The tail draws outside a shared head where it can (``Avoiding``): then every draw counts. Of
    another tail, and beside heads of the rows' own, the draws that fall into the head are
    dropped; where all of a row's draws do, the tail's share is missed. That happens with
    probability Q(head)^n. ``log_expected_count_of`` states what the *draws* expect.

    Args:
        tail: draws the rest.

    Raises:
        ConfigError: the tail has a head itself.
    """

    def __init__(self, rest: Sampler) -> None:
        if isinstance(rest, ExactAndSampled):
            raise ConfigError(
                "the tail of a sampler with an exact head cannot have a head of its own"
            )
        self.rest = rest
        self.parts = {"rest": rest}

    @abstractmethod
    def split(self, batch: Positives) -> tuple[Tensor, Sampler]:
        """The head of a batch, as in ``Head.ids``, and the tail as it draws beside it."""

    def sample(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw the tail of one step; see ``Sampler.draw``."""
        exact_ids, rest = self.split(batch)
        sampled = rest.sample(batch, generator)
        ids = exact_ids.clamp(min=0)
        if sampled.ids.ndim > 1 and ids.ndim == 1:
            # A tail that draws for each row apart expects of the head what that row expects.
            ids = ids.expand(len(batch.positive_ids), -1)
        return replace(
            sampled, exact=ExactCandidates(exact_ids, rest.log_expected_count_of(ids, batch))
        )

    def log_expected_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items among the draws; see ``Sampler.log_expected_count_of``."""
        return self.split(batch)[1].log_expected_count_of(ids, batch)

    def support(self, is_positive: Tensor) -> Tensor:
        """What the tail can draw: no head is sure to hold an item; see ``HasSupport.support``."""
        return support(self.rest, is_positive)


class ExactPopular(ExactAndSampled):
    """A fixed head: the most popular items.

    A softmax over a catalog is mostly decided by few items; scoring those exactly takes them
    out of the noise.

    Args:
        counts: [V], how often each item is a training target.
        tail: draws the rest.
        num_exact: H, items of the head: those with the highest counts.

    Raises:
        ConfigError: ``num_exact`` is less than 1 or more than V, or the tail has a head itself.
        DataError: the counts are not a vector of finite non-negative numbers with a positive
            sum.
    """

    class Config(SamplerConfig):
        """Settings of ``ExactPopular``."""

        num_exact: int = Field(64, ge=1, description="items compared exactly: the most popular")
        rest: SamplerComponent = Field(
            default_factory=Popularity.Config, description="where the other candidates come from"
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Exact candidates and those of the rest; see ``SamplerConfig``."""
            return self.num_exact + self.rest.candidates_per_row(batch_rows)

        @property
        def parts(self) -> tuple[SamplerConfig, ...]:
            """The rest; see ``SamplerConfig``."""
            return (self.rest,)

        @property
        def has_exact(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> ExactPopular:
            """Build head and tail for the same catalog."""
            return ExactPopular(counts, self.rest.build(counts), self.num_exact)

    def __init__(self, counts: Counts, rest: Sampler, num_exact: int) -> None:
        super().__init__(rest)
        checked = checked_counts(counts)
        if not 1 <= num_exact <= len(checked):
            raise ConfigError(
                f"num_exact must be between 1 and the {len(checked)} items of the catalog, got "
                f"{num_exact}"
            )
        self.num_exact = num_exact
        exact_ids = most_popular(checked, num_exact)
        self._head_ids = OnDevice(exact_ids)
        self._tail_outside = excluding(rest, exact_ids)

    def split(self, batch: Positives) -> tuple[Tensor, Sampler]:
        """The most popular items, and the tail beside them; see ``ExactAndSampled.split``."""
        return self._head_ids(batch.positive_ids.device), self._tail_outside

    def support(self, is_positive: Tensor) -> Tensor:
        """The head, and what the tail can draw; see ``HasSupport.support``."""
        can = super().support(is_positive).clone()
        can[self._head_ids(can.device)] = True
        return can


def most_popular(counts: Tensor, num_items: int) -> Tensor:
    """[H] int64 ascending, the items with the highest counts; ties fall to the lower id."""
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:num_items].sort().values
