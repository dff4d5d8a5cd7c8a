"""Running top-k over blocks of scores: the hot loop of exact search.

Selecting from n scores costs more than computing them, so almost none are looked at one by
one: the items of a block fall into groups, one vectorised maximum per group is taken, and
only groups whose maximum reaches the worst result kept so far are opened.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Largest number of items behind one maximum."""


def scan_block(
    scores: Tensor, first_id: int, kept_ids: Tensor, kept_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge a block of scores into the results kept so far.

    Args:
        scores: [b, n] float32, the scores of items ``first_id .. first_id + n - 1``; -inf for
            items that must not be returned.
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
    while group > 1 and num_items < 4 * k * group:
        group //= 2
    num_groups = num_items // group
    body = scores[:, : group * num_groups].unflatten(1, (group, num_groups))
    maxima = body.amax(1)
    if num_groups >= k:
        # At least k scores of this very block reach the k-th largest maximum.
        worst = torch.maximum(worst, torch.topk(maxima, k, sorted=False).values.amin(-1))
    rows, groups = _reached(maxima, worst)
    members = body[rows, :, groups]
    packed, within = _reached(members, worst[rows])
    rows, columns = rows[packed], within * num_groups + groups[packed]
    found = members[packed, within]
    if group * num_groups == num_items:
        return rows, columns, found
    tail = scores[:, group * num_groups :]
    tail_rows, tail_columns = _reached(tail, worst)
    rows = torch.cat([rows, tail_rows])
    columns = torch.cat([columns, tail_columns + group * num_groups])
    found = torch.cat([found, tail[tail_rows, tail_columns]])
    order = torch.argsort(rows, stable=True)
    return rows[order], columns[order], found[order]


def _reached(values: Tensor, worst: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of values that are at least ``worst`` [rows] and not -inf."""
    reached = (values >= worst.unsqueeze(1)) & (values > -torch.inf)
    rows, columns = reached.nonzero().unbind(1)
    return rows, columns
