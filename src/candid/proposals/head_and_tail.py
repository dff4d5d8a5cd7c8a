"""The most popular items exactly, the rest by draws."""

from __future__ import annotations

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
from candid.proposals.popularity import Popularity


class HeadAndTail(Compound):
    """A fixed head of popular items with expected count 1, and draws for what is outside.

    A softmax over a catalog is mostly decided by few items; scoring those exactly takes them
    out of the noise. ``log_count_of`` states what the *draws* expect, head or not. Draws that
    fall into the head are dropped: a tail that cannot is better (a recipe's popularity tail is
    made so), and where all of a step's draws are dropped the tail's share is missed.

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
            """Build head and tail for the same catalog; the tail avoids the head if it can."""
            num_head = min(self.num_head, len(counts))
            tail = self.tail.build_outside(counts, most_popular(counts, num_head))
            return HeadAndTail(counts, tail, self.num_head)

    def __init__(self, counts: Counts, tail: Proposal, num_head: int) -> None:
        checked = checked_counts(counts)
        if not 1 <= num_head <= len(checked):
            raise ConfigError(
                f"num_head must be between 1 and the {len(checked)} items of the catalog, got "
                f"{num_head}"
            )
        if isinstance(tail, HeadAndTail):
            raise ConfigError("the tail of a head_and_tail proposal cannot have a head of its own")
        self.tail = tail
        self.parts = {"tail": tail}
        self.num_head = num_head
        self._head_ids = OnDevice(most_popular(checked, num_head))

    def draw(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw the tail of one step; see ``Proposal.draw``."""
        ids = self._head_ids(batch.positive_ids.device)
        head = Head(ids, self.tail.log_count_of(ids, batch))
        return replace(self.tail.draw(batch, generator), head=head)

    def log_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items among the draws; see ``Proposal.log_count_of``."""
        return self.tail.log_count_of(ids, batch)


def most_popular(counts: Tensor, num_items: int) -> Tensor:
    """[H] int64 ascending, the items with the highest counts; ties fall to the lower id."""
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:num_items].sort().values
