"""JSON text from files: parsed, with a ValueError for every kind of damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

MAX_DEPTH: Final = 100
"""Most levels of nested lists and tables; more than any file of candid has."""
_NESTED: Final = (dict, list)


def parse_json(text: str | bytes, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parse the text of one JSON value.

    ``json.loads`` raises RecursionError for deep nesting, which is not a ValueError. Values that
    are a little less deep raise it later, where they are written or compared.

    Args:
        text: as text, or as bytes in UTF-8; a byte order mark is skipped.
        parse_constant: called with "NaN", "Infinity" or "-Infinity" for the value; None: the
            floating-point number.

    Raises:
        ValueError: not JSON, not UTF-8, nested deeper than ``MAX_DEPTH``, or an integer with more
            digits than Python converts.

    Example:
        >>> parse_json(b'{"step": 3}')
        {'step': 3}
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_constant=parse_constant)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


def read_json(path: Path) -> Any:
    """Parse a file with one JSON value.

    Raises:
        OSError: the file cannot be read.
        ValueError: as of ``parse_json``.
    """
    return parse_json(path.read_bytes())


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _NESTED
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"nested deeper than {MAX_DEPTH} levels")
