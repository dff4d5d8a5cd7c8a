"""One file of a table, as every reader returns it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from candid.data.readers.files import (
    READ_ERRORS,
    DataFile,
    disk_error,
    is_disk_full,
    is_out_of_memory,
    memory_error,
    summary,
    unreadable,
)
from candid.data.readers.panics import without_panic_messages
from candid.errors import DataError

MAX_COLUMNS = 20
"""Columns that an error message lists."""
NUMBER = re.compile(r"\s*[-+]?\d[\d.:eE+-]*\s*")


@dataclass(frozen=True)
class Source:
    """One file, scanned but not yet read.

    Attributes:
        path: the file, or what messages call a table in memory.
        frame: all its columns; text formats leave every column as text.
        first_line: number of the line with the first row; None for files without lines
            (parquet), whose rows are counted from 1.
        explain: turns an error of reading the file into a sentence.
        find_misfit: describes the first line whose fields do not match the header, or returns
            None; slow, for use after an error.
        file: the file that is read, kept because it may be a temporary copy.
        further_columns: columns that ``frame`` leaves out, for messages.
        line_of: finds the line of a row (from 0) in a file with blank lines or line breaks in
            quotes, or returns None; slow, for messages.
    """

    path: Path | str
    frame: pl.LazyFrame
    first_line: int | None
    explain: Callable[[BaseException], str]
    find_misfit: Callable[[], str | None] = lambda: None
    file: DataFile | None = None
    further_columns: tuple[str, ...] = ()
    line_of: Callable[[int], int | None] = lambda row: None

    @classmethod
    def of(
        cls,
        file: DataFile,
        frame: pl.LazyFrame,
        first_line: int | None,
        explain: Callable[[BaseException], str],
        find_misfit: Callable[[], str | None] = lambda: None,
    ) -> Source:
        """Describe a scanned file."""
        return cls(file.name, frame, first_line, explain, find_misfit, file, file.further_columns)

    def location(self, row: int) -> str:
        """Describe the ``row``-th row (from 0) by its line, or by its number."""
        if self.first_line is None:
            return f"row {row + 1} of {self.path}"
        line = self.line_of(row)
        return f"row {row + 1} of {self.path}" if line is None else f"line {line} of {self.path}"


def columns_of(source: Source) -> pl.Schema:
    """Read the names and types of the columns.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with without_panic_messages():
            return source.frame.collect_schema()
    except READ_ERRORS as error:
        raise unreadable(source.path, error, source.explain) from error


def require_columns(source: Source, names: Iterable[str]) -> None:
    """Check that the file has every column in ``names``.

    Raises:
        DataError: a column is missing; the message suggests the nearest and lists all.
    """
    known = [*columns_of(source).names(), *source.further_columns]
    check_columns(source.path, names, known)


def check_columns(
    origin: Path | str, names: Iterable[str], known: Sequence[str], hint: str = ""
) -> None:
    """Check that ``known`` has every column in ``names``.

    Args:
        origin: file, or what messages call a table in memory.
        names: of the columns to read.
        known: names of all columns.
        hint: clause with a reason, at the end of the message.

    Raises:
        DataError: a column is missing; the message suggests the nearest and lists all.
    """
    for name in names:
        if name not in known:
            listed = [str(column) for column in known]
            nearest = difflib.get_close_matches(name, listed, n=1, cutoff=0.5)
            suggestion = f"did you mean {nearest[0]!r}? " if nearest else ""
            more = f" and {len(known) - MAX_COLUMNS:,} more" if len(known) > MAX_COLUMNS else ""
            raise DataError(
                f"{origin} has no column {name!r}: {suggestion}columns: "
                f"{', '.join(listed[:MAX_COLUMNS])}{more}{header_question(listed)}{hint}"
            )


def check_lines(sources: Iterable[Source]) -> None:
    """Refuse lines that are cut short; call it when a value is missing.

    Raises:
        DataError: a line does not have the fields of the header.
    """
    for source in sources:
        misfit = source.find_misfit()
        if misfit is not None:
            raise DataError(f"{source.path}: {misfit}")


def header_question(names: Sequence[str]) -> str:
    """Return a question about the header if all its names are numbers, else an empty text."""
    is_data = bool(names) and all(NUMBER.fullmatch(name) for name in names)
    return " (is line 1 a header?)" if is_data else ""


def collect(query: pl.LazyFrame, sources: Iterable[Source]) -> pl.DataFrame:
    """Run ``query`` in streaming mode; an error of a file becomes a sentence about that file.

    Raises:
        DataError: one of ``sources`` cannot be read.
        ArtifactError: the disk is full.
        CandidError: there is not enough memory.
    """
    try:
        with without_panic_messages():
            return query.collect(engine="streaming")
    except READ_ERRORS as error:
        origin = "the interactions"
        if is_out_of_memory(error):
            raise memory_error(origin) from error
        if is_disk_full(error):
            raise disk_error(origin) from error
        for source in sources:
            try:
                with without_panic_messages():
                    source.frame.select(pl.all().null_count()).collect(engine="streaming")
            except READ_ERRORS as file_error:
                raise unreadable(source.path, file_error, source.explain) from file_error
        raise DataError(f"cannot read {origin}: {summary(error)}; check the files") from error
