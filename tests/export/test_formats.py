"""Item vectors as files: every value survives, for any number of rows per file."""

import json
import uuid

import numpy as np
import polars as pl
import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.export import (
    FORMATS,
    ExportContext,
    documents,
    elasticsearch,
    milvus,
    npy,
    parquet,
    qdrant,
)


@pytest.fixture
def context(everything):
    return ExportContext(everything.export_input)


@pytest.fixture(scope="module")
def vectors(everything):
    with torch.no_grad():
        return everything.run.model.encode_catalog().numpy()


@pytest.fixture(scope="module")
def items(everything):
    return everything.run.dataset.items


def as_document(row):
    """Return an item as JSON has it, with times in ISO 8601."""
    since = row["since"]
    return row | {"since": None if since is None else since.isoformat(timespec="microseconds")}


@pytest.mark.parametrize("rows", [5, 100])
def test_parquet_has_every_column_and_metadata(
    context, vectors, items, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(parquet, "ROWS", rows)
    parquet.write_items_parquet(context, tmp_path)
    stored = pl.read_parquet(tmp_path / "items.parquet")
    assert stored.schema["vector"] == pl.Array(pl.Float32, 8)
    np.testing.assert_array_equal(stored["vector"].to_numpy(), vectors)
    assert stored.drop("vector").equals(items)
    metadata = pl.read_parquet_metadata(tmp_path / "items.parquet")
    assert metadata["candid.fingerprint"] == context.export_input.fingerprint
    assert metadata["candid.similarity"] == "inner product"


@pytest.mark.parametrize("rows", [5, 100])
def test_npy_keeps_the_order_of_items(context, vectors, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "ROWS", rows)
    npy.write_npy(context, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy", mmap_mode="r"), vectors)
    stored = np.load(tmp_path / "source_ids.npy")
    assert stored.tolist() == [f"s{row}" for row in range(17)]


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [([2**63 + 1, 7], np.uint64), ([-5, 7], np.int64), (["é", "long one"], np.dtype("<U8"))],
)
def test_npy_stores_ids_of_every_type(make_model, ids, dtype, tmp_path):
    towers = {"query_tower": {"type": "user_embedding"}, "item_tower": {"type": "item_embedding"}}
    made = make_model(towers, features=False)
    repeated = pl.Series("source_id", ids * 9)[:17]
    object.__setattr__(made.export_input.dataset, "items", pl.DataFrame({"source_id": repeated}))
    npy.write_npy(ExportContext(made.export_input), tmp_path)
    stored = np.load(tmp_path / "source_ids.npy")
    assert (stored.dtype, stored.tolist()) == (dtype, repeated.to_list())


def test_qdrant_points_hold_every_item(context, vectors, items, tmp_path, monkeypatch):
    monkeypatch.setattr(qdrant, "rows_per_file", lambda megabytes, dim: 5)
    written = qdrant.write_qdrant(context, tmp_path)
    collection = json.loads((tmp_path / "collection.json").read_text())
    assert collection == {"vectors": {"size": 8, "distance": "Dot"}}
    assert written["files"] == ["collection.json", *(f"points-{n:05}.json" for n in range(4))]
    points = [
        point
        for name in written["files"][1:]
        for point in json.loads((tmp_path / name).read_text(encoding="utf-8"))["points"]
    ]
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "candid-retrieval:item")
    assert [point["id"] for point in points] == [
        str(uuid.uuid5(namespace, f"s{row}")) for row in range(17)
    ]
    stored = np.array([point["vector"] for point in points], dtype=np.float32)
    np.testing.assert_array_equal(stored, vectors)
    expected = [as_document(row) for row in items.iter_rows(named=True)]
    assert [point["payload"] for point in points] == expected


@pytest.mark.parametrize("ids", [[7, 0, 2**64 - 1], [3, 2, 1]])
def test_qdrant_points_have_the_ids_of_the_source(ids):
    assert qdrant.point_ids(pl.Series(ids, dtype=pl.UInt64)).to_list() == ids


def test_qdrant_points_keep_their_ids_when_items_are_added():
    before = dict(zip(["b", "c"], qdrant.point_ids(pl.Series(["b", "c"])), strict=True))
    after = dict(zip(["a", "c", "b"], qdrant.point_ids(pl.Series(["a", "c", "b"])), strict=True))
    assert after.items() >= before.items()
    assert len(set(after.values())) == 3


def test_qdrant_has_no_negative_ids():
    ids = qdrant.point_ids(pl.Series([-1, 1])).to_list()
    assert [uuid.UUID(one).version for one in ids] == [5, 5]


def test_elasticsearch_files_hold_every_item(context, vectors, items, tmp_path, monkeypatch):
    monkeypatch.setattr(elasticsearch, "rows_per_file", lambda megabytes, dim: 5)
    written = elasticsearch.write_elasticsearch(context, tmp_path)
    mappings = json.loads((tmp_path / "index.json").read_text())["mappings"]
    assert mappings["_meta"]["fingerprint"] == context.export_input.fingerprint
    types = {name: field["type"] for name, field in mappings["properties"].items()}
    assert types == {
        "source_id": "keyword",
        "title": "text",
        "tags": "keyword",
        "kind": "keyword",
        "since": "date",
        "maker": "keyword",
        "price": "double",
        "size": "long",
        "name": "keyword",
        "look": "double",
        "vector": "dense_vector",
    }
    field = mappings["properties"]["vector"]
    assert (field["dims"], field["similarity"]) == (8, "max_inner_product")
    lines = []
    for name in written["files"][1:]:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.endswith("\n")
        lines += [json.loads(line) for line in text.splitlines()]
    assert lines[::2] == [{"index": {"_id": f"s{row}"}} for row in range(17)]
    stored = np.array([line.pop("vector") for line in lines[1::2]], dtype=np.float32)
    np.testing.assert_array_equal(stored, vectors)
    assert lines[1::2] == [as_document(row) for row in items.iter_rows(named=True)]


