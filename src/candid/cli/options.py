"""Options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Split(StrEnum):
    """The split that a model is measured on."""

    VALIDATION = "validation"
    TEST = "test"


class FallbackName(StrEnum):
    """The list of users about whom a model has no information."""

    POPULAR = "popular"
    RECENT = "recent"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, no text")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result without progress")]


def _set_verification(context: typer.Context, verify: bool) -> bool:
    """Compare checksums, or not, until the command ends."""
    if not verify:
        from candid.checksums import verification

        context.with_resource(verification(False))
    return verify


Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Compare the files that are opened with their checksums",
        callback=_set_verification,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, such as training.epochs=5; repeatable",
    ),
]
BulkOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="File to write, .parquet, .csv or .jsonl; the same command continues after a stop",
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(help="Number of files in the folder --out [default: one file, no folder]"),
]
RunData = Annotated[
    Path | None,
    typer.Option("--data", help="Prepared dataset [default: the dataset of the run]"),
]
