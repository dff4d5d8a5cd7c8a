"""Loss and gradient of the corrected softmax in closed form, for several estimators at once.

Autograd would build a graph for each estimator and repeat. With w the weights of the exact and
sampled candidates in the estimated Z' (their sum is 1) and P(p) = sigmoid(s(p) - log Z'), the
gradient is (1 - P(p))·w(d) for a candidate and P(p) - 1 for the positive. The tests compare loss
and gradients with autograd of the training losses.

The learnt partition function is measured with an exact prediction, log zeta = log Z. An error of
the prediction shifts all logits of a row by the same number, which changes no probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from candid.losses.comparison import Comparison
from candid.losses.correction import Correction, HitRule
from candid.losses.estimator import Estimator
from candid.losses.jackknife import Groups, LeaveOneOut
from candid.losses.learnt_partition import log_ratios


@dataclass(frozen=True, slots=True)
class Gradients:
    """Losses and gradients of A estimators for one sample of candidates, float64.

    Attributes:
        loss: [A, B].
        positive: [A, B], gradient with respect to the score of the positive, with those of its
            samples where accidental hits are kept: they are the same score.
        candidates: [A, B, N], with respect to the scores of the sampled candidates; 0 for
            accidental hits.
        exact: [A, B, H], with respect to the scores of the exact candidates; None without them.
        effective_sample_size: [A, B], (Σ w)² / Σ w²; 0 if all candidates are accidental hits.
        log_z: [A, B], log Z', the estimate of the partition function without the positive; -inf
            if all candidates are accidental hits.
    """

    loss: Tensor
    positive: Tensor
    candidates: Tensor
    exact: Tensor | None
    effective_sample_size: Tensor
    log_z: Tensor


@dataclass(frozen=True, slots=True)
class _Softmax:
    """Shares of each term in the estimated partition function under one correction.

    Attributes:
        loss: [B].
        positive: [B], share of the positive, P(p).
        sample_weight: [B], 1 - P(p).
        candidates: [B, N], shares of the sampled candidates.
        exact: [B, H], shares of the exact candidates, or None.
        effective_sample_size: [B].
        log_z: [B], log Z'.
    """

    loss: Tensor
    positive: Tensor
    sample_weight: Tensor
    candidates: Tensor
    exact: Tensor | None
    effective_sample_size: Tensor
    log_z: Tensor


_RowGradients = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Loss, and gradients of positive, sampled and exact candidates."""


def gradients(
    comparison: Comparison, estimators: Sequence[Estimator], log_partition: Tensor
) -> Gradients:
    """Compute loss and gradients of every estimator; see ``losses.corrected_log_softmax``.

    Args:
        comparison: float64 scores.
        estimators: A estimators.
        log_partition: [B], the exact log Z of each row, for a learnt partition function.
    """
    keys = [(estimator.correction, estimator.hit_rule) for estimator in estimators]
    softmax_of = {key: _softmax(comparison, *key) for key in dict.fromkeys(keys)}
    parts = []
    for estimator, key in zip(estimators, keys, strict=True):
        softmax = softmax_of[key]
        if estimator.cap is not None:
            parts.append(_partition_gradients(comparison, estimator.cap, log_partition))
            continue
        part = (
            _jackknife_gradients(softmax, comparison.groups, ~comparison.masked(estimator.hit_rule))
            if estimator.jackknife
            else _plain_gradients(softmax)
        )
        is_kept = estimator.hit_rule == "keep"
        parts.append(_with_hits_in_positive(part, comparison) if is_kept else part)
    losses, positives, candidates, exacts = zip(*parts, strict=True)
    return Gradients(
        loss=torch.stack(losses),
        positive=torch.stack(positives),
        candidates=torch.stack(candidates),
        exact=None if comparison.exact_scores is None else torch.stack(exacts),
        effective_sample_size=torch.stack([softmax_of[key].effective_sample_size for key in keys]),
        log_z=torch.stack([softmax_of[key].log_z for key in keys]),
    )


def _with_hits_in_positive(part: _RowGradients, comparison: Comparison) -> _RowGradients:
    """Add the gradients of samples of the positive to that of the positive."""
    loss, positive, candidates, exact = part
    sampled = comparison.candidates
    is_hit = sampled.by_row(sampled.ids) == comparison.positive_ids[:, None]
    of_hits = candidates.where(is_hit, 0.0)
    return loss, positive + of_hits.sum(dim=1), candidates - of_hits, exact


