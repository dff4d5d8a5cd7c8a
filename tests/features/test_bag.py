from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candid.errors import DataError
from candid.features import Bag

MEMBERS = st.sampled_from(["a", "b", "c", "new", "other"])
KNOWN = {"a": 1, "b": 2, "c": 3}


@pytest.fixture(scope="module")
def feature():
    return Bag.Config(min_count=1).fit(pl.Series(["c|a", "b"]))


def rows_of(bags):
    ends = bags.offsets.tolist()
    return [bags.ids[a:b].tolist() for a, b in pairwise(ends)]


@given(st.lists(st.none() | st.lists(MEMBERS, max_size=4), max_size=6))
def test_text_and_lists_give_the_same_bags(feature, rows):
    expected = [[KNOWN.get(member, 0) for member in row or []] for row in rows]
    lists = pl.Series(rows, dtype=pl.List(pl.String))
    text = pl.Series([None if row is None else "|".join(row) for row in rows], dtype=pl.String)
    assert rows_of(feature.encode(lists)) == expected
    assert rows_of(feature.encode(text)) == expected


def test_empty_member_is_left_out(feature):
    assert rows_of(feature.encode(pl.Series(["a||b|", "|"]))) == [[1, 2], []]
    assert rows_of(feature.encode(pl.Series([["a", None, "", "b"]]))) == [[1, 2]]


def test_rare_members_are_unknown():
    config = Bag.Config(separator=", ", min_count=2, max_values=1)
    feature = config.fit(pl.Series(["x, y", "x, y", "y, z"]))
    assert rows_of(feature.encode(pl.Series(["x, y, z", "y"]))) == [[0, 1, 0], [1]]


def test_arrays_are_read_as_lists():
    column = pl.Series([[5, 6], None, [6, 7]], dtype=pl.Array(pl.Int32, 2))
    feature = Bag.Config(min_count=1).fit(column)
    assert rows_of(feature.encode(column)) == [[1, 2], [], [2, 3]]
    assert rows_of(feature.encode(pl.Series([[6]]))) == [[2]]


def test_list_of_lists_is_refused(feature):
    with pytest.raises(DataError, match="List"):
        feature.encode(pl.Series([[["a"]]]))


def test_blanks_around_members_are_removed():
    feature = Bag.Config(min_count=1).fit(pl.Series(["a | b", "b|a "]))
    assert feature.vocabulary.values == ["a", "b"]
    assert feature.encode(pl.Series(["b | | a"])).ids.tolist() == [2, 1]
