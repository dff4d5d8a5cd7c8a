"""Text tables with a separator and a header line, plain or compressed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import polars as pl

from candid.data.readers.compression import (
    DAMAGE,
    NATIVE,
    check_compression,
    damaged,
    decompressed,
    explain_damage,
    find_damage,
    open_binary,
    open_text,
)
from candid.data.readers.files import DataFile, chunks, summary
from candid.data.readers.source import Source, header_question
from candid.errors import DataError

if TYPE_CHECKING:
    import _csv

MISREAD: tuple[type[BaseException], ...] = (*DAMAGE, csv.Error)
SEPARATORS = (",", "\t", ";", "|")


def scan_csv(file: DataFile, separator: str | None = None) -> Source:
    """Scan a csv file; the default ``separator`` is the most frequent one in the header."""
    return scan_delimited(file, separator or _separator_of(file))


def scan_tsv(file: DataFile, separator: str | None = None) -> Source:
    """Scan a tab separated file."""
    return scan_delimited(file, separator or "\t")


def scan_delimited(file: DataFile, separator: str, quote: str | None = '"') -> Source:
    """Scan a text table; every column is text, named by the first line or by the description.

    Raises:
        DataError: the file cannot be read, two columns have the same name, or the first line does
            not have a field for each name of ``file.column_names``.
    """
    dialect = Dialect(separator, quote)
    header = next(dialect.rows([header_of(file)]), [])
    has_header = not file.column_names
    if not has_header:
        if len(header) != len(file.column_names):
            raise DataError(
                f"{file}: line 1 has {len(header)} fields (separator {separator!r}) and "
                f"column_names has {len(file.column_names)} names; correct them or the separator"
            )
        header = list(file.column_names)
    if file.compression not in NATIVE:
        file = decompressed(file)
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(
            f"{file} has two columns {min(repeated)!r}; rename one{header_question(header)}"
        )
    frame = pl.scan_csv(
        file.path,
        has_header=has_header,
        new_columns=None if has_header else header,
        separator=separator,
        quote_char=quote,
        infer_schema=False,
        glob=False,
    )
    blank = _blank_lines(file, dialect)
    if blank:
        frame = (
            frame.with_row_index("_row_of_file", offset=int(has_header))
            .filter(~pl.col("_row_of_file").is_in(blank))
            .drop("_row_of_file")
        )
    elif blank is None:
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))

    def find_misfit() -> str | None:
        return dialect.find_misfit(file, len(header))

    def explain(error: BaseException) -> str:
        damage = find_damage(file) if file.compression else None
        if damage is None:
            try:
                misfit = find_misfit()
            except MISREAD as misread:
                damage = misread
            else:
                misfit = misfit or dialect.find_open_quote(file)
                return misfit or f"cannot be read ({summary(error)}); check the file"
        return explain_damage(damage)

    def line_of(row: int) -> int | None:
        try:
            lines = (line for line, fields in dialect.numbered(file) if fields)
            return next(islice(lines, row + has_header, None), None)
        except MISREAD:
            return None

    source = Source.of(file, frame, 1 + has_header, explain, find_misfit)
    return replace(source, line_of=line_of)


@dataclass(frozen=True)
class Dialect:
    """Separator and quote of a text table."""

    separator: str
    quote: str | None

    def rows(self, lines: Iterable[str], strict: bool = False) -> _csv.Reader:
        """Split lines into fields."""
        if self.quote is None:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote, strict=strict)

    def numbered(self, file: DataFile) -> Iterator[tuple[int, list[str]]]:
        """Yield the first line and the fields of the header and of every row."""
        with open_text(file) as stream:
            rows = self.rows(stream)
            first = 1
            for row in rows:
                yield first, row
                first = rows.line_num + 1

    def find_open_quote(self, file: DataFile) -> str | None:
        """Describe the line with a quote that is open to the end of the file, or return None."""
        with open_text(file) as stream:
            rows = self.rows(stream, strict=True)
            first = 1
            try:
                for _ in rows:
                    first = rows.line_num + 1
            except csv.Error:
                return f"line {first} has a quote {self.quote} that is not closed; fix the line"
        return None

    def find_misfit(self, file: DataFile, width: int) -> str | None:
        """Describe the first line without ``width`` fields or not UTF-8, or return None."""
        with open_text(file) as stream:
            rows = self.rows(stream)
            first = 1
            for row in rows:
                if len(row) not in (0, width):
                    quoted = f", continued by a quote {self.quote}," * (rows.line_num > first)
                    names = "column_names" if file.column_names else "the header"
                    return (
                        f"line {first}{quoted} has {len(row)} fields, but {names} has {width} "
                        f"(separator {self.separator!r}); fix the line or set separator"
                    )
                if any("\ufffd" in field for field in row):
                    return f"line {first} is not UTF-8 text; convert the file"
                first = rows.line_num + 1
        return None


def header_of(file: DataFile) -> str:
    """Return the first line.

    Raises:
        DataError: the file is empty, cannot be decompressed, or is not text.
    """
    check_compression(file)
    try:
        with open_text(file) as stream:
            header = stream.readline().rstrip("\r\n")
    except DAMAGE as error:
        raise damaged(file, error) from error
    if "\ufffd" in header or "\0" in header:
        raise DataError(f"{file}: line 1 is not UTF-8 text; convert the file, or set its format")
    return header


def _blank_lines(file: DataFile, dialect: Dialect) -> list[int] | None:
    """Number the blank lines among the rows, from 1; None if all rows without a value are blank.

    Polars reads a row of empty fields as it reads a blank line.
    """
    if not _has_empty_row(file, dialect.separator):
        return None
    try:
        return [number for number, (_, row) in enumerate(dialect.numbered(file)) if not row]
    except MISREAD:
        return None


def _has_empty_row(file: DataFile, separator: str) -> bool:
    """Whether a line has separators alone; one in a quoted text counts too."""
    start = f"\n{separator}".encode()
    pattern = re.compile(rb"\n(?:%b)+\r?(?:\n|\Z)" % re.escape(separator.encode()))
    rest = b""
    try:
        with open_binary(file) as stream:
            for chunk in chunks(stream):
                data = rest + chunk
                end = data.rfind(b"\n")
                if start in data and pattern.search(data[: end + 1]):
                    return True
                rest = data[max(end, 0) :]
    except DAMAGE:
        return False  # the error of the first query describes it
    return pattern.search(rest) is not None


def _separator_of(file: DataFile) -> str:
    header = header_of(file)
    return max(SEPARATORS, key=header.count)
