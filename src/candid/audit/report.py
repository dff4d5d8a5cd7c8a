"""Everything an audit found, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.table

from candid.atomic import write_json
from candid.audit.cost import Cost
from candid.audit.recommendation import WHOLE, Budget, Entry, ranked, recommend
from candid.audit.subject import SLICES, Subject

SCHEMA = 1
SHOWN = 20
"""Rows of the table in the terminal."""


@dataclass(frozen=True)
class AuditReport:
    """The result of ``audit``.

    Attributes:
        entries: all estimators, in the order they were measured.
        subjects: name -> what is said of it; the last one decides the ranking.
        exact: cost of a step of the full softmax.
        averaged: steps that errors are averaged over for the ranking.
        budget: what a step may cost.
        settings: what the numbers depend on beside model and data.
        notes: sentences on what was not measured.
    """

    entries: Sequence[Entry]
    subjects: Mapping[str, Mapping[str, Any]]
    exact: Cost
    averaged: int
    budget: Budget
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def judged(self) -> str:
        """The subject that decides the ranking."""
        return list(self.subjects)[-1]

    def ranked(self) -> list[Entry]:
        """Best first; see ``recommendation.ranked``."""
        return ranked(self.entries, self.judged, self.averaged)

    def recommendation(self) -> tuple[Entry | None, str]:
        """See ``recommendation.recommend``."""
        return recommend(self.entries, self.judged, self.averaged, self.budget, self.exact)

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``recommendation``, ``entries`` (best first), ``subjects``, ….

        ``findings`` of an entry hold a value for each subject and slice of the positives; see
        ``Finding`` for what they mean.
        """
        entry, sentence = self.recommendation()
        return {
            "schema": SCHEMA,
            "recommendation": {
                "sentence": sentence,
                "entry": None if entry is None else entry.to_json(),
            },
            "budget": asdict(self.budget),
            "averaged": self.averaged,
            "judged": self.judged,
            "subjects": {name: dict(said) for name, said in self.subjects.items()},
            "full_softmax": {"cost": asdict(self.exact)},
            "entries": [entry.to_json() for entry in self.ranked()],
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }

    def save(self, path: Path) -> None:
        """Write the JSON, whole or not at all.

        Raises:
            ArtifactError: the file cannot be written.
        """
        write_json(path, self.to_json())

    @property
    def columns(self) -> list[str]:
        """Heads of ``rows``."""
        earlier = [f"bias {name}" for name in list(self.subjects)[:-1]]
        return [
            "sampler", "correction", "n", "scores", "bias", *earlier, "RMSE",
            f"after {self.averaged}", "loss bias", "effective", "ms", "MB",
        ]  # fmt: skip

    def rows(self, entries: Sequence[Entry]) -> list[list[str]]:
        """Cells of ``columns`` for each entry, of the judged subject."""
        return [self._cells(entry) for entry in entries]

    def table(self) -> rich.table.Table:
        """The best, the audited recipe's own wherever it stands, and the full softmax."""
        everything = self.ranked()
        shown = [e for place, e in enumerate(everything) if place < SHOWN or e.is_yours]
        table = rich.table.Table(
            title=f"{self.judged}: relative error of the gradient, {len(shown)} of "
            f"{len(everything)} estimators, best first"
        )
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="left" if place < 2 else "right", no_wrap=True)
        blank = [""] * (len(self.columns) - 6)
        cost = [f"{self.exact.ms:,.2f}", f"{self.exact.mb:,.1f}"]
        table.add_row("full softmax", "exact", "", "", *blank, *cost)
        for row, entry in zip(self.rows(shown), shown, strict=True):
            table.add_row(*row, style="bold" if entry.is_yours else None)
        return table

    def slice_rows(self, entry: Entry) -> list[list[str]]:
        """Bias, its error, RMSE and rows of an entry for each subject and slice."""
        return [
            [f"{subject}, {part}", f"{found.bias:.4f}", f"{found.bias_error:.4f}",
             f"{found.rmse:.3f}", f"{found.rows:,}"]
            for subject, parts in entry.findings.items()
            for part, found in parts.items()
        ]  # fmt: skip

    def _cells(self, entry: Entry) -> list[str]:
        found = entry.findings[self.judged][WHOLE]
        earlier = [f"{entry.findings[name][WHOLE].bias:.4f}" for name in list(self.subjects)[:-1]]
        return [
            f"{entry.name} (yours)" if entry.is_yours else entry.name,
            entry.variant.label,
            f"{entry.n}",
            f"{entry.scores}",
            f"{found.bias:.4f} ±{found.bias_error:.4f}",
            *earlier,
            f"{found.rmse:.3f}",
            f"{found.error_after(self.averaged):.4f}",
            f"{found.loss_bias:+.3f}",
            f"{found.effective:,.1f}",
            f"{entry.cost.ms:,.2f}",
            f"{entry.cost.mb:,.1f}",
        ]


def described(subject: Subject, nll: float) -> dict[str, Any]:
    """What a report says of a subject."""
    slices = subject.slices()
    return {
        "rows": len(subject.query),
        "items": subject.num_items,
        "width": subject.query.shape[1],
        "nll": nll,
        "slices": {name: int((slices == place).sum()) for place, name in enumerate(SLICES)},
    }
