"""RecBole atomic files: tab separated, with ``name:type`` in the header."""

from __future__ import annotations

from dataclasses import replace

from candid.data.readers.delimited import header_of, scan_delimited
from candid.data.readers.files import DataFile
from candid.data.readers.source import Source
from candid.errors import DataError

TYPES = ("token", "token_seq", "float", "float_seq")


def scan(file: DataFile, separator: str | None = None) -> Source:
    """Scan an ``.inter``, ``.item`` or ``.user`` file; ``:type`` is removed from column names.

    Raises:
        DataError: a column of the header has an unknown type.
    """
    names = {}
    separator = separator or "\t"
    for field in header_of(file).split(separator):
        name, _, kind = field.rpartition(":")
        if not name or kind not in TYPES:
            raise DataError(
                f"{file}: column {field!r} of the header must be 'name:type' with a type of "
                f"{', '.join(TYPES)}; set format = 'tsv' for a plain table"
            )
        names[field] = name
    source = scan_delimited(file, separator, quote=None)  # titles may hold a lone quote
    return replace(source, frame=source.frame.rename(names))
