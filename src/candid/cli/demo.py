"""The verb ``candid demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the synthetic data, the runs and the report")
    ] = Path("candid-demo"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train with each correction on synthetic data and compare with the true distribution."""
    from candid.demo import run_demo

    console = Console(json, quiet)
    result = run_demo(out, note=console.note)
    console.result(
        {"page": str(result.page), **result.report.to_json()},
        result.report.table(),
        f"report: {result.page.resolve()}",
    )
