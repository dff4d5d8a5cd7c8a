"""Attribute filters: items that have one of some values, or a value within bounds."""

from __future__ import annotations

import datetime
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic_core import to_json

from candid.serve.errors import RequestError, short_repr
from candid.serve.items import ItemTable
from candid.serve.requests import Bounds

Bools = npt.NDArray[np.bool_]
SEPARATOR: Final = "|"
"""Separates the values of a list that the data stores as text; each value can match."""
CACHED_MASKS: Final = 32
"""Masks of recent filters in the cache: V bytes each."""


class AttributeFilters:
    """Evaluator of filters over an item table; recent masks are cached until an item changes.

    Args:
        table: the items.
    """

    def __init__(self, table: ItemTable) -> None:
        self._table = table
        self._cache: OrderedDict[bytes, tuple[int, Bools]] = OrderedDict()

    def check(self, filters: Mapping[str, Any]) -> None:
        """Check names and values of filters, without evaluating them.

        Raises:
            RequestError: an unknown attribute, or a value that is not of its type.
        """
        for name, condition in filters.items():
            dtype = self._table.attributes.get(name)
            if dtype is None:
                known = ", ".join(sorted(self._table.attributes)) or "none"
                raise RequestError(
                    "invalid",
                    f"items have no attribute {short_repr(name)}; they have: {known}",
                    f"filters.{name}"[:100],
                )
            inner = _inner_type(dtype)
            is_range = isinstance(condition, Bounds)
            values = [condition.min, condition.max] if is_range else condition
            for value in values:
                if value is not None:
                    _parse_value(value, inner, name)
            if is_range and not _is_ordered(inner):
                raise RequestError(
                    "invalid",
                    f"attribute {name!r} is {inner} and does not support min and max; list values",
                    f"filters.{name}",
                )

    def mask(self, filters: Mapping[str, Any]) -> Bools:
        """Return a mask of the items that pass every filter: [n] bool, new items included.

        Args:
            filters: as accepted by ``check``.
        """
        key = to_json({name: _cache_key(filters[name]) for name in sorted(filters)})
        revision = self._table.revision
        cached = self._cache.get(key)
        if cached is not None and cached[0] == revision:
            self._cache.move_to_end(key)
            return cached[1]
        mask = self._evaluate(filters)
        self._cache[key] = (revision, mask)
        while len(self._cache) > CACHED_MASKS:
            self._cache.popitem(last=False)
        return mask

    def _evaluate(self, filters: Mapping[str, Any]) -> Bools:
        frame = self._table.frame
        mask = np.zeros(len(self._table.ids), dtype=np.bool_)
        mask[: frame.height] = True
        for name, condition in filters.items():
            mask[: frame.height] &= _matches(frame[name], condition, name)
        for item_id, row in list(self._table.updates.items()):
            if item_id >= len(mask):
                continue  # The item was added meanwhile; the next mask has it.
            mask[item_id] = all(
                bool(
                    _matches(
                        _one_value(row["attributes"].get(name), name, self._table), condition, name
                    )[0]
                )
                for name, condition in filters.items()
            )
        return mask


def _one_value(value: Any, name: str, table: ItemTable) -> pl.Series:
    """Return a column of one row with the value of an updated item."""
    dtype = table.attributes[name]
    inner = _inner_type(dtype)
    if isinstance(value, list):
        return pl.Series([[_parse_value(part, inner, name) for part in value]], dtype=dtype)
    return pl.Series([None if value is None else _parse_value(value, inner, name)], dtype=dtype)


def _matches(column: pl.Series, condition: Any, name: str) -> Bools:
    """Return a mask of the rows of a column that meet a condition: [n] bool."""
    inner = _inner_type(column.dtype)
    if isinstance(column.dtype, pl.String) and column.str.contains(SEPARATOR, literal=True).any():
        whole_text = _is_in(column, condition)
        return whole_text | _matches(column.str.split(SEPARATOR), condition, name)
    if isinstance(column.dtype, pl.List | pl.Array):
        lists = column if isinstance(column.dtype, pl.List) else column.arr.to_list()
        flat = pl.DataFrame({"row": np.arange(len(lists)), "value": lists}).explode("value")
        rows = flat["row"].to_numpy()[_matches(flat["value"], condition, name)]
        mask = np.zeros(len(column), dtype=np.bool_)
        mask[rows] = True
        return mask
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if column.dtype.is_float():
        # Polars orders NaN above every number; here NaN means unknown.
        column = column.fill_nan(None)
    if isinstance(condition, Bounds):
        matches = pl.Series([True]).new_from_index(0, len(column))
        if condition.min is not None:
            matches &= column >= _parse_value(condition.min, inner, name)
        if condition.max is not None:
            matches &= column <= _parse_value(condition.max, inner, name)
    else:
        values = [_parse_value(value, inner, name) for value in condition]
        if not inner.is_integer():
            return _is_in(column, values)
        # A value outside the range of the type matches no row and must not overflow.
        matches = column.cast(pl.Float64).is_in(pl.Series(values, dtype=pl.Float64).implode())
        if max(map(abs, values)) >= 2**53:
            matches = column.cast(pl.Int128).is_in(pl.Series(values, dtype=pl.Int128).implode())
    return matches.fill_null(False).to_numpy()


def _is_in(column: pl.Series, values: Sequence[Any]) -> Bools:
    dtype = pl.Float64() if column.dtype.is_float() else _comparison_type(column.dtype)
    matches = column.cast(dtype).is_in(pl.Series(values, dtype=dtype).implode())
    return matches.fill_null(False).to_numpy()


def _parse_value(value: Any, dtype: pl.DataType, name: str) -> Any:
    """Convert a value of a filter to the type of a column.

    Raises:
        RequestError: the value does not have the type of the column.
    """
    if isinstance(dtype, pl.Boolean) and isinstance(value, bool):
        return value
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum) and isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if dtype.is_integer() and value == int(value) and abs(value) < 2**63:
            return int(value)
        if dtype.is_float() or isinstance(dtype, pl.Decimal):
            return float(value)
    if isinstance(dtype, pl.Date | pl.Datetime) and isinstance(value, str):
        try:
            time = datetime.datetime.fromisoformat(value)
        except ValueError:
            time = None
        if time is not None:
            if isinstance(dtype, pl.Date):
                return time.date()
            aware = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
            return aware if dtype.time_zone else aware.astimezone(datetime.UTC).replace(tzinfo=None)
    raise RequestError(
        "invalid", f"attribute {name!r} must be {dtype}, got {short_repr(value)}", f"filters.{name}"
    )


def _inner_type(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.List | pl.Array):
        assert isinstance(dtype.inner, pl.DataType)
        return dtype.inner
    return dtype


def _is_ordered(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or isinstance(dtype, pl.Date | pl.Datetime)


def _comparison_type(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    return pl.Float64() if isinstance(dtype, pl.Decimal) else dtype


def _cache_key(condition: Any) -> Any:
    if isinstance(condition, Bounds):
        return {"min": condition.min, "max": condition.max}
    return condition
