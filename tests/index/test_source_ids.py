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
def test_there_and_back(built, unknown):
    names = SourceIds(pl.Series(built))
    assert names.item_ids(built).tolist() == [0, 1, 2]
    assert names.item_ids([unknown, built[2]]).tolist() == [-1, 2]
    assert names.item_ids([]).tolist() == []
    assert names.source_ids([2, 0]) == [built[2], built[0]]
    names.add([unknown])
    assert len(names) == 4
    assert names.item_ids([unknown, built[1]]).tolist() == [3, 1]
    assert names.source_ids([3, 1]) == [unknown, built[1]]
    assert names.added.to_list() == [unknown]


def test_added_ids_come_back():
    names = SourceIds(pl.Series([1, 2]), pl.Series([9, 5]))
    assert names.item_ids([5, 9, 1]).tolist() == [3, 2, 0]


@pytest.mark.parametrize(
    ("built", "wrong", "words"),
    [
        (["a"], 1, "item 1 cannot be: source ids here are text"),
        ([1], "1", "item '1' cannot be: source ids here are integers"),
        ([1], True, "item True"),
        ([1], 2**70, "Int64"),
    ],
)
def test_another_type_is_refused(built, wrong, words):
    with pytest.raises(DataError, match=words):
        SourceIds(pl.Series(built)).item_ids([wrong])


def test_texts_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, "_hashes", lambda texts: np.array([len(t) for t in texts]))
    names = SourceIds(pl.Series(["bb", "a", "cc", "aa"]))
    assert names.item_ids(["aa", "a", "zz", "cc", "long"]).tolist() == [3, 1, -1, 2, -1]


def test_negative_and_large_numbers():
    built = [-1, -2, 2**62, 0, -(2**63), 2**63 - 1]
    names = SourceIds(pl.Series(built))
    assert names.item_ids(built[::-1]).tolist() == [5, 4, 3, 2, 1, 0]
    assert names.item_ids([1, 2**61, 2**63 - 2]).tolist() == [-1, -1, -1]


def test_of_no_items_none_is_found():
    assert SourceIds(pl.Series([], dtype=pl.Int64)).item_ids([3]).tolist() == [-1]


def test_many_texts_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    texts = [f"item {number}" for number in range(10)]
    assert SourceIds(pl.Series(texts)).item_ids(texts[::-1]).tolist() == list(range(10))[::-1]
