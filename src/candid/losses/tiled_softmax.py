"""The corrected softmax of a comparison in tiles, without the [B, N] scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from candid.candidates import is_among
from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.count_shift import CountShift
from candid.losses.blockwise.softmax import blockwise_softmax
from candid.losses.blockwise.tiles import Precision
from candid.losses.comparison import Comparison
from candid.losses.corrected_softmax import masked_logsumexp
from candid.losses.correction import Correction, HitRule, hit_rule, shifts_of
from candid.losses.inputs import widened
from candid.losses.merged_samples import MergedSamples
from candid.losses.output import LossOutput
from candid.row_counts import RowCounts

NO_ID = torch.iinfo(torch.int64).min
"""An id that no row has."""


def tiled_softmax(
    comparison: Comparison,
    correction: Correction,
    precision: Precision,
    accidental_hits: HitRule | None = None,
    *,
    effective_sample_size: bool = False,
) -> LossOutput:
    """Compute the corrected softmax of shared candidates [N] in tiles.

    Args:
        comparison: rows and candidates.
        correction: see ``candid.losses.correction``.
        precision: dtype of the matrix products.
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None for
            the default of the correction.
        effective_sample_size: report ``effective_sample_size``.

    Returns:
        the output of ``dense_softmax``, up to rounding.

    Raises:
        UnknownNameError: no such correction or rule.
        ConfigError: the correction is not defined with this rule.
    """
    rule = hit_rule(correction, accidental_hits)
    candidates = comparison.candidates
    wide = torch.promote_types(comparison.query.dtype, comparison.candidate_vectors.dtype)
    wide = torch.promote_types(wide, torch.float32)
    in_shared_exact = _in_shared_exact(comparison)
    hits = _masked(comparison, in_shared_exact, rule)

    def num_valid() -> Tensor:
        num_hits = hits.num_hits()
        if in_shared_exact is not None:
            num_hits = num_hits + in_shared_exact.sum()
        return len(candidates.ids) - num_hits

    shifts = shifts_of(
        correction,
        candidates,
        num_valid=num_valid,
        exact_accidental_hits=comparison.exact_accidental_hits,
        positive_in_exact=comparison.positive_in_exact,
        num_of_others=comparison.num_of_others,
    )
    positive = comparison.positive_scores.to(wide)
    exact, exact_mask = comparison.exact_scores, comparison.exact_accidental_hits
    exact = None if exact is None else widened(exact).to(wide)
    if shifts.positive is not None:
        positive = positive - shifts.positive
    shift = None if shifts.candidates is None else shifts.candidates.to(wide)
    if in_shared_exact is not None:
        shift = positive.new_zeros(len(candidates.ids)) if shift is None else shift
        shift = shift.masked_fill(in_shared_exact, math.inf)
    row_shift = None if shifts.row is None else shifts.row.to(wide)
    row_counts = shifts.row_counts
    query, vectors = comparison.query.to(wide), comparison.candidate_vectors
    merged = _merged(comparison, rule, shift, row_counts)
    log_size = None
    if merged is not None:
        first = merged.first
        hits = merged.hits(_item_matches(comparison, rule, first), _own(comparison, rule)[0], wide)
        log_size = merged.size.to(wide).log()
        vectors = vectors.index_select(0, first)
        shift = None if shift is None else shift[first]
        if row_counts is not None:
            row_counts = row_counts.of_rows(slice(None), lambda values: values[first])
    vectors = vectors.to(wide)
    loss, log_z = blockwise_softmax(
        query,
        vectors,
        positive,
        hits,
        shift=_minus(shift, log_size),
        row_shift=row_shift,
        tile_shift=None if row_counts is None else CountShift(row_counts, wide),
        log_rest=None if exact is None else masked_logsumexp(exact, exact_mask),
        precision=precision,
    )
    sample_size = None
    if effective_sample_size:
        with torch.no_grad():
            # (Σ w)² / Σ w²: the second sum is that of the doubled logits.
            _, log_square = blockwise_softmax(
                2.0 * query,
                vectors,
                positive,
                hits,
                shift=_minus(None if shift is None else 2.0 * shift, log_size),
                row_shift=None if row_shift is None else 2.0 * row_shift,
                tile_shift=(
                    None if row_counts is None else CountShift(row_counts, wide, factor=2.0)
                ),
                log_rest=None if exact is None else masked_logsumexp(2.0 * exact, exact_mask),
                precision=precision,
            )
            sample_size = torch.exp(2.0 * log_z - log_square)
            sample_size = sample_size.masked_fill(log_z.isneginf(), 0.0)
    return LossOutput(
        loss=loss,
        log_z=log_z,
        sample_weight=torch.sigmoid(log_z - positive).detach(),
        effective_sample_size=sample_size,
    )


def _minus(shift: Tensor | None, log_size: Tensor | None) -> Tensor | None:
    if log_size is None:
        return shift
    return -log_size if shift is None else shift - log_size


def _merged(
    comparison: Comparison, rule: HitRule, shift: Tensor | None, row_counts: RowCounts | None
) -> MergedSamples | None:
    """Return the distinct items where one candidate can stand for all samples of an item.

    None where samples of an item differ, where merging saves little, where two sources leave out
    samples of a row, and on an accelerator, where the number of items forces a synchronisation.
    """
    ids = comparison.candidates.ids
    if not comparison.vectors_by_id or ids.device.type != "cpu" or not len(ids):
        return None
    if len(_own(comparison, rule)) > 1:
        return None
    merged = MergedSamples.of(ids.long())
    values = [comparison.candidate_vectors.detach()]
    if shift is not None:
        values.append(shift)
    if row_counts is not None:
        values.append(row_counts.fixed_share)
        for part in row_counts.parts:
            values += [part.share] if part.log_miss is None else [part.share, part.log_miss]
    return merged if merged.saves_time and merged.are_equal(values) else None


def _is_kept(comparison: Comparison, rule: HitRule) -> bool:
    return rule == "keep" and comparison.candidates.keeps_hits


def _own(comparison: Comparison, rule: HitRule) -> list[tuple[Tensor, Tensor] | None]:
    """Return keys of rows [B] and samples [N]: samples with the key of a row are left out of it.

    Only those that do not depend on the item; one None without any.
    """
    candidates, positive_ids = comparison.candidates, comparison.positive_ids
    own: list[tuple[Tensor, Tensor] | None] = []
    if _is_kept(comparison, rule) and candidates.source_rows is not None:
        rows = torch.arange(len(positive_ids), device=positive_ids.device)
        own.append((rows, candidates.source_rows))
    if _is_kept(comparison, rule) and comparison.replaced_samples is not None:
        position = torch.arange(len(candidates.ids), device=positive_ids.device)
        own.append((comparison.replaced_samples[0], position))
    if candidates.owner is not None and candidates.row_user_ids is not None:
        own.append((candidates.row_user_ids, candidates.owner))
    return own or [None]


def _item_matches(comparison: Comparison, rule: HitRule, samples: Tensor) -> list[IdMatch]:
    """Match rows with the items that are left out of them, among the samples at positions [M]."""
    positive_ids, ids = comparison.positive_ids.long(), comparison.candidates.ids[samples].long()
    matches = [] if _is_kept(comparison, rule) else [IdMatch(positive_ids, ids)]
    for row_ids in _exact_ids(comparison, ndim=2):
        matches += [IdMatch(column.long(), ids) for column in row_ids.unbind(dim=1)]
    return matches or [IdMatch(positive_ids, torch.full_like(ids, NO_ID))]


def _exact_ids(comparison: Comparison, ndim: int) -> list[Tensor]:
    """Return ids of exact candidates: the shared ones [H] for ndim 1, the rows' [B, H] for 2."""
    exact = comparison.candidates.exact
    parts = () if exact is None else exact.parts
    return [part.ids for part in parts if part.ids.ndim == ndim]


