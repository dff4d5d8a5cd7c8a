"""Source ids of any type, as integers or text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

LARGEST_EXACT: Final[Mapping[pl.DataType, int]] = {
    pl.Float64(): 2**53,
    pl.Float32(): 2**24,
    pl.Float16(): 2**11,
}
"""Size up to which a type represents every whole number: above it, different ids are one float."""
NUMBER = r"^(?:0|-?[1-9]\d*)(?:\.\d*)?(?:[eE][+-]?\d+)?$"
"""A number in text as programs write it; other text, such as "007", is an id of its own."""
UUID_BYTES = 16
UUID_PARTS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
"""Position and length of the parts of a UUID in 32 hexadecimal digits."""


def widen(value: pl.Expr, dtype: pl.DataType) -> tuple[pl.Expr, pl.DataType] | None:
    """Convert ids to Int64, UInt64, a float, Binary or String; None for a type that has no ids.

    Text keeps leading zeros and spaces; an empty text is missing, as text formats write it.
    """
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return value.cast(pl.String), pl.String()
    if isinstance(dtype, pl.String):
        return pl.when(value != "").then(value), pl.String()
    if dtype.is_decimal() or dtype in (pl.Int128, pl.UInt128):
        return value.cast(pl.String), pl.String()
    if dtype == pl.UInt64:
        return value, pl.UInt64()
    if dtype.is_integer():
        return value.cast(pl.Int64), pl.Int64()
    if dtype.is_float():
        return value.fill_nan(None), dtype
    if dtype == pl.Binary:
        return value, pl.Binary()
    return None


def statistics(value: pl.Expr, dtype: pl.DataType) -> dict[str, pl.Expr]:
    """Return the statistics of widened ids for ``parse``."""
    if dtype.is_float():
        return {"is_whole": _is_whole(value, dtype).all()}
    if dtype == pl.Binary:
        has_zero = value.bin.contains(b"\0").any()
        return {
            "is_text": _is_utf8(value).all(),
            # No text has a zero byte; a UUID of small numbers has many.
            "is_uuid": _is_uuid_size(value).all() & (has_zero | ~_is_utf8(value).all()),
        }
    if dtype == pl.String:
        integer = value.cast(pl.Int64, strict=False)
        is_integer = (integer.cast(pl.String) == value).fill_null(value.is_null()).all()
        return {"is_integer": is_integer, "is_number": _is_number(value).all()}
    return {}


def text_statistics(value: pl.Expr) -> dict[str, pl.Expr]:
    """Return further statistics of text where ``is_number`` holds and ``is_integer`` does not."""
    return {
        "is_written": value.str.contains(NUMBER).all(),
        "has_point": value.str.contains(r"[.eE]").any(),
        "is_unsigned": value.cast(pl.UInt64, strict=False).is_not_null().all(),
    }


def parse(value: pl.Expr, dtype: pl.DataType, found: Mapping[str, Any]) -> pl.Expr:
    """Convert widened ids to Int64, UInt64 or String; a value that cannot be an id becomes null.

    Args:
        value: from ``widen``.
        dtype: from ``widen``.
        found: values of ``statistics``, and of ``text_statistics`` where they were needed.
    """
    if dtype.is_float():
        return pl.when(_is_whole(value, dtype)).then(value).cast(pl.Int64, strict=False)
    if dtype == pl.Binary:
        if found["is_uuid"]:
            return uuid_text(value)
        return value.cast(pl.String) if found["is_text"] else _valid_utf8(value)
    if dtype == pl.String:
        if found["is_integer"]:
            return value.cast(pl.Int64)
        if found["is_number"] and found["is_written"]:
            if found["has_point"]:
                return _whole_number(value)
            return value.cast(pl.UInt64) if found["is_unsigned"] else value
    return value


def is_certain(dtype: pl.DataType, found: Mapping[str, Any]) -> bool:
    """Whether the statistics exclude that ``parse`` makes an id null."""
    if dtype.is_float():
        return bool(found["is_whole"])
    if dtype == pl.Binary:
        return bool(found["is_text"] or found["is_uuid"])
    return not (found.get("has_point") and found["is_written"])


def describe_fault(dtype: pl.DataType) -> tuple[str, str]:
    """Return what is wrong with ids that ``parse`` made null, and how to fix them."""
    if dtype == pl.Binary:
        return "binary ids that are neither UTF-8 text nor UUIDs", "convert them to text"
    bits = LARGEST_EXACT.get(dtype, 2**53).bit_length() - 1
    return f"ids that are not whole numbers up to 2^{bits}", "write whole numbers or text"


def matching(value: pl.Expr, dtype: pl.DataType, target: pl.DataType) -> pl.Expr:
    """Convert ids of another table to the type of the interactions' ids; null if that fails.

    Args:
        value: ids as in the table, UUIDs as text.
        dtype: type of ``value``.
        target: type of the interactions' ids.
    """
    if dtype.is_integer() and target.is_integer():
        return value.cast(target, strict=False)
    if dtype.is_float():
        value = pl.when(_is_whole(value, dtype)).then(value).cast(pl.Int64, strict=False)
    text = value.cast(pl.String)
    if target.is_integer():
        text = text.str.replace(r"^(-?\d+)\.0*$", "${1}")
    matched = text.cast(target, strict=False)
    # The text 007 is an id of its own.
    return pl.when(matched.cast(pl.String) == text).then(matched)


def match_ids(ids: pl.Series, target: pl.DataType) -> pl.Series:
    """Convert ids of any type to the type of a dataset's ids; null where that fails.

    Args:
        ids: [n], such as a column of a table; 5.0 and the text 5.0 become the integer 5, and 5.5
            becomes null.
        target: Int64, UInt64 or String.

    Returns:
        [n], named as ``ids``.
    """
    widened = widen(pl.col(ids.name), ids.dtype)
    frame = ids.to_frame()
    if widened is None:
        return pl.Series(ids.name, [None] * len(ids), dtype=target)
    value, dtype = widened
    if ids.dtype.is_decimal():
        value = value.str.replace(r"\.0*$", "")
    if dtype == pl.Binary:
        found = frame.select(**statistics(value, dtype)).row(0, named=True)
        value, dtype = parse(value, dtype, found), pl.String()
    return frame.select(matching(value, dtype, target)).to_series()


def uuid_text(value: pl.Expr) -> pl.Expr:
    """Write 16 bytes as a UUID: 00112233-4455-6677-8899-aabbccddeeff."""
    digits = value.bin.encode("hex")
    parts = [digits.str.slice(start, length) for start, length in UUID_PARTS]
    return pl.concat_str(parts, separator="-")


def _is_whole(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return (value.round() == value) & (value.abs() <= LARGEST_EXACT[dtype])


def _is_number(value: pl.Expr) -> pl.Expr:
    return value.cast(pl.Float64, strict=False).is_not_null() | value.is_null()


def _whole_number(value: pl.Expr) -> pl.Expr:
    """Read text such as 12, 12.0 and 1.2e1; exact without an exponent."""
    digits = value.str.extract(r"^(-?\d+)(?:\.0*)?$", 1).cast(pl.Int64, strict=False)
    number = pl.when(value.str.contains("[eE]")).then(value.cast(pl.Float64, strict=False))
    whole = pl.when(_is_whole(number, pl.Float64())).then(number)
    return pl.coalesce(digits, whole.cast(pl.Int64, strict=False))


def _is_uuid_size(value: pl.Expr) -> pl.Expr:
    return (value.bin.size() == UUID_BYTES).fill_null(True)


def _is_utf8(value: pl.Expr) -> pl.Expr:
    return _valid_utf8(value).is_not_null() | value.is_null()


def _valid_utf8(value: pl.Expr) -> pl.Expr:
    """Decode bytes; null where they are not UTF-8."""
    return value.map_batches(_decode, return_dtype=pl.String, is_elementwise=True)


def _decode(values: pl.Series) -> pl.Series:
    try:
        return values.cast(pl.String)
    except pl.exceptions.ComputeError:
        # A cast without strictness fails too. Damaged values end the preparation, so that this
        # slow path runs over few batches.
        return pl.Series(values.name, [_decode_one(value) for value in values], dtype=pl.String)


def _decode_one(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
