"""The comparison of both engines beside each test, against planted differences."""

import re
from contextlib import nullcontext

import polars as pl
import pytest

from candid.data import prepare
from candid.data.duckdb_engine import DuckDBEngine
from candid.errors import DataError

pytest.importorskip("duckdb", reason="needs the extra bigdata")
pytest.importorskip("pyarrow", reason="needs the extra bigdata")

TABLE = pl.DataFrame({"user_id": [2, 1, 1, 2, 1], "item_id": [1, 2, 1, 3, 3], "t": [1, 1, 1, 2, 3]})


@pytest.fixture
def both_engines(request):
    return request.config.pluginmanager.get_plugin("both_engines")


def test_equal_datasets_are_compared(both_engines):
    before = both_engines.compared.copy()
    prepare(TABLE, time="t")
    assert both_engines.compared - before == {"dataset": 1}
    assert both_engines.take_differences() == []


def test_equal_messages_are_compared(both_engines):
    before = both_engines.compared.copy()
    with pytest.raises(DataError, match="k_core drops the last 5"):
        prepare(TABLE, time="t", k_core=9)
    assert both_engines.compared - before == {"message": 1}
    assert both_engines.take_differences() == []


def test_another_order_of_ties_is_found(both_engines, monkeypatch):
    sort = DuckDBEngine.sort

    def other_ties(self, keys, num_types):
        return (frame.sort("user", "time", "item") for frame in sort(self, keys, num_types))

    monkeypatch.setattr(DuckDBEngine, "sort", other_ties)
    prepare(TABLE, time="t")
    (difference,) = both_engines.take_differences()
    assert difference == "the engines write other bytes into item_ids.npy, manifest.json"


@pytest.mark.parametrize(
    ("k_core", "expected"),
    [
        (0, "memory gives a dataset, and duckdb DataError: no"),
        (9, r"memory gives DataError: no interaction .*, and duckdb DataError: no"),
    ],
)
def test_another_message_is_found(both_engines, monkeypatch, k_core, expected):
    def refuse(*arguments):
        raise DataError("no")

    monkeypatch.setattr(DuckDBEngine, "number", refuse)
    monkeypatch.setattr(both_engines, "limit", None)
    with pytest.raises(DataError) if k_core else nullcontext():
        prepare(TABLE, time="t", k_core=k_core)
    (difference,) = both_engines.take_differences()
    assert re.fullmatch(expected, difference)


def test_difference_fails_the_test(both_engines, monkeypatch):
    monkeypatch.setattr(DuckDBEngine, "number", lambda *arguments: 1 / 0)
    after_call = both_engines.pytest_runtest_call(None)
    next(after_call)
    prepare(TABLE, time="t")
    with pytest.raises(AssertionError, match="duckdb ZeroDivisionError: division by zero"):
        after_call.send(None)
    assert both_engines.take_differences() == []
