"""The verb ``candid baselines``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set, Split, Verify


def baselines(
    data: Annotated[Path, typer.Argument(help="Prepared dataset")],
    split: Annotated[Split, typer.Option(help="Split to measure on")] = Split.TEST,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Baseline to measure; repeatable"),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune/--no-tune", help="Choose the settings of each one on the validation targets"
        ),
    ] = True,
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="CPU seconds after which tuning stops and no further one begins"),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to save the first one of the table in, to recommend and serve from; name "
            "it with --only",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the results as JSON")] = None,
    overrides: Set = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit simple baselines and rank them over the full catalog.

    They are fitted to the training rows, tuned on validation, and measured as a model is.
    """
    from candid.atomic import write_json
    from candid.baselines import measure_baselines
    from candid.baselines.report import table, to_json
    from candid.cli.progress import stage_progress
    from candid.config import default_recipe, override_evaluation
    from candid.data import Role, open_dataset
    from candid.runs import check_is_empty, fitted_baseline

    console = Console(json, quiet)
    if save is not None:
        check_is_empty(save, "--save")
    dataset = open_dataset(data)
    config = override_evaluation(default_recipe(dataset=dataset).evaluation, overrides or [])
    with stage_progress(console) as progress:
        results = measure_baselines(
            dataset,
            config,
            role=Role[split.name],
            names=only,
            tuning=tune,
            seconds=seconds,
            progress=progress,
        )
    document = {"data": str(data), **to_json(results)}
    lines: list[Any] = [table(results)]
    if out is not None:
        write_json(out, document)
        lines.append(f"written to {out}")
    saved = None
    if save is not None and (best := results.best) is not None:
        fitted_baseline(best.name, best.model, dataset, config, best.validation, best.trials).save(
            save
        )
        saved = {"baseline": best.name, "folder": str(save)}
        lines.append(f"{best.name} saved in {save}; next: candid recommend {save} --user ID")
    console.result(document | {"file": None if out is None else str(out), "saved": saved}, *lines)
