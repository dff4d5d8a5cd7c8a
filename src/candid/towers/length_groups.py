"""Groups of sequences of similar length, padded for attention in one copy of the packed tokens.

Attention needs rectangles [S, L]; packed tokens have none. The cells of all rectangles are one
tensor, so that padding and its gradient cost one copy each, however many groups there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from candid.features.transfer import to_device

SEQUENCES_PER_GROUP = {"cpu": 4, "cuda": 32}
"""Least number of sequences padded together: small groups waste less padding, large ones use the
device better."""
CELLS_PER_GROUP = {"cpu": 256}
"""Cells up to which a group takes more sequences, for devices where the calls of a group of short
sequences cost more than its attention and its padding."""
MAX_GROUPS = {"cuda": 16}
"""Most groups, for devices where each operation costs a launch."""


@dataclass(frozen=True, slots=True)
class LengthGroups:
    """T packed tokens as P cells: the rectangles of the groups one after the other, row by row.

    Attributes:
        shapes: (S, L) of each group, the longest sequences first.
        gather: [P] int64, packed position of each cell; padding refers to an arbitrary token.
        cells: [T] int64, the cell of each token.
    """

    shapes: list[tuple[int, int]]
    gather: Tensor
    cells: Tensor

    def pad(self, tokens: Tensor) -> Tensor:
        """Copy tokens [T, W] to their cells: [P, W].

        Padding must not contribute to the result, as its gradient is not read.
        """
        apply = cast(Callable[[Tensor, Tensor, Tensor], Tensor], _Pad.apply)
        return apply(tokens, self.gather, self.cells)

    def split(self, padded: Tensor) -> list[Tensor]:
        """Return views of [P, ...] for each group: [S, L, ...]."""
        parts = padded.split([size * length for size, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def unpad(self, parts: list[Tensor]) -> Tensor:
        """Return the tokens [T, W] of the groups' cells, each [S, L, W]."""
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, self.cells)


class _Pad(torch.autograd.Function):
    """Copy tokens to their cells; the gradient reads the cells of tokens, without any sum.

    The gradient of ``index_select`` adds every cell to a tensor of zeros: on CUDA with atomic
    operations, which collide where much padding refers to one token.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, gather: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        return tokens.index_select(0, gather)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (cells,) = ctx.saved_tensors
        return gradient.index_select(0, cells), None, None


def length_groups(
    offsets: Tensor, num_tokens: int, cpu_offsets: Tensor | None = None
) -> LengthGroups:
    """Sort sequences by length and divide them into groups.

    On an accelerator this synchronises with the device, unless ``cpu_offsets`` is given.

    Args:
        offsets: [number of sequences + 1] int64, as in ``History``.
        num_tokens: T, the last of ``offsets``.
        cpu_offsets: ``offsets`` on the CPU, or None.
    """
    device = offsets.device
    lengths = offsets.diff()
    sorted_lengths, order = lengths.sort(descending=True, stable=True)
    if cpu_offsets is not None:
        sorted_lengths = cpu_offsets.diff().sort(descending=True).values
    shapes = _group_shapes(sorted_lengths.tolist(), device.type)
    layout, num_cells, num_grouped = [], 0, 0
    for size, length in shapes:
        layout.append((size, length, num_cells, num_grouped))
        num_cells += size * length
        num_grouped += size
    of_group = torch.tensor(layout, dtype=torch.int64).view(-1, 4)
    _, width, first_cell, first_rank = of_group.repeat_interleave(
        of_group[:, 0], dim=0, output_size=num_grouped
    ).T
    by_rank = first_cell + (torch.arange(num_grouped) - first_rank) * width
    first_cells = torch.zeros_like(lengths)
    first_cells[order[:num_grouped]] = to_device(by_rank, device)
    tokens = torch.arange(num_tokens, device=device)
    shift = (first_cells - offsets[:-1]).repeat_interleave(lengths, output_size=num_tokens)
    cells = tokens + shift
    gather = torch.zeros(num_cells, dtype=torch.int64, device=device)
    gather[cells] = tokens
    return LengthGroups(shapes, gather, cells)


def _group_shapes(lengths: list[int], device_type: str) -> list[tuple[int, int]]:
    """Divide sequences with lengths in descending order; empty ones are in no group."""
    least = SEQUENCES_PER_GROUP.get(device_type, 32)
    if device_type in MAX_GROUPS:
        least = max(least, -(-len(lengths) // MAX_GROUPS[device_type]))
    cells = CELLS_PER_GROUP.get(device_type, 0)
    lengths = lengths[: len(lengths) - lengths.count(0)]
    shapes, begin = [], 0
    while begin < len(lengths):
        longest = lengths[begin]
        size = min(max(least, cells // longest), len(lengths) - begin)
        shapes.append((size, longest))
        begin += size
    return shapes
