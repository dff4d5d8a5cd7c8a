"""The corrected softmax of scores: one positive and a sample of the other items.

A sampled candidate d stands for 1 / e(d) items, e(d) its expected count, so that

    log Z' = logsumexp over candidates d that are not masked, of [ s(d) - log e(d) ]      (1)
    loss   = logaddexp(s(p), log Z') - s(p)                                              (2)

with p the positive: a Horvitz-Thompson estimate of the other items' share of the partition
function. The gradient of (2) is that of the refined loss of Khrylchenko et al. (RecSys
2025), -sg(1 - P(p)) · [s(p) - log Σ exp(s(d) - log e(d))], with P(p) from the same sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.losses.comparison import Comparison
from candid.losses.correction import (
    DEFAULT_CORRECTION,
    Correction,
    HitRule,
    Shifts,
    check_defined,
    hit_rule,
    shifts_of_counts,
)
from candid.losses.inputs import widened
from candid.losses.jackknife import Groups
from candid.losses.jackknife import jackknife as jackknife_loss
from candid.losses.output import LossOutput


def corrected_log_softmax(
    *,
    positive: Tensor,
    candidates: Tensor,
    log_expected_count: Tensor,
    log_expected_count_positive: Tensor | None = None,
    accidental_hits: Tensor | None = None,
    correction: Correction = DEFAULT_CORRECTION,
    jackknife: bool = False,
    owner: Tensor | None = None,
    log_renormalization: Tensor | None = None,
    exact: Tensor | None = None,
    exact_accidental_hits: Tensor | None = None,
    effective_sample_size: bool = False,
) -> LossOutput:
    """Compare the positive of each row with its candidates, equations (1) and (2).

    log Z' = logsumexp of [ candidate's score - log e(d) ]; the loss is logaddexp(s, log Z') - s
    with s the positive's score, both shifted by the correction (the table in
    ``candid.losses.correction``). With ``refined``, Z' estimates the other items' share of the
    partition function and the loss the negative log-likelihood; with ``logq``, the default, the
    positive is shifted too, and the value is on another scale.

    Scores narrower than float32 are raised to float32; float64 stays. A row whose candidates
    are all masked has log_z -inf, loss 0 and gradient 0. A correction that shifts the positive
    cannot train a positive that can never be sampled: a row with log e(p) = -inf has loss 0 and
    gradient 0 as well.

    Args:
        positive: [B], the score of each row's positive.
        candidates: [B, N], the candidates' scores.
        log_expected_count: [N] or [B, N], log e(d).
        log_expected_count_positive: [B], log e(p); needed where the correction shifts the
            positive, as the default does.
        accidental_hits: [B, N] bool, True where the candidate is left out of the row, or None.
            To keep samples of the row's positive, leave them False.
        correction: the row of the table.
        jackknife: replace the loss by its delete-one-group jackknife, G·L - (G - 1)/G · Σ L(-j)
            with L(-j) the loss without group j, its expected counts those of the remaining
            candidates: the bias falls from O(1/G) to O(1/G²), the standard deviation grows by
            about a tenth. G counts the groups with a candidate that is not masked; a row with
            fewer than two keeps the plain loss. ``candid.losses.jackknife`` has the derivation,
            also for groups of unequal size. For mixtures it removes most, not all, of the
            leading bias, and for sets of distinct items it adds a bias that no n removes
            (docs/benchmarks/audit.md): do not combine them. ``log_z`` and ``sample_weight`` stay
            those of the plain loss.
        owner: [N] or [B, N] int64, the user that a candidate came from, -1 for none. The
            candidates of one user are a group of the jackknife, because they depend on each
            other; a candidate without an owner is a group of its own. None where no candidate
            has an owner. Read by the jackknife only: it masks nothing.
        log_renormalization: [B], added to every log e(d) of the row; None for 0.
        exact: [B, H], scores of items with expected count 1, beside the candidates (equation
            (1) then sums over both), or None. The jackknife never omits them.
        exact_accidental_hits: [B, H] bool, as ``accidental_hits``, or None.
        effective_sample_size: report ``effective_sample_size``.

    Returns:
        the loss, carrying the gradient of ``positive`` and ``candidates``; ``log_z`` of (1),
        with gradient; ``sample_weight`` Z' / (exp(positive) + Z') of the shifted scores:
        the weight that the gradient of the row has.

    Raises:
        UnknownNameError: no such correction.
        ConfigError: the correction needs ``log_expected_count_positive``, which is None, or is
            not defined beside exact candidates; or ``owner`` has another shape.

    Example:
        >>> import math, torch
        >>> from candid.losses import corrected_log_softmax
        >>> # 4 of 1,000 items, sampled uniformly: each is expected 4 / 1,000 times.
        >>> out = corrected_log_softmax(
        ...     positive=torch.zeros(2),
        ...     candidates=torch.zeros(2, 4),
        ...     log_expected_count=torch.full((4,), math.log(4 / 1000)),
        ...     correction="refined",
        ... )
        >>> [round(value) for value in out.loss.exp().tolist()]
        [1001, 1001]
    """
    check_defined(correction, has_exact=exact is not None, is_set=False)
    if owner is not None and owner.shape not in (candidates.shape, candidates.shape[1:]):
        raise ConfigError(
            f"owner must be [N] or [B, N] like candidates {list(candidates.shape)}, got "
            f"{list(owner.shape)}: pass the user of each candidate, -1 for none"
        )
    shifts = shifts_of_counts(
        correction, log_expected_count, log_expected_count_positive, log_renormalization
    )
    return _shifted_log_softmax(
        positive,
        candidates,
        accidental_hits,
        shifts,
        groups=Groups.of_owners(owner) if jackknife else None,
        exact=exact,
        exact_accidental_hits=exact_accidental_hits,
        effective_sample_size=effective_sample_size,
    )


def dense_softmax(
    comparison: Comparison,
    correction: Correction,
    accidental_hits: HitRule | None = None,
    *,
    jackknife: bool = False,
    effective_sample_size: bool = False,
) -> LossOutput:
    """Compute the corrected softmax of a comparison from all its scores at once.

    Args:
        comparison: rows and candidates.
        correction: see ``candid.losses.correction``.
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None for
            the default of the correction.
        jackknife: as in ``corrected_log_softmax``.
        effective_sample_size: report ``effective_sample_size``.

    Raises:
        UnknownNameError: no such correction or rule.
        ConfigError: the correction is not defined with this rule.
    """
    rule = hit_rule(correction, accidental_hits)
    return _shifted_log_softmax(
        comparison.positive_scores,
        comparison.candidate_scores,
        comparison.masked(rule),
        comparison.shifts(correction),
        groups=comparison.groups if jackknife else None,
        exact=comparison.exact_scores,
        exact_accidental_hits=comparison.exact_accidental_hits,
        effective_sample_size=effective_sample_size,
    )


def _shifted_log_softmax(
    positive: Tensor,
    candidates: Tensor,
    accidental_hits: Tensor | None,
    shifts: Shifts,
    *,
    groups: Groups | None,
    exact: Tensor | None,
    exact_accidental_hits: Tensor | None,
    effective_sample_size: bool,
) -> LossOutput:
    positive, logits = widened(positive), widened(candidates)
    if shifts.candidates is not None:
        logits = logits - shifts.candidates
    row_shift = None if shifts.row is None else shifts.row.to(positive.dtype)
    if shifts.positive is not None:
        positive = positive - shifts.positive
    log_sum = masked_logsumexp(logits, accidental_hits)
    log_z = log_sum if row_shift is None else log_sum - row_shift
    log_exact = None
    if exact is not None:
        exact = widened(exact)
        log_exact = masked_logsumexp(exact, exact_accidental_hits)
        log_z = _logaddexp(log_exact, log_z)
    loss = _negative_log_likelihood(positive, log_z)
    if groups is not None:
        is_valid = (
            torch.ones_like(logits, dtype=torch.bool)
            if accidental_hits is None
            else ~accidental_hits
        )
        rest = logits if row_shift is None else logits - row_shift[:, None]
        loss = jackknife_loss(loss, positive, rest, is_valid, groups, log_exact)
    sample_size = None
    if effective_sample_size:
        sample_size = _effective_sample_size(
            *_all_logits(logits, accidental_hits, row_shift, exact, exact_accidental_hits)
        )
    return LossOutput(
        loss=loss,
        log_z=log_z,
        sample_weight=torch.sigmoid(log_z - positive).detach(),
        effective_sample_size=sample_size,
    )


def _negative_log_likelihood(positive: Tensor, log_z: Tensor) -> Tensor:
    """Equation (2), accurate also for a positive whose score is far above the others."""
    # logaddexp(p, z) - p = logaddexp(0, z - p); the difference itself would cancel.
    gap = log_z - positive
    return torch.logaddexp(torch.zeros_like(gap), gap)


def masked_logsumexp(logits: Tensor, accidental_hits: Tensor | None) -> Tensor:
    """Logsumexp of [B, N] over N without masked entries; -inf and gradient 0 if all are masked.

    Args:
        logits: [B, N].
        accidental_hits: [B, N] bool, True where the entry is left out; or None.
    """
    if accidental_hits is None:
        return torch.logsumexp(logits, dim=1)
    # The gradient of an empty logsumexp is nan, even times 0: such a row sums zeros instead and
    # is set to -inf afterwards.
    is_empty = accidental_hits.all(dim=1)
    fill = torch.where(is_empty, 0.0, -math.inf).to(logits.dtype)
    log_sum = torch.logsumexp(torch.where(accidental_hits, fill[:, None], logits), dim=1)
    return log_sum.masked_fill(is_empty, -math.inf)


def _logaddexp(log_exact: Tensor, log_rest: Tensor) -> Tensor:
    """Logaddexp, -inf with gradient 0 where both are -inf."""
    is_empty = log_exact.isneginf() & log_rest.isneginf()
    both = torch.logaddexp(log_exact.masked_fill(is_empty, 0.0), log_rest)
    return both.masked_fill(is_empty, -math.inf)


def _all_logits(
    logits: Tensor,
    accidental_hits: Tensor | None,
    row_shift: Tensor | None,
    exact: Tensor | None,
    exact_accidental_hits: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Logits [B, H + N] of exact and sampled candidates, and their mask."""
    if exact is None:
        return logits, accidental_hits
    rest = logits if row_shift is None else logits - row_shift[:, None]
    masks = [
        torch.zeros_like(part, dtype=torch.bool) if mask is None else mask
        for part, mask in ((exact, exact_accidental_hits), (rest, accidental_hits))
    ]
    return torch.cat([exact, rest], dim=1), torch.cat(masks, dim=1)


def _effective_sample_size(logits: Tensor, accidental_hits: Tensor | None) -> Tensor:
    """(Σ w)² / Σ w² of the weights w = exp(logits): [B], detached, 0 where all are masked."""
    logits = logits.detach()
    log_sum = masked_logsumexp(logits, accidental_hits)
    log_square = masked_logsumexp(2.0 * logits, accidental_hits)
    return torch.exp(2.0 * log_sum - log_square).masked_fill(log_sum.isneginf(), 0.0)
