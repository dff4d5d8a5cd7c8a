"""The help about recipes: the sections, and the keys of a section."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from candid.errors import UnknownNameError

TOP_LEVEL = "top level"
ALL = "all"


def section_lines(width: int) -> Iterator[str]:
    """Yield one line or more for each section of a recipe.

    Args:
        width: of a line, in characters.
    """
    from candid.config.sections import SECTIONS

    longest = max(map(len, SECTIONS))
    for section, meaning in SECTIONS.items():
        yield from textwrap.wrap(
            meaning,
            width,
            initial_indent=f"  {section:<{longest}}  ",
            subsequent_indent=" " * (longest + 4),
        )


def key_lines(section: str, width: int) -> Iterator[str]:
    """Yield the keys of a section, each with type, default and description.

    Args:
        section: name of a section, a longer prefix such as "sampler.components", or "all".
        width: of a line, in characters.

    Raises:
        UnknownNameError: no key begins with ``section``.
    """
    from candid.config.run import RunConfig
    from candid.config.schema import describe
    from candid.config.sections import SECTIONS

    # Loads every component, and with them torch.
    keys = list(describe(RunConfig))
    shown = [
        key
        for key in keys
        if section == ALL or key.key == section or key.key.startswith(f"{section}.")
    ]
    if not shown:
        raise UnknownNameError("section", section, [ALL, *SECTIONS])
    title = None
    for key in shown:
        first = key.key.partition(".")[0]
        section_title = f"[{first}]" if first in SECTIONS else TOP_LEVEL
        if section_title != title:
            yield from [""] * (title is not None)
            yield section_title
            title = section_title
        owner = f"  [only {key.component}]" if key.component else ""
        default = key.default if key.default == "required" else f"default: {key.default}"
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
