"""Shares of a batch: the rows that each of several processes computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from candid.batches import Batch, Queries, parts_of, without_rows
from candid.distributed import Group


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of a batch that this process computes.

    A history is not cut: the rows of one history belong to one process. A user with several
    histories may be in several shares.

    Attributes:
        rows: [b] int64, their numbers in the batch, ascending.
        queries: of these rows. A batch with fewer histories than there are processes has shares
            without rows.
        counts: number of rows of each process.
        position: [B] int64, the position of each row of the batch among the rows of all
            processes, one process after the other.
    """

    rows: Tensor
    queries: Queries
    counts: tuple[int, ...]
    position: Tensor

    @classmethod
    def of(cls, batch: Batch, group: Group) -> Share:
        """Return the share of this process; every process derives the same shares.

        Args:
            batch: the whole batch, on the CPU.
            group: of the processes.
        """
        history = batch.history
        num_units = len(batch) if history is None else len(history.offsets) - 1
        parts = list(parts_of(batch, max(1, -(-num_units // group.world_size))))
        counts = [len(part.rows) for part in parts]
        counts += [0] * (group.world_size - len(parts))
        all_rows = torch.cat([part.rows for part in parts])
        has_rows = group.rank < len(parts)
        return cls(
            rows=parts[group.rank].rows if has_rows else all_rows[:0],
            queries=parts[group.rank].queries if has_rows else without_rows(batch),
            counts=tuple(counts),
            position=all_rows.argsort(),
        )

    def gather(self, vectors: Tensor, group: Group) -> Tensor:
        """Gather the vectors [b, D] of all processes: [B, D], in the order of the batch."""
        gathered = group.gather_rows(vectors, self.counts, "gather of query vectors")
        return gathered[self.position.to(vectors.device)]
