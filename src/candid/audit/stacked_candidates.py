"""Independent samples of the same rows, stacked into one record to be scored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from candid.candidates import Candidates, ExactCandidates
from candid.row_counts import RowCounts


def can_be_stacked(samples: Sequence[Candidates]) -> bool:
    """Return whether samples have one number of samples and the same shared exact candidates."""
    first = samples[0]
    return all(
        other.num_samples == first.num_samples
        and other.source_rows is None
        and _have_same_shared_items(first.exact, other.exact)
        for other in samples
    )


def stacked(samples: Sequence[Candidates]) -> Candidates:
    """Stack G samples of the same rows.

    Args:
        samples: each for R rows, with ids [N] or [R, N]; see ``can_be_stacked``.

    Returns:
        candidates of G · R rows, those of the first sample first: ids [G, N], where the counts of
        shorter sets are padded by inf, or [G · R, N].
    """
    first = samples[0]
    owners = [sample.owner for sample in samples if sample.owner is not None]
    row_user_ids = [one.row_user_ids for one in samples if one.row_user_ids is not None]
    row_counts = [one.row_counts for one in samples if one.row_counts is not None]
    return replace(
        first,
        ids=_joined([sample.ids for sample in samples], 0.0),
        log_expected_count=_joined([one.log_expected_count for one in samples], float("inf")),
        log_expected_count_positive=torch.cat([s.log_expected_count_positive for s in samples]),
        owner=_joined(owners, -1.0) if owners else None,
        row_user_ids=torch.cat(row_user_ids) if row_user_ids else None,
        exact=_stacked_exact([one.exact for one in samples if one.exact is not None]),
        row_counts=RowCounts.joined(row_counts, _joined, torch.cat) if row_counts else None,
    )


def _joined(parts: Sequence[Tensor], padding: float = 0.0) -> Tensor:
    if parts[0].ndim > 1:
        return torch.cat(list(parts))
    return pad_sequence(list(parts), batch_first=True, padding_value=padding)


def _stacked_exact(parts: Sequence[ExactCandidates]) -> ExactCandidates | None:
    if not parts:
        return None
    first = parts[0]
    row_parts = [part.row_candidates for part in parts if part.row_candidates is not None]
    if first.ids.ndim == 1:
        return replace(first, row_candidates=_stacked_exact(row_parts))
    return ExactCandidates(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.log_expected_count for part in parts]),
    )


def _have_same_shared_items(one: ExactCandidates | None, other: ExactCandidates | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.ids.ndim > 1 or torch.equal(one.ids, other.ids)
