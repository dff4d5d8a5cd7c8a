"""Attribute filters: which items have one of some values, or lie within bounds."""

from __future__ import annotations

import datetime
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic_core import to_json

from candid.serve.items import ItemTable
from candid.serve.problems import Problem, shown
from candid.serve.schemas import Bounds

Bools = npt.NDArray[np.bool_]
SEPARATOR = "|"
"""Between the values of a list that the data writes as text: each of them counts."""
KEPT = 32
"""Masks of recent filters that are kept: V bytes each."""


class AttributeFilters:
    """Evaluates filters over an item table; remembers recent ones until an item changes.

    Args:
        table: whose attributes.
    """

    def __init__(self, table: ItemTable) -> None:
        self._table = table
        self._kept: OrderedDict[bytes, tuple[int, Bools]] = OrderedDict()

    def check(self, filters: Mapping[str, Any]) -> None:
        """Refuse filters that can mean nothing, before they cost anything.

        Raises:
            Problem: no such attribute, or a value that is not of its type.
        """
        for name, wanted in filters.items():
            dtype = self._table.attributes.get(name)
            if dtype is None:
                known = ", ".join(sorted(self._table.attributes)) or "none"
                raise Problem(
                    "invalid",
                    f"items have no attribute {shown(name)}; they have: {known}",
                    f"filters.{name}"[:100],
                )
            inner = _inner(dtype)
            values = [wanted.min, wanted.max] if isinstance(wanted, Bounds) else wanted
            for value in values:
                if value is not None:
                    _read(value, inner, name)
            if isinstance(wanted, Bounds) and not _has_order(inner):
                raise Problem(
                    "invalid",
                    f"attribute {name!r} is {inner}, which has no min and max: list values",
                    f"filters.{name}",
                )

    def mask(self, filters: Mapping[str, Any]) -> Bools:
        """Which of all items pass every filter: [n] bool, also those that came later.

        Args:
            filters: that ``check`` has seen.
        """
        key = to_json({name: _key(filters[name]) for name in sorted(filters)})
        version = self._table.version
        kept = self._kept.get(key)
        if kept is not None and kept[0] == version:
            self._kept.move_to_end(key)
            return kept[1]
        mask = self._evaluated(filters)
        self._kept[key] = (version, mask)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return mask

    def _evaluated(self, filters: Mapping[str, Any]) -> Bools:
        frame = self._table.frame
        mask = np.zeros(len(self._table.ids), dtype=np.bool_)
        mask[: frame.height] = True
        for name, wanted in filters.items():
            mask[: frame.height] &= _passes(frame[name], wanted, name)
        changed = self._table.changed
        for item, row in list(changed.items()):
            if item >= len(mask):
                continue  # It came meanwhile; the next mask has it.
            mask[item] = all(
                bool(
                    _passes(_as_series(row["attributes"].get(name), name, self._table), w, name)[0]
                )
                for name, w in filters.items()
            )
        return mask


def _as_series(value: Any, name: str, table: ItemTable) -> pl.Series:
    dtype = table.attributes[name]
    inner = _inner(dtype)
    if isinstance(value, list):
        return pl.Series([[_read(part, inner, name) for part in value]], dtype=dtype)
    return pl.Series([None if value is None else _read(value, inner, name)], dtype=dtype)


def _passes(column: pl.Series, wanted: Any, name: str) -> Bools:
    inner = _inner(column.dtype)
    if isinstance(column.dtype, pl.String) and column.str.contains(SEPARATOR, literal=True).any():
        whole = _passes_list(column, wanted)
        return whole | _passes(column.str.split(SEPARATOR), wanted, name)
    if isinstance(column.dtype, pl.List | pl.Array):
        lists = column if isinstance(column.dtype, pl.List) else column.arr.to_list()
        flat = pl.DataFrame({"row": np.arange(len(lists)), "value": lists}).explode("value")
        rows = flat["row"].to_numpy()[_passes(flat["value"], wanted, name)]
        found = np.zeros(len(column), dtype=np.bool_)
        found[rows] = True
        return found
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if column.dtype.is_float():
        # To Polars NaN is larger than every number; here it is none.
        column = column.fill_nan(None)
    if isinstance(wanted, Bounds):
        passes = pl.Series([True]).new_from_index(0, len(column))
        if wanted.min is not None:
            passes &= column >= _read(wanted.min, inner, name)
        if wanted.max is not None:
            passes &= column <= _read(wanted.max, inner, name)
    else:
        values = [_read(value, inner, name) for value in wanted]
        if inner.is_integer():
            # A literal beyond the column's type matches nothing, and must not overflow.
            passes = column.cast(pl.Float64).is_in(pl.Series(values, dtype=pl.Float64).implode())
            if max(map(abs, values)) < 2**53:
                return passes.fill_null(False).to_numpy()
            passes = column.cast(pl.Int128).is_in(pl.Series(values, dtype=pl.Int128).implode())
        else:
            return _passes_list(column, values)
    return passes.fill_null(False).to_numpy()


def _passes_list(column: pl.Series, values: Sequence[Any]) -> Bools:
    dtype = pl.Float64() if column.dtype.is_float() else _plain_type(column.dtype)
    passes = column.cast(dtype).is_in(pl.Series(values, dtype=dtype).implode())
    return passes.fill_null(False).to_numpy()


def _read(value: Any, dtype: pl.DataType, name: str) -> Any:
    """A value of a filter as the type holds it.

    Raises:
        Problem: it is not of the type.
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
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None:
            if isinstance(dtype, pl.Date):
                return moment.date()
            aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
            return aware if dtype.time_zone else aware.astimezone(datetime.UTC).replace(tzinfo=None)
    raise Problem(
        "invalid", f"attribute {name!r} is {dtype}, which {shown(value)} is not", f"filters.{name}"
    )


def _inner(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.List | pl.Array):
        assert isinstance(dtype.inner, pl.DataType)
        return dtype.inner
    return dtype


def _has_order(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or isinstance(dtype, pl.Date | pl.Datetime)


def _plain_type(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    return pl.Float64() if isinstance(dtype, pl.Decimal) else dtype


def _key(wanted: Any) -> Any:
    if isinstance(wanted, Bounds):
        return {"min": wanted.min, "max": wanted.max}
    return wanted
