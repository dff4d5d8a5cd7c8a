"""Recommendations for all users and similar items of all items, from the command line."""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import candid as package
from candid.cli.bulk import bulk_lines
from candid.runs import BulkResult


@pytest.fixture(name="run", scope="module")
def _run(toy):
    return package.load_run(toy.run)


def users_of(run):
    return run.dataset.users["source_id"].to_list()


def test_recommend_to_all_users_writes_the_rows_of_run_recommend(candid, toy, run, tmp_path):
    out = tmp_path / "recs.parquet"
    answer = candid("recommend", toy.run, "--all-users", "-k", "4", "--out", out, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["queries"] == 40
    assert answer.document["rows"] == 160
    assert answer.document["file"] == str(out)
    assert_frame_equal(pl.read_parquet(out), run.recommend(users=users_of(run), k=4))
    text = candid("recommend", toy.run, "--all-users", "-k", "4", "--out", out)
    assert text.out.splitlines() == [f"160 rows for 40 users written to {out}"]


def test_recommend_to_the_users_of_a_file(candid, toy, run, tmp_path):
    expected = run.recommend(users=["u7", "u3"], k=2)
    (tmp_path / "users.txt").write_text("u7\n\nu3\nu7\n")
    (tmp_path / "users.csv").write_text("name,user\nx,u7\ny,u3\n")
    pl.DataFrame({"who": ["u7", "u3"]}).write_parquet(tmp_path / "users.parquet")
    for name in ("users.txt", "users.csv", "users.parquet"):
        out = tmp_path / f"{name}.csv"
        flags = ["--users", tmp_path / name, "-k", "2", "--out", out]
        answer = candid("recommend", toy.run, *flags)
        assert answer.code == 0, answer.err
        assert_frame_equal(pl.read_csv(out), expected, check_dtypes=False)
    named = ["--user", "u7", "--user", "u3", "-k", "2", "--out", tmp_path / "named.jsonl"]
    assert candid("recommend", toy.run, *named).code == 0
    assert_frame_equal(pl.read_ndjson(tmp_path / "named.jsonl"), expected, check_dtypes=False)


def test_lines_have_the_number_of_their_noun():
    def lines(*numbers):
        queries, without_history, without_target, rows, resumed = numbers
        result = BulkResult("a.csv", queries, without_history, without_target, rows, resumed)
        return bulk_lines(result, "user")

    assert lines(1, 1, 1, 1, 1) == [
        "continued after 1 user of an earlier call",
        "no list for 1 user without a history, which the model needs: --fallback popular gives one",
        "no list for 1 user without a target of the split",
        "1 row for 1 user written to a.csv",
    ]
    assert lines(2000, 0, 3, 4000, 0) == [
        "no list for 3 users without a target of the split",
        "4,000 rows for 2,000 users written to a.csv",
    ]


def test_recommend_writes_shards(candid, toy, tmp_path):
    out = tmp_path / "recs.jsonl"
    flags = ["--all-users", "-k", "2", "--out", out, "--shards", "3"]
    assert candid("recommend", toy.run, *flags).code == 0
    assert sorted(path.name for path in out.iterdir()) == [f"part-0000{n}.jsonl" for n in range(3)]


def test_recommend_before_a_split_is_measured_as_evaluate_measures(candid, toy, tmp_path):
    out = tmp_path / "recs.parquet"
    flags = ["--all-users", "-k", "10", "--split", "test", "--out", out]
    assert candid("recommend", toy.run, *flags).code == 0
    expected = candid("evaluate", toy.run, "--json", "--out", tmp_path / "e.json").document
    lists = ["--recommendations", out, "--data", toy.data, "--set", "evaluation.ks=[1,10]"]
    answer = candid("evaluate", *lists, "--json")
    assert answer.code == 0, answer.err
    for name in ("recall@1", "recall@10", "ndcg@10", "mrr@10", "coverage@10"):
        value = expected["metrics"][name]["value"]
        assert answer.document["metrics"][name]["value"] == pytest.approx(value, abs=1e-12)


def test_recommend_falls_back_for_unknown_users(candid, toy, run, tmp_path):
    flags = ["--user", "stranger", "--user", "u3", "-k", "2", "--fallback", "popular"]
    answer = candid("recommend", toy.run, *flags, "--json")
    assert answer.code == 0, answer.err
    first, second = answer.document["answers"]
    assert (first["user"], first["recommended_by"]) == ("stranger", "popular")
    assert (second["user"], second["recommended_by"]) == ("u3", "model")
    counts = run.dataset.train_counts
    assert counts[run.dataset.items["source_id"].index_of(first["items"][0]["item"])] == max(counts)
    assert "popular" in candid("recommend", toy.run, *flags).out
    out = tmp_path / "recs.csv"
    assert candid("recommend", toy.run, *flags, "--out", out).code == 0
    assert pl.read_csv(out)["recommended_by"].to_list() == ["popular"] * 2 + ["model"] * 2
    for where in ([], ["--out", out]):
        refused = candid("recommend", toy.run, "--user", "u33x", *where)
        assert refused.code == 3
        assert "did you mean 'u33'" in refused.err
        assert refused.err.rstrip().endswith("? Or add a fallback (--fallback popular)")


@pytest.fixture(name="integers", scope="module")
def _integers(tmp_path_factory):
    """A saved baseline whose users are whole numbers."""
    root = tmp_path_factory.mktemp("integers")
    rows = {"user": np.repeat(np.arange(40, 60), 4), "item": np.arange(80) % 13, "n": range(80)}
    table = pl.DataFrame(rows)
    package.prepare(table, user="user", item="item", order="n", out=root / "data")
    package.fit_baseline(root / "data", "item_knn", tuning=False).save(root / "knn")
    return root / "knn"


@pytest.mark.parametrize("text", ["0042", "42.0", "abc"])
@pytest.mark.parametrize("flags", [[], ["--fallback", "popular"]])
def test_id_that_the_dataset_does_not_write_is_refused_with_every_flag(
    candid, integers, tmp_path, text, flags
):
    for where in ([], ["--out", tmp_path / "recs.csv"]):
        answer = candid("recommend", integers, "--user", text, "-k", "2", *flags, *where)
        assert answer.code == 3
        assert repr(text) in answer.err
        assert "row 1" not in answer.err
        right = candid("recommend", integers, "--user", "42", "-k", "2", *flags, *where)
        assert right.code == 0, right.err


def test_similar_items_from_the_command_line(candid, toy, run, tmp_path):
    answer = candid(
        "similar", toy.run, "--item", "i03", "--item", "The 5th Film", "-k", "3", "--json"
    )
    assert answer.code == 0, answer.err
    expected = run.similar(["i03", "i05"], k=3)
    found = [item["item"] for one in answer.document["answers"] for item in one["items"]]
    assert found == expected["item"].to_list()
    assert [one["query"] for one in answer.document["answers"]] == ["i03", "i05"]
    assert "i03" in candid("similar", toy.run, "--item", "i03").out
    out = tmp_path / "similar.parquet"
    everything = candid("similar", toy.run, "--all-items", "-k", "3", "--out", out)
    assert everything.out.splitlines() == [f"90 rows for 30 items written to {out}"]
    sources = run.dataset.items["source_id"].to_list()
    assert_frame_equal(pl.read_parquet(out), run.similar(sources, k=3))
    (tmp_path / "items.txt").write_text("i05\n")
    flags = ["--items", tmp_path / "items.txt", "-k", "3", "--out", out]
    assert candid("similar", toy.run, *flags).code == 0
    assert_frame_equal(pl.read_parquet(out), run.similar(["i05"], k=3))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["recommend", "{run}", "--all-users"], "add --out recs.parquet"),
        (["recommend", "{run}", "--all-users", "--user", "u1"], "either --user ID, --users FILE"),
        (["recommend", "{run}", "--user", "u1", "--shards", "2"], "--shards goes with --out"),
        (["recommend", "{run}", "--user", "u1", "--no-probability"], "--probability goes with"),
        (["recommend", "{run}", "--user", "u1", "--split", "test"], "--split goes with --out"),
        (["recommend", "{run}", "--history", "i01", "--out", "a.csv"], "leave out --history"),
        (["recommend", "{run}", "--all-users", "--out", "recs.xlsx"], "unknown suffix"),
        (["recommend", "{run}", "--user", "u1", "--fallback", "random"], "'popular', 'recent'"),
        (["similar", "{run}"], "either --item ITEM, --items FILE or --all-items"),
        (["similar", "{run}", "--all-items"], "add --out similar.parquet"),
        (["similar", "{run}", "--item", "i01", "--shards", "2"], "--shards goes with --out"),
        (["similar", "{run}", "--item", "i01", "-k", "30"], "k 30 must be between 1 and the 29"),
    ],
)
def test_unclear_request_is_refused(candid, toy, arguments, sentence):
    answer = candid(*(argument.format(run=toy.run) for argument in arguments))
    assert answer.code == 2
    assert sentence in answer.err
    assert len(answer.err.splitlines()) == 1


