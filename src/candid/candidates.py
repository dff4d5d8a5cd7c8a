"""Records of sampled and exact candidates, with the expected count of each."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from candid.row_counts import RowCounts

T = TypeVar("T")

NO_OWNER = -1
"""``Candidates.owner`` of a candidate that belongs to no single user."""

ROWS_AT_ONCE = 512
"""Rows that are compared with all samples together."""


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
        row_mask = _part_mask(positive_ids, row_ids) | is_among(row_ids, first.ids)
        return torch.cat([mask, row_mask], dim=1)

    def of_rows(self, rows: slice | Tensor) -> ExactCandidates:
        """Return the candidates of some rows; shared ones stay as they are."""
        row_candidates = None if self.row_candidates is None else self.row_candidates.of_rows(rows)
        if self.ids.ndim == 1:
            return replace(self, row_candidates=row_candidates)
        return ExactCandidates(self.ids[rows], self.log_expected_count[rows], row_candidates)

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
        source_rows: int64, same shape as ``ids``, the row of this batch whose positive a
            candidate is, -1 for none; None where no candidate is a row's own positive, or where
            ``owner`` masks each row's own. A row is never compared with itself, whether or not
            accidental hits are kept.
        is_mixture: whether there is a fixed number of samples from each of several sources. The
            expected counts of all items but the positive are then those among the candidates
            that are not masked, and are not renormalized.
        row_counts: the expected counts of each row where they differ; None where
            ``log_expected_count`` holds for every row.
    """

    ids: Tensor
    log_expected_count: Tensor
    log_expected_count_positive: Tensor
    num_samples: int | None = None
    owner: Tensor | None = None
    row_user_ids: Tensor | None = None
    exact: ExactCandidates | None = None
    source_rows: Tensor | None = None
    is_mixture: bool = False
    row_counts: RowCounts | None = None

    def by_row(self, values: Tensor) -> Tensor:
        """Expand ``values``, of the shape of ``ids``, to the rows: [N] shared, or [B, N]."""
        if values.ndim == 1:
            return values
        num_rows = len(self.log_expected_count_positive)
        if len(values) == num_rows:
            return values
        return values.repeat_interleave(-(-num_rows // len(values)), dim=0)[:num_rows]

    @property
    def keeps_hits(self) -> bool:
        """Whether samples of a row's positive can stay: samples with replacement, not sets.

        In a set with the positive each item occurs once, so that a sampled positive is the
        positive itself.
        """
        return self.num_samples is not None

    def of_rows(self, rows: slice | Tensor) -> Candidates:
        """Return the candidates as sampled, for some rows of the batch.

        Args:
            rows: a slice, or distinct row numbers, [n] int64.
        """
        num_rows = len(self.log_expected_count_positive)

        def of_items(values: Tensor) -> Tensor:
            values = self.by_row(values)
            return values if values.ndim == 1 else values[rows]

        def or_none(values: Tensor | None) -> Tensor | None:
            return None if values is None else of_items(values)

        sources = or_none(self.source_rows)
        if sources is not None:
            # The new number of each row; -1 for rows that are left out, and for candidates from
            # no row.
            order = torch.arange(num_rows, device=sources.device)[rows]
            position = sources.new_full((num_rows + 1,), -1)
            position[order] = torch.arange(len(order), device=sources.device)
            sources = position[sources]
        return Candidates(
            ids=of_items(self.ids),
            log_expected_count=of_items(self.log_expected_count),
            log_expected_count_positive=self.log_expected_count_positive[rows],
            num_samples=self.num_samples,
            owner=or_none(self.owner),
            row_user_ids=None if self.row_user_ids is None else self.row_user_ids[rows],
            exact=None if self.exact is None else self.exact.of_rows(rows),
            source_rows=sources,
            is_mixture=self.is_mixture,
            row_counts=(
                None if self.row_counts is None else self.row_counts.of_rows(rows, of_items)
            ),
        )

    def to(self, device: torch.device | str) -> Candidates:
        """Return the candidates on another device."""
        return _to_device(self, device)

    def num_of_others(self) -> Tensor:
        """Count the shared candidates that come from other rows and users: [B] int64."""
        if self.owner is not None and self.row_user_ids is not None:
            return num_of_others(self.owner, self.row_user_ids)
        num_rows = len(self.log_expected_count_positive)
        rows = torch.arange(num_rows, device=self.ids.device)
        if self.source_rows is not None:
            return num_of_others(self.source_rows, rows)
        return torch.full_like(rows, self.ids.shape[-1])

    def accidental_hits(self, positive_ids: Tensor, *, keep: bool = False) -> Tensor:
        """Mask the sampled candidates that a row is not compared with.

        These are the row's positive, candidates from the row's own user, items that are exact
        candidates as well, and the padding of shorter sets.

        Args:
            positive_ids: [B] int64.
            keep: samples with replacement of the row's positive stay, except the row itself.

        Returns:
            [B, N] bool.
        """
        if keep and self.keeps_hits:
            mask = ~self._is_of_others(slice(0, len(positive_ids)))
        else:
            mask = self.by_row(self.ids) == positive_ids[:, None]
            if self.owner is not None and self.row_user_ids is not None:
                mask = mask | (self.by_row(self.owner) == self.row_user_ids[:, None])
        if self.ids.ndim > 1:
            mask = mask | self.by_row(self.log_expected_count.isposinf())
        for part in () if self.exact is None else self.exact.parts:
            if part.ids.ndim == 1:
                mask = mask | self.by_row(is_among(self.ids, part.ids))
            else:
                mask = mask | self._in_row_candidates(part.ids)
        return mask

    def replaced_samples(self, positive_in_exact: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sample that each row's positive replaces beside exact candidates.

        Each row is then compared with the exact candidates and the same number of other terms,
        whether its positive is an exact candidate (all samples) or not (the positive and all
        samples but one). The first sample of another row and user is replaced, which does not
        depend on its item.

        Args:
            positive_in_exact: [B] bool, whether the positive is an exact candidate.

        Returns:
            the position of the replaced sample, [B] int64, -1 for none; and the number of
            samples of other rows and users, [B] int64.
        """
        first, count = self._first_of_others()
        return first.masked_fill(positive_in_exact | (count == 0), -1), count

    def _first_of_others(self) -> tuple[Tensor, Tensor]:
        """First candidate from another row and user (any number without one), and their count."""
        num_rows, num_candidates = len(self.log_expected_count_positive), self.ids.shape[-1]
        if num_candidates == 0 or (self.owner is None and self.source_rows is None):
            first = torch.zeros(num_rows, dtype=torch.int64, device=self.ids.device)
            return first, torch.full_like(first, num_candidates)
        if self.ids.ndim == 1 and (self.owner is None or self.source_rows is None):
            return self._first_with_another_key()
        size = ROWS_AT_ONCE if self.ids.ndim == 1 else max(1, num_rows)
        parts = [self.ids.new_zeros(2, 0)]
        for begin in range(0, num_rows, size):
            is_of_others = self._is_of_others(slice(begin, min(begin + size, num_rows)))
            first = is_of_others.byte().argmax(dim=1)
            parts.append(torch.stack([first, is_of_others.sum(dim=1)]))
        first, count = torch.cat(parts, dim=1)
        return first, count

    def _first_with_another_key(self) -> tuple[Tensor, Tensor]:
        """``_first_of_others`` for shared candidates that a row loses by user, or by row."""
        keys, row_keys = self.source_rows, self.row_user_ids
        if self.owner is not None:
            keys = self.owner
        else:
            row_keys = torch.arange(len(self.log_expected_count_positive), device=self.ids.device)
        assert keys is not None
        assert row_keys is not None
        # The first candidate for most rows; for those with its key, the first with another key.
        second = (keys != keys[0]).byte().argmax()
        return torch.where(row_keys == keys[0], second, 0), num_of_others(keys, row_keys)

    def _is_of_others(self, rows: slice) -> Tensor:
        """[rows, N] bool, True where a candidate comes from another row and another user."""
        shape = (rows.stop - rows.start, self.ids.shape[-1])
        is_of_others = torch.ones(shape, dtype=torch.bool, device=self.ids.device)
        if self.owner is not None and self.row_user_ids is not None:
            owner = self.by_row(self.owner)
            owner = owner if owner.ndim == 1 else owner[rows]
            is_of_others &= owner != self.row_user_ids[rows, None]
        if self.source_rows is not None:
            source = self.by_row(self.source_rows)
            source = source if source.ndim == 1 else source[rows]
            own = torch.arange(rows.start, rows.stop, device=source.device)
            is_of_others &= source != own[:, None]
        return is_of_others

    def _in_row_candidates(self, row_ids: Tensor) -> Tensor:
        """[B, N] bool, True where a sampled item is among the row's own exact ids [B, H]."""
        sampled = self.by_row(self.ids).expand(len(row_ids), -1)
        if not row_ids.shape[1]:
            return torch.zeros_like(sampled, dtype=torch.bool)
        ordered = row_ids.sort(dim=1).values
        position = torch.searchsorted(ordered, sampled.contiguous())
        return ordered.gather(1, position.clamp(max=row_ids.shape[1] - 1)) == sampled


def is_among(ids: Tensor, others: Tensor) -> Tensor:
    """Return whether each id is one of ``others``: bool, of the shape of ``ids``.

    On an accelerator a binary search, because ``torch.isin`` forces a synchronisation there.
    """
    if ids.device.type == "cpu" or not others.numel():
        return torch.isin(ids, others)
    return _is_among_sorted(ids, others.flatten().sort().values)


def _is_among_sorted(ids: Tensor, ordered: Tensor) -> Tensor:
    ids = ids.to(ordered.dtype).contiguous()
    position = torch.searchsorted(ordered, ids).clamp_(max=len(ordered) - 1)
    return ordered[position] == ids


def _to_device(value: T, device: torch.device | str) -> T:
    """Move all tensors of a record, and of the records in it."""
    if isinstance(value, Tensor):
        return cast(T, value.to(device))
    if isinstance(value, tuple):
        return cast(T, tuple(_to_device(part, device) for part in value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    moved = {field.name: _to_device(getattr(value, field.name), device) for field in fields(value)}
    return cast(T, replace(value, **moved))


def num_of_others(keys: Tensor, row_keys: Tensor) -> Tensor:
    """Count, for each row, the candidates with another key than the row.

    Args:
        keys: [N] int64, such as the users of the candidates.
        row_keys: [B] int64, the same of the rows.

    Returns:
        [B] int64.
    """
    ordered, row_keys = keys.long().sort().values, row_keys.long().contiguous()
    num_own = torch.searchsorted(ordered, row_keys, right=True)
    return len(keys) - (num_own - torch.searchsorted(ordered, row_keys))


def _part_mask(positive_ids: Tensor, ids: Tensor) -> Tensor:
    """[B, H] bool, True for the positive and, in ids [B, H], for repetitions and padding."""
    mask = ids == positive_ids[:, None]
    if ids.ndim == 1:
        return mask
    ordered, order = ids.sort(dim=1, stable=True)
    repeats_previous = ordered[:, 1:] == ordered[:, :-1]
    is_repeated = torch.zeros_like(mask).scatter(1, order[:, 1:], repeats_previous)
    return mask | is_repeated | (ids < 0)
