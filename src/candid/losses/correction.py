"""Corrections of a sampled softmax: the shifts that each applies to the scores.

With e(d) the expected count of item d among the candidates, s(d) the score and p the positive:

==============  ===============  =================  ===============  ============  ================
correction      positive's       candidate's        accidental hits  renormalized  defined beside
                shift            shift                                             exact candidates
==============  ===============  =================  ===============  ============  ================
none            0                0                  masked           no            no
logq            - log e(p)       - log e(d)         kept or masked   no            yes
refined         0                - log e(d)         masked           yes           yes
published_code  0                - log (e(d) / n)   masked           no            no
==============  ===============  =================  ===============  ============  ================

``none`` is the uncorrected sampled softmax, ``logq`` that of Yi et al. (RecSys 2019), which treats
the positive as sampled too, and ``refined`` that of Khrylchenko et al. (RecSys 2025), where the
positive is a candidate with probability 1, so that its expected count is 1. ``published_code``
is the baseline in the code that was published with the latter paper: candidates are shifted by
log Q(d) = log (e(d) / n) without log n, so that Z' is n times too large. It serves comparisons
only, and needs n samples with replacement.

Accidental hits of ``logq`` are kept by default: samples with replacement of the row's positive
stay beside the positive, each with its shift. With samples from Q this is ranking noise
contrastive estimation (Ma and Collins, EMNLP 2018): averaged over the positives and the samples,
its gradient is 0 where the model is the true distribution, for every number of samples. With
``accidental_hits = "mask"`` it is not. What "keep" means for each source of candidates:

- in-batch candidates: the row itself and the other rows of its user are masked, equal positives
  of other users are kept;
- mixtures: the same, each candidate with the expected count of the mixture for the row. A fixed
  number of samples for each component leaves a small error: for a few samples of four items
  2e-5 nats with one in-batch part, 5e-4 with two, 6e-4 with a set, up to 3e-3 beside exact
  candidates;
- sets of distinct items: the positive and the set together hold each item once, so that the
  positive is masked in the set, as with "mask". Exact for items that are included independently of
  each other; for the distinct items of n samples the error is small (3e-5 nats for two samples
  of five items);
- exact candidates: a positive that is one of them has e(p) = 1. Otherwise it replaces one sample,
  so that each row has the same number of terms. Without that, the number of terms would show
  whether the positive is an exact candidate. e(d) then counts only the samples of other rows
  and users. Without such a sample, a positive that is not exact has e(p) = 0, and loss 0.

Renormalized: of n samples with replacement only the n_valid that are not masked count, and their
distribution is Q without the masked items, so that e(d) = n_valid · Q(d) / (1 - Q(masked)).
Mixtures are not renormalized: with a fixed number of samples from each source, e(d) is the sum
over the sources as it stands, where a source of batch rows loses those of the row's own user
(``Candidates.row_counts``).

The dense softmax, the softmax in tiles and the audit all take their shifts and the rule of
accidental hits from here. A new correction is a name in ``Correction`` and a row of ``_RULES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ConfigError, UnknownNameError
from candid.row_counts import RowCounts

Correction = Literal["none", "logq", "refined", "published_code"]
"""Correction of the scores for expected counts; see ``candid.losses.correction``."""

DEFAULT_CORRECTION: Final[Correction] = "logq"
"""The correction of every loss, of the public functions and of the default recipe."""

ESTIMATES_NLL: Final[Correction] = "refined"
"""The correction whose loss estimates the negative log-likelihood (NLL) of the full softmax.

Its ``log_z`` and ``sample_weight`` estimate those of the full softmax as well.
"""

SHIFTS_BOTH: Final[Correction] = "logq"
"""The correction that shifts the positive and the candidates by their expected counts."""

COMPARISON_ONLY: Final[frozenset[Correction]] = frozenset({"published_code"})
"""Corrections of other code, to compare with; no recipe should train with them."""

HitRule = Literal["keep", "mask"]
"""What happens to accidental hits, the samples of a row's positive: they are kept or masked."""

