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


def test_baseline_without_vectors_names_the_command_of_its_lists(candid, toy, tmp_path):
    save = ["--only", "item_knn", "--no-tune", "--save", tmp_path / "knn", "-q"]
    assert candid("baselines", toy.data, *save).code == 0
    for flags in ([], ["-f", "npy"]):
        answer = candid("export", tmp_path / "knn", "--out", tmp_path / "other", *flags)
        assert answer.code == 2
        assert "item_knn has no item vectors to export: write the lists of its users" in answer.err
    out = tmp_path / "recs.parquet"
    assert candid("recommend", tmp_path / "knn", "--all-users", "-k", "3", "--out", out).code == 0
    assert pl.read_parquet(out).height == 3 * 40
