"""The output of a verb: its result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 240
"""Width of tables without a terminal, in characters: enough for each row to have one line."""


class AlreadyReported(Exception):
    """Another process of the command has printed why it ends.

    Args:
        exit_code: of the command.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Console:
    """The output of one verb.

    Attributes:
        json: print the result as one JSON document instead of text.
        quiet: print no progress.
    """

    json: bool
    quiet: bool

    @property
    def is_live(self) -> bool:
        """Whether progress may redraw itself: stderr is a terminal."""
        return not (self.json or self.quiet) and sys.stderr.isatty()

    def note(self, line: str) -> None:
        """Print a line about progress."""
        if not (self.json or self.quiet):
            typer.echo(line, err=True)

    def result(self, document: Mapping[str, Any], *text: RenderableType) -> None:
        """Print the result: ``document`` with ``--json``, else ``text``."""
        if self.json:
            typer.echo(json.dumps(_finite(document), ensure_ascii=False, default=str))
            return
        from rich.console import Console as RichConsole

        width = None if sys.stdout.isatty() else PIPE_WIDTH
        screen = RichConsole(file=sys.stdout, width=width, markup=False, highlight=False)
        for part in text:
            # A path must stay on one line to be copied; a table fits the width itself.
            screen.print(part, soft_wrap=isinstance(part, str))


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: 1 user, 1,200 users."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
