"""Running top-k over blocks of scores: the hot loop of exact search.

Selecting from n scores costs more than computing them, so almost none are looked at one by
one: the items of a block fall into groups, one vectorised maximum per group is taken, and
only groups whose maximum reaches the worst result kept so far are opened.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Largest number of items behind one maximum; a block is a multiple of it wide."""

SPREAD = 4
"""Groups wanted for each result, at least, so that two good items seldom share one."""


def scan_block(
    scores: Tensor, first_id: int, kept_ids: Tensor, kept_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge a block of scores into the results kept so far.

    Args:
        scores: [b, n] float32, contiguous, n a multiple of ``GROUP``: the scores of items
            ``first_id .. first_id + n - 1``; -inf for padding and for items that must not be
            returned.
        first_id: id of the first column.
        kept_ids: [b, k] int64, -1 where nothing is kept yet.
        kept_scores: [b, k] float32, -inf where nothing is kept yet.

    Returns:
        ids and scores [b, k] of the k best so far, in no particular order. Among items whose
        score equals the worst kept one the choice is open.
    """
    rows, columns, found = _at_least(scores, kept_scores.amin(-1), kept_scores.shape[1])
    counts = torch.bincount(rows, minlength=len(scores))
    width = int(counts.max()) if len(rows) else 0
    if width == 0:
        return kept_ids, kept_scores
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    new_ids = kept_ids.new_full((len(scores), width), -1)
    new_scores = kept_scores.new_full((len(scores), width), -torch.inf)
    new_ids[rows, slots] = columns + first_id
    new_scores[rows, slots] = found
    all_scores = torch.cat([kept_scores, new_scores], dim=1)
    best, chosen = torch.topk(all_scores, kept_scores.shape[1], dim=1, sorted=False)
    return torch.cat([kept_ids, new_ids], dim=1).gather(1, chosen), best


def _at_least(scores: Tensor, worst: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed (row, column, score) of all scores that can enter, rows ascending."""
    num_items = scores.shape[1]
    group = GROUP
    while group > 1 and num_items < SPREAD * k * group:
        group //= 2
    num_groups = num_items // group
    members = scores.view(-1, group)
    maxima = members.amax(1).view(-1, num_groups)
    # -inf marks what must not be returned, so nothing below the least finite number enters.
    worst = worst.clamp(min=torch.finfo(scores.dtype).min)
    if num_groups >= k:
        # At least k scores of this very block reach the k-th largest maximum.
        worst = torch.maximum(worst, torch.topk(maxima, k, sorted=False).values.amin(1))
    rows, groups = (maxima >= worst.unsqueeze(1)).nonzero().unbind(1)
    opened = members.index_select(0, rows * num_groups + groups)
    packed, within = (opened >= worst[rows].unsqueeze(1)).nonzero().unbind(1)
    found = opened.view(-1)[packed * group + within]
    return rows[packed], groups[packed] * group + within, found
