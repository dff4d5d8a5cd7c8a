"""The candidates of a training step, from a sampler that may follow the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from candid.candidates import Candidates, Positives
from candid.samplers import (
    AdaptiveSampler,
    EncodedBatch,
    Observer,
    Reporter,
    Sampler,
    Stateful,
    sample_groups,
    with_negatives,
)


class CandidateSource:
    """Draws for every step, and keeps the sampler up with the model and the stream.

    Before the first step and then every ``refresh_every`` steps of the sampler it is given
    the item vectors; after each draw it sees the batch. Its state belongs to a checkpoint: a
    resumed run draws what an uncut one would have drawn.

    Args:
        sampler: where candidates come from.
        num_groups: independent draws a step; see ``sample_groups``.
        generator: of the draws, on the model's device.
        item_vectors: returns the model's item vectors [V, D] as they are now; called for a
            refresh only.
    """

    def __init__(
        self,
        sampler: Sampler,
        num_groups: int,
        generator: torch.Generator,
        item_vectors: Callable[[], Tensor],
    ) -> None:
        self.sampler = sampler
        self.num_groups = num_groups
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
        candidates = sample_groups(self.sampler, encoded, self.num_groups, self._generator)
        if negative_ids is not None:
            candidates = with_negatives(candidates, negative_ids, self.sampler, encoded)
        # Last: what was expected of the draws must be what was known when they were made.
        if isinstance(self.sampler, Observer):
            self.sampler.observe(encoded)
        self._steps += 1
        return candidates

    def report(self) -> dict[str, float]:
        """What the sampler has to log of its own, each name below ``sampler``."""
        if not isinstance(self.sampler, Reporter):
            return {}
        return {f"sampler/{name}": value for name, value in self.sampler.report().items()}

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs beside the generator's state."""
        state = {"steps": torch.tensor(self._steps)}
        if isinstance(self.sampler, Stateful):
            state |= {f"sampler/{name}": t for name, t in self.sampler.state().items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that ``state`` gave.

        Raises:
            ArtifactError: the state is of another sampler.
        """
        # A checkpoint of a time before there was such a state has none: nothing was adaptive.
        self._steps = int(state["steps"]) if "steps" in state else 0
        if isinstance(self.sampler, Stateful):
            start, device = "sampler/", self._generator.device
            self.sampler.restore(
                {
                    name.removeprefix(start): tensor.to(device)
                    for name, tensor in state.items()
                    if name.startswith(start)
                }
            )

    def _refresh_if_due(self) -> None:
        if not isinstance(self.sampler, AdaptiveSampler):
            return
        every = self.sampler.refresh_every
        if every is not None and self._steps % every == 0:
            with torch.no_grad():
                # A copy: the vectors may be the very table that the next step writes to.
                self.sampler.refresh(self._item_vectors().to(torch.float32, copy=True))