def _softmax(comparison: Comparison, correction: Correction, rule: HitRule) -> _Softmax:
    shifts = comparison.shifts(correction)
    positive, logits = comparison.positive_scores, comparison.candidate_scores
    if shifts.candidates is not None:
        logits = logits - shifts.candidates
    if shifts.positive is not None:
        positive = positive - shifts.positive
    if shifts.row is not None:
        logits = logits - shifts.row[:, None]
    logits = torch.where(comparison.masked(rule), -torch.inf, logits)
    exact = None
    if comparison.exact_scores is not None and comparison.exact_accidental_hits is not None:
        exact = torch.where(comparison.exact_accidental_hits, -torch.inf, comparison.exact_scores)
    # Subtracting the row's maximum allows one exponential per score; an empty row gives 0.
    maxima = [part.amax(dim=1) for part in (logits, exact) if part is not None and part.shape[1]]
    top = torch.stack(maxima).amax(dim=0) if maxima else torch.full_like(positive, -torch.inf)
    top = torch.where(top.isneginf(), 0.0, top)
    weights = logits.sub_(top[:, None]).exp_()
    exact_weights = None if exact is None else exact.sub_(top[:, None]).exp_()
    total = weights.sum(dim=1) + (0.0 if exact_weights is None else exact_weights.sum(dim=1))
    squares = weights.square().sum(dim=1)
    squares = squares + (0.0 if exact_weights is None else exact_weights.square().sum(dim=1))
    log_z = total.log() + top
    gap = log_z - positive
    sample_weight = torch.sigmoid(gap)
    is_empty = total == 0
    scale = (sample_weight / total).masked_fill(is_empty, 0.0)
    return _Softmax(
        loss=torch.logaddexp(torch.zeros_like(gap), gap),
        positive=torch.sigmoid(-gap),
        sample_weight=sample_weight,
        candidates=weights.mul_(scale[:, None]),
        exact=None if exact_weights is None else exact_weights.mul_(scale[:, None]),
        effective_sample_size=(total.square() / squares).masked_fill(is_empty, 0.0),
        log_z=log_z,
    )


def _plain_gradients(softmax: _Softmax) -> _RowGradients:
    return softmax.loss, -softmax.sample_weight, softmax.candidates, softmax.exact


def _jackknife_gradients(softmax: _Softmax, groups: Groups, is_valid: Tensor) -> _RowGradients:
    """Return loss and gradients of the jackknife, equations (1) and (2) of ``losses.jackknife``.

    Without group j the partition function is d(j) times the full one, with shares that do not
    depend on j of the positive, the exact candidates and the other kind of candidates, and the
    shares of the other groups of its kind 1 + excess(j) times. L(-j) = L + log d(j), so that the
    gradient needs only sums of w(j) / d(j).
    """
    left_out = LeaveOneOut.of(groups, is_valid, torch.float64)
    share = groups.sums(softmax.candidates)
    fixed = softmax.positive + (0.0 if softmax.exact is None else softmax.exact.sum(dim=1))
    ratio = fixed[:, None].expand_as(share)
    for is_kind, of_kind in groups.of_kinds(share):
        rest = _sum_without_each(of_kind) * (1.0 + left_out.excess)
        ratio = ratio + torch.where(is_kind, rest, of_kind.sum(dim=1, keepdim=True))
    ratio = torch.where(left_out.weight > 0, ratio, 1.0)
    inverse = left_out.weight / ratio
    total = 1.0 + left_out.weight.sum(dim=1, keepdim=True)
    fixed_factor = (total - inverse.sum(dim=1, keepdim=True))[:, 0]
    factor = total.expand_as(share)
    for is_kind, of_kind in groups.of_kinds(inverse):
        rest = _sum_without_each(of_kind * (1.0 + left_out.excess))
        factor = factor - torch.where(is_kind, rest, of_kind.sum(dim=1, keepdim=True))
    # -1 is the sum of the ones of the loss and of the losses that leave out a group.
    return (
        softmax.loss - (left_out.weight * ratio.log()).sum(dim=1),
        torch.where(
            left_out.weight.any(dim=1),
            softmax.positive * fixed_factor - 1.0,
            -softmax.sample_weight,
        ),
        softmax.candidates * groups.of_candidates(factor),
        None if softmax.exact is None else softmax.exact * fixed_factor[:, None],
    )


def _partition_gradients(
    comparison: Comparison, cap: float, log_partition: Tensor
) -> _RowGradients:
    """Return loss and gradients of the learnt partition function with an exact prediction."""
    ratios = log_ratios(comparison)
    positive, candidates = ratios.gradients(log_partition, cap)
    num_exact = candidates.shape[1] - comparison.candidate_scores.shape[1]
    exact, sampled = candidates.split([num_exact, candidates.shape[1] - num_exact], dim=1)
    return (
        ratios.losses(log_partition, cap),
        positive,
        sampled,
        None if comparison.exact_scores is None else exact,
    )


def _sum_without_each(values: Tensor) -> Tensor:
    """Return the sum of each row without the entry itself: [B, N]; values are not negative."""
    sums = values.sum(dim=1, keepdim=True) - values
    if not values.shape[1]:
        return sums
    # For the largest entry the difference may cancel: the other entries are summed directly.
    largest = values.argmax(dim=1, keepdim=True)
    others = values.scatter(1, largest, 0.0).sum(dim=1, keepdim=True)
    return sums.scatter_(1, largest, others)
