"""The verb ``candid export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Verify


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of a saved baseline")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset [default: the one of the run]")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="Towers: onnx, torch; item vectors: parquet, npy, pgvector, qdrant, milvus, "
            "elasticsearch; may be repeated [default: parquet]",
        ),
    ] = None,
    vector_column: Annotated[
        str, typer.Option(help="Name of the column or field that holds the item vectors")
    ] = "vector",
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write towers and item vectors for other programs."""
    from candid.cli.progress import stage_progress
    from candid.export import ExportInput
    from candid.export import export as write_export

    console = Console(json, quiet)
    export_input = ExportInput.open(run, data)
    with stage_progress(console) as progress:
        document = write_export(
            export_input,
            out,
            formats or ["parquet"],
            vector_column=vector_column,
            progress=progress,
        )
    lines = [
        f"{name}: {', '.join(_file_summary(description))}"
        for name, description in document["formats"].items()
    ]
    console.result({"folder": str(out), **document}, *lines, f"written to {out}")


def _file_summary(description: dict[str, object]) -> list[str]:
    """Return the files of a format: all of them, or the first two and the last."""
    graphs, files = description.get("graphs"), description.get("files")
    if isinstance(graphs, dict):
        return [
            f"{graph['file']} (within {graph['largest_difference']:.0e} of the model)"
            for graph in graphs.values()
        ]
    names = [str(name) for name in files] if isinstance(files, list) else []
    return names if len(names) <= 3 else [*names[:2], f"… {names[-1]}"]
