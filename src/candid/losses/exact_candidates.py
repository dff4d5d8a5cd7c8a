"""The exact head of a comparison: scores, and what of it and of the draws must not count twice."""

from __future__ import annotations

from functools import reduce
from operator import or_

import torch
from torch import Tensor

from candid.candidates import Candidates, ExactCandidates


def exact_scores(rows: Tensor, vectors: list[Tensor]) -> Tensor:
    """[B, H] scores of rows [B, D] and the vectors of each part, [H, D] or [B, H, D]."""
    scores = [
        rows @ part.T if part.ndim == 2 else torch.einsum("bd,bhd->bh", rows, part)
        for part in vectors
    ]
    return scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)


def exact_accidental_hits(positive_ids: Tensor, exact: ExactCandidates) -> Tensor:
    """[B, H] bool, True where a head item is no negative: the positive, a repetition, a filler.

    H counts the shared items and the rows' own, in this order.
    """
    shared, *row_candidates = exact.parts
    accidental_hits = _hits_of(positive_ids, shared.ids)
    if not row_candidates:
        return accidental_hits
    hits_of_own = _hits_of(positive_ids, row_candidates[0].ids) | torch.isin(
        row_candidates[0].ids, shared.ids
    )
    return torch.cat([accidental_hits, hits_of_own], dim=1)


def positive_in_exact(positive_ids: Tensor, exact: ExactCandidates) -> Tensor:
    """[B] bool, True where the row's positive is in the head: there is nothing to expect of it."""
    return torch.cat([_same(positive_ids, part.ids) for part in exact.parts], dim=1).any(dim=1)


def _same(positive_ids: Tensor, ids: Tensor) -> Tensor:
    return ids == positive_ids[:, None]


def _hits_of(positive_ids: Tensor, ids: Tensor) -> Tensor:
    accidental_hits = _same(positive_ids, ids)
    if ids.ndim == 1:
        return accidental_hits
    ordered, order = ids.sort(dim=1, stable=True)
    is_same_as_last = ordered[:, 1:] == ordered[:, :-1]
    is_repeated = torch.zeros_like(accidental_hits).scatter(1, order[:, 1:], is_same_as_last)
    return accidental_hits | is_repeated | (ids < 0)


def sampled_in_exact(candidates: Candidates, exact: ExactCandidates) -> Tensor:
    """[N] or [B, N] bool, True where a drawn candidate is an item of the (row's) head."""
    return reduce(
        or_,
        (
            candidates.by_row(torch.isin(candidates.ids, part.ids))
            if part.ids.ndim == 1
            else _drawn_in_own(candidates, part.ids)
            for part in exact.parts
        ),
    )


def _drawn_in_own(candidates: Candidates, ids: Tensor) -> Tensor:
    sampled = candidates.by_row(candidates.ids).expand(len(ids), -1)
    if not ids.shape[1]:
        return torch.zeros_like(sampled, dtype=torch.bool)
    ordered = ids.sort(dim=1).values
    place = torch.searchsorted(ordered, sampled.contiguous()).clamp(max=ids.shape[1] - 1)
    return ordered.gather(1, place) == sampled


def exact_share(
    exact: ExactCandidates, accidental_hits: Tensor, num_samples: int, dtype: torch.dtype
) -> Tensor:
    """[B] Q of the head without its hits: the share of the draws that falls into it.

    Args:
        head: the head.
        hits: [B, H] of ``head_hits``.
        num_samples: n.
        dtype: of the arithmetic.
    """
    sizes = [part.ids.shape[-1] for part in exact.parts]
    shares = [
        torch.where(is_hit, 0.0, part.log_expected_count.to(dtype).exp() / num_samples).sum(dim=1)
        for part, is_hit in zip(exact.parts, accidental_hits.split(sizes, dim=1), strict=True)
    ]
    return torch.stack(shares).sum(dim=0)
