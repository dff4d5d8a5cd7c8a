"""``candid demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the world, the runs and the report.")
    ] = Path("candid-demo"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train each correction on a world whose truth is known, and compare; takes minutes."""
    from candid.cli.progress import train_progress
    from candid.demo import run_demo

    console = Console(json, quiet)
    result = run_demo(out, note=console.note, progress=lambda: train_progress(console))
    shown = result.demonstration
    console.result(
        {"report": str(result.report), **shown.to_json()},
        shown.table(),
        f"report: {result.report.resolve()}",
    )
