"""Some items exactly, the rest by draws: the most popular, or a head of another kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ConfigError
from candid.proposals.adaptive import Compound
from candid.proposals.candidates import Candidates, Head, Positives, Proposal
from candid.proposals.config import ProposalComponent, ProposalConfig
from candid.proposals.frequency import Counts, checked_counts
from candid.proposals.on_device import OnDevice
from candid.proposals.outside import outside
from candid.proposals.popularity import Popularity
from candid.proposals.reach import reached


class ExactHead(Compound, ABC):
    """A head with expected count 1, shared by all rows or each row's own, and draws for the rest.

    The estimate of Z' is unbiased for *any* head that is settled before the tail is drawn: what
    is in it is summed, what is not is estimated, and only the draws are random. So the head may
    be stale, silly or made from the very rows that it serves. It may even hold a row's positive:
    the loss masks it there as it does among the draws, Z' being a sum over the *other* items.

    The tail draws outside a shared head where it can (``Avoiding``): then every draw counts. Of
    another tail, and beside heads of the rows' own, the draws that fall into the head are
    dropped; where all of a row's draws do, the tail's share is missed. That happens with
    probability Q(head)^n. ``log_count_of`` states what the *draws* expect.

    Args:
        tail: draws the rest.

    Raises:
        ConfigError: the tail has a head itself.
    """

    def __init__(self, tail: Proposal) -> None:
        if isinstance(tail, ExactHead):
            raise ConfigError(
                "the tail of a proposal with an exact head cannot have a head of its own"
            )
        self.tail = tail
        self.parts = {"tail": tail}

    @abstractmethod
    def split(self, batch: Positives) -> tuple[Tensor, Proposal]:
        """The head of a batch, as in ``Head.ids``, and the tail as it draws beside it."""

    def draw(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw the tail of one step; see ``Proposal.draw``."""
        head_ids, tail = self.split(batch)
        drawn = tail.draw(batch, generator)
        ids = head_ids.clamp(min=0)
        if drawn.ids.ndim > 1 and ids.ndim == 1:
            # A tail that draws for each row apart expects of the head what that row expects.
            ids = ids.expand(len(batch.positive_ids), -1)
        return replace(drawn, head=Head(head_ids, tail.log_count_of(ids, batch)))

    def log_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items among the draws; see ``Proposal.log_count_of``."""
        return self.split(batch)[1].log_count_of(ids, batch)

    def reached(self, is_positive: Tensor) -> Tensor:
        """What the tail can draw: no head is sure to hold an item; see ``Reaching.reached``."""
        return reached(self.tail, is_positive)


class HeadAndTail(ExactHead):
    """A fixed head: the most popular items.

    A softmax over a catalog is mostly decided by few items; scoring those exactly takes them
    out of the noise.

    Args:
        counts: [V], how often each item is a training target.
        tail: draws the rest.
        num_head: H, items of the head: those with the highest counts.

    Raises:
        ConfigError: ``num_head`` is less than 1 or more than V, or the tail has a head itself.
        DataError: the counts are not a vector of finite non-negative numbers with a positive
            sum.
    """

    class Config(ProposalConfig):
        """Settings of ``HeadAndTail``."""

        num_head: int = Field(64, ge=1, description="items compared exactly: the most popular")
        tail: ProposalComponent = Field(
            default_factory=Popularity.Config, description="where the other candidates come from"
        )

        def build(self, counts: Tensor) -> HeadAndTail:
            """Build head and tail for the same catalog."""
            return HeadAndTail(counts, self.tail.build(counts), self.num_head)

    def __init__(self, counts: Counts, tail: Proposal, num_head: int) -> None:
        super().__init__(tail)
        checked = checked_counts(counts)
        if not 1 <= num_head <= len(checked):
            raise ConfigError(
                f"num_head must be between 1 and the {len(checked)} items of the catalog, got "
                f"{num_head}"
            )
        self.num_head = num_head
        head_ids = most_popular(checked, num_head)
        self._head_ids = OnDevice(head_ids)
        self._tail_outside = outside(tail, head_ids)

    def split(self, batch: Positives) -> tuple[Tensor, Proposal]:
        """The most popular items, and the tail beside them; see ``ExactHead.split``."""
        return self._head_ids(batch.positive_ids.device), self._tail_outside

    def reached(self, is_positive: Tensor) -> Tensor:
        """The head, and what the tail can draw; see ``Reaching.reached``."""
        can = super().reached(is_positive).clone()
        can[self._head_ids(can.device)] = True
        return can


def most_popular(counts: Tensor, num_items: int) -> Tensor:
    """[H] int64 ascending, the items with the highest counts; ties fall to the lower id."""
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:num_items].sort().values
