"""``candid export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset; none: the one the run was trained on.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="The towers: onnx, torch. The vectors of the items: parquet, npy, or what "
            "pgvector, qdrant, milvus or elasticsearch load. None: parquet. May be repeated.",
        ),
    ] = None,
    vector_column: Annotated[
        str, typer.Option(help="Name of the column or field that holds the vectors of items.")
    ] = "vector",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's towers and item vectors for other programs."""
    from candid.cli.progress import stage_progress
    from candid.export import export as write
    from candid.runs import load_run
    from candid.runs.exporting import export_parts

    console = Console(json, quiet)
    loaded = load_run(run, data)
    with stage_progress(console) as progress:
        written = write(
            export_parts(loaded),
            out,
            formats or ["parquet"],
            vector_column=vector_column,
            progress=progress,
        )
    lines = [f"{name}: {', '.join(_files(facts))}" for name, facts in written["formats"].items()]
    console.result({"folder": str(out), **written}, *lines, f"written to {out}")


def _files(facts: dict[str, object]) -> list[str]:
    """The files of a format: all of them, or the first ones."""
    graphs, files = facts.get("graphs"), facts.get("files")
    if isinstance(graphs, dict):
        return [
            f"{graph['file']} (within {graph['largest_difference']:.0e} of the model)"
            for graph in graphs.values()
        ]
    names = [str(name) for name in files] if isinstance(files, list) else []
    return names if len(names) <= 3 else [*names[:2], f"… {names[-1]}"]
