"""Locations: glob patterns, lists of paths, hive partitions; in a fixed order, each file once."""

import os

import polars as pl
import pytest

from candid.data import DataConfig, ItemTableConfig, prepare_folder
from candid.data.readers import open_sources
from candid.errors import ConfigError, DataError


def log(user, items, times=None):
    times = range(len(items)) if times is None else times
    return pl.DataFrame({"user_id": user, "item_id": items, "t": times}, strict=False)


def rows_of(sources):
    return pl.concat([source.frame for source in sources]).collect().rows()


def test_glob_pattern_in_the_order_of_names(tmp_path):
    for day in ("2026-11-10", "2026-11-02", "2026-12-01"):
        (tmp_path / day).mkdir()
        log(1, [day]).write_csv(tmp_path / day / "log.csv")
    (tmp_path / "2026-11-02" / "_SUCCESS").touch()
    (tmp_path / "2026-11-02" / "notes.md").touch()
    for pattern in ("2026-11-*/*.csv", "2026-11-*/*", "2026-11-*", "**/2026-11-*/*.csv"):
        sources = open_sources(str(tmp_path / pattern))
        assert [row[1] for row in rows_of(sources)] == ["2026-11-02", "2026-11-10"], pattern


def test_file_whose_name_is_a_pattern_is_read_as_it_is(tmp_path):
    log(1, ["a"]).write_csv(tmp_path / "log[1].csv")
    log(1, ["b"]).write_csv(tmp_path / "log1.csv")
    log(1, ["c"]).write_ndjson(tmp_path / "log[1].jsonl")
    assert rows_of(open_sources(str(tmp_path / "log[1].csv")))[0][1] == "a"
    assert rows_of(open_sources(str(tmp_path / "log[1].jsonl")))[0][1] == "c"


def test_pattern_without_a_match_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file matches .*\*\.csv; check the pattern"):
        open_sources(str(tmp_path / "*.csv"))
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match="has no data files"):
        open_sources(str(tmp_path / "*"))


def test_list_of_paths_keeps_its_order_and_its_ties(tmp_path):
    log(1, [1, 2]).write_csv(tmp_path / "b.csv")
    log(1, [3]).write_csv(tmp_path / "a.csv")
    log(2, [3, 2]).write_csv(tmp_path / "c.csv")
    paths = [tmp_path / "b.csv", str(tmp_path / "a.csv"), tmp_path / "c.csv"]
    config = DataConfig(interactions=paths, order="t")
    result = prepare_folder(config, tmp_path / "out")
    assert result.dataset.items["source_id"].to_list() == [1, 2, 3]
    assert [s["path"] for s in result.report["sources"]] == [str(path) for path in paths]
    # Item 1 of b.csv and item 3 of a.csv have the same time.
    assert result.dataset.item_ids.tolist() == [0, 2, 1, 2, 1]
    assert prepare_folder(config, tmp_path / "out").up_to_date


def test_messages_name_the_first_of_several_paths(tmp_path):
    for name in ("a", "b", "c"):
        log(7, [1, 2]).write_csv(tmp_path / f"{name}.csv")
    paths = [str(tmp_path / f"{name}.csv") for name in ("a", "b", "c")]
    with pytest.raises(DataError, match=r"a\.csv and 2 more has only one user"):
        prepare_folder(DataConfig(interactions=paths, order="t"), tmp_path / "out")


def test_file_that_is_named_twice_is_refused(tmp_path):
    log(1, [1]).write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv is named twice; name each file once"):
        open_sources([str(tmp_path / "a.csv"), str(tmp_path)])


@pytest.mark.parametrize("paths", [[], 3, ["a", 3]])
def test_list_without_paths_is_refused(paths):
    with pytest.raises(ConfigError, match="path"):
        DataConfig(interactions=paths, order="t")


def test_hive_partitions_are_columns(tmp_path):
    for day, shop, items in [
        ("2026-11-28", "7", ["a", "b"]),
        ("2026-11-29", "12", ["c"]),
        ("2026-11-29", "__HIVE_DEFAULT_PARTITION__", ["d"]),
    ]:
        part = tmp_path / "log" / f"day={day}" / f"shop={shop}" / "country=S%C3%A3o%20Tom%C3%A9"
        part.mkdir(parents=True)
        log(1, items).write_parquet(part / "part-0.parquet")
    frame = pl.concat([s.frame for s in open_sources(str(tmp_path / "log"))]).collect()
    assert frame["day"].to_list() == ["2026-11-28"] * 2 + ["2026-11-29"] * 2
    assert frame["country"].to_list() == ["São Tomé"] * 4
    by_item = dict(zip(frame["item_id"], frame["shop"], strict=True))
    assert by_item == {"a": 7, "b": 7, "c": 12, "d": None}
    only = open_sources(str(tmp_path / "log" / "day=2026-11-29"))
    assert {row[1] for row in rows_of(only)} == {"c", "d"}
    config = DataConfig(
        interactions=str(tmp_path / "log" / "day=*" / "*" / "*" / "*.parquet"),
        user="day",
        time="t",
        split={"kind": "none"},
        items=ItemTableConfig(path=str(tmp_path / "log"), item="item_id", title="country"),
    )
    items = prepare_folder(config, tmp_path / "out").dataset.items
    assert items["title"].to_list() == ["São Tomé"] * 4


def test_partition_that_the_files_have_is_that_of_the_files(tmp_path):
    for part in ("t=1", "t=2"):
        (tmp_path / part).mkdir()
        log(1, [1], [9]).write_parquet(tmp_path / part / "a.parquet")
    assert [row[2] for row in rows_of(open_sources(str(tmp_path)))] == [9, 9]


def test_partition_that_is_missing_in_one_file_names_the_file(tmp_path):
    (tmp_path / "day=1").mkdir()
    log(1, [1]).write_parquet(tmp_path / "day=1" / "a.parquet")
    log(2, [1]).write_parquet(tmp_path / "b.parquet")
    config = DataConfig(interactions=str(tmp_path), order="day")
    with pytest.raises(DataError, match=r"b\.parquet has no column 'day'"):
        prepare_folder(config, tmp_path / "out")


def test_text_partitions_of_text_files_are_parsed_as_their_other_columns(tmp_path):
    for user in (3, 12):
        (tmp_path / f"user_id={user}").mkdir()
        log(user, [1, 2, 3]).drop("user_id").write_csv(tmp_path / f"user_id={user}" / "log.csv")
    dataset = prepare_folder(
        DataConfig(interactions=str(tmp_path), order="t"), tmp_path / "out"
    ).dataset
    assert dataset.users["source_id"].to_list() == [3, 12]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_folder_without_permission_is_one_sentence(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    with pytest.raises(DataError, match=r"log\.csv cannot be read: permission denied; fix"):
        open_sources(str(folder / "log.csv"))


def test_name_that_is_too_long_is_one_sentence():
    with pytest.raises(DataError, match=r"^x{300} cannot be read: file name too long; check"):
        open_sources("x" * 300)
