from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candid.errors import DataError
from candid.features.vocabulary import Vocabulary, typed


def learn(values, min_count=1, max_values=None):
    return Vocabulary.learn(*typed(pl.Series(values)), min_count, max_values)


@given(
    st.lists(st.sampled_from(["b", "a", "c", "é", "B"]), min_size=1, max_size=30),
    st.integers(1, 4),
    st.none() | st.integers(1, 4),
)
def test_learns_the_frequent_values_in_order(values, min_count, max_values):
    counts = {value: n for value, n in Counter(values).items() if n >= min_count}
    ranked = sorted(counts, key=lambda value: (-counts[value], value))[:max_values]
    assert learn(values, min_count, max_values).values == sorted(ranked)


def test_codes_follow_the_order_of_values_and_zero_is_unknown():
    vocabulary = learn([30, -1, 7])
    assert vocabulary.codes(*typed(pl.Series([7, 8, None, 30, -1]))).tolist() == [2, 0, 0, 3, 1]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.Int64, pl.UInt64, pl.Int128])
def test_integers_of_any_width_are_one_kind(dtype):
    vocabulary = learn([5, 2**63 + 9])
    assert vocabulary.codes(*typed(pl.Series([5, 6], dtype=dtype))).tolist() == [1, 0]
    assert vocabulary.codes(*typed(pl.Series([2**63 + 9], dtype=pl.UInt64))).tolist() == [2]


def test_categories_are_text():
    column = pl.Series(["a", "b", "a"], dtype=pl.Categorical)
    assert learn(column).state() == {"kind": "text", "values": ["a", "b"]}


@pytest.mark.parametrize(
    ("learnt", "asked", "kinds"),
    [([1], ["1"], "text.*integer"), (["1"], [1], "integer.*text"), ([1], [True], "boolean")],
)
def test_kinds_are_kept_apart(learnt, asked, kinds):
    vocabulary = Vocabulary.restore(learn(learnt).state())
    with pytest.raises(DataError, match=kinds):
        vocabulary.codes(*typed(pl.Series(asked)))


def test_what_saw_only_nulls_knows_nothing_and_takes_everything():
    vocabulary = learn([None, None])
    assert len(vocabulary) == 0
    for column in (["a"], [1], [None]):
        assert vocabulary.codes(*typed(pl.Series(column))).tolist() == [0]


@pytest.mark.parametrize(
    "state",
    [
        {"kind": "integer"},
        {"values": []},
        {"kind": "number", "values": []},
        {"kind": ["text"], "values": []},
        {"kind": "integer", "values": ["1"]},
        {"kind": "integer", "values": [True]},
        {"kind": "text", "values": [1]},
        {"kind": "text", "values": ["a", "a"]},
        {"kind": "text", "values": None},
        {"kind": None, "values": ["a"]},
        {"kind": "integer", "values": [2**127]},
        {"kind": "integer", "values": [2**300]},
    ],
)
def test_a_damaged_state_is_refused(state):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Vocabulary.restore(state)
