"""The choice of the engine of a preparation, and its limit of memory."""

import os

import polars as pl
import pytest

import candid
from candid.data import DataConfig, engine, prepare_folder
from candid.errors import ConfigError, DataError

GIB = 2**30
CONFIG = DataConfig(interactions="log.parquet")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * GIB),
        ("2 gb", 2 * GIB),
        ("1.5G", 3 * 2**29),
        ("2048MiB", 2 * GIB),
        (f"{3 * GIB}", 3 * GIB),
        (3 * GIB, 3 * GIB),
        ("1TiB", 2**40),
        ("1" + "0" * 400, 2**62),
    ],
)
def test_limit_is_read_with_its_unit(text, size):
    assert engine.parse_limit(text, "duckdb") == engine.MemoryLimit(size, True)


@pytest.mark.parametrize("text", ["much", "", "-2GiB", "2PiB", "1e9", True])
def test_limit_without_a_size_is_refused(text):
    with pytest.raises(ConfigError, match=r"memory_limit must be a size such as 2GiB, got"):
        engine.parse_limit(text, "auto")


def test_limit_that_is_too_small_or_has_no_effect_is_refused():
    with pytest.raises(ConfigError, match="must be at least 1 GiB, got '500MB'"):
        engine.parse_limit("500MB", "auto")
    with pytest.raises(ConfigError, match='no effect with engine = "memory"; remove'):
        engine.parse_limit("2GiB", "memory")
    with pytest.raises(ConfigError, match="one of auto, memory, duckdb, got 'spark'"):
        engine.parse_limit(None, "spark")


def test_default_limit_is_half_of_the_available_memory():
    limit = engine.parse_limit(None, "auto")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert GIB <= limit.size <= max(total // 2, GIB)
    assert not limit.is_given


def test_auto_takes_memory_up_to_64_bytes_for_each_row(tmp_path):
    limit = engine.MemoryLimit(GIB, True)
    rows = GIB // 64
    assert engine.choose("auto", rows, limit, tmp_path, CONFIG) == "memory"
    assert engine.choose("auto", rows + 1, limit, tmp_path, CONFIG) == "duckdb"
    assert engine.choose("auto", rows + 1, limit, None, CONFIG) == "memory"
    assert engine.choose("memory", rows + 1, limit, tmp_path, CONFIG) == "memory"
    assert engine.choose("duckdb", 1, limit, tmp_path, CONFIG) == "duckdb"
    big = engine.MemoryLimit(2**40, True)
    assert engine.choose("auto", 2**32, big, tmp_path, CONFIG) == "duckdb"
    with pytest.raises(DataError, match=r"has 4,294,967,296 rows, but at most 4,294,967,295"):
        engine.choose("auto", 2**32, big, None, CONFIG)


def test_dealing_more_rows_than_fit_into_memory_is_refused(tmp_path):
    split = {"kind": "cross-validation", "unit": "interaction"}
    config = DataConfig(interactions="log.parquet", split=split)
    limit, rows = engine.MemoryLimit(GIB, True), GIB // 2 // 2
    assert engine.choose("duckdb", rows, limit, tmp_path, config) == "duckdb"
    with pytest.raises(
        ConfigError, match=r'split.unit = "interaction" deals .* take 512 MiB, more'
    ):
        engine.choose("duckdb", rows + 1, limit, tmp_path, config)
    by_user = DataConfig(interactions="log.parquet", split={"kind": "cross-validation"})
    assert engine.choose("duckdb", rows + 1, limit, tmp_path, by_user) == "duckdb"


def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    limit = engine.MemoryLimit(GIB, True)
    install = r"run pip install 'candid-retrieval\[bigdata\]'"
    with pytest.raises(ConfigError, match=f'"duckdb" needs duckdb and pyarrow; {install}'):
        engine.check_engine("duckdb", tmp_path)
    expected = (
        r"30,000,000 rows of log.parquet need about 1.79 GiB of memory, more than the limit of "
        rf"1 GiB; to prepare them on disk {install}, or set engine = \"memory\" "
        r"\(candid prepare --engine memory\)"
    )
    with pytest.raises(ConfigError, match=expected):
        engine.choose("auto", 30_000_000, limit, tmp_path, CONFIG)
    assert engine.choose("auto", 1, limit, tmp_path, CONFIG) == "memory"


def test_engine_is_refused_without_a_folder_or_for_an_unknown_name(tmp_path):
    table = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2]})
    with pytest.raises(ConfigError, match='"duckdb" writes a dataset to disk; set out'):
        candid.prepare(table, split="none", engine="duckdb")
    table.write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), split={"kind": "none"})
    with pytest.raises(ConfigError, match="one of auto, memory, duckdb, got 'disk'"):
        prepare_folder(config, tmp_path / "out", engine="disk")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_table_in_memory_is_prepared_on_disk(tmp_path):
    pytest.importorskip("duckdb", reason="needs the extra bigdata")
    table = pl.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [1, 2, 3, 2], "t": [3, 1, 2, 1]})
    in_memory = candid.prepare(table, time="t")
    on_disk = candid.prepare(table, time="t", out=tmp_path / "out", engine="duckdb")
    assert on_disk.fingerprint == in_memory.fingerprint
    assert on_disk.path == tmp_path / "out"


def test_available_memory_is_within_the_limit_of_the_cgroup(tmp_path, monkeypatch):
    files = {"memory.max": "3000", "memory.current": "1000", "memory.stat": "x 1\ninactive_file 50"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(engine, "_CGROUP", tmp_path)
    assert engine.available_memory() == 2050
    (tmp_path / "memory.max").write_text("max")
    assert engine.available_memory() > 2050
    monkeypatch.setattr(engine, "_CGROUP", tmp_path / "none")
    assert engine.available_memory() > 2050
    monkeypatch.setattr(engine, "_MEMINFO", tmp_path / "none")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert engine.available_memory() == total // 2
