"""A user with many rows, which the engine duckdb holds in memory at once."""

import duckdb
import polars as pl
import pytest

from candid.data import DataConfig, duckdb_engine, parts, prepare_folder
from candid.errors import CandidError

MIB = 2**20
NUM_ROWS, PART_ROWS = 50, 10


def config_of(tmp_path):
    """User "b" has 50 rows, four others have one."""
    rows = [("b", f"i{n % 7}", n) for n in range(NUM_ROWS)]
    rows += [(user, "i0", 1) for user in ("a", "c", "d", "e")]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    frame.sample(fraction=1, shuffle=True, seed=0).write_csv(tmp_path / "log.csv")
    return DataConfig(interactions=str(tmp_path / "log.csv"), time="t", split={"kind": "none"})


@pytest.fixture(autouse=True)
def reserved(monkeypatch):
    """A part has 10 rows; a row more of one user takes 3 MiB."""
    monkeypatch.setattr(parts, "PART_ROWS", PART_ROWS)
    monkeypatch.setattr(duckdb_engine, "BYTES_PER_ROW", 3 * MIB)
    return (NUM_ROWS - PART_ROWS) * 3


def test_user_that_does_not_fit_into_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(duckdb_engine, "BYTES_PER_ROW", 4 * MIB)
    sentence = (
        r"user 'b' of .*log\.csv has 50 rows, which are in memory at once: that needs about "
        r"1\.03 GiB, more than the limit of 1 GiB; set memory_limit \(--memory-limit\) to more"
    )
    with pytest.raises(CandidError, match=sentence):
        prepare_folder(config_of(tmp_path), tmp_path / "out", engine="duckdb", memory_limit="1GiB")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_memory_of_the_largest_user_is_not_given_to_duckdb(tmp_path, monkeypatch, reserved):
    limits, connect = [], duckdb.connect

    def record(config):
        limits.append(int(config["memory_limit"].removesuffix("MiB")))
        return connect(config=config)

    monkeypatch.setattr(duckdb, "connect", record)
    result = prepare_folder(
        config_of(tmp_path), tmp_path / "out", engine="duckdb", memory_limit="1GiB"
    )
    assert len(result.dataset.item_ids) == NUM_ROWS + 4
    fixed = 1024 - duckdb_engine.FIXED_BYTES // MIB
    # Before and after the rows of users are counted; ids take less than a MiB here.
    assert (limits[0], limits[1]) == (fixed, fixed - reserved - 1)
