"""Values of a column in one of three kinds, and the codes of those that were learnt."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.errors import DataError

Kind = Literal["integer", "text", "boolean"]

PYTHON_TYPES: Final[dict[Kind | None, type]] = {
    "integer": int,
    "text": str,
    "boolean": bool,
    None: type(None),
}
DTYPES: Final[dict[Kind | None, Any]] = {
    "integer": pl.Int128(),  # holds signed and unsigned 64 bits alike
    "text": pl.String(),
    "boolean": pl.Boolean(),
    None: pl.Null(),
}


def typed(column: pl.Series) -> tuple[Kind | None, pl.Series]:
    """Bring a column to the one type of its kind.

    Integers of any width are one kind. Empty text is null: that is how text formats write a
    missing value.

    Returns:
        the kind, None where every value is null, and the values: Int128, String, Boolean or,
        for None, Null.

    Raises:
        DataError: neither integers, text nor booleans.
    """
    dtype = column.dtype
    kind: Kind
    if column.null_count() == len(column):
        return None, pl.Series(column.name, [None] * len(column), dtype=pl.Null)
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        text = column.cast(pl.String)
        given = text.set(text == "", None)
        if given.null_count() == len(given):
            return None, pl.Series(column.name, [None] * len(given), dtype=pl.Null)
        return "text", given
    if dtype.is_integer():
        kind = "integer"
    elif dtype == pl.Boolean:
        kind = "boolean"
    else:
        raise DataError(
            f"values of type {dtype} are not integers, text or booleans; convert them or give "
            "the feature another type"
        )
    return kind, column.cast(DTYPES[kind])


def stripped(column: pl.Series) -> pl.Series:
    """Text without the blanks around it, which are no part of a value; other types as they are."""
    if column.dtype == pl.String or isinstance(column.dtype, pl.Categorical | pl.Enum):
        return column.cast(pl.String).str.strip_chars()
    return column


def require_kind(given: Kind | None, learnt: Kind | None) -> None:
    """Refuse values of another kind than the learnt ones: the text "1" is never the integer 1.

    Raises:
        DataError: both kinds are known and differ.
    """
    if given is not None and learnt is not None and given != learnt:
        raise DataError(
            f"values are of kind {given} and those learnt in training of kind {learnt}; convert "
            "the column"
        )


def restored_kind(kind: Any) -> Kind | None:
    """Read a kind from a stored state.

    Raises:
        ValueError: it is none.
    """
    for known in PYTHON_TYPES:
        if kind == known:
            return known
    raise ValueError(f"no kind of values: {kind!r}")


class Vocabulary:
    """Learnt values of one kind, with the codes 1..size; code 0 is every other value.

    Args:
        kind: None where nothing but nulls was seen; every value is then unknown.
        values: distinct, in the order of their codes.
    """

    def __init__(self, kind: Kind | None, values: list[Any]) -> None:
        self.kind = kind
        self.values = values
        self._codes = pl.DataFrame(
            {
                "value": pl.Series(values, dtype=DTYPES[kind]),
                "code": pl.Series(range(1, len(values) + 1), dtype=pl.Int64),
            }
        )

    @classmethod
    def learn(
        cls, kind: Kind | None, values: pl.Series, min_count: int, max_values: int | None
    ) -> Vocabulary:
        """Keep the values that are frequent enough, in ascending order.

        Args:
            kind: from ``typed``.
            values: as given by ``typed``; nulls are passed over.
            min_count: rarer values are left out.
            max_values: keep the most frequent; of equally frequent ones the smaller.
        """
        counts = values.drop_nulls().alias("value").value_counts(name="count")
        counts = counts.filter(pl.col("count") >= min_count)
        if max_values is not None:
            counts = counts.sort("count", "value", descending=[True, False]).head(max_values)
        return cls(kind, counts["value"].sort().to_list())

    def __len__(self) -> int:
        return len(self.values)

    def codes(self, kind: Kind | None, values: pl.Series) -> npt.NDArray[np.int64]:
        """Look up n values, null included, which is unknown.

        Returns:
            [n], 0..size.

        Raises:
            DataError: they are of another kind.
        """
        require_kind(kind, self.kind)
        if kind is None or self.kind is None:
            return np.zeros(len(values), dtype=np.int64)
        asked = pl.DataFrame({"value": values})
        found = asked.join(self._codes, on="value", how="left", maintain_order="left")
        return found["code"].fill_null(0).to_numpy().astype(np.int64)

    def state(self) -> dict[str, Any]:
        """Kind and values, as plain JSON values."""
        return {"kind": self.kind, "values": self.values}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Vocabulary:
        """Undo ``state``.

        Raises:
            KeyError, TypeError, ValueError: it is not such a state.
        """
        kind, values = restored_kind(state["kind"]), state["values"]
        # A boolean is an int to isinstance, yet never an integer value here.
        if any(type(value) is not PYTHON_TYPES[kind] for value in values):
            raise TypeError(f"the vocabulary is not all of kind {kind}")
        if len(set(values)) != len(values):
            raise ValueError("the vocabulary has a value twice")
        try:
            return cls(kind, list(values))
        except OverflowError as error:
            raise ValueError("the vocabulary has an integer of more than 128 bits") from error
