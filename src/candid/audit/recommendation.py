"""Ranking of the measured estimators, and the recommendation for a cost budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from candid.audit.cost import Cost
from candid.audit.estimator import Estimator
from candid.audit.statistics import EstimatorStatistics
from candid.errors import ConfigError

ALL_ROWS = "all"
"""Key of the statistics over all rows; the other keys are the names of the slices."""


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """The measurement of one estimator.

    Attributes:
        name: name of the audit case.
        num_candidates: requested number of candidates.
        estimator: the correction.
        sampler: the settings, as a recipe table.
        is_recipe: whether the audited recipe trains with it.
        num_scores: actual number of scores of a row in a step, exact candidates included.
        statistics: by name of the input, then by slice: "all", "rare", "middle", "popular".
        cost: of a step.
    """

    name: str
    num_candidates: int
    estimator: Estimator
    sampler: Mapping[str, Any]
    is_recipe: bool
    num_scores: int
    statistics: Mapping[str, Mapping[str, EstimatorStatistics]]
    cost: Cost

    @property
    def label(self) -> str:
        """Name in sentences."""
        return f"{self.name}, {self.estimator.label}, n = {self.num_candidates}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "num_candidates": self.num_candidates,
            "correction": self.estimator.correction,
            "jackknife": self.estimator.jackknife,
            "sampler": dict(self.sampler),
            "is_recipe": self.is_recipe,
            "num_scores": self.num_scores,
            "statistics": {
                name: {part: one.to_json() for part, one in parts.items()}
                for name, parts in self.statistics.items()
            },
            "cost": {key: round(value, 4) for key, value in asdict(self.cost).items()},
        }


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


def ranked(entries: Sequence[AuditEntry], ranked_by: str, steps: int) -> list[AuditEntry]:
    """Sort by the error of the gradient after averaging over ``steps`` steps.

    Errors that agree in two significant digits are a tie: the smaller bias comes first, then
    the cheaper step.

    Args:
        entries: the measured estimators.
        ranked_by: name of the input whose statistics are used.
        steps: T.
    """

    def key(entry: AuditEntry) -> tuple[float, float, float]:
        statistics = entry.statistics[ranked_by][ALL_ROWS]
        rounded = float(f"{statistics.error_after(steps):.2g}")
        return rounded, max(statistics.bias, 0.0), entry.cost.ms

    return sorted(entries, key=key)


def recommend(
    entries: Sequence[AuditEntry],
    ranked_by: str,
    steps: int,
    budget: CostBudget,
    full_softmax_cost: Cost,
) -> tuple[AuditEntry | None, str]:
    """Return the best entry within a budget, and a sentence about it.

    Args:
        entries: the measured estimators, at least one.
        ranked_by: name of the input whose statistics are used.
        steps: see ``ranked``.
        budget: largest cost of a step.
        full_softmax_cost: cost of the full softmax, which has no error.

    Returns:
        the entry; None if the full softmax is within the budget, or no estimator is; and the
        sentence.
    """
    best = next((e for e in ranked(entries, ranked_by, steps) if budget.allows(e.cost)), None)
    if best is None and not budget.allows(full_softmax_cost):
        cheapest = min(entries, key=lambda entry: entry.cost.ms)
        return None, (
            f"no measured estimator is within {budget.label}; the fastest is {cheapest.label}, at "
            f"{_cost_text(cheapest.cost)}"
        )
    if not budget.label:
        assert best is not None
        return best, (
            "without a budget, choose the full softmax, which is exact, at "
            f"{_cost_text(full_softmax_cost)}; the best sampled loss is "
            f"{_summary(best, ranked_by, steps)}"
        )
    if budget.allows(full_softmax_cost):
        return None, (
            f"for {budget.label}, choose the full softmax, which is exact, at "
            f"{_cost_text(full_softmax_cost)}"
        )
    assert best is not None
    return best, f"for {budget.label}, choose {_summary(best, ranked_by, steps)}"


def _summary(entry: AuditEntry, ranked_by: str, steps: int) -> str:
    statistics = entry.statistics[ranked_by][ALL_ROWS]
    return (
        f"{entry.label}: bias {statistics.bias:.2g}, RMSE of one step {statistics.rmse:.2g}, error "
        f"after {steps} steps {statistics.error_after(steps):.2g}, at {_cost_text(entry.cost)}"
    )


def _cost_text(cost: Cost) -> str:
    return (
        f"{cost.ms:.2g} ms and {cost.mb:.2g} MB per step"
        if cost.ms < 100
        else (f"{cost.ms:,.0f} ms and {cost.mb:,.0f} MB per step")
    )
