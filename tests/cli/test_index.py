"""``candid index``."""

import json

import pytest

from candid.index import open_snapshot


def test_builds_measures_and_writes(candid, toy, tmp_path):
    answer = candid("index", toy.run, "--out", tmp_path / "i", "--k", "5", "--json")
    assert (answer.code, answer.err) == (0, "")
    said = answer.document
    assert (said["recall"], said["k"], said["warning"]) == (1, 5, None)
    assert said["index"] == {"type": "exact", "block_items": 4096, "block_rows": 256}
    assert said["folder"] == str(tmp_path / "i")
    opened = open_snapshot(tmp_path / "i")
    assert opened.index.num_items == 30
    assert opened.source_ids.source_ids([4]) == ["i04"]
    assert opened.measured["recall"] == 1


def test_for_people_it_prints_a_table_and_where_the_index_is(candid, toy, tmp_path):
    answer = candid("index", toy.run, "--out", tmp_path / "i")
    assert answer.code == 0
    assert "exact" in answer.out
    assert "1.0000" in answer.out
    assert f"written to {tmp_path / 'i'}" in answer.out


def test_takes_the_settings_of_an_index(candid, toy, tmp_path):
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
    said = answer.document
    assert (said["index"]["kind"], said["index"]["num_lists"]) == ("ivf", 6)
    assert 1 <= said["index"]["num_probes"] <= 6
    assert open_snapshot(tmp_path / "i").config.num_probes == said["index"]["num_probes"]


def test_warns_below_the_target_and_refuses_below_the_least(candid, toy, tmp_path, monkeypatch):
    from candid.index import FaissIndex

    # Nothing to choose from: one list of ten, whatever that finds.
    monkeypatch.setattr(FaissIndex, "axes", lambda self, k: {"num_probes": [1]})
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
    assert answer.err.startswith("error: recall@20 is")
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "j").exists()


def test_compares_in_a_table_and_a_page(candid, toy, tmp_path, monkeypatch):
    from candid.index import Bfloat16Index, ExactIndex
    from candid.runs import indexing

    few = {"exact": ExactIndex.Config(), "bfloat16": Bfloat16Index.Config()}
    monkeypatch.setattr(indexing, "CONTENDERS", few)
    answer = candid("index", toy.run, "--compare", "--out", tmp_path, "-k", "5", "--json")
    assert answer.code == 0
    assert {entry["name"] for entry in answer.document["indexes"]} == set(few)
    assert json.loads((tmp_path / "indexes.json").read_text())["indexes"][0]["recall"] == 1
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
def test_bad_input_is_one_sentence(candid, toy, tmp_path, arguments, code, words):
    answer = candid("index", toy.run, "--out", tmp_path / "i", *arguments)
    assert answer.code == code
    assert answer.out == ""
    assert words in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "i").exists()


def test_a_folder_that_is_no_run_or_holds_other_things(candid, toy, tmp_path):
    assert candid("index", tmp_path).code == 4
    (tmp_path / "thesis.txt").write_text("mine")
    answer = candid("index", toy.run, "--out", tmp_path)
    assert (answer.code, "thesis.txt" in answer.err) == (2, True)
