"""Summary of a study: rows of its tables, claims with verdicts, drifts, and curves of its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from candid.study.arm_curves import ArmCurves, arm_curves
from candid.study.claims import judge_claims
from candid.study.drift_cells import DriftCell, drift_cells
from candid.study.records import Record
from candid.study.study_cells import GridPoint, StudyCells
from candid.study.tables import ArmRow, arm_rows

INSTALLED: Final = "installed"
"""Stands for the commit of code that is not in a repository: its version identifies it."""


@dataclass(frozen=True, slots=True)
class StudySummary:
    """What the records of a study show.

    Attributes:
        rows: each arm at each grid point.
        claims: the claims with their verdicts, as plain JSON values.
        drifts: predicted and measured excess of each arm at each grid point.
        curves: training, popularity and calibration of each arm at each grid point; none in a
            summary of an earlier version.
    """

    rows: tuple[ArmRow, ...]
    claims: tuple[Mapping[str, Any], ...]
    drifts: tuple[DriftCell, ...]
    curves: tuple[ArmCurves, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "claims": list(self.claims),
            "drifts": [asdict(cell) for cell in self.drifts],
            "curves": [one.to_json() for one in self.curves],
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> StudySummary:
        """Read the values of ``to_json``."""
        return cls(
            tuple(ArmRow.from_json(row) for row in table["rows"]),
            tuple(table["claims"]),
            tuple(
                DriftCell(**{**cell, "point": GridPoint(**cell["point"])})
                for cell in table["drifts"]
            ),
            tuple(ArmCurves.from_json(one) for one in table.get("curves", ())),
        )

    def rows_by_point(self) -> dict[GridPoint, Sequence[ArmRow]]:
        """Return the rows of each grid point, in order."""
        points: dict[GridPoint, list[ArmRow]] = {}
        for row in self.rows:
            points.setdefault(row.point, []).append(row)
        return dict(points)


def records_table(records: Sequence[Record]) -> dict[str, Any]:
    """Return what the records of a study took, and which code wrote them, as plain JSON values."""
    return {
        "phases": {
            phase: {
                "finished": sum(one.is_finished for one in found),
                "failed": sum(not one.is_finished for one in found),
                "training_cpu_hours": sum(one.cpu_seconds for one in found) / 3600,
                "measurement_cpu_hours": sum(one.measure_cpu_seconds for one in found) / 3600,
            }
            for phase, found in (
                (phase, [one for one in records if one.key.phase == phase])
                for phase in ("pilot", "main")
            )
        },
        "commits": sorted({one.commit for one in records if one.commit}),
        "code_commits": sorted({one.code_commit or INSTALLED for one in records}),
        "versions": sorted({f"{k} {v}" for one in records for k, v in one.versions.items()}),
    }


def summarize(study: StudyCells) -> StudySummary:
    """Compute the tables and judge the claims of a study.

    Args:
        study: its main cells.

    Raises:
        ArtifactError: the values of users of a cell are missing or damaged.
    """
    return StudySummary(
        tuple(arm_rows(study)),
        tuple(judge_claims(study)),
        tuple(drift_cells(study)),
        tuple(arm_curves(study)),
    )
