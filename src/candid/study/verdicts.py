"""Verdicts on a claim that shall hold at every grid point: supported, against, or not decided.

The claim is supported if the test of each grid point supports it: for a statement about all of
them no adjustment is needed (intersection-union test; Berger 1982, Technometrics 24). It is against
the claim if one grid point contradicts it, with p-values adjusted after Holm (1979) over the grid
points, because more of them give chance more opportunities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from candid.evaluation import holm

Verdict = Literal["supported", "against", "not decided"]
LEVEL: Final = 0.05
"""Level of every test of a claim."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The tests of a claim at one grid point.

    Attributes:
        label: the grid point.
        detail: the values in words, or why there is no test.
        p_support: p-value of the hypothesis that the claim does not hold; None without a test.
        p_against: p-value of the hypothesis that it holds; None without a test.
    """

    label: str
    detail: str
    p_support: float | None = None
    p_against: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict at one grid point.

    Attributes:
        label: the grid point.
        verdict: supported, against, or not decided.
        detail: the values in words, or why nothing is decided.
    """

    label: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
        verdict: supported, against, or not decided.
        reason: in words.
        findings: of the grid points.
    """

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "findings": [asdict(one) for one in self.findings]}


def judge_all(evidence: Sequence[Evidence], *, left_out: str = "") -> Judgement:
    """Judge a claim that shall hold at every grid point.

    Args:
        evidence: of the grid points that the claim is about.
        left_out: why grid points have no test by the plan of the study, in words; "": all have one.

    Example:
        >>> held = Evidence("films, n = 16", "NDCG@10 2.4 times as high", 0.001, 1.0)
        >>> judge_all([held]).verdict
        'supported'
        >>> judge_all([held, Evidence("films, n = 64", "2 seeds; needs 3")]).verdict
        'not decided'
    """
    if not evidence:
        return Judgement("not decided", left_out or "the study has no cell that the test needs")
    adjusted = iter(holm([one.p_against for one in evidence if one.p_against is not None]))
    findings = tuple(
        Finding(one.label, _verdict(one, next(adjusted)), one.detail)
        if one.p_against is not None
        else Finding(one.label, "not decided", one.detail)
        for one in evidence
    )
    counts = Counter(one.verdict for one in findings)
    verdict: Verdict = "not decided"
    if counts["against"]:
        verdict = "against"
    elif counts["supported"] == len(findings):
        verdict = "supported"
    total = f"{len(findings)} grid point{'s' if len(findings) > 1 else ''}"
    named = [f"{name} at {counts[name]}" for name in ("supported", "against", "not decided")]
    more = f"; {left_out}" if left_out else ""
    return Judgement(verdict, f"of {total}: {', '.join(named)}{more}", findings)


def _verdict(evidence: Evidence, adjusted_p_against: float) -> Verdict:
    if adjusted_p_against < LEVEL:
        return "against"
    if evidence.p_support is not None and evidence.p_support < LEVEL:
        return "supported"
    return "not decided"
