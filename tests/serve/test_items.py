"""Ids of requests, and descriptions of items."""

import datetime
import json

import numpy as np
import polars as pl
import pytest

from candid.serve import items as module
from candid.serve.errors import RequestError
from candid.serve.items import ItemTable, RequestIds


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
        ("012", None),
        ("-03", None),
        ("٣", None),
        ("9" * 4000, None),
        (10**400, None),
    ],
)
def test_integer_ids_accept_text(source_id, expected):
    assert RequestIds(pl.Series([7, 12, -3]), kind="item", model="m").find(source_id) == expected


@pytest.mark.parametrize("source_id", ["abc", "007", 2**63])
def test_id_of_another_type_is_invalid(source_id):
    ids = RequestIds(pl.Series([7, 12]), kind="user", model="m")
    with pytest.raises(
        RequestError, match="cannot be an id of model 'm', whose user ids are"
    ) as caught:
        ids.check_type(source_id, "user")
    assert (caught.value.code, caught.value.field) == ("invalid", "user")
    ids.check_type("8", "user")
    RequestIds(pl.Series(["a"]), kind="user", model="m").check_type(8, "user")


def test_unsigned_ids():
    ids = RequestIds(pl.Series([2**64 - 1, 3, 2**63], dtype=pl.UInt64), kind="item", model="m")
    request_ids = [2**63, str(2**64 - 1), "3", -1, "-1", 2**64, str(10**19), 4]
    assert ids.find_all(request_ids) == [2, 0, 1, None, None, None, None, None]
    assert ids.source_ids([0, 2]) == [2**64 - 1, 2**63]


def test_text_ids_accept_integers():
    ids = RequestIds(pl.Series(["7", "a b", "07"]), kind="user", model="m")
    assert [ids.find(i) for i in (7, "7", "a b", "07", "x", True)] == [0, 0, 1, 2, None, None]
    with pytest.raises(RequestError, match=r"no user 'xxx.*… in model 'm'") as caught:
        ids.require("x" * 10_000, "user")
    assert caught.value.code == "unknown_user"
    assert ids.add("new") == 3
    assert (len(ids), ids.find("new"), ids.source_ids([3])) == (4, 3, ["new"])


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
    return ItemTable(frame, pl.Series(["e"]), counts, model="m")


ALL = np.ones(9, dtype=np.bool_)


def test_describe(table):
    assert table.describe([2, 0], include_attributes=True) == [
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


@pytest.mark.parametrize("cached_items", [2, 100])
def test_json_equals_the_description(table, cached_items, monkeypatch):
    monkeypatch.setattr(module, "CACHED_ITEMS", cached_items)
    for ids in ([0, 1, 2], [2, 4, 3, 3], [0]):
        for include_attributes in (True, False):
            texts = table.describe_json(ids, include_attributes)
            entries = [json.loads(text + "}") for text in texts]
            assert entries == table.describe(ids, include_attributes)
    table.update(0, "Green Dawn", {"odd": 2.0})
    entry = json.loads(table.describe_json([0], True)[0] + "}")
    assert entry["title"] == "Green Dawn"
    assert entry["attributes"] == {"born": None, "odd": 2.0}


def test_first_searches_may_run_at_once(table, monkeypatch):
    found = []

    def argsort(*arguments, **settings):
        monkeypatch.undo()
        found.append(table.find_by_title("red", 9, ALL))  # As another thread would.
        return np.argsort(*arguments, **settings)

    monkeypatch.setattr(module.np, "argsort", argsort)
    assert table.find_by_title("red", 9, ALL) == [2, 0]
    assert found == [[2, 0]]


def test_find_by_title(table):
    assert table.find_by_title("red", 9, ALL) == [2, 0]  # by popularity
    assert table.find_by_title("sun red", 9, ALL) == [2]
    assert table.find_by_title("b", 9, ALL)[0] == 1  # the id first, then titles
    assert table.find_by_title("", 3, ALL) == [4, 2, 0]
    assert table.find_by_title("red", 1, ALL) == [2]
    assert table.find_by_title("purple", 9, ALL) == []
    live = ALL.copy()
    live[2] = False
    assert table.find_by_title("red", 9, live) == [0]
    table.update(0, "Purple Rain", {})
    table.update(table.ids.add("f"), "Deep Purple", {})
    assert set(table.find_by_title("purple", 9, ALL)) == {0, 5}
    assert table.find_by_title("dawn", 9, ALL) == []
    # An item that was added during the search is left out.
    assert table.find_by_title("purple", 9, ALL[:5]) == [0]
    assert table.find_by_title("f", 9, ALL[:5]) == []
