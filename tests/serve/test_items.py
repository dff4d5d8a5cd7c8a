"""Source ids, and what is said of items."""

import datetime
import json

import numpy as np
import polars as pl
import pytest

from candid.serve import items as module
from candid.serve.items import ItemTable, SourceIds
from candid.serve.problems import Problem


@pytest.mark.parametrize(
    ("source_id", "expected"),
    [
        (12, 1),
        ("12", 1),
        ("-3", 2),
        (-3, 2),
        (0, None),
        ("x", None),
        ("", None),
        ("-", None),
        ("1_2", None),
        ("٣", None),
        ("9" * 4000, None),
        (10**400, None),
    ],
)
def test_integer_ids_may_be_written_as_text(source_id, expected):
    assert SourceIds(pl.Series([7, 12, -3]), "item", "m").find(source_id) == expected


def test_ids_beyond_those_with_a_sign():
    ids = SourceIds(pl.Series([2**64 - 1, 3, 2**63], dtype=pl.UInt64), "item", "m")
    asked = [2**63, str(2**64 - 1), "3", -1, "-1", 2**64, str(10**19), 4]
    assert ids.find_all(asked) == [2, 0, 1, None, None, None, None, None]
    assert ids.names([0, 2]) == [2**64 - 1, 2**63]


def test_text_ids_may_be_written_as_integers():
    ids = SourceIds(pl.Series(["7", "a b", "07"]), "user", "m")
    assert [ids.find(i) for i in (7, "7", "a b", "07", "x", True)] == [0, 0, 1, 2, None, None]
    with pytest.raises(Problem, match=r"no user 'xxx.*… in model 'm'") as caught:
        ids.require("x" * 10_000, "user")
    assert caught.value.code == "unknown_user"
    assert ids.add("new") == 3
    assert (len(ids), ids.find("new"), ids.names([3])) == (4, 3, ["new"])


@pytest.fixture(name="table")
def _table():
    frame = pl.DataFrame(
        {
            "source_id": ["a", "b", "c", "d"],
            "title": ["Red Dawn", None, "Red Sun", "Blue Sun"],
            "born": [datetime.date(2020, 1, 2), None, None, None],
            "odd": [float("inf"), float("nan"), 1.5, None],
        }
    )
    counts = np.array([5, 1, 9, 2])
    return ItemTable(frame, pl.Series(["e"]), counts, "m")


ALL = np.ones(9, dtype=np.bool_)


def test_description(table):
    assert table.describe([2, 0], with_attributes=True) == [
        {
            "item": "c",
            "title": "Red Sun",
            "popularity": 9,
            "attributes": {"born": None, "odd": 1.5},
        },
        {
            "item": "a",
            "title": "Red Dawn",
            "popularity": 5,
            "attributes": {"born": "2020-01-02", "odd": None},
        },
    ]
    assert table.describe([4], False) == [{"item": "e", "title": None, "popularity": 0}]
    assert table.describe([], True) == []


@pytest.mark.parametrize("room", [2, 100])
def test_what_is_written_is_the_description(table, room, monkeypatch):
    monkeypatch.setattr(module, "WRITTEN", room)
    for ids in ([0, 1, 2], [2, 4, 3, 3], [0]):
        for with_attributes in (True, False):
            texts = table.written(ids, with_attributes)
            found = [json.loads(text + "}") for text in texts]
            assert found == table.describe(ids, with_attributes)
    table.change(0, "Green Dawn", {"odd": 2.0})
    found = json.loads(table.written([0], True)[0] + "}")
    assert found["title"] == "Green Dawn"
    assert found["attributes"] == {"born": None, "odd": 2.0}


def test_search(table):
    assert table.search("red", 9, ALL) == [2, 0]  # by popularity
    assert table.search("sun red", 9, ALL) == [2]
    assert table.search("b", 9, ALL)[0] == 1  # the id first, then titles
    assert table.search("", 3, ALL) == [4, 2, 0]
    assert table.search("red", 1, ALL) == [2]
    assert table.search("purple", 9, ALL) == []
    live = ALL.copy()
    live[2] = False
    assert table.search("red", 9, live) == [0]
    table.change(0, "Purple Rain", {})
    table.change(table.ids.add("f"), "Deep Purple", {})
    assert set(table.search("purple", 9, ALL)) == {0, 5}
    assert table.search("dawn", 9, ALL) == []
    # One that comes while others search is not there yet.
    assert table.search("purple", 9, ALL[:5]) == [0]
    assert table.search("f", 9, ALL[:5]) == []
