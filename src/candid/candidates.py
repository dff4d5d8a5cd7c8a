"""Records of sampled and exact candidates, with the expected count of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExactCandidates:
    """Items that every row is compared with at each step: their expected count is 1.

    The sampled candidates then stand for all other items: a sampled item that is also an exact
    candidate is masked. Any set of exact candidates gives a correct estimate; the more of a row's
    partition function it covers, the smaller the variance.

    Attributes:
        ids: [H] int64, distinct, shared by all rows; or [B, H], each row's own, where -1 pads
            a shorter row and a repeated item counts once.
        log_expected_count: float32, same shape: the unconditional log expected count of each item
            *among the sampled candidates* (any value where the id is -1).
        row_candidates: beside shared ``ids`` [H], further items of each row, a record with ids
            [B, S]; items of the shared part count once. None without any, and for ids [B, H].
    """

    ids: Tensor
    log_expected_count: Tensor
    row_candidates: ExactCandidates | None = None

    @property
    def parts(self) -> tuple[ExactCandidates, ...]:
        """The shared part and the part of each row if there are both, otherwise this record."""
        if self.row_candidates is None:
            return (self,)
        return replace(self, row_candidates=None), self.row_candidates

    def accidental_hits(self, positive_ids: Tensor) -> Tensor:
        """Mask the exact candidates that are not negatives: positives, repetitions, padding.

        Args:
            positive_ids: [B] int64.

        Returns:
            [B, H] bool, the shared items before the rows' own.
        """
        first, *row_parts = self.parts
        mask = _part_mask(positive_ids, first.ids)
        if not row_parts:
            return mask
        row_ids = row_parts[0].ids
        row_mask = _part_mask(positive_ids, row_ids) | torch.isin(row_ids, first.ids)
        return torch.cat([mask, row_mask], dim=1)

    def has_positive(self, positive_ids: Tensor) -> Tensor:
        """Return [B] bool, whether the positive of each row [B] is an exact candidate."""
        matches = [part.ids == positive_ids[:, None] for part in self.parts]
        return torch.cat(matches, dim=1).any(dim=1)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of one step with the expected count of each, so that a loss never guesses it.

    Attributes:
        ids: [N] int64, shared by all rows, or [G, N], each group for a run of ceil(B / G)
            consecutive rows (the last may be shorter); [B, N] has candidates for every row.
        log_expected_count: float32, same shape as ``ids``: the *unconditional* log expected count
            of each candidate (log of n·Q(d) for samples with replacement, of the inclusion
            probability for a set of distinct items, 0 for an exact candidate). inf in [G, N]
            pads a shorter set: such an entry is not a candidate.
        log_expected_count_positive: [B] float32, the same for each row's positive (-inf where it
            can never be sampled).
        num_samples: n for samples with replacement, so that those that hit the row's positive can
            be dropped and the rest renormalized (the paper's Q'); None for sets of distinct
            items.
        owner: int64, same shape as ``ids``, the user that a candidate came from, or None. A
            candidate is not a negative of a row of the same user; -1 where it belongs to no
            single user.
        row_user_ids: [B] int64, the user of each row; present exactly when ``owner`` is.
        exact: items compared exactly beside the sampled ones, or None.
    """

    ids: Tensor
    log_expected_count: Tensor
    log_expected_count_positive: Tensor
    num_samples: int | None = None
    owner: Tensor | None = None
    row_user_ids: Tensor | None = None
    exact: ExactCandidates | None = None

    def by_row(self, values: Tensor) -> Tensor:
        """Expand ``values``, of the shape of ``ids``, to the rows: [N] shared, or [B, N]."""
        if values.ndim == 1:
            return values
        num_rows = len(self.log_expected_count_positive)
        if len(values) == num_rows:
            return values
        return values.repeat_interleave(-(-num_rows // len(values)), dim=0)[:num_rows]

    def accidental_hits(self, positive_ids: Tensor) -> Tensor:
        """Mask the sampled candidates that are not negatives of a row.

        These are the row's positive, candidates from the row's own user, items that are exact
        candidates as well, and the padding of shorter sets.

        Args:
            positive_ids: [B] int64.

        Returns:
            [B, N] bool.
        """
        mask = self.by_row(self.ids) == positive_ids[:, None]
        if self.owner is not None and self.row_user_ids is not None:
            mask = mask | (self.by_row(self.owner) == self.row_user_ids[:, None])
        if self.ids.ndim > 1:
            mask = mask | self.by_row(self.log_expected_count.isposinf())
        for part in () if self.exact is None else self.exact.parts:
            if part.ids.ndim == 1:
                mask = mask | self.by_row(torch.isin(self.ids, part.ids))
            else:
                mask = mask | self._in_row_candidates(part.ids)
        return mask

    def _in_row_candidates(self, row_ids: Tensor) -> Tensor:
        """[B, N] bool, True where a sampled item is among the row's own exact ids [B, H]."""
        sampled = self.by_row(self.ids).expand(len(row_ids), -1)
        if not row_ids.shape[1]:
            return torch.zeros_like(sampled, dtype=torch.bool)
        ordered = row_ids.sort(dim=1).values
        position = torch.searchsorted(ordered, sampled.contiguous())
        return ordered.gather(1, position.clamp(max=row_ids.shape[1] - 1)) == sampled


def _part_mask(positive_ids: Tensor, ids: Tensor) -> Tensor:
    """[B, H] bool, True for the positive and, in ids [B, H], for repetitions and padding."""
    mask = ids == positive_ids[:, None]
    if ids.ndim == 1:
        return mask
    ordered, order = ids.sort(dim=1, stable=True)
    repeats_previous = ordered[:, 1:] == ordered[:, :-1]
    is_repeated = torch.zeros_like(mask).scatter(1, order[:, 1:], repeats_previous)
    return mask | is_repeated | (ids < 0)
