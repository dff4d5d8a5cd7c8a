"""The corrected softmax over one positive and a sample of the other items.

A sampled candidate d stands for 1 / e(d) items, e(d) its expected count, so that

    log Z' = logsumexp over candidates d that are not hits, of [ s(d) - log e(d) ]        (1)
    loss   = logaddexp(s(p), log Z') - s(p)                                              (2)

with p the positive: a Horvitz-Thompson estimate of the other items' share of the partition
function. The gradient of (2) is that of the refined loss of Khrylchenko et al. (RecSys
2025), -sg(1 - P(p)) · [s(p) - log Σ exp(s(d) - log e(d))], with P(p) from the same sample.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from candid.errors import ConfigError, UnknownNameError
from candid.losses.output import LossOutput

Correction = Literal["none", "logq", "refined"]
"""How candidates are corrected for how often they were expected; see ``corrected_log_softmax``."""


def corrected_log_softmax(
    *,
    positive: Tensor,
    candidates: Tensor,
    log_expected_count: Tensor,
    log_expected_count_positive: Tensor | None = None,
    accidental_hits: Tensor | None = None,
    correction: Correction = "refined",
    jackknife: bool = False,
    log_renormalization: Tensor | None = None,
    exact: Tensor | None = None,
    exact_accidental_hits: Tensor | None = None,
    effective_sample_size: bool = False,
) -> LossOutput:
    """Compare the positive of each row with its candidates, equations (1) and (2).

    ==========  ================  =================  =======================================
    correction  positive's shift  candidate's shift  what it is
    ==========  ================  =================  =======================================
    none        0                 0                  uncorrected sampled softmax
    logq        - log e(p)        - log e(d)         Yi et al. (RecSys 2019): treats the
                                                     positive as sampled too
    refined     0                 - log e(d)         the positive is there with probability
                                                     1, so its expected count is 1
    ==========  ================  =================  =======================================

    Scores narrower than float32 are raised to float32; float64 stays. A row whose candidates
    are all hits has log_z -inf, loss 0 and gradient 0. Under ``logq`` the same loss and
    gradient come where log e(p) is -inf: a positive that is never proposed teaches nothing,
    a fault of that correction.

    Args:
        positive: [B], the score of each row's positive.
        candidates: [B, N], the candidates' scores.
        log_expected_count: [N] or [B, N], log e(d). Ignored by ``none``.
        log_expected_count_positive: [B], log e(p). Needed by ``logq`` alone.
        hits: [B, N] bool, True where the candidate is not a negative of the row; None for
            no hits.
        correction: the row of the table.
        jackknife: replace the loss by its delete-one jackknife, n·L - (n - 1)/n · Σ L(-i)
            with L(-i) the loss without candidate i (its expected counts those of n - 1
            draws): the bias falls from O(1/n) to O(1/n²), the spread grows by about a tenth.
            n counts the candidates that are not hits; a row with fewer than two keeps the
            plain loss. Derived for independent draws; for mixtures it removes most, not
            all, of the leading bias, and for sets it adds one that no n cures (see
            docs/audit.md): do not combine them. ``log_z`` and ``sample_weight`` stay
            those of the plain loss.
        log_renormalization: [B], added to every log e(d) of the row; None for 0. Ignored by
            ``none``.
        head: [B, H], scores of items with expected count 1, beside the candidates (equation
            (1) then sums over both); None for no head. The jackknife leaves them in.
        head_hits: [B, H] bool, as ``hits``; None for no hits.
        effective_sample_size: report ``effective_sample_size``.

    Returns:
        the loss, carrying the gradient of ``positive`` and ``candidates``; ``log_z`` of (1),
        with gradient; ``sample_weight`` Z' / (exp(positive) + Z') of the shifted scores:
        the weight that the loss really puts on the row.

    Raises:
        UnknownNameError: no such correction.
        ConfigError: ``logq`` without ``log_expected_count_positive``.
    """
    if correction not in get_args(Correction):
        raise UnknownNameError("correction", correction, get_args(Correction))
    positive, logits = widened(positive), widened(candidates)
    if correction != "none":
        logits = logits - log_expected_count
    if correction == "logq":
        if log_expected_count_positive is None:
            raise ConfigError("correction 'logq' needs log_expected_count_positive")
        positive = positive - log_expected_count_positive
    shift = None if correction == "none" else log_renormalization
    log_sum = masked_logsumexp(logits, accidental_hits)
    log_z = log_sum if shift is None else log_sum - shift
    log_head = None
    if exact is not None:
        exact = widened(exact)
        log_head = masked_logsumexp(exact, exact_accidental_hits)
        log_z = _log_sum_of(log_head, log_z)
    loss = negative_log_likelihood(positive, log_z)
    if jackknife:
        loss = _jackknifed(loss, positive, logits, accidental_hits, log_sum, shift, log_head)
    return LossOutput(
        loss=loss,
        log_z=log_z,
        sample_weight=torch.sigmoid(log_z - positive).detach(),
        effective_sample_size=(
            effective_count(
                *_all_logits(logits, accidental_hits, shift, exact, exact_accidental_hits)
            )
            if effective_sample_size
            else None
        ),
    )


def widened(scores: Tensor) -> Tensor:
    """Raise scores narrower than float32 to float32."""
    return scores if scores.dtype == torch.float64 else scores.float()


def negative_log_likelihood(positive: Tensor, log_z: Tensor) -> Tensor:
    """Equation (2), to full relative precision also where the positive is far ahead."""
    # logaddexp(p, z) - p = logaddexp(0, z - p); the difference itself would cancel.
    gap = log_z - positive
    return torch.logaddexp(torch.zeros_like(gap), gap)


def masked_logsumexp(logits: Tensor, accidental_hits: Tensor | None) -> Tensor:
    """Logsumexp over the last dimension without the hits; -inf, gradient 0, where all are hits.

    Args:
        logits: [B, N].
        hits: [B, N] bool, True where the entry is left out; or None.
    """
    if accidental_hits is None:
        return torch.logsumexp(logits, dim=1)
    # The gradient of a logsumexp over nothing is nan, even times 0: such a row sums zeros
    # instead and is put right afterwards.
    is_empty = accidental_hits.all(dim=1)
    fill = torch.where(is_empty, 0.0, -math.inf).to(logits.dtype)
    log_sum = torch.logsumexp(torch.where(accidental_hits, fill[:, None], logits), dim=1)
    return log_sum.masked_fill(is_empty, -math.inf)


def _log_sum_of(log_head: Tensor, log_tail: Tensor) -> Tensor:
    """Logaddexp, -inf with gradient 0 where both are -inf."""
    is_empty = log_head.isneginf() & log_tail.isneginf()
    both = torch.logaddexp(log_head.masked_fill(is_empty, 0.0), log_tail)
    return both.masked_fill(is_empty, -math.inf)


def _all_logits(
    logits: Tensor,
    accidental_hits: Tensor | None,
    shift: Tensor | None,
    exact: Tensor | None,
    exact_accidental_hits: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Logits [B, H + N] of head and candidates, and their hits."""
    if exact is None:
        return logits, accidental_hits
    rest = logits if shift is None else logits - shift[:, None]
    masks = [
        torch.zeros_like(part, dtype=torch.bool) if mask is None else mask
        for part, mask in ((exact, exact_accidental_hits), (rest, accidental_hits))
    ]
    return torch.cat([exact, rest], dim=1), torch.cat(masks, dim=1)


