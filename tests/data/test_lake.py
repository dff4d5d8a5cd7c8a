"""Delta and Iceberg tables: the rows of the current version, against rows in plain Python."""

import json
import shutil
import struct
import sys
from pathlib import Path

import polars as pl
import pytest

from candid.data import DataConfig, prepare_folder
from candid.data.readers import find_sources, open_sources
from candid.errors import ConfigError, DataError

ROWS = 796
FIRST = pl.DataFrame(
    {
        "user_id": [n % 40 for n in range(ROWS)],
        "item_id": [n * 7 % 31 for n in range(ROWS)],
        "t": range(ROWS),
        "day": [f"2026-11-{1 + n % 3:02}" for n in range(ROWS)],
    }
)
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
"""Digits of the text that holds a deletion vector."""
SECOND = FIRST.with_columns(pl.col("item_id") + 1000)


def rows_of(location, file_format="auto"):
    sources = open_sources(str(location), file_format)
    return sorted(pl.concat([source.frame for source in sources]).collect().rows())


@pytest.fixture
def delta(tmp_path):
    pytest.importorskip("deltalake", reason="needs the extra lake")
    path = tmp_path / "log"
    FIRST.write_delta(path, delta_write_options={"partition_by": ["day"]})
    SECOND.write_delta(path, mode="overwrite")
    return path


@pytest.fixture
def iceberg(tmp_path, monkeypatch):
    pytest.importorskip("pyiceberg", reason="needs the extra lake")
    pytest.importorskip("sqlalchemy", reason="the catalog of the test needs SQLAlchemy")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__WAREHOUSE", f"file://{tmp_path}")
    # The environment is read when pyiceberg is imported.
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    catalog = load_catalog("here")
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.log", schema=FIRST.to_arrow().schema)
    FIRST.write_iceberg(table, mode="append")
    SECOND.write_iceberg(table, mode="overwrite")
    yield table
    catalog.close()


def folder_of(table):
    return Path(table.location().removeprefix("file://"))


def test_overwritten_delta_table_is_read_once(tmp_path, delta):
    assert len(list(delta.rglob("*.parquet"))) == 6
    assert rows_of(delta) == sorted(SECOND.rows())
    config = DataConfig(interactions=str(delta), time="t")
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["rows_read"] == ROWS
    assert prepare_folder(config, tmp_path / "out").up_to_date
    SECOND.head(40).write_delta(delta, mode="append")
    assert not prepare_folder(config, tmp_path / "out").up_to_date
    source = open_sources(str(delta))[0]
    assert source.file.state["version"] == 2


def test_deleted_rows_of_a_delta_table_are_left_out(delta):
    from deltalake import DeltaTable

    DeltaTable(delta).delete("user_id = 3")
    assert rows_of(delta) == sorted(row for row in SECOND.rows() if row[0] != 3)


def test_pattern_of_delta_tables(tmp_path, delta):
    FIRST.head(3).write_delta(tmp_path / "log2")
    assert len(rows_of(tmp_path / "log*")) == ROWS + 3
    (tmp_path / "log.csv").write_text("user_id\n1\n")
    with pytest.raises(DataError, match="tables with a log and other files"):
        rows_of(tmp_path / "log*")


@pytest.mark.parametrize("part", ["day=2026-11-01", "day=*", "*/*.parquet", "**/*.parquet"])
def test_files_of_a_delta_table_are_refused(delta, part):
    with pytest.raises(DataError, match=r"files of the Delta table .*log, .* name the folder"):
        rows_of(delta / part)


def test_folder_with_a_delta_table_inside_is_refused(tmp_path, delta):
    with pytest.raises(DataError, match="files of the Delta table"):
        rows_of(tmp_path)


def test_damaged_delta_log_is_refused(delta):
    for log in (delta / "_delta_log").glob("*.json"):
        log.write_text("{")
    with pytest.raises(DataError, match="not a readable Delta table") as caught:
        rows_of(delta)
    assert "\n" not in str(caught.value)


