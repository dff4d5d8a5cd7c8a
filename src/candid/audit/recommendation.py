"""Ranking of the measured estimators, and the recommendation for a cost budget.

The order is by the expected excess NLL that sampling causes: the drift plus the price of the
variance, see ``entry.expected_excess``. Drift alone would prefer one candidate to a thousand where
both have none; the variance alone would prefer an estimator that converges to a wrong model.
Differences inside the standard errors of the drifts are ties, which the smaller price of the
variance decides, then the cheaper step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from candid.audit.cost import Cost
from candid.audit.entry import AuditEntry, InputMeasurement, expected_excess
from candid.errors import ConfigError
from candid.losses.correction import COMPARISON_ONLY

NEGLIGIBLE = 0.01
"""Drift in nats below which an estimator is as good as unbiased: trainings with different seeds
differ by as much."""

LEAST_ERROR = 0.001
"""Differences of the expected excess up to this number of nats are always ties."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBudget:
    """Largest cost of a step; None: no limit.

    Attributes:
        ms: milliseconds.
        mb: memory, 10⁶ bytes.

    Raises:
        ConfigError: a limit that is not positive.
    """

    ms: float | None = None
    mb: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("--budget-ms", self.ms), ("--budget-mb", self.mb)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} {value:g} must be a positive number")

    def allows(self, cost: Cost) -> bool:
        """Return whether a step is within the budget."""
        return (self.ms is None or cost.ms <= self.ms) and (self.mb is None or cost.mb <= self.mb)

    @property
    def label(self) -> str:
        """Text such as "2 ms and 100 MB per step"; empty without a limit."""
        parts = [] if self.ms is None else [f"{self.ms:g} ms"]
        parts += [] if self.mb is None else [f"{self.mb:g} MB"]
        return f"{' and '.join(parts)} per step" if parts else ""


def ranked(entries: Sequence[AuditEntry], ranked_by: str, noise: float) -> list[AuditEntry]:
    """Sort by the expected excess NLL, best first.

    Entries that do not differ from the best of the remaining ones are a tie: their excess is at
    most one standard error of the difference of the two drifts above it (at least 0.001 nats). In
    a tie the smaller price of the variance comes first, rounded to 0.001 nats, then the cheaper
    step. The standard errors are those of the samples: all estimators are measured on the same
    users.

    Args:
        entries: the measured estimators.
        ranked_by: name of the input whose measurements are used.
        noise: see ``expected_excess``.
    """

    def excess(entry: AuditEntry) -> float:
        return expected_excess(entry.inputs[ranked_by], noise)

    def within_tie(entry: AuditEntry) -> tuple[int, float]:
        price = noise * entry.inputs[ranked_by].statistics.rmse ** 2
        return round(price / LEAST_ERROR), entry.cost.ms

    remaining = sorted(entries, key=excess)
    result: list[AuditEntry] = []
    while remaining:
        best = remaining[0]
        error = best.inputs[ranked_by].drift.block_error
        tied = [
            entry
            for entry in remaining
            if excess(entry) - excess(best)
            <= max(LEAST_ERROR, math.hypot(error, entry.inputs[ranked_by].drift.block_error))
        ]
        first = min(tied, key=within_tie)
        result.append(first)
        remaining.remove(first)
    return result


def recommend(
    entries: Sequence[AuditEntry],
    ranked_by: str,
    noise: float,
    budget: CostBudget,
    full_softmax_cost: Cost,
) -> tuple[AuditEntry | None, str]:
    """Return the best entry within a budget, and a sentence about it.

    Args:
        entries: the measured estimators, at least one.
        ranked_by: name of the input whose measurements are used.
        noise: see ``ranked``.
        budget: largest cost of a step.
        full_softmax_cost: cost of the full softmax, which has no error.

    Returns:
        the entry; None if the full softmax is within the budget, or no estimator is; and the
        sentence.
    """
    best = next(
        (
            entry
            for entry in ranked(entries, ranked_by, noise)
            if budget.allows(entry.cost) and entry.estimator.correction not in COMPARISON_ONLY
        ),
        None,
    )
    of_recipe = _about_recipe(entries, ranked_by)
    if best is None and not budget.allows(full_softmax_cost):
        cheapest = min(entries, key=lambda entry: entry.cost.ms)
        return None, (
            f"no measured estimator is within {budget.label}; the fastest is {cheapest.label}, at "
            f"{_cost_text(cheapest.cost)}{of_recipe}"
        )
    if budget.allows(full_softmax_cost) and (budget.label or best is None):
        within = f"for {budget.label}" if budget.label else "without a budget"
        return None, (
            f"{within}, choose the full softmax, which has no drift, at "
            f"{_cost_text(full_softmax_cost)}{of_recipe}"
        )
    assert best is not None
    summary = _summary(best, entries, ranked_by, noise)
    if not budget.label:
        return best, (
            "without a budget, choose the full softmax, which has no drift, at "
            f"{_cost_text(full_softmax_cost)}; the best sampled loss is {summary}{of_recipe}"
        )
    return best, f"for {budget.label}, choose {summary}{of_recipe}"


