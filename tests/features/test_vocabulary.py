"""Vocabularies of values with codes."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candid.errors import DataError
from candid.features.vocabulary import Vocabulary, to_kind


def fit(values, min_count=1, max_values=None):
    return Vocabulary.fit(*to_kind(pl.Series(values)), min_count, max_values)


@given(
    st.lists(st.sampled_from(["b", "a", "c", "é", "B"]), min_size=1, max_size=30),
    st.integers(1, 4),
    st.none() | st.integers(1, 4),
)
def test_fit_keeps_frequent_values_in_order(values, min_count, max_values):
    counts = {value: n for value, n in Counter(values).items() if n >= min_count}
    ranked = sorted(counts, key=lambda value: (-counts[value], value))[:max_values]
    assert fit(values, min_count, max_values).values == sorted(ranked)


def test_codes_follow_the_order_of_values():
    vocabulary = fit([30, -1, 7])
    assert vocabulary.codes(*to_kind(pl.Series([7, 8, None, 30, -1]))).tolist() == [2, 0, 0, 3, 1]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.Int64, pl.UInt64, pl.Int128])
def test_integers_of_any_width_are_one_kind(dtype):
    vocabulary = fit([5, 2**63 + 9])
    assert vocabulary.codes(*to_kind(pl.Series([5, 6], dtype=dtype))).tolist() == [1, 0]
    assert vocabulary.codes(*to_kind(pl.Series([2**63 + 9], dtype=pl.UInt64))).tolist() == [2]


def test_categorical_dtype_is_text():
    column = pl.Series(["a", "b", "a"], dtype=pl.Categorical)
    assert fit(column).state() == {"kind": "text", "values": ["a", "b"]}


@pytest.mark.parametrize(
    ("fitted", "others", "kinds"),
    [
        ([1], ["1"], "text but.*int"),
        (["1"], [1], "integer but.*text"),
        ([1], [True], "boolean"),
    ],
)
def test_values_of_another_kind_are_refused(fitted, others, kinds):
    vocabulary = Vocabulary.restore(fit(fitted).state())
    with pytest.raises(DataError, match=kinds):
        vocabulary.codes(*to_kind(pl.Series(others)))


def test_vocabulary_of_nulls_accepts_every_kind_as_unknown():
    vocabulary = fit([None, None])
    assert len(vocabulary) == 0
    for column in (["a"], [1], [None]):
        assert vocabulary.codes(*to_kind(pl.Series(column))).tolist() == [0]


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
def test_damaged_state_is_refused(state):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Vocabulary.restore(state)