_HIT_RULES: Final[tuple[HitRule, ...]] = get_args(HitRule)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One row of the table above.

    Attributes:
        shifts_candidates: log e(d) is subtracted from the candidates' scores.
        shifts_positive: log e(p) is subtracted from the positive's score.
        renormalizes: samples with replacement are renormalized over those that are not masked.
        allows_exact: the estimate is defined beside exact candidates.
        omits_num_samples: candidates are shifted by log Q, without the log of their number: not
            defined for sets of distinct items.
        hit_rules: the possible rules of accidental hits, the default first.
        why_no_probability: the reason why trained scores are not log-probabilities; None where
            they are.
    """

    shifts_candidates: bool
    shifts_positive: bool
    renormalizes: bool
    allows_exact: bool
    omits_num_samples: bool = False
    hit_rules: tuple[HitRule, ...] = ("mask",)
    why_no_probability: str | None = None


_RULES: Final[Mapping[Correction, _Rule]] = {
    "none": _Rule(
        shifts_candidates=False,
        shifts_positive=False,
        renormalizes=False,
        allows_exact=False,
        why_no_probability="the model was trained with an uncorrected sampled softmax, whose "
        "scores are off by the log of how often candidates were sampled",
    ),
    "logq": _Rule(
        shifts_candidates=True,
        shifts_positive=True,
        renormalizes=False,
        allows_exact=True,
        hit_rules=("keep", "mask"),
    ),
    "refined": _Rule(
        shifts_candidates=True, shifts_positive=False, renormalizes=True, allows_exact=True
    ),
    "published_code": _Rule(
        shifts_candidates=True,
        shifts_positive=False,
        renormalizes=False,
        allows_exact=False,
        omits_num_samples=True,
        why_no_probability="the model was trained with the correction of the published code, "
        "which multiplies the other items' part of the softmax by the number of candidates",
    ),
}


@dataclass(frozen=True, slots=True)
class Shifts:
    """Numbers to subtract from the scores of a comparison; None stands for 0.

    Attributes:
        positive: [B], from the score of each row's positive.
        candidates: [N], [G, N] or [B, N] like the candidates' ids, from their scores.
        row: [B], from the scores of all sampled candidates of a row, the log of the
            renormalization. Exact candidates are not shifted.
        row_counts: whose ``log_ratio`` is subtracted from the scores of the sampled candidates as
            well, the part of log e(d) that differs between rows.
    """

    positive: Tensor | None
    candidates: Tensor | None
    row: Tensor | None
    row_counts: RowCounts | None = None


def corrections_for(has_exact: bool, is_set: bool = False) -> tuple[Correction, ...]:
    """List the corrections that are defined for a sampler.

    Args:
        has_exact: whether the sampler adds exact candidates.
        is_set: whether its candidates, or a part of them, are a set of distinct items.
    """
    return tuple(
        name
        for name, rule in _RULES.items()
        if (rule.allows_exact or not has_exact) and not (rule.omits_num_samples and is_set)
    )


def check_defined(correction: Correction, *, has_exact: bool, is_set: bool) -> None:
    """Refuse candidates for which the shifts of a correction have no meaning.

    ``none`` is accepted beside exact candidates, as in a contrastive loss with hard negatives.

    Args:
        correction: the row of the table.
        has_exact: whether there are exact candidates or given negatives.
        is_set: whether the candidates, or a part of them, are a set of distinct items.

    Raises:
        UnknownNameError: no such correction.
        ConfigError: the correction needs n samples with replacement and nothing beside them.
    """
    if _rule(correction).omits_num_samples and (has_exact or is_set):
        what = "exact candidates or given negatives" if has_exact else "a set of distinct items"
        raise ConfigError(
            f"correction {correction!r} is defined for samples with replacement alone, not for "
            f"{what}: choose another correction or sampler"
        )


def hit_rules(correction: Correction) -> tuple[HitRule, ...]:
    """List the possible rules of accidental hits of a correction, the default first.

    Raises:
        UnknownNameError: no such correction.
    """
    return _rule(correction).hit_rules


def hit_rule(correction: Correction, accidental_hits: HitRule | None = None) -> HitRule:
    """Return the rule of accidental hits of a correction.

    Args:
        correction: the row of the table.
        accidental_hits: the requested rule; None for the correction's own default.

    Raises:
        UnknownNameError: no such correction or rule.
        ConfigError: the correction is not defined with this rule.
    """
    rules = _rule(correction).hit_rules
    if accidental_hits is None:
        return rules[0]
    if accidental_hits not in _HIT_RULES:
        raise UnknownNameError("accidental_hits", accidental_hits, _HIT_RULES)
    if accidental_hits not in rules:
        able = [repr(name) for name, rule in _RULES.items() if accidental_hits in rule.hit_rules]
        raise ConfigError(
            f"accidental_hits = {accidental_hits!r} is not defined for correction {correction!r}, "
            f"only for {', '.join(able)}: leave it out or choose another correction"
        )
    return accidental_hits


def why_no_probability(correction: Correction) -> str | None:
    """Return the reason why trained scores are not log-probabilities; None where they are."""
    return _rule(correction).why_no_probability


def shifts_of(
    correction: Correction,
    candidates: Candidates,
    *,
    num_valid: Callable[[], Tensor],
    exact_accidental_hits: Tensor | None = None,
    positive_in_exact: Tensor | None = None,
    num_of_others: Callable[[], Tensor] | None = None,
) -> Shifts:
    """Compute the shifts of a correction for candidates of a sampler.

    Args:
        correction: the row of the table.
        candidates: as sampled.
        num_valid: returns [B], how many sampled candidates of each row are not masked; called
            only where the correction renormalizes.
        exact_accidental_hits: [B, H] bool, the masked exact candidates; None without any.
        positive_in_exact: [B] bool, whether the positive is an exact candidate, whose expected
            count is 1; None without any.
        num_of_others: returns [B], how many samples come from other rows and users
            (``Candidates.replaced_samples``): beside exact candidates e(d) counts these alone
            where the positive is shifted too. None without exact candidates, where the number
            cancels, and for sets.

    Returns:
        the shifts; ``row`` is float64.

    Raises:
        UnknownNameError: no such correction.
        ConfigError: the correction is not defined for these candidates.
    """
    check_defined(
        correction,
        has_exact=candidates.exact is not None,
        is_set=candidates.num_samples is None,
    )
    rule = _rule(correction)
    log_renormalization = None
    if rule.renormalizes and candidates.num_samples and not candidates.is_mixture:
        log_renormalization = _log_renormalization(
            candidates, candidates.num_samples, num_valid(), exact_accidental_hits
        )
    log_count_positive = candidates.log_expected_count_positive
    row_counts = None
    if rule.shifts_candidates and not rule.omits_num_samples:
        row_counts = candidates.row_counts
    if row_counts is not None:
        # These count the samples of other rows and users already.
        log_count_positive = row_counts.log_expected_count_positive
    elif rule.shifts_positive and num_of_others is not None and candidates.num_samples:
        others = num_of_others()
        log_share = torch.log(others.double() / candidates.num_samples)
        log_count_positive = log_count_positive + log_share.to(log_count_positive.dtype)
        # Such a row has no samples to shift.
        log_renormalization = log_share.masked_fill(others == 0, 0.0)
    if positive_in_exact is not None:
        log_count_positive = log_count_positive.masked_fill(positive_in_exact, 0.0)
    shifts = shifts_of_counts(
        correction, candidates.log_expected_count, log_count_positive, log_renormalization
    )
    return replace(shifts, row_counts=row_counts)


def shifts_of_counts(
    correction: Correction,
    log_expected_count: Tensor,
    log_expected_count_positive: Tensor | None = None,
    log_renormalization: Tensor | None = None,
) -> Shifts:
    """Return the shifts of a correction for given expected counts.

    Args:
        correction: the row of the table.
        log_expected_count: [N], [G, N] or [B, N], of N samples.
        log_expected_count_positive: [B], or None where the correction does not read it.
        log_renormalization: [B], added to every log e(d) of the row; None for 0.

    Raises:
        UnknownNameError: no such correction.
        ConfigError: the correction shifts the positive and its count is missing.
    """
    rule = _rule(correction)
    if rule.shifts_positive and log_expected_count_positive is None:
        raise ConfigError(
            f"correction {correction!r} needs log_expected_count_positive: pass log e(p) of each "
            f"row's positive, or choose correction={ESTIMATES_NLL!r}"
        )
    if rule.omits_num_samples:
        log_expected_count = log_expected_count - math.log(max(1, log_expected_count.shape[-1]))
    return Shifts(
        positive=log_expected_count_positive if rule.shifts_positive else None,
        candidates=log_expected_count if rule.shifts_candidates else None,
        row=log_renormalization if rule.shifts_candidates else None,
    )


def _rule(correction: Correction) -> _Rule:
    if correction not in _RULES:
        raise UnknownNameError("correction", correction, get_args(Correction))
    return _RULES[correction]


def _log_renormalization(
    candidates: Candidates,
    num_samples: int,
    num_valid: Tensor,
    exact_accidental_hits: Tensor | None,
) -> Tensor:
    """[B] float64, log of (n_valid / n) / (1 - Q(positive and exact candidates))."""
    share = torch.exp(candidates.log_expected_count_positive.double() - math.log(num_samples))
    if candidates.exact is not None and exact_accidental_hits is not None:
        share = share + _exact_share(candidates.exact, exact_accidental_hits, num_samples)
    # Shares may round to just above 1 in all, where log1p would be nan.
    renormalization = torch.log(num_valid.double() / num_samples)
    renormalization = renormalization - torch.log1p(-share.clamp(max=1.0))
    return renormalization.masked_fill(num_valid == 0, 0.0)


def _exact_share(exact: ExactCandidates, accidental_hits: Tensor, num_samples: int) -> Tensor:
    """[B] float64, Q of the exact candidates that are not masked: their share of the samples."""
    sizes = [part.ids.shape[-1] for part in exact.parts]
    shares = [
        torch.where(is_hit, 0.0, part.log_expected_count.double().exp() / num_samples).sum(dim=1)
        for part, is_hit in zip(exact.parts, accidental_hits.split(sizes, dim=1), strict=True)
    ]
    return torch.stack(shares).sum(dim=0)
