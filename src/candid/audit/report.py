"""Results of an audit as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.table

from candid.atomic import write_json
from candid.audit.audit_input import SLICES, AuditInput
from candid.audit.cost import Cost
from candid.audit.recommendation import ALL_ROWS, AuditEntry, CostBudget, ranked, recommend

SCHEMA = 2
MAX_TABLE_ROWS = 20
"""Number of rows of the table in the terminal."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The result of ``audit``.

    Attributes:
        entries: all estimators, in the order of measurement.
        inputs: description of each input by name; the last one decides the ranking.
        full_softmax_cost: cost of a step of the full softmax.
        averaged_steps: T, number of steps over which errors are averaged for the ranking.
        budget: largest cost of a step.
        settings: other settings that the numbers depend on.
        notes: sentences on what was not measured.
    """

    entries: Sequence[AuditEntry]
    inputs: Mapping[str, Mapping[str, Any]]
    full_softmax_cost: Cost
    averaged_steps: int
    budget: CostBudget
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def ranked_by(self) -> str:
        """Name of the input that decides the ranking."""
        return list(self.inputs)[-1]

    def ranked(self) -> list[AuditEntry]:
        """Return the entries, best first; see ``recommendation.ranked``."""
        return ranked(self.entries, self.ranked_by, self.averaged_steps)

    def recommendation(self) -> tuple[AuditEntry | None, str]:
        """Return the recommended entry and a sentence; see ``recommendation.recommend``."""
        return recommend(
            self.entries, self.ranked_by, self.averaged_steps, self.budget, self.full_softmax_cost
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``recommendation``, ``entries`` (best first), ``inputs`` and more.

        ``statistics`` of an entry has values for each input and slice of the positives; see
        ``EstimatorStatistics`` for their meaning.
        """
        entry, sentence = self.recommendation()
        return {
            "schema": SCHEMA,
            "recommendation": {
                "sentence": sentence,
                "entry": None if entry is None else entry.to_json(),
            },
            "budget": asdict(self.budget),
            "averaged_steps": self.averaged_steps,
            "ranked_by": self.ranked_by,
            "inputs": {name: dict(description) for name, description in self.inputs.items()},
            "full_softmax": {"cost": asdict(self.full_softmax_cost)},
            "entries": [entry.to_json() for entry in self.ranked()],
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }

    def save(self, path: Path | str) -> None:
        """Write the JSON, atomically.

        Raises:
            ArtifactError: the file cannot be written.
        """
        write_json(Path(path), self.to_json())

    @property
    def columns(self) -> list[str]:
        """Heads of ``rows``."""
        other_biases = [f"bias {name}" for name in list(self.inputs)[:-1]]
        return [
            "sampler", "correction", "n", "scores", "bias", *other_biases, "RMSE",
            f"after {self.averaged_steps}", "loss bias", "ESS", "ms", "MB",
        ]  # fmt: skip

    def rows(self, entries: Sequence[AuditEntry]) -> list[list[str]]:
        """Return the cells of ``columns`` for each entry."""
        return [self._cells(entry) for entry in entries]

    def table(self) -> rich.table.Table:
        """Return the best entries, the recipe's own entries and the full softmax."""
        entries = self.ranked()
        shown = [e for index, e in enumerate(entries) if index < MAX_TABLE_ROWS or e.is_recipe]
        table = rich.table.Table(
            title=f"{self.ranked_by}: relative error of the gradient, {len(shown)} of "
            f"{len(entries)} estimators, best first"
        )
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
        blank = [""] * (len(self.columns) - 6)
        cost = [f"{self.full_softmax_cost.ms:,.2f}", f"{self.full_softmax_cost.mb:,.1f}"]
        table.add_row("full softmax", "exact", "", "", *blank, *cost)
        for row, entry in zip(self.rows(shown), shown, strict=True):
            table.add_row(*row, style="bold" if entry.is_recipe else None)
        return table

    def slice_rows(self, entry: AuditEntry) -> list[list[str]]:
        """Return bias, its error, RMSE and number of rows for each input and slice."""
        return [
            [f"{name}, {part}", f"{one.bias:.4f}", f"{one.bias_error:.4f}",
             f"{one.rmse:.3f}", f"{one.num_rows:,}"]
            for name, parts in entry.statistics.items()
            for part, one in parts.items()
        ]  # fmt: skip

    def _cells(self, entry: AuditEntry) -> list[str]:
        statistics = entry.statistics[self.ranked_by][ALL_ROWS]
        others = [entry.statistics[name][ALL_ROWS] for name in list(self.inputs)[:-1]]
        return [
            f"{entry.name} (recipe)" if entry.is_recipe else entry.name,
            entry.estimator.label,
            f"{entry.num_candidates}",
            f"{entry.num_scores}",
            f"{statistics.bias:.4f} ±{statistics.bias_error:.4f}",
            *(f"{other.bias:.4f}" for other in others),
            f"{statistics.rmse:.3f}",
            f"{statistics.error_after(self.averaged_steps):.4f}",
            f"{statistics.loss_bias:+.3f}",
            f"{statistics.effective_sample_size:,.1f}",
            f"{entry.cost.ms:,.2f}",
            f"{entry.cost.mb:,.1f}",
        ]


def describe(data: AuditInput, nll: float) -> dict[str, Any]:
    """Return the description of an input in a report.

    Args:
        data: the input.
        nll: mean negative log-likelihood of its rows, nats.
    """
    slices = data.slices()
    return {
        "rows": len(data.query),
        "items": data.num_items,
        "width": data.query.shape[1],
        "nll": nll,
        "slices": {name: int((slices == index).sum()) for index, name in enumerate(SLICES)},
    }
