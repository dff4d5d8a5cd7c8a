"""Values of a column in one of three kinds, and vocabularies of values with codes."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.errors import DataError

ValueKind = Literal["integer", "text", "boolean"]

PYTHON_TYPES: Final[dict[ValueKind | None, type]] = {
    "integer": int,
    "text": str,
    "boolean": bool,
    None: type(None),
}
DTYPES: Final[dict[ValueKind | None, Any]] = {
    "integer": pl.Int128(),  # holds signed and unsigned 64 bits alike
    "text": pl.String(),
    "boolean": pl.Boolean(),
    None: pl.Null(),
}


def to_kind(column: pl.Series) -> tuple[ValueKind | None, pl.Series]:
    """Convert a column to the one dtype of its kind.

    Integers of any width are one kind. Empty text is null: text formats write a missing value
    that way.

    Returns:
        the kind, None if every value is null; and the values as Int128, String, Boolean or, for
        None, Null.

    Raises:
        DataError: neither integers, text nor booleans.
    """
    dtype = column.dtype
    kind: ValueKind
    if column.null_count() == len(column):
        return None, pl.Series(column.name, [None] * len(column), dtype=pl.Null)
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        text = column.cast(pl.String)
        values = text.set(text == "", None)
        if values.null_count() == len(values):
            return None, pl.Series(column.name, [None] * len(values), dtype=pl.Null)
        return "text", values
    if dtype.is_integer():
        kind = "integer"
    elif dtype == pl.Boolean:
        kind = "boolean"
    else:
        raise DataError(
            f"values must be integers, text or booleans, got {dtype}; convert them or give the "
            "feature another type"
        )
    return kind, column.cast(DTYPES[kind])


def strip_text(column: pl.Series) -> pl.Series:
    """Remove blanks around text values; other types are returned unchanged."""
    if column.dtype == pl.String or isinstance(column.dtype, pl.Categorical | pl.Enum):
        return column.cast(pl.String).str.strip_chars()
    return column


def check_kind(kind: ValueKind | None, fitted: ValueKind | None) -> None:
    """Refuse values of another kind than in training: the text "1" is never the integer 1.

    Raises:
        DataError: both kinds are known and differ.
    """
    if kind is not None and fitted is not None and kind != fitted:
        raise DataError(f"values are {kind} but were {fitted} in training; convert the column")


def parse_kind(kind: Any) -> ValueKind | None:
    """Read a kind from a stored state.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    for known in PYTHON_TYPES:
        if kind == known:
            return known
    raise ValueError(f"unknown kind of values {kind!r}")


class Vocabulary:
    """Fitted values of one kind, with the codes 1..size; code 0 is every other value.

    Args:
        kind: None if training had only nulls; every value is then unknown.
        values: distinct, in the order of their codes.
    """

    def __init__(self, kind: ValueKind | None, values: list[Any]) -> None:
        self.kind = kind
        self.values = values
        self._codes = pl.DataFrame(
            {
                "value": pl.Series(values, dtype=DTYPES[kind]),
                "code": pl.Series(range(1, len(values) + 1), dtype=pl.Int64),
            }
        )

    @classmethod
    def fit(
        cls, kind: ValueKind | None, values: pl.Series, min_count: int, max_values: int | None
    ) -> Vocabulary:
        """Build the vocabulary of frequent values, in ascending order.

        Args:
            kind: from ``to_kind``.
            values: from ``to_kind``; nulls are skipped.
            min_count: minimum count of a value.
            max_values: size limit: the most frequent values stay; ties go to the smaller value.
        """
        counts = values.drop_nulls().alias("value").value_counts(name="count")
        counts = counts.filter(pl.col("count") >= min_count)
        if max_values is not None:
            counts = counts.sort("count", "value", descending=[True, False]).head(max_values)
        return cls(kind, counts["value"].sort().to_list())

    def extend(
        self, kind: ValueKind | None, values: pl.Series, min_count: int, max_values: int | None
    ) -> Vocabulary:
        """Return the vocabulary with further frequent values, which follow in ascending order.

        Args:
            kind: from ``to_kind``.
            values: from ``to_kind``; nulls are skipped.
            min_count: minimum count of a new value.
            max_values: size limit: the most frequent new values are added; ties go to the smaller
                value.

        Raises:
            DataError: the values are of another kind.
        """
        check_kind(kind, self.kind)
        if kind is None:
            return self
        others = (
            values if self.kind is None else values.filter(pl.Series(self.codes(kind, values) == 0))
        )
        room = None if max_values is None else max(0, max_values - len(self))
        new = Vocabulary.fit(kind, others, min_count, room)
        return Vocabulary(kind, [*self.values, *new.values])

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} values of kind {self.kind})"

    def codes(self, kind: ValueKind | None, values: pl.Series) -> npt.NDArray[np.int64]:
        """Look up n values; null is unknown.

        Returns:
            [n], 0..size.

        Raises:
            DataError: the values are of another kind.
        """
        check_kind(kind, self.kind)
        if kind is None or self.kind is None:
            return np.zeros(len(values), dtype=np.int64)
        rows = pl.DataFrame({"value": values})
        coded = rows.join(self._codes, on="value", how="left", maintain_order="left")
        return coded["code"].fill_null(0).to_numpy().astype(np.int64)

    def state(self) -> dict[str, Any]:
        """Return kind and values as plain JSON values."""
        return {"kind": self.kind, "values": self.values}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary from its ``state``.

        Raises:
            KeyError, TypeError, ValueError: ``state`` is not that of a vocabulary.
        """
        kind, values = parse_kind(state["kind"]), state["values"]
        # isinstance(True, int) is True, but a boolean is not an integer value here.
        if any(type(value) is not PYTHON_TYPES[kind] for value in values):
            raise TypeError(f"every value of the vocabulary must be of kind {kind}")
        if len(set(values)) != len(values):
            raise ValueError("a value of the vocabulary occurs twice")
        try:
            return cls(kind, list(values))
        except OverflowError as error:
            raise ValueError("the vocabulary has an integer of more than 128 bits") from error
