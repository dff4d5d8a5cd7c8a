"""Negatives that the user names: hard ones, or what was shown and not chosen."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from candid.candidates import Candidates, ExactCandidates, Positives
from candid.errors import ConfigError, DataError
from candid.samplers.sampler import Sampler


def with_negatives(
    candidates: Candidates, negative_ids: Tensor, sampler: Sampler, batch: Positives
) -> Candidates:
    """Compare each row with its own negatives too, exactly: they were given, not drawn.

    A given negative has the expected count 1, whatever the sampler would have expected of it,
    and draws of it are dropped from that row, so the estimate of Z' stays that of the catalog.
    Correcting it as a draw would be a bias: it is there because somebody chose it.

    A row's positive among its negatives, an item named twice and an item of a shared head count
    for nothing more. That a negative comes from the row's own user (it was shown to them) is no
    reason to mask it; only draws are masked by their owner.

    The negatives [B, S] become the row's own part of the head; a head shared by all rows stays
    shared, and so does its matrix product. Their vectors are gathered for every row: S·B·D
    numbers, so S is a few dozen at most.

    Args:
        candidates: what ``sampler`` drew for ``batch``; left as they are.
        negative_ids: [B, S] integers, -1 where a row has fewer than S.
        sampler: states how often the negatives were expected among the draws.
        batch: as for ``Sampler.draw``.

    Returns:
        the candidates with the negatives in their head.

    Raises:
        ConfigError: ``negative_ids`` is not a matrix of integers with one row for each row of
            the batch, or the candidates have a head of other rows, which cannot be merged.
        DataError: an id below -1 (checked on the CPU, where it needs no device
            synchronisation).
    """
    num_rows = len(batch.positive_ids)
    check_negatives(negative_ids, num_rows)
    ids = negative_ids.to(torch.int64)
    row_candidates = ExactCandidates(ids, sampler.log_expected_count_of(ids.clamp(min=0), batch))
    exact = candidates.exact
    if exact is None:
        return replace(candidates, exact=row_candidates)
    last = exact.parts[-1]
    if last.ids.ndim == 1:
        return replace(candidates, exact=replace(exact, row_candidates=row_candidates))
    if len(last.ids) != num_rows:
        raise ConfigError(
            f"negatives of {num_rows} rows cannot join a head of {len(last.ids)} rows: give the "
            "batch that the candidates were drawn for"
        )
    joined = ExactCandidates(
        torch.cat([last.ids, row_candidates.ids], dim=1),
        torch.cat([last.log_expected_count, row_candidates.log_expected_count], dim=1),
    )
    return replace(
        candidates,
        exact=joined if exact.row_candidates is None else replace(exact, row_candidates=joined),
    )


def check_negatives(negative_ids: Tensor, num_rows: int) -> None:
    """Refuse negatives that are no [B, S] of ids and -1.

    Raises:
        ConfigError: the wrong shape or no integers.
        DataError: an id below -1, on the CPU.
    """
    if negative_ids.ndim != 2 or len(negative_ids) != num_rows:
        raise ConfigError(
            f"negative_ids must be [B, S] with one row for each of the {num_rows} rows of the "
            f"batch, got shape {tuple(negative_ids.shape)}: fill up shorter rows with -1"
        )
    if negative_ids.is_floating_point() or negative_ids.dtype == torch.bool:
        raise ConfigError(f"negative_ids must be integers, got {negative_ids.dtype}")
    if negative_ids.device.type == "cpu" and negative_ids.numel():
        lowest = int(negative_ids.min())
        if lowest < -1:
            row = int((negative_ids == lowest).any(dim=1).nonzero()[0])
            raise DataError(
                f"negative_ids holds {lowest} in row {row}: ids begin at 0, and -1 fills up a row"
            )
