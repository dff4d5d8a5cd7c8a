"""``candid evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set

if TYPE_CHECKING:
    from candid.evaluation import EvaluationConfig, EvaluationReport, StageProgress
    from candid.runs import Run


class Split(StrEnum):
    """What can be measured on."""

    VALIDATION = "validation"
    TEST = "test"


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset; none: the one the run was trained on.")
    ] = None,
    split: Annotated[Split, typer.Option(help="What to measure on.")] = Split.TEST,
    overrides: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a trained model over the full catalog; only evaluation.* keys can be overridden."""
    from candid.cli.progress import stage_progress
    from candid.config import override_evaluation
    from candid.runs import load_run

    console = Console(json, quiet)
    loaded = load_run(run, data)
    config = override_evaluation(loaded.config, overrides or [])
    with stage_progress(console) as progress:
        report, path = measured(loaded, split, config, progress)
    console.result(
        {"run": str(run), "split": split.value, "file": str(path), **report.to_json()},
        report.table(),
        *(report.slice_table(name) for name in report.slices),
        f"written to {path}",
    )


def measured(
    run: Run,
    split: Split,
    config: EvaluationConfig | None = None,
    progress: StageProgress | None = None,
) -> tuple[EvaluationReport, Path]:
    """Measure a run, store the report in its folder and return both."""
    from candid.data import Role
    from candid.runs import evaluate_run

    report = evaluate_run(run, Role[split.name], config, progress=progress)
    # A part of the catalog is another question: its answer stands beside that to the whole.
    part = report.settings["catalog"]
    suffix = "" if part == "all" else f"-{part}"
    path = run.folder / f"evaluation-{split.value}{suffix}.json"
    report.save(path)
    return report, path
