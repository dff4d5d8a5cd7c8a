"""The verb ``candid evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set

if TYPE_CHECKING:
    from candid.evaluation import EvaluationConfig, EvaluationReport
    from candid.inference import StageProgress
    from candid.runs import Run


class Split(StrEnum):
    """The split that a model is measured on."""

    VALIDATION = "validation"
    TEST = "test"


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset [default: the dataset of the run]")
    ] = None,
    split: Annotated[Split, typer.Option(help="Split to measure on")] = Split.TEST,
    overrides: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a trained model over the full catalog; --set changes evaluation.* keys only."""
    from candid.cli.progress import stage_progress
    from candid.config import override_evaluation
    from candid.runs import load_run

    console = Console(json, quiet)
    loaded = load_run(run, data)
    config = override_evaluation(loaded.config, overrides or [])
    with stage_progress(console) as progress:
        report, path = evaluate_and_save(loaded, split, config, progress)
    console.result(
        {"run": str(run), "split": split.value, "file": str(path), **report.to_json()},
        report.table(),
        *(report.slice_table(name) for name in report.slices),
        f"written to {path}",
    )


def evaluate_and_save(
    run: Run,
    split: Split,
    config: EvaluationConfig | None = None,
    progress: StageProgress | None = None,
) -> tuple[EvaluationReport, Path]:
    """Measure a run, save the report in its folder and return both."""
    report = run.evaluate(split.value, config, progress=progress)
    # The report on a part of the catalog does not replace the report on the whole.
    part = report.settings["catalog"]
    suffix = "" if part == "all" else f"-{part}"
    path = run.folder / f"evaluation-{split.value}{suffix}.json"
    report.save(path)
    return report, path