def rows_of(folder, names):
    stored = []
    for name in names:
        body = json.loads((folder / name).read_text(encoding="utf-8"))
        assert body["collectionName"] == "candid_items"
        stored += body["data"]
    return stored


def test_milvus_files_hold_every_item(context, vectors, items, tmp_path, monkeypatch):
    monkeypatch.setattr(milvus, "rows_per_file", lambda megabytes, dim: 5)
    written = milvus.write_milvus(context, tmp_path)
    assert written["files"] == ["collection.json", *(f"rows-{n:05}.json" for n in range(4))]
    body = json.loads((tmp_path / "collection.json").read_text())
    fields = {field["fieldName"]: field for field in body["schema"]["fields"]}
    assert fields["source_id"]["elementTypeParams"] == {"max_length": 3}
    assert fields["vector"]["elementTypeParams"] == {"dim": 8}
    assert [index["metricType"] for index in body["indexParams"]] == ["IP"]
    rows = rows_of(tmp_path, written["files"][1:])
    assert all(set(row) == set(fields) for row in rows)
    stored = np.array([row["vector"] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(stored, vectors)
    expected = [as_document(row) for row in items.iter_rows(named=True)]
    assert [{"source_id": row["source_id"], **row["attributes"]} for row in rows] == expected


def test_milvus_rows_without_attributes(make_model, tmp_path):
    towers = {"query_tower": {"type": "user_embedding"}, "item_tower": {"type": "item_embedding"}}
    made = make_model(towers, features=False)
    ids = pl.DataFrame({"source_id": range(17)})
    object.__setattr__(made.export_input.dataset, "items", ids)
    written = milvus.write_milvus(ExportContext(made.export_input), tmp_path)
    rows = rows_of(tmp_path, written["files"][1:])
    assert [(row["source_id"], row["attributes"]) for row in rows] == [(n, {}) for n in range(17)]
    body = json.loads((tmp_path / "collection.json").read_text())
    assert body["schema"]["fields"][0]["dataType"] == "Int64"


@pytest.mark.parametrize("largest", [2**63 - 1, 2**63, 2**64 - 1])
def test_milvus_refuses_ids_beyond_its_integers(make_model, tmp_path, largest):
    towers = {"query_tower": {"type": "user_embedding"}, "item_tower": {"type": "item_embedding"}}
    made = make_model(towers, features=False)
    ids = pl.DataFrame({"source_id": pl.Series([*range(16), largest], dtype=pl.UInt64)})
    object.__setattr__(made.export_input.dataset, "items", ids)
    if largest < 2**63:
        written = milvus.write_milvus(ExportContext(made.export_input), tmp_path)
        assert rows_of(tmp_path, written["files"][1:])[-1]["source_id"] == largest
        return
    message = f"up to 9223372036854775807, and one is {largest}; prepare the data with ids as text"
    with pytest.raises(ConfigError, match=message):
        milvus.write_milvus(ExportContext(made.export_input), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("module", "name"), [(milvus, "milvus"), (elasticsearch, "elasticsearch")])
def test_too_wide_vectors_are_refused(context, tmp_path, monkeypatch, module, name):
    monkeypatch.setattr(module, "MAX_DIM", 7)
    with pytest.raises(ConfigError, match=f"up to 7 numbers.*leave out --format {name}"):
        FORMATS[name](context, tmp_path)


def test_vector_column_with_a_name_in_use_is_refused(everything):
    with pytest.raises(
        ConfigError, match=r"the items already have a column 'look'.*--vector-column"
    ):
        ExportContext(everything.export_input, vector_column="look")
    assert (
        next(ExportContext(everything.export_input, vector_column="v").frames(3, "x")).columns[-1]
        == "v"
    )


def test_vectors_that_are_not_finite_are_refused(make_model):
    towers = {"query_tower": {"type": "user_embedding"}, "item_tower": {"type": "item_embedding"}}
    made = make_model(towers, features=False)
    with torch.no_grad():
        made.run.model.item_tower.embedding.weight[3, 1] = torch.inf
    with pytest.raises(ArtifactError, match="vectors of some items are not finite"):
        _ = ExportContext(made.export_input).vectors


def test_times_and_decimals_as_json():
    import datetime
    import decimal

    moment = datetime.datetime(2026, 1, 31, 12, 30, tzinfo=datetime.UTC)
    frame = pl.DataFrame(
        {
            "here": pl.Series([moment]).dt.convert_time_zone("Asia/Tokyo"),
            "day": [moment.date()],
            "price": [decimal.Decimal("1.50")],
            "bad": [float("nan")],
        }
    )
    assert [json.loads(line) for line in documents.json_lines(frame)] == [
        {"here": "2026-01-31T12:30:00.000000Z", "day": "2026-01-31", "price": 1.5, "bad": None}
    ]
