"""An extension of griffe: the docstring section ``Example:`` is shown as code.

The Google style of griffe has a section ``Examples:`` only; ``Example:`` would become plain text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^( *)Example:$", re.MULTILINE)


class ExampleSections(griffe.Extension):
    """Rename the section in every docstring before it is parsed."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rename the section in a whole package, once it is loaded."""
        objects: list[griffe.Object] = [pkg]
        while objects:
            one = objects.pop()
            if one.docstring is not None:
                one.docstring.value = SECTION.sub(r"\1Examples:", one.docstring.value)
            objects += [member for member in one.members.values() if not member.is_alias]
