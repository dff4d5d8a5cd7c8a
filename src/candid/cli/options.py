"""Options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
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
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, such as training.epochs=5; repeatable",
    ),
]