def test_file_of_users_that_cannot_be_used_is_refused(candid, toy, tmp_path):
    out = tmp_path / "recs.csv"
    for name, text, sentence in (
        ("empty.txt", "\n", "has no users"),
        ("columns.csv", "a,b\n1,2\n", "has no column 'user'"),
        ("unknown.txt", "u1\nu99\n", "no user 'u99' in the dataset; did you mean"),
    ):
        (tmp_path / name).write_text(text)
        answer = candid("recommend", toy.run, "--users", tmp_path / name, "--out", out)
        assert answer.code == 3
        assert sentence in answer.err
    missing = candid("recommend", toy.run, "--users", tmp_path / "missing.txt", "--out", out)
    assert missing.code == 3
    assert not out.exists()


SLOW_BLOCKS = """
import os, signal, sys
from candid.cli import run
from candid.runs import bulk

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
bulk.BATCH, bulk.BLOCK_ROWS = 4, 8
blocks = iter(range(100))
write = bulk.recommend_or_fall_back

def stop_in_fifth_block(*arguments, **settings):
    if next(blocks) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return write(*arguments, **settings)

bulk.recommend_or_fall_back = stop_in_fifth_block
sys.exit(run(sys.argv[1:]))
"""


def test_ctrl_c_states_how_to_continue(candid, toy, tmp_path):
    out = tmp_path / "recs.csv"
    command = ["recommend", str(toy.run), "--all-users", "-k", "2", "--fallback", "recent"]
    command += ["--out", str(out), "--json"]
    stopped = subprocess.run(
        [sys.executable, "-c", SLOW_BLOCKS, *command], capture_output=True, text=True
    )
    assert stopped.returncode == 130
    assert "stopped after 16 of 40 users; the same command continues" in stopped.stderr
    assert not out.exists()
    finished = subprocess.run(
        [sys.executable, "-c", SLOW_BLOCKS.replace("== 4", "== 40"), *command],
        capture_output=True,
        text=True,
    )
    assert json.loads(finished.stdout)["resumed"] == 16
    assert pl.read_csv(out).height == 80
    assert os.listdir(tmp_path) == ["recs.csv"]
