"""The record that every loss returns, and the protocol that every loss follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from candid.candidates import Candidates
from candid.distributed import Group

ItemEmbeddings = Tensor | Callable[[Tensor], Tensor]
"""Item vectors: the whole table [V, D], or a callable from ids [n] int64 to vectors [n, D]."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Loss and figures of each row, not reduced: the training step reduces once.

    Attributes:
        loss: [B] float32, carries the gradient.
        log_z: [B] float32, log Z' of the row's candidates; -inf where all of them are masked.
            Of the full softmax, and estimated with the correction ``refined``: the log of the other
            items' share of the partition function. With ``logq`` it also counts kept accidental
            hits.
        sample_weight: [B] float32 in [0, 1], detached: the weight of the row's gradient,
            Z' / (exp(s) + Z') with s the positive's shifted score. Of the full softmax, and
            estimated with ``refined``: 1 - P(positive | query). With ``logq`` it is the share of
            the candidates in the corrected softmax, which does not estimate 1 - P.
        effective_sample_size: [B] float32, detached, or None where it was not requested:
            (Σ w)² / Σ w² of the candidates' corrected weights, between 1 and N; 0 for a row
            whose candidates are all masked.
    """

    loss: Tensor
    log_z: Tensor
    sample_weight: Tensor
    effective_sample_size: Tensor | None = None


class Loss(Protocol):
    """A loss of a query against its positive and candidates."""

    needs_candidates: bool
    """Whether ``candidates`` must be given (sampled losses) or not (the full softmax)."""

    def __call__(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates | None = None,
        *,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Compare positives with candidates, or with the whole catalog.

        Args:
            query: [B, D].
            item_embeddings: [V, D] or a callable ids -> [n, D]. The full softmax needs the
                table.
            positive_ids: [B] int64.
            candidates: as a sampler returned them.
            effective_sample_size: also report ``effective_sample_size`` (costs a pass over the
                scores).

        Returns:
            loss and figures of each row, [B].

        Raises:
            ConfigError: candidates are needed and missing, or the table is needed and a
                callable was given.
        """
        ...


@runtime_checkable
class ShardedLoss(Protocol):
    """A loss over the whole catalog that also works where each process has a range of the items."""

    def compare_shards(
        self,
        query: Tensor,
        own_embeddings: Tensor,
        positive_ids: Tensor,
        *,
        own_items: range,
        num_items: int,
        group: Group,
        counts: Sequence[int] | None = None,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Compare positives with the items of all processes; a collective.

        The sum of the losses over the processes has the gradient of one process.

        Args:
            query: [b, D], the rows of this process.
            own_embeddings: [n, D], the vectors of the items of this process.
            positive_ids: [b] int64, items of the whole catalog.
            own_items: ids of the items of this process, a range of length n.
            num_items: V, items of the whole catalog.
            group: the processes.
            counts: b of every process, if known; None: they are exchanged first.
            effective_sample_size: also report ``effective_sample_size``.

        Returns:
            loss and figures of each row, [b].
        """
        ...
