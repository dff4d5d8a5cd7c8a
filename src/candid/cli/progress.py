"""What training says while it runs: a bar for a person, lines for a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from candid.cli.console import Console

if TYPE_CHECKING:
    from candid.training import TrainState


class TrainProgress:
    """Told by the trainer; a bar with throughput and time left, and a line a validation.

    Args:
        console: of the verb.
        bar: a started progress display, or None where nobody watches.
    """

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console = console
        self._bar = bar
        self._task = None if bar is None else bar.add_task("training", total=None, status="")

    def stepped(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._bar is None or self._task is None:
            return
        status = (
            f"loss {metrics['loss']:.4f}  misclassification {metrics['misclassification']:.3f}  "
            f"{metrics['rows_per_second']:,.0f} rows/s"
        )
        if "effective_candidates" in metrics:
            status = f"{status}  effective candidates {metrics['effective_candidates']:,.0f}"
        self._bar.update(self._task, total=state.total_steps, completed=state.step, status=status)

    def validated(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Print one line: the watched metric, and whether it is the best so far."""
        name, value = next(iter(metrics.items()))
        best = "" if state.stale else " (best)"
        line = f"epoch {state.epoch}  validation {name} {value:.4f}{best}  {state.seconds:,.0f} s"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            self._console.note(line)


@contextmanager
def train_progress(console: Console) -> Iterator[TrainProgress]:
    """Show the progress of one training run while the block lasts."""
    if not console.is_live:
        yield TrainProgress(console, None)
        return
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
        yield TrainProgress(console, bar)
