"""Samplers that follow the model, or learn from the stream of batches.

A sampler may do any of four things beside drawing, and says so by having the methods:
``AdaptiveSampler`` reads the item vectors every so often, ``Observer`` the batches that are
trained on, ``Stateful`` keeps something that a resumed run must have back, and ``Reporter`` has
numbers to log. A compound sampler does all of it for its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from candid.candidates import Positives
from candid.errors import ArtifactError, ConfigError
from candid.samplers.sampler import Sampler


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch with its queries, for samplers that draw by them.

    Attributes:
        positive_ids: [B] int64.
        user_ids: [B] int64.
        query: [B, D] float32, detached, scaled so that the dot product with an item vector
            given to ``AdaptiveSampler.refresh`` is the logit.
    """

    positive_ids: Tensor
    user_ids: Tensor
    query: Tensor


@runtime_checkable
class AdaptiveSampler(Protocol):
    """A sampler that follows the model by way of its item vectors.

    Between two refreshes the vectors grow stale: that costs closeness to the softmax, never
    truth, since the expected counts are those of the draws as they are made.
    """

    @property
    def refresh_every(self) -> int | None:
        """R, steps between refreshes; None where nothing follows the model after all."""
        ...

    def refresh(self, item_vectors: Tensor) -> None:
        """Take the model's item vectors as they are now.

        Args:
            item_vectors: [V, D] float32, detached; their dot product with the query is the
                logit. They are the sampler's to keep: nobody writes to them any more.

        Raises:
            ConfigError: not the vectors of this catalog.
            ArtifactError: a vector is not finite; names the item.
        """
        ...


@runtime_checkable
class Observer(Protocol):
    """A sampler that learns from the batches that are trained on."""

    def observe(self, batch: Positives) -> None:
        """Take note of a batch, once, after the draw of its training step."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """Something with a state that must survive checkpoint and resume."""

    def state(self) -> dict[str, Tensor]:
        """All that ``restore`` needs; names may hold slashes."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that ``state`` gave, on whatever device its tensors are.

        Raises:
            ArtifactError: the state is of something else.
        """
        ...


@runtime_checkable
class Reporter(Protocol):
    """A sampler with something of its own to log beside the loss."""

    def report(self) -> dict[str, float]:
        """Numbers by name, as of the last step; names may hold slashes."""
        ...


class Compound:
    """What a sampler made of others does for its parts; to inherit from.

    Attributes:
        parts: the samplers it is made of, by names that tell them apart.
    """

    parts: Mapping[str, Sampler]

    @property
    def refresh_every(self) -> int | None:
        """The shortest of its parts' intervals: all are refreshed together."""
        adaptive = [part for part in self.parts.values() if isinstance(part, AdaptiveSampler)]
        return min((p.refresh_every for p in adaptive if p.refresh_every), default=None)

    def refresh(self, item_vectors: Tensor) -> None:
        """Refresh every part that follows the model; see ``AdaptiveSampler.refresh``."""
        for part in self.parts.values():
            if isinstance(part, AdaptiveSampler):
                part.refresh(item_vectors)

    def observe(self, batch: Positives) -> None:
        """Show a batch to every part that learns from the stream; see ``Observer.observe``."""
        for part in self.parts.values():
            if isinstance(part, Observer):
                part.observe(batch)

    def state(self) -> dict[str, Tensor]:
        """The parts' states, each name below that of its part; see ``Stateful.state``."""
        return {
            f"{name}/{key}": tensor
            for name, part in self.parts.items()
            if isinstance(part, Stateful)
            for key, tensor in part.state().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give every part its state back; see ``Stateful.restore``."""
        for name, part in self.parts.items():
            if isinstance(part, Stateful):
                start = f"{name}/"
                part.restore(
                    {k.removeprefix(start): t for k, t in state.items() if k.startswith(start)}
                )

    def report(self) -> dict[str, float]:
        """The parts' reports, each name below that of its part; see ``Reporter.report``."""
        return {
            f"{name}/{key}": value
            for name, part in self.parts.items()
            if isinstance(part, Reporter)
            for key, value in part.report().items()
        }


def query_of(batch: Positives) -> Tensor:
    """The queries [B, D] of a batch that has them.

    Raises:
        ConfigError: it has none.
    """
    query = getattr(batch, "query", None)
    if not isinstance(query, Tensor):
        raise ConfigError(
            "this sampler draws by the queries: give it an EncodedBatch, with the query "
            "vectors [B, D] beside positive_ids and user_ids"
        )
    return query


def checked_item_vectors(item_vectors: Tensor, num_items: int) -> Tensor:
    """Return the vectors [V, D] of a catalog as they are, detached, in float32.

    Raises:
        ConfigError: not a matrix with a row for each of the ``num_items`` items.
        ArtifactError: a vector is not finite; names the item.
    """
    if item_vectors.ndim != 2 or len(item_vectors) != num_items:
        raise ConfigError(
            f"item_vectors must be [{num_items}, D], a row for each item of the catalog, got "
            f"{list(item_vectors.shape)}"
        )
    vectors = item_vectors.detach().float()
    # A sum over a row is finite only if all of it is, but for an overflow: look again then.
    if not bool(torch.isfinite(vectors.sum())):
        bad = torch.nonzero(~torch.isfinite(vectors).all(dim=1))[:, 0]
        if len(bad):
            raise ArtifactError(
                f"the vector of item {int(bad[0])} (row {int(bad[0])} of the item vectors) holds "
                f"NaN or infinite values, as do {len(bad)} of {num_items} in all: the "
                "model has diverged; lower the learning rate or start from an earlier checkpoint"
            )
    return vectors