def candidates_needed(
    entry: AuditEntry, entries: Sequence[AuditEntry], ranked_by: str
) -> int | None:
    """Estimate the number of candidates from which the drift of an estimator is below 0.01 nats.

    Args:
        entry: estimator whose drift is not negligible.
        entries: all measured estimators; those of the same sampler and correction are used.
        ranked_by: name of the input whose measurements are used.

    Returns:
        the smallest measured number with a negligible drift, or an extrapolation of the two
        largest measured numbers by a power law; None where there is one number only, or the
        drift does not fall with n.
    """
    drifts = {
        one.num_candidates: one.inputs[ranked_by].drift.mean
        for one in sorted(entries, key=lambda other: other.num_candidates)
        if (one.name, one.estimator, one.distinct) == (entry.name, entry.estimator, entry.distinct)
    }
    for n, drift in drifts.items():
        if n > entry.num_candidates and drift < NEGLIGIBLE:
            return n
    if len(drifts) < 2:
        return None
    (before, larger), (last, smaller) = list(drifts.items())[-2:]
    if not larger > smaller > 0:
        return None
    slope = math.log(larger / smaller) / math.log(last / before)
    needed = last * (smaller / NEGLIGIBLE) ** (1.0 / slope)
    # A slope this small is a floor: the drift stays, however many candidates there are.
    return round(float(f"{needed:.1g}")) if slope > 0.3 else None


def _about_recipe(entries: Sequence[AuditEntry], ranked_by: str) -> str:
    """Return the drift of the recipe's own estimator if it matters; it is the first of its case."""
    own = next((entry for entry in entries if entry.is_recipe), None)
    if own is None:
        return ""
    return f"; the estimator of the recipe, {own.label}, has {_drift_text(own, entries, ranked_by)}"


def _drift_text(entry: AuditEntry, entries: Sequence[AuditEntry], ranked_by: str) -> str:
    """Return the drift, and what would make it negligible."""
    measurement = entry.inputs[ranked_by]
    drift = measurement.drift
    text = f"a drift of {drift_text(measurement)} nats"
    if drift.mean - drift.error > NEGLIGIBLE:
        needed = candidates_needed(entry, entries, ranked_by)
        if needed is not None:
            text += f" (below {NEGLIGIBLE} nats from about n = {needed:,})"
        elif measurement.chi2 is not None:
            text += (
                f" (chi2 of the sampler is {measurement.chi2:,.2g}; refined has a negligible drift "
                "where n is well above it)"
            )
    return text


def _summary(entry: AuditEntry, entries: Sequence[AuditEntry], ranked_by: str, noise: float) -> str:
    measurement = entry.inputs[ranked_by]
    return (
        f"{entry.label}: {_drift_text(entry, entries, ranked_by)}, RMSE of one step "
        f"{measurement.statistics.rmse:.2g}, expected excess "
        f"{expected_excess(measurement, noise):.2g} nats, at {_cost_text(entry.cost)}"
    )


def drift_text(measurement: InputMeasurement) -> str:
    """Return a drift with its standard error, such as "0.012 ± 0.003"."""
    drift = measurement.drift
    return f"{drift.mean:.3f} ± {drift.error:.3f}"


def _cost_text(cost: Cost) -> str:
    return (
        f"{cost.ms:.2g} ms and {cost.mb:.2g} MB per step"
        if cost.ms < 100
        else (f"{cost.ms:,.0f} ms and {cost.mb:,.0f} MB per step")
    )
