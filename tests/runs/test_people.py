"""What is said of people, read as the table of users would be."""

import datetime
import decimal
import math

import numpy as np
import polars as pl
import pytest

from candid.errors import DataError
from candid.runs.people import frame_of

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
# Every type of column that some feature reads: ways to write a value, and the value.
READ = [
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


@pytest.mark.parametrize(("dtype", "ways", "value"), READ, ids=lambda part: str(part)[:30])
def test_every_type_of_column_is_read_from_text_and_from_values(dtype, ways, value):
    people = [{"x": way} for way in ways]
    read = frame_of(people, {"x": dtype})["x"]
    assert read.dtype == (pl.String if isinstance(dtype, pl.Categorical | pl.Enum) else dtype)
    assert read.to_list() == [value] * len(ways)


@pytest.mark.parametrize("dtype", [dtype for dtype, *_ in READ], ids=str)
def test_what_is_empty_is_not_known(dtype):
    people = [{"x": ""}, {"x": "  "}, {"x": None}, {}, {"x": math.nan}]
    assert frame_of(people, {"x": dtype})["x"].to_list() == [None] * 5


def test_a_moment_of_a_zone_is_the_same_moment():
    schema = {"x": pl.Datetime("us", "Asia/Tokyo")}
    ways = ["2026-01-31T18:30", "2026-01-31T20:30+02:00", MOMENT.replace(hour=20, tzinfo=ZONE)]
    read = frame_of([{"x": way} for way in ways], schema)["x"]
    assert read.dtype == schema["x"]
    assert read.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_list() == [MOMENT] * 3


def test_text_and_values_are_read_as_the_columns_type():
    people = [
        {"age": "31", "height": "1.75", "city": "Oslo", "likes": "tea|jam", "scores": "1|2"},
        {},
        {"age": 7, "likes": ["jam"], "scores": [], "member": True},
    ]
    typed = [{k: v for k, v in people[0].items()}, {}]
    frame = frame_of(typed, SCHEMA)
    assert frame.schema == pl.Schema(SCHEMA)
    assert frame.rows() == [
        (31, 1.75, "Oslo", ["tea", "jam"], [1, 2], None),
        (None, None, None, None, None, None),
    ]
    frame = frame_of(people[1:], SCHEMA)
    assert frame.rows()[1] == (7, None, None, ["jam"], [], True)
    assert frame.schema == pl.Schema(SCHEMA)


@pytest.mark.parametrize(
    ("person", "sentence"),
    [
        ({"age": "old"}, r"'age' of users is of type Int32, which 'old' is not; write a whole"),
        ({"age": 2**40}, r"'age' of users is of type Int32, which 1099511627776 is not"),
        ({"age": 25.5}, r"'age' of users is of type Int32, which 25\.5 is not"),
        ({"age": "25.5"}, r"'age' of users is of type Int32, which '25\.5' is not"),
        ({"age": math.inf}, r"'age' of users is of type Int32, which inf is not"),
        ({"age": True}, r"'age' of users is of type Int32, which True is not"),
        ({"age": [1]}, r"'age' of users is of type Int32, which \[1\] is not"),
        ({"height": "tall"}, r"'height' .* which 'tall' is not; write a number"),
        ({"city": ["Oslo"]}, r"'city' .* which \['Oslo'\] is not; write text"),
        ({"scores": "1|x"}, r"'scores' of users is of type List\(Int64\), which '1\|x' is not"),
        ({"scores": [1.5]}, r"'scores' .* which \[1\.5\] is not; write a list, or in text"),
        ({"scores": 3}, r"'scores' .* which 3 is not"),
        ({"member": "maybe"}, r"'member' .* which 'maybe' is not; write true or false"),
        ({"member": 2}, r"'member' .* which 2 is not"),
        ({"born": "2026-01-31T18:30"}, r"'born' .* which '2026-01-31T18:30' is not; write a date"),
        ({"born": 20260131}, r"'born' .* which 20260131 is not"),
        ({"joined": "January"}, r"'joined' .* which 'January' is not; write a moment such as"),
        ({"joined": 5}, r"'joined' .* which 5 is not"),
        ({"price": 1.255}, r"'price' .* which 1\.255 is not; write a number"),
        ({"place": [1.0]}, r"'place' .* which \[1\.0\] is not; write a list"),
        ({"weight": 3}, r"unknown attribute of users 'weight': did you mean 'height'"),
    ],
)
def test_what_cannot_be_read_is_refused(person, sentence):
    more = {
        "born": pl.Date(),
        "joined": pl.Datetime("us"),
        "price": pl.Decimal(8, 2),
        "place": pl.Array(pl.Float32(), 2),
    }
    good = {"age": 7, "scores": [1], "member": True}
    # The one at fault is named, not the first.
    with pytest.raises(DataError, match=sentence):
        frame_of([good, person], SCHEMA | more)


def test_what_is_said_of_items_is_read_alike():
    assert frame_of([{"age": "7"}], SCHEMA, "items")["age"].to_list() == [7]
    with pytest.raises(DataError, match="attribute 'age' of items is of type"):
        frame_of([{"age": "seven"}], SCHEMA, "items")
    with pytest.raises(DataError, match="unknown attribute of items 'weight'"):
        frame_of([{"weight": 3}], SCHEMA, "items")
