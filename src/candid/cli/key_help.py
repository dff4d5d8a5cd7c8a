"""The part of ``candid train --help`` that lists every key of a recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator


def recipe_keys(width: int) -> Iterator[str]:
    """Yield the lines: each key with its default, what it takes, and its meaning.

    Args:
        width: of a line, in characters.
    """
    # Importing the config means importing torch: only for those who ask for this help.
    from candid.config import RunConfig, describe

    yield "Keys of a recipe (TOML; also --set KEY=VALUE):"
    for key in describe(RunConfig):
        owner = f"  [only {key.component}]" if key.component else ""
        default = "required" if key.default == "required" else f"default {key.default}"
        yield from textwrap.wrap(
            f"{key.key}  ({key.type}; {default}){owner}",
            width,
            initial_indent=" " * 2,
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from textwrap.wrap(
            key.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
