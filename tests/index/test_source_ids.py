"""Source ids: the mapping to item ids and back."""

import numpy as np
import polars as pl
import pytest

from candid.errors import DataError
from candid.index import SourceIds
from candid.index import source_ids as module


@pytest.mark.parametrize(
    ("built", "unknown"),
    [(["a", "b", "ca"], "bb"), (["z", "b", "ö"], "zz"), ([3, 7, 20], 4), ([20, -7, 3], 0)],
)
def test_mapping_works_in_both_directions(built, unknown):
    ids = SourceIds(pl.Series(built))
    assert ids.item_ids(built).tolist() == [0, 1, 2]
    assert ids.item_ids([unknown, built[2]]).tolist() == [-1, 2]
    assert ids.item_ids([]).tolist() == []
    assert ids.source_ids([2, 0]) == [built[2], built[0]]
    ids.add([unknown])
    assert len(ids) == 4
    assert ids.item_ids([unknown, built[1]]).tolist() == [3, 1]
    assert ids.source_ids([3, 1]) == [unknown, built[1]]
    assert ids.added.to_list() == [unknown]


def test_added_ids_are_found():
    ids = SourceIds(pl.Series([1, 2]), pl.Series([9, 5]))
    assert ids.item_ids([5, 9, 1]).tolist() == [3, 2, 0]


@pytest.mark.parametrize(
    ("built", "wrong", "words"),
    [
        (["a"], 1, "item id 1 must be text"),
        ([1], "1", "item id '1' must be an integer"),
        ([1], True, "item id True"),
        ([1], 2**70, "Int64"),
    ],
)
def test_id_of_another_type_is_refused(built, wrong, words):
    with pytest.raises(DataError, match=words):
        SourceIds(pl.Series(built)).item_ids([wrong])


def test_texts_with_the_same_hash_are_distinguished(monkeypatch):
    monkeypatch.setattr(module, "_hash_texts", lambda texts: np.array([len(t) for t in texts]))
    ids = SourceIds(pl.Series(["bb", "a", "cc", "aa"]))
    assert ids.item_ids(["aa", "a", "zz", "cc", "long"]).tolist() == [3, 1, -1, 2, -1]


def test_negative_and_large_numbers_are_found():
    built = [-1, -2, 2**62, 0, -(2**63), 2**63 - 1]
    ids = SourceIds(pl.Series(built))
    assert ids.item_ids(built[::-1]).tolist() == [5, 4, 3, 2, 1, 0]
    assert ids.item_ids([1, 2**61, 2**63 - 2]).tolist() == [-1, -1, -1]


def test_empty_mapping_finds_no_item():
    assert SourceIds(pl.Series([], dtype=pl.Int64)).item_ids([3]).tolist() == [-1]


def test_many_texts_are_read_in_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    texts = [f"item {number}" for number in range(10)]
    assert SourceIds(pl.Series(texts)).item_ids(texts[::-1]).tolist() == list(range(10))[::-1]
