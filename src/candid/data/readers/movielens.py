"""MovieLens ``.dat`` files: fields separated by ``::``, latin-1 or UTF-8, header optional.

The columns of a file without a header depend on its name: ``ratings.dat`` user_id, item_id, rating,
timestamp; ``movies.dat`` item_id, title, genres; ``users.dat`` user_id, gender, age,
occupation, zip_code.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from candid.data.readers.source import Source
from candid.errors import DataError

COLUMNS = {
    "ratings": ("user_id", "item_id", "rating", "timestamp"),
    "movies": ("item_id", "title", "genres"),
    "users": ("user_id", "gender", "age", "occupation", "zip_code"),
}
FIELD = "::"


def scan(path: Path, separator: str | None = None) -> Source:
    """Scan a ``.dat`` file; every column is text.

    Raises:
        DataError: the file has neither a header nor a known name.
    """
    with path.open("rb") as stream:
        first = stream.readline().decode("latin-1").rstrip("\r\n").split(separator or FIELD)
    has_header = not first[0].lstrip("-").isdigit()
    names = tuple(first) if has_header else COLUMNS.get(path.name.split(".")[0].lower())
    if names is None:
        raise DataError(
            f"{path} has no header and its name is not one of "
            f"{', '.join(f'{name}.dat' for name in COLUMNS)}; rename it or add a header line"
        )
    lines = _lines(path)
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

    def explain(error: Exception) -> str:
        return (
            f"cannot be read as text separated by '{FIELD}' ({str(error).splitlines()[0]}); check "
            "the file"
        )

    def find_misfit() -> str | None:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                width = len(line.split((separator or FIELD).encode()))
                if line.strip() and width != len(names):
                    return f"line {number} has {width} fields, not {len(names)}; fix the line"
        return None

    return Source(path, frame, 2 if has_header else 1, explain, find_misfit)


def _lines(path: Path) -> pl.LazyFrame:
    """Return one row per line. Titles are latin-1 in older sets; ratings are plain ASCII."""
    if path.name.split(".")[0].lower() == "ratings":
        return pl.scan_lines(path, glob=False)
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return pl.LazyFrame({"line": text.split("\n")})
