"""The verb ``candid study``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console, counted
from candid.cli.options import Json, Quiet, Verify

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from candid.study import CellKey, Record, Study, StudyResult, StudyStatus
    from candid.training import TrainState


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (TOML)")],
    out: Annotated[
        Path, typer.Option(help="Folder of the study, new or with what is done already")
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="CPU minutes of this call after which no further cell starts [default: no limit]",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that have failed, once")
    ] = False,
    allow_over_budget: Annotated[
        bool,
        typer.Option("--allow-over-budget", help="Run although the estimate exceeds the budget"),
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing: write the page from the records")
    ] = False,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare corrections, samplers and numbers of candidates on a grid of trainings.

    A pilot chooses the learning rate of each arm on validation; the arms of one seed share
    initial weights, batches and samples. The same command continues after a stop and runs what is
    missing; several processes may share the folder. Cells that fail are recorded and do not run
    again. At the end, OUT/study.html shows the results, and OUT/summary.json holds them.
    """
    from candid.study import read_study, run_study

    console = Console(json, quiet)
    if report:
        content = read_study(file)
        records, left_out = _present_records(content, out)
        page, claims = _write_report(file, content, out, records)
        document = {
            "study": str(file),
            "out": str(out),
            "page": str(page),
            "claims": claims,
            "records_left_out": left_out,
        }
        lines = [*_claim_lines(claims), f"page: {page}"]
        if left_out:
            lines.insert(0, f"left out: {counted(left_out, 'record')} of other settings")
        console.result(document, *lines)
        return
    content = read_study(file)
    with _progress(console) as progress:
        result = run_study(
            content,
            out,
            minutes=minutes,
            retry_failed=retry_failed,
            allow_over_budget=allow_over_budget,
            progress=progress,
        )
    document = {"study": str(file), "out": str(out), **_document(result)}
    lines = _lines(result, out)
    if result.records:
        page, claims = _write_report(file, content, out, result.records)
        document |= {"page": str(page), "claims": claims}
        lines.append(f"page: {page}")
    console.result(document, *lines)


def _present_records(content: Study, out: Path) -> tuple[list[Record], int]:
    """Return the records of the settings that the study has now, and the number of others."""
    from candid.errors import ArtifactError
    from candid.study import read_records
    from candid.study.grid import Grid, by_key

    records, grid = read_records(out), Grid(content)
    present = [record for record in records if grid.has_settings_of(record)]
    pilots = set(grid.pilot_cells(by_key(present)))  # some had other learning rates to try
    present = [one for one in present if one.key.phase == "main" or one.key in pilots]
    if not present:
        others = f", but {len(records)} of other settings" if records else ""
        raise ArtifactError(
            f"{out} has no records of the study{others}; run candid study without --report first"
        )
    return present, len(records) - len(present)


def _write_report(
    file: Path, content: Study, out: Path, records: Sequence[Record]
) -> tuple[Path, dict[str, str]]:
    """Write page and summary of a study; return the page and the verdict on each claim."""
    from candid.atomic import write_json
    from candid.report.study_page import write_study_page
    from candid.study import StudyCells, summarize
    from candid.study.grid import Grid, by_key
    from candid.study.summary import records_table

    grid = Grid(content)
    cells = StudyCells(
        out, records, grid.seeds, content.sources, at_edge=grid.at_edge(by_key(records))
    )
    summary = summarize(cells)
    command = shlex.join(["candid", "study", str(file), "--out", str(out)])
    counted_records = [*(one for one in records if one.key.phase == "pilot"), *cells.records]
    document = {"command": command, "records": records_table(counted_records)}
    write_json(out / "summary.json", document | summary.to_json())
    page = out / "study.html"
    write_study_page(page, content.config.name, cells, summary)
    return page, {one["name"]: one["verdict"] for one in summary.claims}


def _claim_lines(claims: Mapping[str, str]) -> list[str]:
    return [f"{name}: {verdict}" for name, verdict in claims.items()]


