"""Attribute filters against plain Python over the same rows."""

import datetime

import numpy as np
import polars as pl
import pytest

from candid.serve.errors import RequestError
from candid.serve.filters import AttributeFilters
from candid.serve.items import ItemTable
from candid.serve.requests import Bounds

DAY = datetime.date(2020, 1, 1)
ROWS = {
    "kind": ["a", "b", None, "a|c", "c"],
    "genres": [["x"], [], None, ["x", "y"], ["z"]],
    "year": [1990, None, 2000, 2010, 2020],
    "small": [0, 1, 2, None, 255],
    "price": [0.5, 1.0, float("nan"), None, 3.0],
    "member": [True, False, None, True, False],
    "born": [DAY, None, DAY, DAY.replace(month=6), DAY],
    "at": [datetime.datetime(2020, 1, day) for day in range(1, 6)],
    "sizes": [[1, 2], [2], [], None, [9]],
}


@pytest.fixture(name="table")
def _table():
    frame = pl.DataFrame({"source_id": range(5), **ROWS}, strict=False).with_columns(
        pl.col("small").cast(pl.UInt8)
    )
    return ItemTable(frame, pl.Series([], dtype=pl.Int64), np.zeros(5, dtype=np.int64), model="m")


def passing(table, **filters):
    attribute_filters = AttributeFilters(table)
    attribute_filters.check(filters)
    return np.flatnonzero(attribute_filters.mask(filters)).tolist()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"kind": ["a"]}, [0, 3]),  # each part of a text list can match
        ({"kind": ["a|c", "b"]}, [1, 3]),
        ({"genres": ["x", "q"]}, [0, 3]),
        ({"year": [1990, 2010, 1.5e3]}, [0, 3]),
        ({"year": [2**62]}, []),
        ({"small": [255, 256, -1, 2**40]}, [4]),
        ({"price": [1, 3.0]}, [1, 4]),
        ({"member": [True]}, [0, 3]),
        ({"born": ["2020-06-01"]}, [3]),
        ({"sizes": [2]}, [0, 1]),
        ({"year": Bounds(min=2000)}, [2, 3, 4]),
        ({"year": Bounds(max=1990)}, [0]),
        ({"price": Bounds(min=0.6)}, [1, 4]),
        ({"at": Bounds(min="2020-01-02", max="2020-01-03T12:00:00Z")}, [1, 2]),
        ({"sizes": Bounds(min=2, max=3)}, [0, 1]),
        ({"kind": ["a", "c"], "year": Bounds(min=2000)}, [3, 4]),
    ],
)
def test_mask_selects_matching_items(table, filters, expected):
    assert passing(table, **filters) == expected


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"colour": ["red"]}, "items have no attribute 'colour'; they have: at, born, genres"),
        ({"kind": [3]}, "attribute 'kind' must be String, got 3"),
        ({"year": ["1990"]}, "attribute 'year' must be Int64, got '1990'"),
        ({"year": [True]}, "must be Int64, got True"),
        ({"member": [1]}, "attribute 'member' must be Boolean, got 1"),
        ({"born": ["today"]}, "attribute 'born' must be Date, got 'today'"),
        ({"kind": Bounds(min="a")}, "attribute 'kind' is String and does not support min and max"),
        ({"year": [2**63]}, "must be Int64, got 9223372036854775808"),
        ({"x" * 5000: ["red"]}, "items have no attribute 'xxx"),
    ],
)
def test_check_refuses_bad_filters(table, filters, message):
    with pytest.raises(RequestError, match=message) as caught:
        AttributeFilters(table).check(filters)
    assert len(caught.value.message) < 400
    assert caught.value.field.startswith("filters.")


def test_mask_uses_updated_attributes(table):
    filters = AttributeFilters(table)
    condition = {"kind": ["a"], "year": Bounds(min=1980)}
    assert np.flatnonzero(filters.mask(condition)).tolist() == [0, 3]
    table.update(0, "t", {"kind": "b", "year": 1990})
    table.update(table.ids.add(77), None, {"kind": "a", "year": 1999})
    table.update(table.ids.add(78), None, {"kind": "a"})
    assert np.flatnonzero(filters.mask(condition)).tolist() == [3, 5]


def test_masks_are_cached_until_an_item_changes(table, monkeypatch):
    filters = AttributeFilters(table)
    first = filters.mask({"kind": ["a"]})
    assert filters.mask({"kind": ["a"]}) is first
    assert filters.mask({"kind": ["b"]}) is not first
    for number in range(40):
        filters.mask({"year": [number]})
    assert filters.mask({"kind": ["a"]}) is not first  # the cache is bounded
    assert len(filters._cache) == 32
