"""MovieLens ``.dat`` files: fields separated by ``::``, latin-1 or UTF-8, header optional.

The columns of a file without a header depend on its name: ``ratings.dat`` user_id, item_id, rating,
timestamp; ``movies.dat`` item_id, title, genres; ``users.dat`` user_id, gender, age,
occupation, zip_code.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import polars as pl

from candid.data.readers.compression import check_compression, decompressed
from candid.data.readers.files import DataFile, plain_name, summary
from candid.data.readers.source import Source
from candid.errors import DataError

COLUMNS = {
    "ratings": ("user_id", "item_id", "rating", "timestamp"),
    "movies": ("item_id", "title", "genres"),
    "users": ("user_id", "gender", "age", "occupation", "zip_code"),
}
FIELD = "::"


def scan(file: DataFile, separator: str | None = None) -> Source:
    """Scan a ``.dat`` file; every column is text.

    Raises:
        DataError: the file has neither a header nor a known name.
    """
    check_compression(file)
    file = decompressed(file)
    with file.path.open("rb") as stream:
        first = stream.readline().decode("latin-1").rstrip("\r\n").split(separator or FIELD)
    has_header = not first[0].lstrip("-").isdigit()
    names = tuple(first) if has_header else COLUMNS.get(_stem(file))
    if names is None:
        raise DataError(
            f"{file} has no header and its name is not one of "
            f"{', '.join(f'{name}.dat' for name in COLUMNS)}; rename it or add a header line"
        )
    lines = _lines(file)
    if has_header:
        lines = lines.slice(1)
    fields = pl.col("line").str.strip_suffix("\r").str.split_exact(separator or FIELD, len(names))
    # Blank lines read as one empty field; files often end in one.
    frame = (
        lines.filter(pl.col("line").str.strip_chars() != "")
        .select(fields.struct.rename_fields([*names, "_rest"]).alias("fields"))
        .unnest("fields")
        .with_columns(
            # A surplus field becomes a null in the last column, as a missing field does.
            pl.when(pl.col("_rest").is_null()).then(pl.col(names[-1])).alias(names[-1])
        )
        .drop("_rest")
    )

    def explain(error: BaseException) -> str:
        return f"cannot be read as text separated by '{FIELD}' ({summary(error)}); check the file"

    def find_misfit() -> str | None:
        with file.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                width = len(line.split((separator or FIELD).encode()))
                if line.strip() and width != len(names):
                    return f"line {number} has {width} fields, not {len(names)}; fix the line"
        return None

    def line_of(row: int) -> int | None:
        with file.path.open("rb") as stream:
            numbers = (number for number, line in enumerate(stream, start=1) if line.strip())
            return next(islice(numbers, row + has_header, None), None)

    source = Source.of(file, frame, 2 if has_header else 1, explain, find_misfit)
    return replace(source, line_of=line_of)


def _lines(file: DataFile) -> pl.LazyFrame:
    """Return one row per line. Titles are latin-1 in older sets; ratings are plain ASCII."""
    if _stem(file) == "ratings":
        return pl.scan_lines(file.path, glob=False)
    content = file.path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return pl.LazyFrame({"line": text.split("\n")})


def _stem(file: DataFile) -> str:
    return plain_name(Path(file.name).name).split(".")[0].lower()
