"""Results of an audit as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import rich.box
import rich.table

from candid.atomic import write_json
from candid.audit.audit_input import SLICES, AuditInput
from candid.audit.cost import Cost
from candid.audit.entry import AuditEntry, expected_excess
from candid.audit.recommendation import CostBudget, drift_text, ranked, recommend

SCHEMA = 3
MAX_TABLE_ROWS = 20
"""Number of rows of the table in the terminal."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AuditReport:
    """The result of ``audit``.

    Attributes:
        entries: all estimators, in the order of measurement.
        inputs: description of each input by name; the last one decides the ranking.
        full_softmax_cost: cost of a step of the full softmax.
        noise: excess NLL of the full softmax, nats, which weighs the variance in the ranking; see
            ``expected_excess``.
        budget: largest cost of a step.
        settings: other settings that the numbers depend on.
        notes: sentences on what was not measured.
    """

    entries: Sequence[AuditEntry]
    inputs: Mapping[str, Mapping[str, Any]]
    full_softmax_cost: Cost
    noise: float
    budget: CostBudget
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"AuditReport({len(self.entries)} estimators on {', '.join(self.inputs)})"

    @property
    def ranked_by(self) -> str:
        """Name of the input that decides the ranking."""
        return list(self.inputs)[-1]

    def ranked(self) -> list[AuditEntry]:
        """Return the entries, best first; see ``recommendation.ranked``."""
        return ranked(self.entries, self.ranked_by, self.noise)

    def recommendation(self) -> tuple[AuditEntry | None, str]:
        """Return the recommended entry and a sentence; see ``recommendation.recommend``."""
        return recommend(
            self.entries, self.ranked_by, self.noise, self.budget, self.full_softmax_cost
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``recommendation``, ``estimators`` (best first) and the settings.

        A row of ``estimators`` has ``sampler`` (the name of its type), ``settings`` (its table in a
        recipe), ``loss`` (the name of its type), ``cap`` (of a learnt partition function, else
        null), ``correction`` (null for a learnt partition function), ``accidental_hits``,
        ``jackknife``, ``distinct``, ``n``, and of the input ``ranked_by``: ``drift`` and its
        standard error ``drift_se`` (nats), ``chi2`` and ``kl`` (medians over the users; null where
        an item is never sampled, and beside exact candidates, where samples stand for a part of
        the catalog only), ``rmse`` and ``expected_excess``. ``inputs`` of a row has the details
        for every input: drift, chi2 and KL by user as mean and quantiles, and the statistics given
        the positive by slice of the positives (see ``EstimatorStatistics``).
        """
        entry, sentence = self.recommendation()
        return {
            "schema": SCHEMA,
            "recommendation": {
                "sentence": sentence,
                "estimator": None if entry is None else self._row(entry),
            },
            "budget": asdict(self.budget),
            "noise": self.noise,
            "ranked_by": self.ranked_by,
            "inputs": {name: dict(description) for name, description in self.inputs.items()},
            "full_softmax": {"drift": 0.0, "cost": asdict(self.full_softmax_cost)},
            "estimators": [self._row(entry) for entry in self.ranked()],
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }

    def _row(self, entry: AuditEntry) -> dict[str, Any]:
        return entry.to_json(self.ranked_by, self.noise)

    def save(self, path: Path | str) -> None:
        """Write the JSON, atomically.

        Raises:
            ArtifactError: the file cannot be written.
        """
        write_json(Path(path), self.to_json())

    @property
    def columns(self) -> list[str]:
        """Heads of ``rows``: what the ranking is by."""
        return [
            "sampler", "correction", "n", "drift, nats", "chi2", "KL", "RMSE", "excess", "ms", "MB",
        ]  # fmt: skip

    def rows(self, entries: Sequence[AuditEntry]) -> list[list[str]]:
        """Return the cells of ``columns`` for each entry."""
        return [self._cells(entry) for entry in entries]

    @property
    def detail_columns(self) -> list[str]:
        """Heads of ``detail_rows``: drift on the other inputs, and values given the positive."""
        others = [f"drift {name}" for name in list(self.inputs)[:-1]]
        return ["sampler", "correction", "n", "scores", *others, "bias", "loss bias", "ESS"]

    def detail_rows(self, entries: Sequence[AuditEntry]) -> list[list[str]]:
        """Return the cells of ``detail_columns`` for each entry."""
        return [self._detail_cells(entry) for entry in entries]

    def table(self) -> rich.table.Table:
        """Return the best entries, the recipe's own entries and the full softmax.

        The table has the most important columns and fits 100 characters; ``rows`` has all.
        """
        entries = self.ranked()
        shown = [e for index, e in enumerate(entries) if index < MAX_TABLE_ROWS or e.is_recipe]
        table = rich.table.Table(
            title=f"{self.ranked_by}: {len(shown)} of {len(entries)} estimators, least expected "
            "excess first",
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        columns = ("sampler", "correction", "n", "drift, nats", "RMSE", "excess", "ms", "MB")
        for index, column in enumerate(columns):
            justify: Literal["left", "right"] = "left" if index < 2 else "right"
            table.add_column(column, justify=justify, no_wrap=index > 1)
        cost = [f"{self.full_softmax_cost.ms:,.2f}", f"{self.full_softmax_cost.mb:,.1f}"]
        table.add_row("full softmax", "exact", "", "0", "0", "0", *cost)
        positions = [self.columns.index(column) for column in columns]
        for row, entry in zip(self.rows(shown), shown, strict=True):
            cells = [row[position] for position in positions]
            table.add_row(*cells, style="bold" if entry.is_recipe else None)
        return table

    def slice_rows(self, entry: AuditEntry) -> list[list[str]]:
        """Return bias, its error, RMSE and number of rows for each input and slice."""
        return [
            [f"{name}, {part}", f"{one.bias:.4f}", f"{one.bias_error:.4f}",
             f"{one.rmse:.3f}", f"{one.num_rows:,}"]
            for name, measurement in entry.inputs.items()
            for part, one in measurement.slices.items()
        ]  # fmt: skip

    def _cells(self, entry: AuditEntry) -> list[str]:
        measurement = entry.inputs[self.ranked_by]
        return [
            *_names(entry),
            drift_text(measurement),
            _number(measurement.chi2),
            _number(measurement.kl),
            f"{measurement.statistics.rmse:.3f}",
            f"{expected_excess(measurement, self.noise):.3f}",
            f"{entry.cost.ms:,.2f}",
            f"{entry.cost.mb:,.1f}",
        ]

    def _detail_cells(self, entry: AuditEntry) -> list[str]:
        statistics = entry.inputs[self.ranked_by].statistics
        return [
            *_names(entry),
            f"{entry.num_scores}",
            *(drift_text(entry.inputs[name]) for name in list(self.inputs)[:-1]),
            f"{statistics.bias:.4f} ± {statistics.bias_error:.4f}",
            f"{statistics.loss_bias:+.3f}",
            f"{statistics.effective_sample_size:,.1f}",
        ]


def _names(entry: AuditEntry) -> list[str]:
    is_named = entry.is_recipe and entry.name != "recipe"
    name = f"{entry.name} (recipe)" if is_named else entry.name
    return [name, entry.estimator.label, f"{entry.num_candidates}"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3g}"


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
