"""Encoded features: tensors with one entry per row, ready for a tower.

There are three forms for all types of features, so that a tower needs three ways to read them.
Code 0 of every vocabulary is the unknown bucket.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.features.transfer import to_device


@dataclass(frozen=True, slots=True)
class Codes:
    """One code per row, or several that stand for one value (hashes).

    Attributes:
        ids: [n, K] int64, 0..num_codes-1.
        num_codes: size of the vocabulary, unknown bucket included.
    """

    ids: Tensor
    num_codes: int

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Codes(ids={list(self.ids.shape)}, num_codes={self.num_codes})"

    def take(self, rows: Tensor) -> Codes:
        """Return the entries of rows [m] int64, in that order."""
        return replace(self, ids=self.ids[rows])

    def to(self, device: torch.device) -> Codes:
        """Move to ``device``."""
        return replace(self, ids=to_device(self.ids, device))


@dataclass(frozen=True, slots=True)
class Bags:
    """Any number of codes per row, zero included.

    Attributes:
        ids: [T] int64, 0..num_codes-1, codes of all rows, concatenated.
        offsets: [n + 1] int64, row i has ``ids[offsets[i]:offsets[i + 1]]``.
        num_codes: size of the vocabulary, unknown bucket included.
    """

    ids: Tensor
    offsets: Tensor
    num_codes: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Bags({len(self)} rows, ids={list(self.ids.shape)}, num_codes={self.num_codes})"

    def take(self, rows: Tensor) -> Bags:
        """Return the entries of rows [m] int64, in that order."""
        lengths = self.offsets.diff()[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shift = (self.offsets[:-1][rows] - offsets[:-1]).repeat_interleave(lengths)
        positions = torch.arange(len(shift), device=shift.device) + shift
        return replace(self, ids=self.ids[positions], offsets=offsets)

    def to(self, device: torch.device) -> Bags:
        """Move to ``device``."""
        return replace(
            self, ids=to_device(self.ids, device), offsets=to_device(self.offsets, device)
        )


@dataclass(frozen=True, slots=True)
class Numbers:
    """Real values.

    Attributes:
        values: [n, M] float32, finite.
        unknown: the M values of an unknown row; empty for zeros.
    """

    values: Tensor
    unknown: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Numbers(values={list(self.values.shape)})"

    def take(self, rows: Tensor) -> Numbers:
        """Return the entries of rows [m] int64, in that order."""
        return replace(self, values=self.values[rows])

    def to(self, device: torch.device) -> Numbers:
        """Move to ``device``."""
        return replace(self, values=to_device(self.values, device))

    def unknown_row(self) -> Tensor:
        """[1, M], the values of an unknown row."""
        if not self.unknown:
            return self.values.new_zeros(1, self.values.shape[1])
        return self.values.new_tensor([self.unknown])


Values = Codes | Bags | Numbers
