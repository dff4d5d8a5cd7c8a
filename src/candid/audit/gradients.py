"""The gradient of the corrected softmax written out, for all corrections of one draw at once.

Autograd would make a graph for each correction of each draw. With w the weights of head and
draws in the estimated Z' (their sum is 1) and P(p) = sigmoid(s(p) - log Z'), the gradient is
(1 - P(p))·w(d) for a candidate and P(p) - 1 for the positive. The tests hold all of this
against autograd of the losses that train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from candid.audit.estimators import Variant
from candid.losses.comparison import Comparison, log_renormalization


@dataclass(frozen=True, slots=True)
class Gradients:
    """What the variants of one draw come to, float64.

    Attributes:
        loss: [A, B] for A variants.
        positive: [A, B], gradient with respect to the score of the positive.
        candidates: [A, B, N], with respect to those of the draws; 0 for hits.
        head: [A, B, H], of the exact head, or None.
        effective: [A, B], (Σ w)² / Σ w², 0 where all are hits.
    """

    loss: Tensor
    positive: Tensor
    candidates: Tensor
    exact: Tensor | None
    effective: Tensor


@dataclass(frozen=True, slots=True)
class _Softmax:
    """One correction: shares in the estimated partition function, the positive's included."""

    loss: Tensor
    positive: Tensor
    sample_weight: Tensor
    candidates: Tensor
    exact: Tensor | None
    effective: Tensor


def gradients(comparison: Comparison, variants: Sequence[Variant]) -> Gradients:
    """Loss and gradients of every variant, see ``losses.corrected_log_softmax``.

    Args:
        comparison: float64 scores.
        variants: the corrections.
    """
    by_correction = {
        correction: _softmax(comparison, correction)
        for correction in dict.fromkeys(variant.correction for variant in variants)
    }
    parts = [
        _jackknifed(by_correction[variant.correction], comparison.accidental_hits)
        if variant.jackknife
        else _plain(by_correction[variant.correction])
        for variant in variants
    ]
    losses, positives, candidates, heads = zip(*parts, strict=True)
    return Gradients(
        loss=torch.stack(losses),
        positive=torch.stack(positives),
        candidates=torch.stack(candidates),
        exact=None if comparison.exact is None else torch.stack(heads),
        effective=torch.stack([by_correction[v.correction].effective for v in variants]),
    )


def _softmax(comparison: Comparison, correction: str) -> _Softmax:
    drawn, hits = comparison.sampled, comparison.accidental_hits
    positive, logits = comparison.positive, comparison.candidates
    if correction != "none":
        logits = logits - drawn.by_row(drawn.log_expected_count)
    if correction == "logq":
        positive = positive - comparison.log_expected_count_positive
    if correction == "refined":
        constant = log_renormalization(drawn, hits, comparison.exact_accidental_hits)
        logits = logits if constant is None else logits - constant[:, None]
    logits = torch.where(hits, -torch.inf, logits)
    exact = None
    if comparison.exact is not None and comparison.exact_accidental_hits is not None:
        exact = torch.where(comparison.exact_accidental_hits, -torch.inf, comparison.exact)
    # One exponential for everything: the largest is taken out, a row without any gives 0.
    tops = [part.amax(dim=1) for part in (logits, exact) if part is not None and part.shape[1]]
    top = torch.stack(tops).amax(dim=0) if tops else torch.full_like(positive, -torch.inf)
    top = torch.where(top.isneginf(), 0.0, top)
    weights = logits.sub_(top[:, None]).exp_()
    of_head = None if exact is None else exact.sub_(top[:, None]).exp_()
    total = weights.sum(dim=1) + (0.0 if of_head is None else of_head.sum(dim=1))
    squares = weights.square().sum(dim=1)
    squares = squares + (0.0 if of_head is None else of_head.square().sum(dim=1))
    gap = total.log() + top - positive
    sample_weight = torch.sigmoid(gap)
    is_empty = total == 0
    scale = (sample_weight / total).masked_fill(is_empty, 0.0)
    return _Softmax(
        loss=torch.logaddexp(torch.zeros_like(gap), gap),
        positive=torch.sigmoid(-gap),
        sample_weight=sample_weight,
        candidates=weights.mul_(scale[:, None]),
        exact=None if of_head is None else of_head.mul_(scale[:, None]),
        effective=(total.square() / squares).masked_fill(is_empty, 0.0),
    )


def _plain(softmax: _Softmax) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Loss, and the gradients of positive, candidates and head."""
    return softmax.loss, -softmax.sample_weight, softmax.candidates, softmax.exact


def _jackknifed(softmax: _Softmax, hits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The same of n·L - (n - 1)/n · Σ L(-i) over the n candidates that are no hits.

    Without candidate i the partition function is d(i) times the whole one, d(i) = a + (T - t(i))
    · n/(n - 1): T is the draws' share of it, t(i) that of one, and a the positive's and the
    head's, which stay. So L(-i) = L + log d(i), and sums of 1 / d(i) are all its gradient needs.
    """
    share = softmax.candidates
    is_valid = ~hits
    num_valid = is_valid.sum(dim=1)
    is_plain = num_valid < 2
    n = torch.where(is_plain, 2, num_valid).double()
    fixed = softmax.positive + (0.0 if softmax.exact is None else softmax.exact.sum(dim=1))
    left = _without_each(share).mul_((n / (n - 1.0))[:, None]).add_(fixed[:, None])
    left = left.masked_fill_(hits | is_plain[:, None], 1.0)
    log_sum = left.log().sum(dim=1)
    inverse = left.reciprocal_().masked_fill_(hits, 0.0)
    of_fixed = n - (n - 1.0) / n * inverse.sum(dim=1)
    loss = softmax.loss - (n - 1.0) / n * log_sum
    # n·P - (n - 1)/n · Σ P / d(i) - 1, the ones of the n + 1 losses taken together.
    positive = softmax.positive * of_fixed - 1.0
    candidates = share * (n[:, None] - _without_each(inverse))
    exact = softmax.exact
    return (
        torch.where(is_plain, softmax.loss, loss),
        torch.where(is_plain, -softmax.sample_weight, positive),
        torch.where(is_plain[:, None], share, candidates),
        None if exact is None else exact * torch.where(is_plain, 1.0, of_fixed)[:, None],
    )


def _without_each(values: Tensor) -> Tensor:
    """[B, N], the sum of each row without the entry itself; values are not negative."""
    left = values.sum(dim=1, keepdim=True) - values
    if not values.shape[1]:
        return left
    # Of the largest, the difference may cancel: the others are summed directly.
    largest = values.argmax(dim=1, keepdim=True)
    others = values.scatter(1, largest, 0.0).sum(dim=1, keepdim=True)
    return left.scatter_(1, largest, others)
