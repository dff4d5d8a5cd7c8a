"""Status of a study, outcome of a call, and the callbacks of a display."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from candid.study.records import CellKey, Record
from candid.training import TrainState


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """How far a study is.

    Attributes:
        pilot: cells of the pilot that have ended, and all of them so far.
        main: main cells that have ended, and all of them.
        cpu_seconds: CPU time of all records.
        remaining: estimated CPU seconds of the missing cells; None before the estimate.
    """

    pilot: tuple[int, int]
    main: tuple[int, int]
    cpu_seconds: float
    remaining: float | None


class StudyProgress(Protocol):
    """A display of a study."""

    def on_note(self, line: str) -> None:
        """Something happened that a log should have."""
        ...

    def on_cell(self, key: CellKey, status: StudyStatus) -> None:
        """A cell starts."""
        ...

    def on_step(self, key: CellKey, state: TrainState, status: StudyStatus) -> None:
        """A line of the metrics log of a cell was written, or a validation ended."""
        ...

    def on_record(self, record: Record, status: StudyStatus) -> None:
        """A cell ended."""
        ...


@dataclass(frozen=True, slots=True)
class StudyResult:
    """The outcome of a call.

    Attributes:
        records: of all cells that have ended, of the settings that the study has now.
        status: how far the study is.
        is_complete: whether no cell is missing; failed ones are not missing.
        without_rate: number of main cells without a learning rate: all cells of their pilot failed.
    """

    records: tuple[Record, ...]
    status: StudyStatus
    is_complete: bool
    without_rate: int

    @property
    def failed(self) -> tuple[Record, ...]:
        """The cells that failed."""
        return tuple(record for record in self.records if not record.is_finished)