def _in_shared_exact(comparison: Comparison) -> Tensor | None:
    """[N] bool, True where a sample is an exact candidate that all rows share, or None."""
    shared = _exact_ids(comparison, ndim=1)
    return is_among(comparison.candidates.ids, shared[0]) if shared else None


def _masked(
    comparison: Comparison, in_shared_exact: Tensor | None, rule: HitRule
) -> AccidentalHits:
    """The mask of ``Comparison.masked`` for shared ids, without ``in_shared_exact``."""
    candidates, positive_ids = comparison.candidates, comparison.positive_ids

    def without_shared(ids: Tensor) -> Tensor:
        # Samples that no row is compared with match no row: they are counted once, separately.
        ids = ids.long()
        return ids if in_shared_exact is None else ids.masked_fill(in_shared_exact, NO_ID)

    matches = [] if _is_kept(comparison, rule) else [(positive_ids, candidates.ids)]
    matches += [keys for keys in _own(comparison, rule) if keys is not None]
    for row_ids in _exact_ids(comparison, ndim=2):
        matches += [(column, candidates.ids) for column in row_ids.unbind(dim=1)]
    if not matches:
        matches.append((positive_ids, torch.full_like(candidates.ids, NO_ID)))
    return AccidentalHits(*(IdMatch(rows.long(), without_shared(ids)) for rows, ids in matches))
