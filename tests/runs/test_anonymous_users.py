"""Attributes of anonymous users, parsed as the columns of the user table."""

import datetime
import decimal
import math

import numpy as np
import polars as pl
import pytest

from candid.errors import DataError
from candid.runs.anonymous_users import parse_attributes

DAY, MOMENT = datetime.date(2026, 1, 31), datetime.datetime(2026, 1, 31, 18, 30)
ZONE = datetime.timezone(datetime.timedelta(hours=2))

SCHEMA = {
    "age": pl.Int32(),
    "height": pl.Float64(),
    "city": pl.String(),
    "likes": pl.List(pl.String()),
    "scores": pl.List(pl.Int64()),
    "member": pl.Boolean(),
}

INTEGERS = (
    pl.Int8,
    pl.Int16,
    pl.Int32,
    pl.Int64,
    pl.Int128,
    pl.UInt8,
    pl.UInt16,
    pl.UInt32,
    pl.UInt64,
)
# Each column type that features read: ways to write a value, and the value.
CASES = [
    *((dtype(), ["31", " 31 ", 31, 31.0, np.int8(31)], 31) for dtype in INTEGERS),
    *((dtype(), ["1.5", " 1.5", 1.5, np.float32(1.5)], 1.5) for dtype in (pl.Float32, pl.Float64)),
    (pl.Decimal(8, 2), ["1.5", 1.5, decimal.Decimal("1.50")], decimal.Decimal("1.50")),
    (pl.Boolean(), ["true", "True", "1", "yes", True, 1, np.bool_(True)], True),
    (pl.Boolean(), ["false", "FALSE", "0", "no", False, 0], False),
    (pl.String(), ["7"], "7"),
    (pl.String(), [7, "7"], "7"),
    (pl.String(), [True, "true"], "true"),
    (pl.Categorical(), ["new"], "new"),
    (pl.Enum(["old"]), ["new"], "new"),
    (pl.Date(), ["2026-01-31", "2026-01-31T00:00", DAY, datetime.datetime(2026, 1, 31)], DAY),
    *(
        (
            pl.Datetime(unit),
            [
                "2026-01-31T18:30",
                "2026-01-31 18:30:00",
                "2026-01-31T18:30Z",
                "2026-01-31T20:30+02:00",
                MOMENT,
                MOMENT.replace(hour=20, tzinfo=ZONE),
            ],
            MOMENT,
        )
        for unit in ("ms", "us", "ns")
    ),
    (pl.List(pl.String()), ["a|b", ["a", "b"], ("a", "b")], ["a", "b"]),
    (pl.List(pl.Int16()), ["1|2", "1 | 2", [1, 2.0], np.array([1, 2])], [1, 2]),
    (pl.List(pl.Boolean()), ["true|0", [True, False]], [True, False]),
    (pl.List(pl.Float32()), ["1.5|2", [1.5, 2], np.array([1.5, 2])], [1.5, 2.0]),
    (pl.List(pl.Decimal(8, 2)), ["1.5", [1.5]], [decimal.Decimal("1.50")]),
    (pl.Array(pl.Float32(), 2), ["1.5|2", [1.5, 2], pl.Series([1.5, 2])], [1.5, 2.0]),
    (pl.Null(), ["anything", 3], None),
]


@pytest.mark.parametrize(("dtype", "ways", "value"), CASES, ids=lambda part: str(part)[:30])
def test_parse_text_and_values_of_every_column_type(dtype, ways, value):
    users = [{"x": way} for way in ways]
    read = parse_attributes(users, {"x": dtype})["x"]
    assert read.dtype == (pl.String if isinstance(dtype, pl.Categorical | pl.Enum) else dtype)
    assert read.to_list() == [value] * len(ways)


@pytest.mark.parametrize("dtype", [dtype for dtype, *_ in CASES], ids=str)
def test_empty_values_are_unknown(dtype):
    users = [{"x": ""}, {"x": "  "}, {"x": None}, {}, {"x": math.nan}]
    assert parse_attributes(users, {"x": dtype})["x"].to_list() == [None] * 5