def _document(result: StudyResult) -> dict[str, Any]:
    status = result.status
    return {
        "is_complete": result.is_complete,
        "pilot": dict(zip(("ended", "cells"), status.pilot, strict=True)),
        "main": dict(zip(("ended", "cells"), status.main, strict=True)),
        "without_learning_rate": result.without_rate,
        "cpu_hours": status.cpu_seconds / 3600,
        "remaining_cpu_hours": None if status.remaining is None else status.remaining / 3600,
        "failed": [{"cell": record.key.label, "error": record.error} for record in result.failed],
    }


def _lines(result: StudyResult, out: Path) -> list[str]:
    status = result.status
    lines = [f"failed: {record.key.label}: {record.error}" for record in result.failed]
    if result.failed:
        lines.append(
            f"{counted(len(result.failed), 'cell')} failed; --retry-failed runs them again"
        )
    if result.without_rate:
        lines.append(
            f"{counted(result.without_rate, 'main cell')} without a learning rate: all cells of "
            "the pilot failed"
        )
    state = "complete" if result.is_complete else "not complete, the same command continues"
    lines.append(
        f"{state}: {_counts(status)}, {status.cpu_seconds / 3600:.3g} CPU hours, records in "
        f"{out / 'records.jsonl'}"
    )
    return lines


def _counts(status: StudyStatus) -> str:
    return f"pilot {status.pilot[0]}/{status.pilot[1]}, main {status.main[0]}/{status.main[1]}"


class _StudyProgress:
    """The display of a study: a line for each cell, and on a terminal a bar of the CPU time."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console = console
        self._bar = bar
        self._task: TaskID | None = (
            None if bar is None else bar.add_task("", total=None, steps="", status="starting")
        )

    def on_note(self, line: str) -> None:
        """Print the line."""
        self._print(line)

    def on_cell(self, key: CellKey, status: StudyStatus) -> None:
        """Show the cell on the bar."""
        self._show(status, key.label)

    def on_step(self, key: CellKey, state: TrainState, status: StudyStatus) -> None:
        """Move the bar."""
        steps = f"{key.label}: {state.step:,}/{state.total_steps:,} steps"
        self._show(status, steps, state.cpu_seconds)

    def on_record(self, record: Record, status: StudyStatus) -> None:
        """Print what the cell reached."""
        metrics = record.test or record.validation
        values = [f"{n} {metrics[n].value:.4f}" for n in ("ndcg@10", "nll") if n in metrics]
        outcome = "  ".join(values) if record.is_finished else f"failed: {record.error}"
        remaining = "" if status.remaining is None else f", {_duration(status.remaining)} left"
        self._print(
            f"{record.key.label}  {outcome}  {_duration(record.cpu_seconds)} "
            f"({_counts(status)}{remaining})"
        )
        self._show(status, "")

    def _show(self, status: StudyStatus, text: str, seconds: float = 0.0) -> None:
        if self._bar is None or self._task is None or status.remaining is None:
            return
        self._bar.update(
            self._task,
            total=status.cpu_seconds + status.remaining,
            completed=status.cpu_seconds + min(seconds, status.remaining),
            steps=_counts(status),
            status=text,
        )

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            self._console.note(line)


def _duration(seconds: float) -> str:
    """Write CPU seconds: 0.14 CPU s, 40 CPU s, 12 CPU min, 3.5 CPU h."""
    if seconds < 10:
        return f"{seconds:.2g} CPU s"
    if seconds < 100:
        return f"{seconds:.0f} CPU s"
    return f"{seconds / 60:.0f} CPU min" if seconds < 6000 else f"{seconds / 3600:.1f} CPU h"


@contextmanager
def _progress(console: Console) -> Iterator[_StudyProgress]:
    if not console.is_live:
        yield _StudyProgress(console, None)
        return
    from rich.console import Console as RichConsole

    from candid.cli.progress import training_bar

    with training_bar(RichConsole(stderr=True)) as bar:
        yield _StudyProgress(console, bar)
