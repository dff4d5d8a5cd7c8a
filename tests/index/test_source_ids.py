import polars as pl
import pytest

from candid.errors import DataError
from candid.index import SourceIds


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
