"""The exact head of a comparison: scores, and what of it and of the draws must not count twice."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.proposals import Candidates, Head


def head_scores(rows: Tensor, vectors: Tensor) -> Tensor:
    """[B, H] scores of rows [B, D] and head vectors [H, D] or [B, H, D]."""
    if vectors.ndim == 2:
        return rows @ vectors.T
    return torch.einsum("bd,bhd->bh", rows, vectors)


def head_hits(positive_ids: Tensor, head: Head) -> Tensor:
    """[B, H] bool, True where a head item is no negative: the positive, a repetition, a filler."""
    hits = head.ids == positive_ids[:, None]
    if head.ids.ndim == 1:
        return hits
    same = head.ids[:, :, None] == head.ids[:, None, :]
    is_repeated = same.tril(diagonal=-1).any(dim=2)
    return hits | is_repeated | (head.ids < 0)


def drawn_in_head(candidates: Candidates, head: Head) -> Tensor:
    """[N] or [B, N] bool, True where a drawn candidate is an item of the (row's) head."""
    if head.ids.ndim == 1:
        return candidates.by_row(torch.isin(candidates.ids, head.ids))
    drawn = candidates.by_row(candidates.ids)
    found = torch.zeros(len(head.ids), drawn.shape[-1], dtype=torch.bool, device=drawn.device)
    for column in head.ids.T:  # as many as a row has head items: few
        found |= drawn == column[:, None]
    return found


def head_share(head: Head, hits: Tensor, num_draws: int, dtype: torch.dtype) -> Tensor:
    """[B] Q of the head without its hits: the share of the draws that falls into it.

    Args:
        head: the head.
        hits: [B, H] of ``head_hits``.
        num_draws: n.
        dtype: of the arithmetic.
    """
    share = head.log_count.to(dtype).exp() / num_draws
    return torch.where(hits, 0.0, share).sum(dim=1)
