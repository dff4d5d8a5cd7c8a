"""Readers, one per file format, and the search for the files of a location."""

from candid.data.readers.opening import Found, find_sources, open_sources
from candid.data.readers.registry import READERS
from candid.data.readers.source import (
    Source,
    check_columns,
    check_lines,
    collect,
    columns_of,
    require_columns,
)

__all__ = [
    "READERS",
    "Found",
    "Source",
    "check_columns",
    "check_lines",
    "collect",
    "columns_of",
    "find_sources",
    "open_sources",
    "require_columns",
]
