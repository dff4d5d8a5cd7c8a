"""The candidates of a training step, from a proposal that may follow the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from candid.proposals import (
    AdaptiveProposal,
    Candidates,
    EncodedBatch,
    Observer,
    Positives,
    Proposal,
    Reporter,
    Stateful,
    several_draws,
    with_negatives,
)


class Drawing:
    """Draws for every step, and keeps the proposal up with the model and the stream.

    Before the first step and then every ``refresh_every`` steps of the proposal it is given
    the item vectors; after each draw it sees the batch. Its state belongs to a checkpoint: a
    resumed run draws what an uncut one would have drawn.

    Args:
        proposal: where candidates come from.
        num_draws: independent draws a step; see ``several_draws``.
        generator: of the draws, on the model's device.
        item_vectors: returns the model's item vectors [V, D] as they are now; called for a
            refresh only.
    """

    def __init__(
        self,
        proposal: Proposal,
        num_draws: int,
        generator: torch.Generator,
        item_vectors: Callable[[], Tensor],
    ) -> None:
        self.proposal = proposal
        self.num_draws = num_draws
        self._generator = generator
        self._item_vectors = item_vectors
        self._steps = 0

    def candidates(
        self, batch: Positives, query: Tensor, negative_ids: Tensor | None = None
    ) -> Candidates:
        """Draw the candidates of the next step.

        Args:
            batch: ``positive_ids`` [B] and ``user_ids`` [B].
            query: [B, D], the encoded queries; gradients do not flow back through a draw.
            negative_ids: [B, S], what each row is compared with whatever is drawn (see
                ``with_negatives``); None for nothing.

        Raises:
            ArtifactError: an item vector is not finite.
        """
        encoded = EncodedBatch(batch.positive_ids, batch.user_ids, query.detach().float())
        self._refresh_if_due()
        drawn = several_draws(self.proposal, encoded, self.num_draws, self._generator)
        if negative_ids is not None:
            drawn = with_negatives(drawn, negative_ids, self.proposal, encoded)
        # Last: what was expected of the draws must be what was known when they were made.
        if isinstance(self.proposal, Observer):
            self.proposal.observe(encoded)
        self._steps += 1
        return drawn

    def report(self) -> dict[str, float]:
        """What the proposal has to log of its own, each name below ``proposal``."""
        if not isinstance(self.proposal, Reporter):
            return {}
        return {f"proposal/{name}": value for name, value in self.proposal.report().items()}

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs beside the generator's state."""
        state = {"steps": torch.tensor(self._steps)}
        if isinstance(self.proposal, Stateful):
            state |= {f"proposal/{name}": t for name, t in self.proposal.state().items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that ``state`` gave.

        Raises:
            ArtifactError: the state is of another proposal.
        """
        # A checkpoint of a time before there was such a state has none: nothing was adaptive.
        self._steps = int(state["steps"]) if "steps" in state else 0
        if isinstance(self.proposal, Stateful):
            start, device = "proposal/", self._generator.device
            self.proposal.restore(
                {
                    name.removeprefix(start): tensor.to(device)
                    for name, tensor in state.items()
                    if name.startswith(start)
                }
            )

    def _refresh_if_due(self) -> None:
        if not isinstance(self.proposal, AdaptiveProposal):
            return
        every = self.proposal.refresh_every
        if every is not None and self._steps % every == 0:
            with torch.no_grad():
                # A copy: the vectors may be the very table that the next step writes to.
                self.proposal.refresh(self._item_vectors().to(torch.float32, copy=True))
