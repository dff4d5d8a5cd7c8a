"""The verb ``candid index``."""

import json

import pytest

from candid.distributed import Environment
from candid.index import open_snapshot


def test_index_is_built_measured_and_written(candid, toy, tmp_path):
    answer = candid("index", toy.run, "--out", tmp_path / "i", "--k", "5", "--json")
    assert (answer.code, answer.err) == (0, "")
    document = answer.document
    assert (document["recall"], document["k"], document["warning"]) == (1, 5, None)
    assert document["index"] == {"type": "exact", "block_items": 4096, "block_rows": 256}
    assert document["folder"] == str(tmp_path / "i")
    opened = open_snapshot(tmp_path / "i")
    assert opened.index.num_items == 30
    assert opened.source_ids.source_ids([4]) == ["i04"]
    assert opened.measured["recall"] == 1


def test_index_prints_a_table_and_its_folder(candid, toy, tmp_path):
    answer = candid("index", toy.run, "--out", tmp_path / "i")
    assert answer.code == 0
    assert "exact" in answer.out
    assert "1.0000" in answer.out
    assert f"written to {tmp_path / 'i'}" in answer.out


def test_index_uses_the_given_settings(candid, toy, tmp_path):
    settings = [
        "--set",
        "index.type=faiss",
        "--set",
        "index.kind=ivf",
        "--set",
        "index.num_lists=6",
    ]
    answer = candid(
        "index",
        toy.run,
        "--out",
        tmp_path / "i",
        *settings,
        "--target-recall",
        "0.6",
        "-k",
        "3",
        "--json",
    )
    document = answer.document
    assert (document["index"]["kind"], document["index"]["num_lists"]) == ("ivf", 6)
    assert 1 <= document["index"]["num_probes"] <= 6
    assert open_snapshot(tmp_path / "i").config.num_probes == document["index"]["num_probes"]


def test_low_recall_is_a_warning_or_an_error(candid, toy, tmp_path, monkeypatch):
    from candid.index import FaissIndex

    # Nothing to tune: every search reads one cluster of ten.
    monkeypatch.setattr(FaissIndex, "tuning_axes", lambda self, k: {"num_probes": [1]})
    lists = [
        "--set",
        "index.type=faiss",
        "--set",
        "index.num_lists=10",
        "--set",
        "index.num_probes=1",
    ]
    answer = candid("index", toy.run, "--out", tmp_path / "i", "-k", "20", *lists)
    assert answer.code == 0
    assert "warning: recall@20 is" in answer.out
    assert "below the target of 0.95" in answer.out
    document = candid(
        "index", toy.run, "--out", tmp_path / "i", "-k", "20", *lists, "--json"
    ).document
    assert document["warning"].startswith("recall@20 is")
    answer = candid(
        "index", toy.run, "--out", tmp_path / "j", "-k", "20", *lists, "--min-recall", "0.9"
    )
    assert answer.code == 4
    assert answer.err.startswith("error: no index was written: recall@20 is")
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "j").exists()


def test_compare_writes_a_table_and_a_page(candid, toy, tmp_path, monkeypatch):
    from candid.index import Bfloat16Index, ExactIndex
    from candid.runs import indexing

    few = {"exact": ExactIndex.Config(), "bfloat16": Bfloat16Index.Config()}
    monkeypatch.setattr(indexing, "BENCHMARKED_INDEXES", few)
    answer = candid("index", toy.run, "--compare", "--out", tmp_path, "-k", "5", "--json")
    assert answer.code == 0
    assert {entry["name"] for entry in answer.document["indexes"]} == set(few)
    assert json.loads((tmp_path / "indexes.json").read_text())["indexes"][0]["recall"] > 0.9
    page = (tmp_path / "indexes.html").read_text()
    assert "bfloat16" in page
    assert "<svg" in page
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target-recall", "2"], 2, "--target-recall 2 must be between 0 and 1"),
        (["--min-recall", "-1"], 2, "--min-recall -1"),
        (["--compare", "--set", "index.type=exact"], 2, "leave out --set"),
        (["--compare", "--min-recall", "0.5"], 2, "--compare writes no index"),
        (["--k", "31"], 2, "--k 31 must be between 1 and the 30 items"),
        (["--set", "index.type=nearest"], 2, "unknown index 'nearest'"),
        (["--set", "index.type=faiss", "--set", "index.num_lists=31"], 2, "num_lists"),
        (
            ["--set", "index.type=faiss", "--set", "index.num_codes=3", "--set", "index.kind=pq"],
            2,
            "num_codes 3 must divide",
        ),
    ],
)
def test_bad_index_input_is_one_sentence(candid, toy, tmp_path, arguments, code, words):
    answer = candid("index", toy.run, "--out", tmp_path / "i", *arguments)
    assert answer.code == code
    assert answer.out == ""
    assert words in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "i").exists()


def test_folder_that_is_not_a_run_or_not_empty_is_refused(candid, toy, tmp_path):
    assert candid("index", tmp_path).code == 4
    (tmp_path / "thesis.txt").write_text("mine")
    answer = candid("index", toy.run, "--out", tmp_path)
    assert (answer.code, "thesis.txt" in answer.err) == (2, True)


def test_index_launches_its_processes_and_returns_their_code(candid, toy, monkeypatch):
    calls = []
    monkeypatch.setattr("candid.distributed.launch.launch", lambda *given: calls.append(given) or 4)
    assert candid("index", toy.run, "--processes", "3", "--seed", "1").code == 4
    assert calls == [(3, ["index", str(toy.run), "--seed", "1"])]


def test_index_of_several_processes_is_refused_where_one_must_build_it(candid, toy, monkeypatch):
    answer = candid("index", toy.run, "--compare", "--processes", "2")
    assert answer.code == 2
    assert answer.err == (
        "error: --compare measures in one process: leave out --processes or --compare\n"
    )
    assert candid("index", toy.run, "--processes", "0").code == 2
    place = Environment(0, 2, 0, 2)
    monkeypatch.setattr("candid.runs.index_build.current_environment", lambda: place)
    for index in ("index=usearch", "index.kind=hnsw"):
        kinds = ["--set", "index.type=faiss"] if "kind" in index else []
        answer = candid("index", toy.run, *kinds, "--set", index)
        assert answer.code == 2
        assert "is built by one process: leave out --processes" in answer.err
