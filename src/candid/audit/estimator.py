"""Estimators of the softmax loss: a correction, with or without the jackknife."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from candid.losses.correction import (
    DEFAULT_CORRECTION,
    Correction,
    HitRule,
    corrections_for,
    hit_rule,
    hit_rules,
)
from candid.samplers.config import SamplerConfig


@dataclass(frozen=True, slots=True)
class Estimator:
    """The estimate that a loss makes from sampled candidates.

    Attributes:
        correction: see ``candid.losses.correction``.
        jackknife: see ``candid.losses.corrected_log_softmax``.
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None
            stands for the default of the correction and is replaced by it.

    Raises:
        UnknownNameError: no such correction or rule.
        ConfigError: the correction is not defined with this rule.
    """

    correction: Correction = DEFAULT_CORRECTION
    jackknife: bool = False
    accidental_hits: HitRule | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "accidental_hits", self.hit_rule)

    @property
    def hit_rule(self) -> HitRule:
        """``accidental_hits``, or the default of the correction."""
        return hit_rule(self.correction, self.accidental_hits)

    @property
    def has_default_hit_rule(self) -> bool:
        """Whether ``accidental_hits`` is the default of the correction."""
        return self.hit_rule == hit_rule(self.correction)

    @property
    def label(self) -> str:
        """Name in tables."""
        name: str = self.correction
        if not self.has_default_hit_rule:
            name += ", hits masked" if self.accidental_hits == "mask" else ", hits kept"
        return f"{name} + jackknife" if self.jackknife else name


ALL_ESTIMATORS: Final = (
    *(
        Estimator(correction, accidental_hits=rule)
        for correction in corrections_for(has_exact=False)
        for rule in hit_rules(correction)
    ),
    Estimator("refined", jackknife=True),
)
"""Every correction with each of its rules of accidental hits, and the jackknife of refined.

The jackknife removes bias of ``refined``; ``logq`` has no drift with independent samples.
"""


def estimators_for(sampler: SamplerConfig) -> tuple[Estimator, ...]:
    """Return the estimators that are defined for a sampler.

    Some corrections are not defined with exact candidates, and the jackknife is biased for a
    set of distinct items. On sets the rules of accidental hits are one and the same: only the
    default is listed.
    """
    corrections = corrections_for(sampler.has_exact, sampler.is_set)
    return tuple(
        estimator
        for estimator in ALL_ESTIMATORS
        if estimator.correction in corrections
        and not (sampler.is_set and (estimator.jackknife or not estimator.has_default_hit_rule))
    )
