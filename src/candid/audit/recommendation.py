"""Which estimator to take: ranked by what is left of the error after averaging."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from candid.audit.cost import Cost
from candid.audit.estimators import Variant
from candid.audit.moments import Finding
from candid.errors import ConfigError

WHOLE = "all"
"""The name of the finding over all rows, beside those of the slices."""


@dataclass(frozen=True)
class Entry:
    """One estimator as measured.

    Attributes:
        name: of the sampler.
        n: candidates it was meant to give.
        variant: the correction.
        sampler: the settings, as a recipe's table.
        is_yours: whether the audited recipe trains with it.
        scores: scores that a row really gets a step, head included.
        findings: subject -> "all", "tail", "middle", "head" -> what was found.
        cost: of a step.
    """

    name: str
    n: int
    variant: Variant
    sampler: Mapping[str, Any]
    is_yours: bool
    scores: int
    findings: Mapping[str, Mapping[str, Finding]]
    cost: Cost

    @property
    def label(self) -> str:
        """The name in sentences."""
        return f"{self.name}, {self.variant.label}, n = {self.n}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "n": self.n,
            "correction": self.variant.correction,
            "jackknife": self.variant.jackknife,
            "sampler": dict(self.sampler),
            "is_yours": self.is_yours,
            "scores": self.scores,
            "findings": {
                subject: {part: found.to_json() for part, found in parts.items()}
                for subject, parts in self.findings.items()
            },
            "cost": {key: round(value, 4) for key, value in asdict(self.cost).items()},
        }


@dataclass(frozen=True, slots=True)
class Budget:
    """What a step may cost; None: no limit.

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
        """Whether a step is cheap enough."""
        return (self.ms is None or cost.ms <= self.ms) and (self.mb is None or cost.mb <= self.mb)

    @property
    def label(self) -> str:
        """In words, such as "2 ms and 100 MB a step"."""
        parts = [] if self.ms is None else [f"{self.ms:g} ms"]
        parts += [] if self.mb is None else [f"{self.mb:g} MB"]
        return f"{' and '.join(parts)} a step" if parts else ""


def ranked(entries: Sequence[Entry], subject: str, steps: int) -> list[Entry]:
    """Order by what is left of the gradient's error after averaging ``steps`` steps.

    Errors that agree in two significant digits are a tie: the smaller bias goes first, then
    the cheaper step.
    """

    def key(entry: Entry) -> tuple[float, float, float]:
        found = entry.findings[subject][WHOLE]
        rounded = float(f"{found.error_after(steps):.2g}")
        return rounded, max(found.bias, 0.0), entry.cost.ms

    return sorted(entries, key=key)


def recommend(
    entries: Sequence[Entry], subject: str, steps: int, budget: Budget, exact: Cost
) -> tuple[Entry | None, str]:
    """The best entry within a budget, and the sentence that says so.

    Args:
        entries: what was measured, at least one.
        subject: the model whose findings decide.
        steps: see ``ranked``.
        budget: what a step may cost.
        exact: cost of the full softmax, which has no error at all.

    Returns:
        the entry; None where the full softmax fits into a budget, or nothing does.
    """
    best = next((e for e in ranked(entries, subject, steps) if budget.allows(e.cost)), None)
    if best is None and not budget.allows(exact):
        cheapest = min(entries, key=lambda entry: entry.cost.ms)
        return None, (
            f"nothing that was measured fits into {budget.label}; the quickest is "
            f"{cheapest.label}, with {_costs(cheapest.cost)}"
        )
    if not budget.label:
        assert best is not None
        return best, (
            f"without a budget the full softmax is the choice, exact at {_costs(exact)}; of what "
            f"samples, choose {_described(best, subject, steps)}"
        )
    if budget.allows(exact):
        return None, f"for {budget.label} choose the full softmax: exact at {_costs(exact)}"
    assert best is not None
    return best, f"for {budget.label} choose {_described(best, subject, steps)}"


def _described(entry: Entry, subject: str, steps: int) -> str:
    found = entry.findings[subject][WHOLE]
    return (
        f"{entry.label}: bias {found.bias:.2g}, RMSE of one draw {found.rmse:.2g}, "
        f"{found.error_after(steps):.2g} left after {steps} steps, at {_costs(entry.cost)}"
    )


def _costs(cost: Cost) -> str:
    return (
        f"{cost.ms:.2g} ms and {cost.mb:.2g} MB a step"
        if cost.ms < 100
        else (f"{cost.ms:,.0f} ms and {cost.mb:,.0f} MB a step")
    )
