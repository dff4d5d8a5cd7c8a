"""The verb ``candid verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from candid.cli.console import Console, counted
from candid.cli.options import Json
from candid.errors import ArtifactError


def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            readable=False,  # What cannot be read is reported like damage, and the rest is read.
            help="Runs, datasets, indexes, exports, baselines, searches and studies, or folders of "
            "them; checkpoints; files of item updates",
        ),
    ],
    json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only damaged files, without progress")
    ] = False,
) -> None:
    """Read all files of runs, datasets and other artifacts, and compare them with their checksums.

    Exit code 4 if a file is damaged or missing, or if a file or folder cannot be read.
    """
    from candid.cli.progress import stage_progress
    from candid.verification import verify as verify_paths

    console = Console(json, quiet)
    with stage_progress(console) as progress:
        checks = verify_paths(paths, progress=progress)
    damaged = [check for check in checks if not check.is_ok]
    total = sum(check.bytes for check in checks)
    lines = [
        f"ok       {check.path}" if check.is_ok else f"damaged  {check.path}: {check.fault}"
        for check in checks
        if not (quiet and check.is_ok)
    ]
    if not (quiet or damaged):
        lines.append(f"{counted(len(checks), 'file')}, {total / 1e6:,.1f} MB: no damage")
    document = {
        "files": [check.to_json() for check in checks],
        "bytes": total,
        "damaged": len(damaged),
    }
    console.result(document, *lines)
    if damaged:
        state = "is damaged:" if len(damaged) == 1 else "are damaged, the first is"
        raise ArtifactError(
            f"{len(damaged):,} of {counted(len(checks), 'file')} {state} {damaged[0].path}; "
            "restore from a copy, or make again, what is damaged"
        )
