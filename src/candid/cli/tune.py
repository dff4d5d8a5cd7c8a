"""The verb ``candid tune``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set, Verify
from candid.cli.recipe import run_name

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from candid.training import TrainState
    from candid.tuning import BaseRecipe, History, Trial


def tune(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="Recipe to improve (TOML) [default: the default recipe for the data]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset with a validation split")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search")] = None,
    minutes: Annotated[
        float, typer.Option(min=0, help="Budget in CPU minutes, earlier parts of it included")
    ] = 60.0,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Largest number of trials [default: as many as the budget allows]"
        ),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(help="File with the keys to search (TOML) [default: those that matter most]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted search, or with more budget")
    ] = False,
    overrides: Set = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for a better recipe by the validation metric, within a budget.

    Each trial is a training with other settings; bad ones are stopped early. The test split is
    not read. The best recipe is in best.toml of the folder, with its evidence.
    """
    from candid.data import open_dataset
    from candid.errors import ConfigError
    from candid.tuning import default_space, read_space, search
    from candid.tuning.report import sentences, table, to_json

    console = Console(json, quiet)
    if data is None or out is None:
        missing = "--data DATASET" if data is None else "--out FOLDER"
        raise ConfigError(f"candid tune needs {missing}; add it")
    dataset = open_dataset(data)
    base = _base(recipe, data, dataset, overrides or [])
    searched = default_space(base) if space is None else read_space(space, base)
    console.note(f"searching {', '.join(searched.dimensions)} for {minutes:g} CPU minutes")
    with _progress(console, minutes) as progress:
        result = search(
            dataset,
            base,
            out=out,
            space=searched,
            minutes=minutes,
            trials=trials,
            resume=resume,
            progress=progress,
        )
    lines: list[Any] = [table(result.history), *sentences(result.history, minutes)]
    if result.is_exhausted:
        lines.append("the space has no further values")
    document = {"data": str(data), "recipe": str(result.recipe), **to_json(result.history)}
    console.result(document, *lines, f"best recipe in {result.recipe}")


def _base(recipe: Path | None, data: Path, dataset: Any, overrides: list[str]) -> BaseRecipe:
    from candid.config import DataFacts, load_recipe, parse_override
    from candid.tuning import BaseRecipe

    if recipe is not None:
        return BaseRecipe(load_recipe(recipe, overrides))
    changes = {"name": run_name(data)} | dict(map(parse_override, overrides))
    return BaseRecipe.default(DataFacts.of(dataset), changes)


class _TuneProgress:
    """The display of a search: a line for each trial, and on a terminal a bar of the budget."""

    def __init__(self, console: Console, minutes: float, bar: Progress | None) -> None:
        self._console = console
        self._minutes = minutes
        self._bar = bar
        self._task: TaskID | None = (
            None if bar is None else bar.add_task("", total=minutes, steps="", status="starting")
        )

    def on_start(self, targets: str) -> None:
        """Print which interactions an epoch trains on."""
        self._print(targets)

    def on_trial(self, trial: Trial, history: History) -> None:
        """Show the settings of the trial on the bar."""
        from candid.tuning.report import settings_text

        self._show(history, f"trial {trial.number}: {settings_text(trial)}")

    def on_step(self, trial: Trial, state: TrainState, history: History) -> None:
        """Move the bar."""
        self._show(history, f"trial {trial.number}: {state.step:,}/{state.total_steps:,} steps")

    def on_validation(self, trial: Trial, state: TrainState, history: History) -> None:
        """Move the bar."""
        self.on_step(trial, state, history)

    def on_end(self, trial: Trial, history: History) -> None:
        """Print the settings of the trial and what it reached."""
        from candid.tuning.report import minutes_text, score_text, settings_text

        ranking = history.ranking()
        best = " (best)" if ranking and ranking[0] is trial else ""
        score = "" if trial.best is None else f"  {history.metric} {score_text(trial)}{best}"
        reason = f": {trial.reason}" if trial.reason else ""
        self._print(
            f"trial {trial.number}  {trial.status.value}{reason}{score}  {settings_text(trial)}  "
            f"{minutes_text(history)} of {self._minutes:g} CPU minutes"
        )

    def _show(self, history: History, status: str) -> None:
        if self._bar is not None and self._task is not None:
            spent = history.cpu_seconds / 60
            self._bar.update(
                self._task,
                completed=min(spent, self._minutes),
                steps=f"{spent:.1f}/{self._minutes:g} CPU minutes",
                status=status,
            )

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            self._console.note(line)


@contextmanager
def _progress(console: Console, minutes: float) -> Iterator[_TuneProgress]:
    if not console.is_live:
        yield _TuneProgress(console, minutes, None)
        return
    from rich.console import Console as RichConsole

    from candid.cli.progress import training_bar

    with training_bar(RichConsole(stderr=True)) as bar:
        yield _TuneProgress(console, minutes, bar)
