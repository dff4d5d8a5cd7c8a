"""Samples of the same item merged into one candidate, for the softmax in tiles.

A batch of many rows has each popular item many times. m samples of item d with equal shifts weigh
as much as one with log m added to its score. A row is not compared with the samples of its own
user: of the m samples of an item c are then left out, and the row's weight of the item changes by
log((m - c) / m). All rows of a user share these changes, so that there is at most one for each
sample. The loss is that of single samples up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.row_list import RowList

MAX_SHARE = 0.9
"""Largest share of distinct items among samples that are merged; beyond, too little is saved."""


@dataclass(frozen=True, slots=True)
class MergedSamples:
    """Distinct items of samples.

    Attributes:
        first: [M] int64, the first sample of each item.
        item: [N] int64, the item of each sample, 0 to M - 1.
        size: [M] int64, the number of samples of each item.
    """

    first: Tensor
    item: Tensor
    size: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> MergedSamples:
        """Find the distinct items of samples, [N] int64 on a CPU."""
        order = torch.from_numpy(np.argsort(ids.numpy(), kind="stable"))
        ordered = ids[order]
        begins = torch.ones(len(ids), dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=begins[1:])
        start = begins.nonzero()[:, 0]
        item = torch.empty_like(order)
        item[order] = begins.cumsum(0) - 1
        return cls(order[start], item, start.diff(append=torch.tensor([len(ids)])))

    @property
    def saves_time(self) -> bool:
        """Whether there are so many repetitions that merging pays."""
        return len(self.first) <= MAX_SHARE * len(self.item)

    def are_equal(self, values: Sequence[Tensor]) -> bool:
        """Return whether the samples of each item have equal values, [N] or [N, D] each."""
        return all(torch.equal(part[self.first][self.item], part) for part in values)

    def hits(
        self,
        masked: Sequence[IdMatch],
        own: tuple[Tensor, Tensor] | None,
        dtype: torch.dtype,
    ) -> AccidentalHits:
        """Return the items that are left out of a row, or of which it loses some samples.

        Args:
            masked: at least one: items that are left out.
            own: keys of rows [B] and samples [N], such as users: samples with the key of a row are
                left out of it; None without any.
            dtype: of the changes, at least float32.
        """
        changed = None if own is None else self._without(*own, dtype)
        return AccidentalHits(*masked, changed=changed)

    def _without(self, of_rows: Tensor, of_samples: Tensor, dtype: torch.dtype) -> RowList:
        keys, key = torch.unique(of_samples, return_inverse=True)
        num_items = len(self.first)
        pair, size = torch.unique(key * num_items + self.item, return_counts=True)
        item = pair % num_items
        left = torch.log1p(-size.double() / self.size[item])
        position = torch.searchsorted(keys, of_rows)
        present = keys[position.clamp(max=len(keys) - 1)] == of_rows
        begin = torch.searchsorted(pair, torch.arange(len(keys) + 1) * num_items)
        # A key without samples gets the empty range at the end.
        first, stop = (begin[torch.where(present, position + end, len(keys))] for end in (0, 1))
        return RowList(first, stop, item, left.to(dtype))
