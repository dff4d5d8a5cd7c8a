"""Progress of long work: a bar on a terminal, lines in a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from candid.cli.console import Console

if TYPE_CHECKING:
    from candid.inference import StageProgress
    from candid.training import TrainState


BAR_WIDTH = 24
REST_WIDTH = len("  0:00:00") + 2
"""Width of the remaining time and of the gaps between columns."""


class TrainProgress:
    """Callback of the trainer: a bar with throughput and remaining time, a line per validation.

    Args:
        console: output of the verb.
        bar: started progress display; None without a terminal.
        by_steps: whether lines of validations have the step, not only the epoch.
    """

    def __init__(self, console: Console, bar: Progress | None, *, by_steps: bool = False) -> None:
        self._console = console
        self._by_steps = by_steps
        self._bar = bar
        self._task = (
            None
            if bar is None
            else bar.add_task("training", total=None, steps="starting", status="")
        )

    def on_start(self, targets: str) -> None:
        """Print one line: which interactions an epoch trains on."""
        self._print(targets)

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._bar is None or self._task is None:
            return
        steps = f"{state.step:,}/{state.total_steps:,} steps"
        parts = [
            f"loss {metrics['loss']:.4f}",
            f"{metrics['rows_per_second']:,.0f} rows/s",
            f"sample weight {metrics['sample_weight']:.3f}",
        ]
        if "effective_sample_size" in metrics:
            parts.append(f"effective sample size {metrics['effective_sample_size']:,.0f}")
        room = self._bar.console.width - BAR_WIDTH - len(steps) - REST_WIDTH
        self._bar.update(
            self._task,
            total=state.total_steps,
            completed=state.step,
            steps=steps,
            status=_fitting(parts, room),
        )

    def on_validation(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Print one line: the validation metric, its error, and whether it is the best so far."""
        assert state.metric is not None
        score = f"{state.metric} {metrics[state.metric]:.4f}"
        if "standard_error" in metrics:
            score += f" ± {metrics['standard_error']:.4f}"
        score += "" if state.stale else " (best)"
        step = f", step {state.step:,}" if self._by_steps else ""
        line = f"epoch {state.epoch}{step}  validation {score}  {state.seconds:,.0f} s"
        self._print(line)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            self._console.note(line)


@contextmanager
def train_progress(console: Console, *, by_steps: bool) -> Iterator[TrainProgress]:
    """Show the progress of one training run inside the block.

    Args:
        console: output of the verb.
        by_steps: as for ``TrainProgress``.
    """
    if not console.is_live:
        yield TrainProgress(console, None, by_steps=by_steps)
        return
    with training_bar(RichConsole(stderr=True)) as bar:
        yield TrainProgress(console, bar, by_steps=by_steps)


@contextmanager
def stage_progress(console: Console) -> Iterator[StageProgress | None]:
    """Show the stages of a measurement inside the block; yields None without a terminal."""
    if not console.is_live:
        yield None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=BAR_WIDTH),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
        transient=True,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield report


def training_bar(screen: RichConsole) -> Progress:
    """Return a bar, not started, with steps, numbers and remaining time."""
    return Progress(
        BarColumn(bar_width=BAR_WIDTH),
        TextColumn("{task.fields[steps]}"),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    )


def _fitting(parts: Sequence[str], width: int) -> str:
    """Join the first part and each further part that fits into ``width``."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) <= width:
            line = f"{line}  {part}"
    return line
