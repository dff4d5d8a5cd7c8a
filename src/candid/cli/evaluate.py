"""The verb ``candid evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set
from candid.errors import ConfigError


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
    from candid.cli.progress import stage_progress
    from candid.config import override_evaluation
    from candid.runs import beside_baselines, holds_baseline, load, load_run
    from candid.runs.measurement import evaluate_and_save, save_beside

    console = Console(json, quiet)
    if baselines and holds_baseline(run):
        raise ConfigError(
            f"{run} is a saved baseline: leave out --baselines, which is for trained runs; "
            "candid baselines ranks baselines"
        )
    trained = load_run(run, data) if baselines else None
    loaded = load(run, data) if trained is None else trained
    config = override_evaluation(loaded.evaluation, overrides or [])
    with stage_progress(console) as progress:
        report, path = evaluate_and_save(loaded, run, split.value, config, progress)
        beside = None
        if trained is not None:
            beside = beside_baselines(
                trained, report, split=split.value, config=config, progress=progress
            )
    document = {"run": str(run), "split": split.value, "file": str(path), **report.to_json()}
    lines: list[Any] = [report.table(), *(report.slice_table(name) for name in report.slices)]
    if beside is not None:
        document["baselines"] = beside.to_json()
        file = save_beside(path, beside)
        lines += [beside.table(), beside.sentence, f"written to {file}"]
    console.result(document, *lines, f"written to {path}")
