"""Files for pgvector, loaded into a PostgreSQL that has the extension."""

import datetime
import json
import re

import numpy as np
import polars as pl
import pytest
import torch

from candid.errors import ConfigError, DataError
from candid.export import ExportContext, pgvector


@pytest.fixture(scope="session")
def written(everything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pgvector")
    pgvector.write_pgvector(ExportContext(everything.export_input), folder)
    return folder


@pytest.fixture(scope="session")
def loaded(postgres, written):
    postgres.psql("-f", "load.sql", cwd=written)
    return postgres


def test_every_value_survives_loading(loaded, everything):
    select = "SELECT row_to_json(t) FROM (SELECT * FROM candid_items) t"
    rows = {row["source_id"]: row for row in map(json.loads, loaded.psql("-c", select).split("\n"))}
    items = everything.run.dataset.items
    assert len(rows) == items.height
    vectors = everything.run.model.encode_catalog().detach().numpy()
    for vector, item in zip(vectors, items.iter_rows(named=True), strict=True):
        stored = rows[item["source_id"]]
        back = np.array(json.loads(stored.pop("vector")), dtype=np.float32)
        np.testing.assert_array_equal(back, vector)
        moment = stored.pop("since")
        expected = item.pop("since")
        assert (None if moment is None else datetime.datetime.fromisoformat(moment)) == expected
        assert stored == item


def test_inner_products_of_postgres_equal_the_model(loaded, everything):
    model = everything.run.model
    query = torch.linspace(-1, 1, 8)
    literal = str(query.tolist())
    scores = (model.encode_catalog().detach() @ query).tolist()
    # Items with equal features share a vector unless the tower reads ids.
    select = (
        f"SET enable_seqscan = off; SELECT source_id, (vector <#> '{literal}') * -1 "
        f"FROM candid_items ORDER BY vector <#> '{literal}' LIMIT 17"
    )
    stored = [line.split("|") for line in loaded.psql("-c", select).split("\n")]
    assert len(stored) == 17
    for expected, (source_id, score) in zip(sorted(scores, reverse=True), stored, strict=True):
        assert float(score) == pytest.approx(expected, abs=1e-5)
        assert float(score) == pytest.approx(scores[int(source_id[1:])], abs=1e-5)
    plan = loaded.psql("-c", select.replace("; SELECT", "; EXPLAIN SELECT"))
    assert "candid_items_vector" in plan


def test_second_load_replaces_the_table(loaded, written):
    loaded.psql("-f", "load.sql", cwd=written)
    assert loaded.psql("-c", "SELECT count(*) FROM candid_items") == "17"
    names = loaded.psql("-c", "SELECT indexname FROM pg_indexes WHERE tablename = 'candid_items'")
    assert "candid_items_vector" in names.split("\n")


def test_failed_load_leaves_the_old_table(loaded, written, tmp_path):
    before = loaded.psql("-c", "SELECT count(*) FROM candid_items")
    for name in ("items.csv", "load.sql"):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    with (tmp_path / "items.csv").open("a") as file:
        file.write("broken\n")
    with pytest.raises(AssertionError, match="missing data for column"):
        loaded.psql("-f", "load.sql", cwd=tmp_path)
    assert loaded.psql("-c", "SELECT count(*) FROM candid_items") == before


def test_table_comment_identifies_the_model(loaded, everything):
    comment = loaded.psql("-c", "SELECT obj_description('candid_items'::regclass)")
    assert everything.export_input.fingerprint in comment
    assert "exported" in comment


def test_zero_bytes_and_wide_vectors_are_refused(make_model, tmp_path, monkeypatch):
    plain = {"type": "user_embedding", "dim": 2}, {"type": "item_embedding", "dim": 2}
    made = make_model({"query_tower": plain[0], "item_tower": plain[1]}, features=False)
    items = made.run.dataset.items
    broken = items.with_columns(pl.lit("a\0b").alias("note"))
    object.__setattr__(made.export_input.dataset, "items", broken)
    with pytest.raises(DataError, match="column 'note' of the items has a text with a zero byte"):
        pgvector.write_pgvector(ExportContext(made.export_input), tmp_path)
    object.__setattr__(made.export_input.dataset, "items", items)
    monkeypatch.setattr(pgvector, "MAX_INDEXED_DIM", 1)
    pgvector.write_pgvector(ExportContext(made.export_input), tmp_path)
    assert not re.search("CREATE INDEX|ALTER INDEX", (tmp_path / "load.sql").read_text())
    monkeypatch.setattr(pgvector, "MAX_DIM", 1)
    with pytest.raises(ConfigError, match="up to 1 numbers"):
        pgvector.write_pgvector(ExportContext(made.export_input), tmp_path)
