"""Text tables with a separator and a header line, plain or gzip."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import polars as pl

from candid.data.readers.source import Source, header_question
from candid.errors import DataError

if TYPE_CHECKING:
    import _csv

SEPARATORS = (",", "\t", ";", "|")


def scan_csv(path: Path, separator: str | None = None) -> Source:
    """Scan a csv file; the default ``separator`` is the most frequent one in the header."""
    return scan_delimited(path, separator or _separator_of(path))


def scan_tsv(path: Path, separator: str | None = None) -> Source:
    """Scan a tab separated file."""
    return scan_delimited(path, separator or "\t")


def scan_delimited(path: Path, separator: str, quote: str | None = '"') -> Source:
    """Scan a text table with a header line; every column is text.

    Raises:
        DataError: the file cannot be read, or two columns have the same name.
    """
    dialect = Dialect(separator, quote)
    header = next(dialect.rows([header_of(path)]), [])
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(
            f"{path} has two columns {min(repeated)!r}; rename one{header_question(header)}"
        )
    frame = pl.scan_csv(
        path, separator=separator, quote_char=quote, infer_schema=False, glob=False
    ).filter(~pl.all_horizontal(pl.all().is_null()))  # skip blank lines

    def find_misfit() -> str | None:
        return dialect.find_misfit(path, len(header))

    def explain(error: Exception) -> str:
        try:
            misfit = find_misfit()
        except (OSError, EOFError, csv.Error) as damage:
            return f"cannot be read to the end ({damage}); download it again"
        return misfit or f"cannot be read ({str(error).splitlines()[0]}); check the file"

    return Source(path, frame, 2, explain, find_misfit)


@dataclass(frozen=True)
class Dialect:
    """Separator and quote of a text table."""

    separator: str
    quote: str | None

    def rows(self, lines: Iterable[str]) -> _csv.Reader:
        """Split lines into fields."""
        if self.quote is None:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote)

    def find_misfit(self, path: Path, width: int) -> str | None:
        """Describe the first line without ``width`` fields or not UTF-8, or return None."""
        with open_text(path) as stream:
            rows = self.rows(stream)
            first = 1
            for row in rows:
                if len(row) not in (0, width):
                    quoted = f", continued by a quote {self.quote}," * (rows.line_num > first)
                    return (
                        f"line {first}{quoted} has {len(row)} fields, but the header has {width} "
                        f"(separator {self.separator!r}); fix the line or set separator"
                    )
                if any("\ufffd" in field for field in row):
                    return f"line {first} is not UTF-8 text; convert the file"
                first = rows.line_num + 1
        return None


def open_text(path: Path) -> IO[str]:
    """Open a plain or gzip text file; bytes that are not UTF-8 become replacement marks."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def header_of(path: Path) -> str:
    """Return the first line.

    Raises:
        DataError: the file cannot be decompressed, or is not text.
    """
    try:
        with open_text(path) as stream:
            header = stream.readline().rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); download it again") from error
    if "\ufffd" in header or "\0" in header:
        raise DataError(f"{path}: line 1 is not UTF-8 text; convert the file, or set its format")
    return header


def _separator_of(path: Path) -> str:
    header = header_of(path)
    return max(SEPARATORS, key=header.count)