def test_time_in_a_column_with_a_time_zone():
    schema = {"x": pl.Datetime("us", "Asia/Tokyo")}
    ways = ["2026-01-31T18:30", "2026-01-31T20:30+02:00", MOMENT.replace(hour=20, tzinfo=ZONE)]
    read = parse_attributes([{"x": way} for way in ways], schema)["x"]
    assert read.dtype == schema["x"]
    assert read.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_list() == [MOMENT] * 3


def test_parse_rows_of_text_and_values():
    users = [
        {"age": "31", "height": "1.75", "city": "Oslo", "likes": "tea|jam", "scores": "1|2"},
        {},
        {"age": 7, "likes": ["jam"], "scores": [], "member": True},
    ]
    typed = [{k: v for k, v in users[0].items()}, {}]
    frame = parse_attributes(typed, SCHEMA)
    assert frame.schema == pl.Schema(SCHEMA)
    assert frame.rows() == [
        (31, 1.75, "Oslo", ["tea", "jam"], [1, 2], None),
        (None, None, None, None, None, None),
    ]
    frame = parse_attributes(users[1:], SCHEMA)
    assert frame.rows()[1] == (7, None, None, ["jam"], [], True)
    assert frame.schema == pl.Schema(SCHEMA)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"age": "old"}, r"'age' of users must be Int32, got 'old': write a whole"),
        ({"age": 2**40}, r"'age' of users must be Int32, got 1099511627776:"),
        ({"age": 25.5}, r"'age' of users must be Int32, got 25\.5:"),
        ({"age": "25.5"}, r"'age' of users must be Int32, got '25\.5':"),
        ({"age": math.inf}, r"'age' of users must be Int32, got inf:"),
        ({"age": True}, r"'age' of users must be Int32, got True:"),
        ({"age": [1]}, r"'age' of users must be Int32, got \[1\]:"),
        ({"height": "tall"}, r"'height' .* got 'tall': write a number"),
        ({"city": ["Oslo"]}, r"'city' .* got \['Oslo'\]: write text"),
        ({"scores": "1|x"}, r"'scores' of users must be List\(Int64\), got '1\|x':"),
        ({"scores": [1.5]}, r"'scores' .* got \[1\.5\]: write a list, or text"),
        ({"scores": 3}, r"'scores' .* got 3:"),
        ({"member": "maybe"}, r"'member' .* got 'maybe': write true or false"),
        ({"member": 2}, r"'member' .* got 2:"),
        ({"born": "2026-01-31T18:30"}, r"'born' .* got '2026-01-31T18:30': write a date"),
        ({"born": 20260131}, r"'born' .* got 20260131:"),
        ({"joined": "January"}, r"'joined' .* got 'January': write a time such as"),
        ({"joined": 5}, r"'joined' .* got 5:"),
        ({"price": 1.255}, r"'price' .* got 1\.255: write a number"),
        ({"place": [1.0]}, r"'place' .* got \[1\.0\]: write a list"),
        ({"weight": 3}, r"unknown attribute of users 'weight': did you mean 'height'"),
    ],
)
def test_values_of_another_type_are_refused(attributes, sentence):
    more = {
        "born": pl.Date(),
        "joined": pl.Datetime("us"),
        "price": pl.Decimal(8, 2),
        "place": pl.Array(pl.Float32(), 2),
    }
    good = {"age": 7, "scores": [1], "member": True}
    # The message names the wrong value, not the first.
    with pytest.raises(DataError, match=sentence):
        parse_attributes([good, attributes], SCHEMA | more)


def test_attributes_of_items():
    assert parse_attributes([{"age": "7"}], SCHEMA, "items")["age"].to_list() == [7]
    with pytest.raises(DataError, match="attribute 'age' of items must be Int32"):
        parse_attributes([{"age": "seven"}], SCHEMA, "items")
    with pytest.raises(DataError, match="unknown attribute of items 'weight'"):
        parse_attributes([{"weight": 3}], SCHEMA, "items")