def effective_count(logits: Tensor, accidental_hits: Tensor | None) -> Tensor:
    """(Σ w)² / Σ w² of the weights w = exp(logits): [B], detached, 0 where all are hits."""
    logits = logits.detach()
    log_sum, log_square = (
        masked_logsumexp(logits, accidental_hits),
        masked_logsumexp(2.0 * logits, accidental_hits),
    )
    return torch.exp(2.0 * log_sum - log_square).masked_fill(log_sum.isneginf(), 0.0)


def _jackknifed(
    loss: Tensor,
    positive: Tensor,
    logits: Tensor,
    accidental_hits: Tensor | None,
    log_sum: Tensor,
    log_renormalization: Tensor | None,
    log_head: Tensor | None,
) -> Tensor:
    """n·L - (n - 1)/n · Σ L(-i) over the valid candidates; the plain loss where n < 2.

    Args:
        loss: [B], L.
        positive: [B].
        logits: [B, N], corrected but for the row constant.
        hits: [B, N] bool or None.
        log_sum: [B], the logsumexp of the valid logits.
        log_renormalization: [B] or None.
        log_head: [B], the logsumexp of the exact head, or None.
    """
    if logits.shape[1] < 2:
        return loss
    is_hit = (
        torch.zeros_like(logits, dtype=torch.bool) if accidental_hits is None else accidental_hits
    )
    num_valid = (~is_hit).sum(dim=1, keepdim=True)
    is_plain = num_valid < 2
    # A row that keeps the plain loss goes through with n = 2 and finite numbers, so that what
    # is thrown away has a gradient of 0 and not nan.
    n = torch.where(is_plain, 2, num_valid).to(logits.dtype)
    log_sum = torch.where(is_plain[:, 0], 0.0, log_sum)[:, None]
    logits = torch.where(is_hit | is_plain, -math.inf, logits)

    # Only the largest share can exceed 1/2: log1p(-share) is exact for all others, and for
    # that one the others are summed directly.
    largest = logits.detach().argmax(dim=1, keepdim=True)
    is_largest = torch.zeros_like(is_hit).scatter(1, largest, True)
    log_rest = masked_logsumexp(logits, is_largest | is_hit | is_plain)[:, None]
    share = torch.where(is_largest, 0.0, torch.exp(logits - log_sum))
    log_left = torch.where(is_largest, log_rest - log_sum, torch.log1p(-share))

    log_z = log_sum + log_left + torch.log(n / (n - 1.0))
    if log_renormalization is not None:
        log_z = log_z - log_renormalization[:, None]
    if log_head is not None:
        log_z = _log_sum_of(log_head[:, None].expand_as(log_z), log_z)
    without_one = negative_log_likelihood(positive[:, None].expand_as(log_z), log_z)
    mean = torch.where(is_hit, 0.0, without_one).sum(dim=1) / n[:, 0]
    corrected = n[:, 0] * loss - (n[:, 0] - 1.0) * mean
    return torch.where(is_plain[:, 0], loss, corrected)
