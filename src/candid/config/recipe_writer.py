"""A recipe as commented TOML text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from candid.component import toml_value
from candid.config.run import RunConfig
from candid.config.sections import SECTIONS

WIDTH = 96
"""Longest line of a comment, in characters."""

Keys = Mapping[str, Any]
"""Keys with the keys inside them; None for a plain value."""

SHOWN: Keys = {
    "model": {
        "query_tower": {"type": None, "dim": None, "dropout": None},
        "item_tower": {"type": None, "dim": None},
    },
    "training": {"lr": None},
}
"""Keys that are written even where they have their default: those that people change first."""


def recipe_text(
    config: RunConfig, reasons: Mapping[str, str], introduction: Sequence[str] = ()
) -> str:
    """Write the settings of a config that have a reason or differ from the defaults of their keys.

    Args:
        config: of a run.
        reasons: by dotted key; each is a comment above its key or section.
        introduction: lines of the comment at the top.

    Returns:
        TOML text; ``parse_config`` of its table gives ``config``.
    """
    table = config.model_dump(mode="json", exclude_defaults=True)
    complete = config.model_dump(mode="json")
    for shown in (SHOWN, *map(_nested, reasons)):
        _show(table, complete, shown)
    lines = [f"# {line}".rstrip() for line in introduction]
    for key in (key for key in table if key not in SECTIONS):
        lines += [*_comment(reasons.get(key)), f"{key} = {_value(table[key])}"]
    for section in (section for section in SECTIONS if table.get(section)):
        lines += ["", *_comment(reasons.get(section)), f"[{section}]"]
        for key, value in table[section].items():
            name = f"{section}.{key}"
            lines += [*_comment(reasons.get(name)), *_inner_comments(name, reasons)]
            lines.append(f"{key} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _inner_comments(name: str, reasons: Mapping[str, str]) -> Iterator[str]:
    """Yield the comments of the keys inside an inline table."""
    for key, reason in reasons.items():
        if key.startswith(f"{name}."):
            yield from _comment(f"{key.removeprefix(f'{name}.')}: {reason}")


def _nested(key: str) -> Keys:
    """Return a dotted key as nested keys."""
    keys: Keys | None = None
    for part in reversed(key.split(".")):
        keys = {part: keys}
    return keys or {}


def _show(table: dict[str, Any], complete: Mapping[str, Any], shown: Keys) -> None:
    """Add the ``shown`` keys of the complete table to a table without defaults."""
    for key, inner in shown.items():
        if complete.get(key) is None:
            continue
        if inner is None:
            table.setdefault(key, complete[key])
        else:
            _show(table.setdefault(key, {}), complete[key], inner)
    # As in the complete table, so that the type of a component comes first.
    ordered = {key: table[key] for key in complete if key in table}
    table.clear()
    table.update(ordered)


def _comment(text: str | None) -> Iterator[str]:
    if text is not None:
        yield from textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _value(value: Any) -> str:
    """Format a value; a list of tables has a line for each of them."""
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return "\n".join(["[", *(f"    {toml_value(part)}," for part in value), "]"])
    return '"none"' if value is None else toml_value(value)
