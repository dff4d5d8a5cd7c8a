"""The verb ``candid export``."""

import json

import numpy as np
import polars as pl
import pytest


def test_export_without_format_writes_parquet(candid, toy, tmp_path):
    answer = candid("export", toy.run, "--out", tmp_path / "out", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["folder"] == str(tmp_path / "out")
    assert set(answer.document["formats"]) == {"parquet"}
    table = pl.read_parquet(tmp_path / "out" / "parquet" / "items.parquet")
    assert table.columns == ["source_id", "title", "vector"]
    assert table["title"][4] == "The 4th Film"


def test_exported_vectors_equal_those_of_the_index(candid, toy, tmp_path):
    from candid.index import open_snapshot

    assert candid("index", toy.run, "--out", tmp_path / "i", "-q").code == 0
    out = tmp_path / "out"
    answer = candid("export", toy.run, "--out", out, "-f", "npy", "--vector-column", "v")
    assert answer.code == 0
    assert "npy: vectors.npy, source_ids.npy" in answer.out
    assert f"written to {out}" in answer.out
    snapshot = open_snapshot(tmp_path / "i")
    vectors = np.load(out / "npy" / "vectors.npy")
    np.testing.assert_array_equal(vectors, snapshot.index.item_vectors.numpy())
    document = json.loads((out / "export.json").read_text())
    assert document["fingerprint"] == snapshot.fingerprint


def test_export_writes_graphs(candid, toy, tmp_path):
    answer = candid("export", toy.run, "--out", tmp_path / "out", "-f", "torch")
    assert answer.code == 0
    assert "query.pt2 (within " in answer.out
    assert (tmp_path / "out" / "inputs" / "inputs.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-f", "tensorrt"], 2, "unknown format 'tensorrt'"),
        (["--vector-column", "title"], 2, "the items already have a column 'title'"),
        (["--data", "nowhere"], 4, "nowhere"),
    ],
)
def test_bad_export_input_is_one_sentence(candid, toy, tmp_path, arguments, code, words):
    answer = candid("export", toy.run, "--out", tmp_path / "out", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_lists_of_a_saved_baseline_are_its_default_export(candid, toy, tmp_path):
    save = ["--only", "item_knn", "--no-tune", "--save", tmp_path / "knn", "-q"]
    assert candid("baselines", toy.data, *save).code == 0
    answer = candid("export", tmp_path / "knn", "--out", tmp_path / "out", "-k", "3")
    assert answer.code == 0, answer.err
    assert "lists: lists.parquet" in answer.out
    table = pl.read_parquet(tmp_path / "out" / "lists" / "lists.parquet")
    shown = candid("recommend", tmp_path / "knn", "--user", "u7", "-k", "3", "--json").document
    expected = [item["item"] for item in shown["answers"][0]["items"]]
    assert table.filter(pl.col("user_id") == "u7")["item_id"].to_list() == expected
    assert table.height == 3 * 40
    answer = candid("export", tmp_path / "knn", "--out", tmp_path / "other", "-f", "npy")
    assert answer.code == 2
    assert "item_knn has no item vectors: export the lists of its users with" in answer.err
