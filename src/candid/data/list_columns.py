"""Columns of lists, whose elements become interactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from candid.data.readers import Source, collect, columns_of
from candid.errors import DataError

ROW = "_row_of_file"
"""Column with the number of the row in its file, from 0."""
CHARACTERS = 60
"""Characters of a text that a message quotes."""
QUOTED = r"""(?:"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"|'(?:[^'\\]|\\['"\\])*')"""
"""An element in double quotes, as JSON writes it, or in single quotes, as Python writes it."""
BARE_BETWEEN_SPACES = r"""(?:[^\s'",()\[\]{}][^\s,"]*)"""
BARE_BETWEEN_COMMAS = r"""(?:[^\s'",()\[\]{}](?:[^,"]*[^\s,"])?)"""
BETWEEN_SPACES = f"(?:{QUOTED}|{BARE_BETWEEN_SPACES})"
BETWEEN_COMMAS = f"(?:{QUOTED}|{BARE_BETWEEN_COMMAS})"
SPACED_LIST = rf"^\s*(?:{BETWEEN_SPACES}(?:\s+{BETWEEN_SPACES})*)?\s*$"
COMMA_LIST = rf"^\s*{BETWEEN_COMMAS}(?:\s*,\s*{BETWEEN_COMMAS})*\s*,?\s*$"
MISSING = ("None", "null", "NULL", "nan", "NaN", "NA", "<NA>")
"""A missing element, as programs write it; in quotes it is text."""
NO_ELEMENT = r"^(?:\.\.\.|…|(?:np\.\w+|array|Timestamp)\(.*)$"
"""Part of a list that was cut short for display, or of the code that creates an element."""


@dataclass(frozen=True)
class Exploded:
    """A source with a row for each element of a list.

    Attributes:
        source: with the column ``ROW``.
        rows_read: rows of the file.
        empty_lists: those without an element, which give no row.
    """

    source: Source
    rows_read: int
    empty_lists: int


def explode(source: Source, columns: Sequence[str]) -> Exploded:
    """Make a row of each element of the lists in ``columns``; the other columns repeat.

    Args:
        source: with lists, or text that ``parse_list`` reads.
        columns: columns of lists, of the same length in each row.

    Raises:
        DataError: a column is not a list, or the lists of a row differ in length.
    """
    types = columns_of(source)
    lists = [_as_list(column, types[column], source).alias(column) for column in columns]
    frame = source.frame.with_row_index(ROW)
    for column in columns:
        if isinstance(types[column], pl.String):
            check_texts(replace(source, frame=frame), column)
    frame = frame.with_columns(lists)
    lengths = [pl.col(column).list.len().fill_null(0) for column in columns]
    differs = pl.any_horizontal(length != lengths[0] for length in lengths)
    is_empty = lengths[0] == 0
    counts = [pl.len(), is_empty.sum().alias("empty"), differs.sum().alias("differ")]
    rows_read, empty_lists, num_differing = collect(frame.select(counts), [source]).row(0)
    if num_differing:
        first = collect(frame.filter(differs).head(1).select(ROW, *lengths), [source])
        row, *sizes = first.row(0)
        described = ", ".join(
            f"{size} in {column!r}" for column, size in zip(columns, sizes, strict=True)
        )
        raise DataError(
            f"{source.location(row)} has lists of different lengths ({described}); give each row "
            "lists of one length"
        )
    exploded = frame.explode(list(columns), empty_as_null=False, keep_nulls=False)
    return Exploded(replace(source, frame=exploded), rows_read, empty_lists)


def parse_list(value: pl.Expr) -> pl.Expr:
    """Read lists written as text, as lists of text.

    Elements are separated by spaces, or in brackets by commas or spaces: ``1 2``, ``[1, 2]``,
    ``["a", "b"]``, ``['a' 'b']``, ``{1,NULL}``. A text that is not a list becomes null, as a
    missing one does; ``check_texts`` finds it.
    """
    inner = _inner(value)
    spaced = inner.str.contains(SPACED_LIST)
    elements = (
        pl.when(spaced)
        .then(inner.str.extract_all(BETWEEN_SPACES))
        .when(inner.str.contains(COMMA_LIST))
        .then(inner.str.extract_all(BETWEEN_COMMAS))
    )
    words = pl.when(_is_unbracketed(value)).then(value.str.extract_all(r"\S+"))
    return pl.coalesce(elements.list.eval(_unquoted(pl.element())), words)


def check_texts(source: Source, column: str) -> None:
    """Check that each text of ``column`` is a list.

    Args:
        source: its column ``ROW`` is the row of the file, where it has one.
        column: of text.

    Raises:
        DataError: ``parse_list`` cannot read a text.
    """
    value, has_rows = pl.col(column), ROW in columns_of(source)
    frame = source.frame if has_rows else source.frame.with_row_index(ROW)
    elements = parse_list(value).list
    is_cut = elements.eval(pl.element().str.contains(NO_ELEMENT)).list.any()
    is_wrong = value.is_not_null() & (elements.len().is_null() | is_cut)
    first = collect(frame.filter(is_wrong).head(1).select(ROW, column), [source])
    if first.height:
        row, text = first.row(0)
        shown = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"
        raise DataError(
            f"column {column!r} of {source.location(row)} is not a list ({shown!r}); separate "
            'the elements by spaces, or write [1, 2] or ["a", "b"]'
        )


def _inner(value: pl.Expr) -> pl.Expr:
    """Return the text between brackets; null without brackets."""
    text = value.str.strip_chars()
    pairs = (r"(?s)^\[(.*)\]$", r"(?s)^\{(.*)\}$", r"(?s)^\((.*)\)$")
    return pl.coalesce(text.str.extract(pair, 1) for pair in pairs)


def _is_unbracketed(value: pl.Expr) -> pl.Expr:
    """Whether a text has neither brackets around it nor commas."""
    text = value.str.strip_chars()
    return ~(text.str.contains(r"^[\[{(]|[\]}]$") | text.str.contains(",", literal=True))


def _unquoted(element: pl.Expr) -> pl.Expr:
    """Remove the quotes and escapes of an element; a missing one becomes null."""
    is_double, is_single = element.str.starts_with('"'), element.str.starts_with("'")
    has_escape = element.str.contains("\\", literal=True)
    inside = element.str.slice(1, element.str.len_chars() - 2)
    return (
        pl.when(is_double & has_escape)
        .then(pl.when(is_double & has_escape).then(element).str.json_decode(pl.String))
        .when(is_single)
        .then(inside.str.replace_all(r"\\(['\"\\])", "$1"))
        .when(is_double)
        .then(inside)
        .when(~element.is_in(MISSING))
        .then(element)
    )


def _as_list(column: str, dtype: pl.DataType, source: Source) -> pl.Expr:
    value = pl.col(column)
    if isinstance(dtype, pl.List | pl.Array) and isinstance(dtype.inner, pl.List | pl.Array):
        raise DataError(
            f"column {column!r} of {source.path} has lists of lists; write one list in each row"
        )
    if isinstance(dtype, pl.List):
        return value
    if isinstance(dtype, pl.Array):
        return value.arr.to_list()
    if isinstance(dtype, pl.String):
        return parse_list(value)
    raise DataError(
        f"column {column!r} of {source.path} is {dtype} and not a list; remove it from explode"
    )