def test_missing_data_file_of_a_delta_table_is_refused(tmp_path, delta):
    from deltalake import DeltaTable

    shutil.rmtree(delta / "day=2026-11-02")
    assert len(DeltaTable(delta).file_uris()) == 3
    with pytest.raises(DataError, match=r"log"):
        prepare_folder(DataConfig(interactions=str(delta), time="t"), tmp_path / "out")


def delete_first_row(folder):
    """Add a deletion vector for the first row of each file, as Spark writes it."""
    log = folder / "_delta_log"
    bitmap = struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, 0)  # a Roaring bitmap with the number 0
    content = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    padded = content.ljust(-(-len(content) // 4) * 4, b"\0")
    vector = {
        "storageType": "i",
        "pathOrInlineDv": z85(padded),
        "sizeInBytes": len(content),
        "cardinality": 1,
    }
    lines = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    actions = []
    for add in (line["add"] for line in lines if "add" in line):
        same = {key: add[key] for key in ("path", "partitionValues", "size")}
        removed = {**same, "deletionTimestamp": 1, "dataChange": True}
        actions += [{"remove": removed}, {"add": {**add, "deletionVector": vector}}]
    (log / f"{1:020}.json").write_text("\n".join(json.dumps(action) for action in actions))


def z85(content):
    numbers = struct.unpack(f">{len(content) // 4}I", content)
    return "".join(Z85[n // 85**power % 85] for n in numbers for power in (4, 3, 2, 1, 0))


@pytest.mark.parametrize("name", ["log", "a log of ü#1"])
def test_deletion_vectors_hold_for_escaped_partitions_and_folders(tmp_path, name):
    pytest.importorskip("deltalake", reason="needs the extra lake")
    shops = ["b", "b b", "a/x", "50%", "ü", "2026-11-30 10:00:00"]
    rows = pl.DataFrame({"user_id": range(12), "shop": shops * 2})
    options = {
        "partition_by": ["shop"],
        "configuration": {"delta.enableDeletionVectors": "true"},
    }
    rows.write_delta(tmp_path / name, delta_write_options=options)
    assert rows_of(tmp_path / name) == sorted(rows.rows())
    delete_first_row(tmp_path / name)
    assert rows_of(tmp_path / name) == sorted(rows.tail(6).rows())


def test_overwritten_iceberg_table_is_read_once(tmp_path, iceberg):
    folder = folder_of(iceberg)
    assert len(list(folder.rglob("*.parquet"))) == 2
    assert rows_of(folder) == sorted(SECOND.rows())
    config = DataConfig(interactions=str(folder), time="t")
    assert prepare_folder(config, tmp_path / "out").report["rows_read"] == ROWS
    assert prepare_folder(config, tmp_path / "out").up_to_date
    iceberg.delete("user_id = 3")
    assert rows_of(folder) == sorted(row for row in SECOND.rows() if row[0] != 3)
    assert not prepare_folder(config, tmp_path / "out").up_to_date


def test_iceberg_table_by_its_catalog_and_by_its_metadata(iceberg):
    assert rows_of("iceberg://here/shop.log") == sorted(SECOND.rows())
    files = sorted((folder_of(iceberg) / "metadata").glob("*.metadata.json"))
    assert rows_of(files[-1]) == sorted(SECOND.rows())
    assert rows_of(files[1]) == sorted(FIRST.rows())
    with pytest.raises(DataError, match=r"CATALOG/NAMESPACE\.TABLE"):
        rows_of("iceberg://here")
    with pytest.raises(DataError, match=r"shop\.nothing"):
        rows_of("iceberg://here/shop.nothing")


def test_rows_are_those_of_the_version_that_was_found(delta, iceberg):
    found = [find_sources(str(delta)), find_sources("iceberg://here/shop.log")]
    FIRST.head(40).write_delta(delta, mode="overwrite")
    iceberg.delete("user_id = 3")
    for table in found:
        assert sorted(table.open()[0].frame.collect().rows()) == sorted(SECOND.rows())


def test_version_hint_names_the_metadata(iceberg):
    folder = folder_of(iceberg) / "metadata"
    (folder / "version-hint.text").write_text("1")
    assert rows_of(folder.parent) == sorted(FIRST.rows())


def test_iceberg_table_with_two_current_versions_is_refused(iceberg):
    folder = folder_of(iceberg) / "metadata"
    latest = sorted(folder.glob("*.metadata.json"))[-1]
    shutil.copy(latest, folder / latest.name.replace("-", "-0", 1))
    with pytest.raises(DataError, match="two metadata files of version"):
        rows_of(folder.parent)


def test_iceberg_table_without_a_snapshot_is_refused(iceberg):
    first = min((folder_of(iceberg) / "metadata").glob("*.metadata.json"))
    with pytest.raises(DataError, match="has no rows"):
        rows_of(first)


def test_renamed_column_of_an_iceberg_table_has_its_new_name(iceberg):
    with iceberg.update_schema() as update:
        update.rename_column("t", "seconds")
    frame = open_sources(str(folder_of(iceberg)))[0].frame
    assert frame.collect()["seconds"].sort().to_list() == list(range(ROWS))


def test_equality_deletes_of_an_iceberg_table_are_refused(iceberg):
    delete_by_equality(iceberg)
    with pytest.raises(DataError, match="equality deletes, which pyiceberg cannot read; compact"):
        rows_of(folder_of(iceberg))


def delete_by_equality(table):
    """Commit a file of equality deletes, as Flink does; pyiceberg writes none."""
    from pyiceberg import manifest
    from pyiceberg.table.snapshots import Operation, Snapshot, Summary
    from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate
    from pyiceberg.typedef import Record

    class Deletes(manifest.ManifestWriterV2):
        def content(self):
            return manifest.ManifestContent.DELETES

    parent, number, sequence = table.current_snapshot(), 7, table.metadata.last_sequence_number + 1
    unknown = ("column_sizes", "value_counts", "null_value_counts", "nan_value_counts")
    unknown += ("lower_bounds", "upper_bounds", "key_metadata", "split_offsets", "sort_order_id")
    file = manifest.DataFile.from_args(
        content=manifest.DataFileContent.EQUALITY_DELETES,
        file_path=f"{table.location()}/data/deletes.parquet",
        file_format=manifest.FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=1,
        equality_ids=[1],
        spec_id=0,
        **dict.fromkeys(unknown),
    )
    output = table.io.new_output(f"{table.location()}/metadata/deletes.avro")
    with Deletes(table.spec(), table.schema(), output, number, "deflate") as writer:
        entry = {"snapshot_id": number, "sequence_number": sequence, "data_file": file}
        added = manifest.ManifestEntryStatus.ADDED
        writer.add(
            manifest.ManifestEntry.from_args(status=added, file_sequence_number=sequence, **entry)
        )
    path = f"{table.location()}/metadata/snap.avro"
    with manifest.write_manifest_list(
        2, table.io.new_output(path), number, parent.snapshot_id, sequence, "deflate"
    ) as manifests:
        manifests.add_manifests([*parent.manifests(table.io), writer.to_manifest_file()])
    snapshot = Snapshot(
        snapshot_id=number,
        parent_snapshot_id=parent.snapshot_id,
        sequence_number=sequence,
        timestamp_ms=table.metadata.last_updated_ms + 1,
        manifest_list=path,
        summary=Summary(Operation.DELETE),
        schema_id=table.metadata.current_schema_id,
    )
    main = SetSnapshotRefUpdate(ref_name="main", type="branch", snapshot_id=number)
    table._do_commit(updates=(AddSnapshotUpdate(snapshot=snapshot), main), requirements=())


def test_damaged_iceberg_metadata_is_refused(iceberg):
    for file in (folder_of(iceberg) / "metadata").glob("*.json"):
        file.write_text("{")
    with pytest.raises(DataError, match="not a readable Iceberg table") as caught:
        rows_of(folder_of(iceberg))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "folder"), [("deltalake", "_delta_log"), ("pyiceberg", "metadata")]
)
def test_missing_extra_is_named_with_its_command(tmp_path, monkeypatch, package, folder):
    (tmp_path / "log" / folder).mkdir(parents=True)
    (tmp_path / "log" / folder / "v1.metadata.json").write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'candid-retrieval\[lake\]'") as caught:
        open_sources(str(tmp_path / "log"))
    assert package in str(caught.value)
