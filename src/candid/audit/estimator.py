"""Estimators of the softmax loss: a correction, with or without the jackknife."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from candid.losses.correction import DEFAULT_CORRECTION, Correction, corrections_for
from candid.samplers.config import SamplerConfig


@dataclass(frozen=True, slots=True)
class Estimator:
    """The estimate that a loss makes from sampled candidates.

    Attributes:
        correction: see ``candid.losses.correction``.
        jackknife: see ``candid.losses.corrected_log_softmax``.
    """

    correction: Correction = DEFAULT_CORRECTION
    jackknife: bool = False

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.correction} + jackknife" if self.jackknife else self.correction


ALL_ESTIMATORS: Final = (
    *(Estimator(correction) for correction in corrections_for(has_exact=False)),
    Estimator(jackknife=True),
)
"""Every correction, and the jackknife of the default correction."""


def estimators_for(sampler: SamplerConfig) -> tuple[Estimator, ...]:
    """Return the estimators that are defined for a sampler.

    Some corrections are not defined with exact candidates, and the jackknife is biased for a
    set of distinct items.
    """
    corrections = corrections_for(sampler.has_exact)
    return tuple(
        estimator
        for estimator in ALL_ESTIMATORS
        if estimator.correction in corrections and not (estimator.jackknife and sampler.is_set)
    )
