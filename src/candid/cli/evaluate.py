"""The verb ``candid evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set

if TYPE_CHECKING:
    from candid.evaluation import EvaluationConfig, EvaluationReport
    from candid.inference import StageProgress
    from candid.runs import SavedModel


class Split(StrEnum):
    """The split that a model is measured on."""

    VALIDATION = "validation"
    TEST = "test"


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of a saved baseline")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset [default: the dataset of the run]")
    ] = None,
    split: Annotated[Split, typer.Option(help="Split to measure on")] = Split.TEST,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also tune and measure baselines on the same targets"),
    ] = False,
    overrides: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a trained model or a saved baseline over the full catalog.

    --set changes evaluation.* keys only.
    """
    from candid.atomic import write_json
    from candid.cli.progress import stage_progress
    from candid.config import override_evaluation
    from candid.runs import beside_baselines, load, load_run

    console = Console(json, quiet)
    # Only the model of a run is shown beside baselines.
    trained = load_run(run, data) if baselines else None
    loaded = load(run, data) if trained is None else trained
    config = override_evaluation(loaded.evaluation, overrides or [])
    with stage_progress(console) as progress:
        report, path = evaluate_and_save(loaded, run, split, config, progress)
        beside = None
        if trained is not None:
            beside = beside_baselines(
                trained, report, split=split.value, config=config, progress=progress
            )
    document = {"run": str(run), "split": split.value, "file": str(path), **report.to_json()}
    lines: list[Any] = [report.table(), *(report.slice_table(name) for name in report.slices)]
    if beside is not None:
        document["baselines"] = beside.to_json()
        write_json(baselines_file(path), beside.to_json())
        lines += [beside.table(), beside.sentence, f"written to {baselines_file(path)}"]
    console.result(document, *lines, f"written to {path}")


def baselines_file(evaluation: Path) -> Path:
    """Return the file of the baselines beside a file that ``evaluate_and_save`` wrote."""
    return evaluation.with_name(evaluation.name.replace("evaluation-", "baselines-", 1))


def evaluate_and_save(
    model: SavedModel,
    folder: Path,
    split: Split,
    config: EvaluationConfig | None = None,
    progress: StageProgress | None = None,
) -> tuple[EvaluationReport, Path]:
    """Measure a model, save the report in its folder and return report and file."""
    report = model.evaluate(split.value, config, progress=progress)
    # The report on a part of the catalog does not replace the report on the whole.
    part = report.settings["catalog"]
    suffix = "" if part == "all" else f"-{part}"
    path = folder / f"evaluation-{split.value}{suffix}.json"
    report.save(path)
    return report, path
