"""JSON Lines: one JSON object per line, plain or compressed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from glob import has_magic

import polars as pl

from candid.data.readers.compression import (
    DAMAGE,
    NATIVE,
    EmptyFileError,
    check_compression,
    damaged,
    decompressed,
    explain_damage,
    find_damage,
    open_binary,
)
from candid.data.readers.files import READ_ERRORS, DataFile, summary, unreadable
from candid.data.readers.panics import without_panic_messages
from candid.data.readers.source import Source
from candid.errors import DataError
from candid.json_text import parse_json


def scan_all(files: Sequence[DataFile], separator: str | None = None) -> list[Source]:
    """Scan files; ``separator`` is ignored.

    The type of a column is that of all its values: a column with numbers and text is text. A
    column that a file does not have is null there. A file without a line has no rows, as Spark
    writes an empty part.

    Raises:
        DataError: all files are empty, a file is damaged, or a line is not a JSON object.
    """
    files = _with_rows(files)
    sources = [_scan(file) for file in files]
    frames = _unify([source.frame for source in sources], files)
    return [replace(source, frame=frame) for source, frame in zip(sources, frames, strict=True)]


def _with_rows(files: Sequence[DataFile]) -> list[DataFile]:
    """Check how the files begin, and leave out empty ones.

    Raises:
        DataError: there is no other, or a file is damaged.
    """
    kept: list[DataFile] = []
    empty: EmptyFileError | None = None
    for file in files:
        try:
            kept.append(_checked(file))
        except EmptyFileError as error:
            empty = empty or error
    if empty is not None and not kept:
        raise empty
    return kept


def _checked(file: DataFile) -> DataFile:
    """Check how a file begins; decompress what Polars cannot."""
    check_compression(file)
    if file.compression not in NATIVE:
        file = decompressed(file)
    try:
        with open_binary(file) as stream:
            first = stream.read(1 << 12).lstrip()
    except DAMAGE as error:
        raise damaged(file, error) from error
    if first.startswith(b"\xef\xbb\xbf"):
        raise DataError(f"{file} begins with a byte order mark; save it as UTF-8 without one")
    if first.startswith(b"["):
        raise DataError(f"{file} is one JSON array; write one object per line")
    if not first.startswith(b"{"):
        raise DataError(f"{file}: the first line is not a JSON object; check the file")
    return file


def _scan(file: DataFile) -> Source:
    def find_misfit() -> str | None:
        return _find_misfit(file)

    def explain(error: BaseException) -> str:
        damage = find_damage(file) if file.compression else None
        if damage is not None:
            return explain_damage(damage)
        misfit = find_misfit() or _find_second_type(file)
        return misfit or f"cannot be read as JSON Lines ({summary(error)}); check the file"

    frame = _scan_lines(file)
    try:
        with without_panic_messages():
            frame.collect_schema()
    except READ_ERRORS as error:
        raise unreadable(file, error, explain) from error
    return Source.of(file, frame, None, explain)


def _unify(frames: Sequence[pl.LazyFrame], files: Sequence[DataFile]) -> list[pl.LazyFrame]:
    """Give all files the columns of any, each with the type that holds all values.

    A writer leaves out a key that has no value, and a part may hold only such objects.
    """
    schemas = [frame.collect_schema() for frame in frames]
    if all(schema == schemas[0] for schema in schemas):
        return list(frames)
    empty = [pl.DataFrame(schema=schema) for schema in schemas]
    try:
        schema = pl.concat(empty, how="diagonal_relaxed").schema
    except pl.exceptions.PolarsError:
        return list(frames)  # a message about the types of a column that is read follows
    return [_scan_lines(file, schema) for file in files]


def _scan_lines(file: DataFile, schema: pl.Schema | None = None) -> pl.LazyFrame:
    # Polars would take a file name with these characters for a pattern.
    path = file.path.read_bytes() if has_magic(str(file.path)) else file.path
    return pl.scan_ndjson(path, schema=schema, infer_schema_length=None)


def _find_misfit(file: DataFile) -> str | None:
    """Describe the first line that is not a JSON object, or return None."""
    with open_binary(file) as stream:
        for number, line in enumerate(stream, start=1):
            text = line.strip()
            if not text:
                continue
            try:
                value = parse_json(text, parse_constant=_refuse)
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8 text; convert the file"
            except ValueError as error:
                return f"line {number} is not a JSON object ({error}); fix the line"
            if not isinstance(value, dict):
                return f"line {number} is not a JSON object; write one object per line"
    return None


def _find_second_type(file: DataFile) -> str | None:
    """Describe the first value whose type does not go with those before it, or return None."""
    types: dict[str, type] = {}
    with open_binary(file) as stream:
        for number, line in enumerate(stream, start=1):
            for key, value in (parse_json(line) if line.strip() else {}).items():
                if value is None:
                    continue
                # Numbers and text go together: as text.
                kind = str if isinstance(value, int | float) else type(value)
                kind = bool if isinstance(value, bool) else kind
                if types.setdefault(key, kind) is not kind:
                    return (
                        f"line {number} has a value of another type in {key!r} "
                        f"({json.dumps(value)}) than the lines before it; use one type"
                    )
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON; write null")
