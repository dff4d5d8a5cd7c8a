"""Running top-k over tiles of scores: the hot loop of exact search in plain torch.

Selecting from n scores costs more than computing them, so most are not compared one by one: the
items of a tile form groups, one vectorised maximum per group is taken, and only groups whose
maximum reaches the lowest score of the current result are expanded. Scores that pass wait in a
list, which is merged when the number of items seen has doubled: the bound then lets about k more
items pass per doubling, and there are log(V) merges.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Largest number of items in a group; the width of a tile is a multiple of it."""

GROUPS_PER_RESULT = 4
"""Groups per result in the first tile, so that two good items rarely share one."""


class RunningTopK:
    """The k best scores of each row over all tiles added.

    The choice among items whose score equals the lowest one in the result is not defined.

    Args:
        num_rows: b.
        k: results per row.
        device: of the scores.
    """

    def __init__(self, num_rows: int, k: int, device: torch.device) -> None:
        self._k = k
        self._ids = torch.full((num_rows, k), -1, device=device)
        self._scores = torch.full((num_rows, k), -torch.inf, device=device)
        # -inf marks items that must not be returned: only finite scores pass.
        self._worst = torch.full((num_rows,), torch.finfo(torch.float32).min, device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._counts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._num_waiting = self._seen = self._merge_at = 0

    def add(self, scores: Tensor, first_id: int) -> None:
        """Add a tile.

        Args:
            scores: [b, n] float32, contiguous, n a multiple of ``GROUP``: the scores of items
                ``first_id .. first_id + n - 1``; -inf for padding and for items that must
                not be returned.
            first_id: id of the first column.
        """
        rows, columns, passing = self._passing(scores)
        counts = torch.bincount(rows, minlength=len(scores))
        before = self._counts - (counts.cumsum(0) - counts)
        slots = torch.arange(len(rows), device=rows.device) + before[rows]
        self._waiting.append((rows, slots, columns + first_id, passing))
        self._counts = self._counts + counts
        self._num_waiting += len(rows)
        self._seen += scores.shape[1]
        if self._seen >= self._merge_at or self._num_waiting > scores.numel():
            self._merge()
            self._merge_at = 2 * self._seen

    def result(self) -> tuple[Tensor, Tensor]:
        """Return ids (-1 where fewer than k passed) and scores (-inf there), [b, k], unordered."""
        self._merge()
        return self._ids, self._scores

    def _passing(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return packed (row, column, score) of all scores that reach the bound, rows ascending."""
        num_items, group, worst = scores.shape[1], GROUP, self._worst
        is_first = self._seen == 0
        while is_first and group > 1 and num_items < GROUPS_PER_RESULT * self._k * group:
            group //= 2
        num_groups = num_items // group
        members = scores.view(-1, group)
        maxima = members.amax(1).view(-1, num_groups)
        if is_first and num_groups >= self._k:
            # At least k scores of this tile reach the k-th largest maximum.
            largest = torch.topk(maxima, self._k, sorted=False).values
            worst = torch.maximum(worst, largest.amin(1))
        rows, groups = (maxima >= worst.unsqueeze(1)).nonzero().unbind(1)
        expanded = members.index_select(0, rows * num_groups + groups)
        packed, within = (expanded >= worst[rows].unsqueeze(1)).nonzero().unbind(1)
        passing = expanded.view(-1)[packed * group + within]
        return rows[packed], groups[packed] * group + within, passing

    def _merge(self) -> None:
        """Merge the waiting scores into the k best, and raise the bound."""
        width = int(self._counts.max()) if self._num_waiting else 0
        if width:
            shape = (len(self._counts), self._k + width)
            ids = self._ids.new_full(shape, -1)
            scores = self._scores.new_full(shape, -torch.inf)
            ids[:, width:], scores[:, width:] = self._ids, self._scores
            for rows, slots, new_ids, new_scores in self._waiting:
                ids[rows, slots], scores[rows, slots] = new_ids, new_scores
            self._scores, chosen = torch.topk(scores, self._k, sorted=False)
            self._ids = ids.gather(1, chosen)
            self._worst = torch.maximum(self._worst, self._scores.amin(1))
        self._waiting.clear()
        self._counts = torch.zeros_like(self._counts)
        self._num_waiting = 0
