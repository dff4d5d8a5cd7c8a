"""Vocabularies of values with codes."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candid.errors import DataError
from candid.features.categorical import Categorical
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


def extended(values, others, **settings):
    config = Categorical.Config(**settings)
    return config.extend(config.fit(pl.Series(values)), pl.Series(others))


def test_extended_vocabulary_keeps_its_codes_and_appends_frequent_values():
    feature = extended(["d", "b", "d", "b"], ["c", "a", "d", "c", "a", "e"])
    assert feature.vocabulary.values == ["b", "d", "a", "c"]
    codes = feature.encode(pl.Series(["b", "d", "a", "c", "e", None])).ids[:, 0]
    assert codes.tolist() == [1, 2, 3, 4, 0, 0]
    limited = extended(["b", "b"], ["a", "c", "c", "a", "c"], max_values=2)
    assert limited.vocabulary.values == ["b", "c"]
    assert extended([None], [3, 3]).vocabulary.values == [3]
    with pytest.raises(DataError, match=r"text but.*int"):
        extended([1, 1], ["1", "1"])


@pytest.mark.parametrize(
    ("values", "others", "codes"),
    [
        (["b", "b", None, None], ["a", "a"], {"b": 1, None: 2, "a": 3, "z": 0}),
        (["b", "b"], ["a", "a", None, None], {"b": 1, "a": 2, None: 3, "z": 0}),
        (["b", "b", None], ["a", "a", None], {"b": 1, "a": 2, None: 0, "z": 0}),
        ([None, None], ["a", "a"], {None: 1, "a": 2, "z": 0}),
    ],
)
def test_code_of_missing_values_stays_where_it_was(values, others, codes):
    feature = extended(values, others)
    found = feature.encode(pl.Series(list(codes), dtype=pl.String))
    assert found.ids[:, 0].tolist() == list(codes.values())
    assert found.num_codes == max(codes.values()) + 1
    again = Categorical.Config().restore(feature.state())
    same = again.encode(pl.Series(list(codes), dtype=pl.String)).ids
    assert same.equal(found.ids)


@pytest.mark.parametrize("code", [True, 0, 3, "1"])
def test_state_with_an_impossible_code_of_missing_values_is_refused(code):
    state = {"vocabulary": {"kind": "text", "values": ["a"]}, "missing_code": code}
    with pytest.raises((TypeError, ValueError)):
        Categorical.Config().restore(state)
