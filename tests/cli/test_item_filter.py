"""Items that may be recommended, from ``--allow``, ``--deny`` and their files."""

import json

import polars as pl
import pytest

import candid as package

CHOSEN = ["i03", "i05", "i07", "i11"]


@pytest.fixture(name="run", scope="module")
def _run(toy):
    return package.load_run(toy.run)


def items_of(answer):
    assert answer.code == 0, answer.err
    return [item["item"] for one in answer.document["answers"] for item in one["items"]]


def test_allowed_items_are_the_only_ones_and_denied_ones_are_left_out(candid, toy, run, tmp_path):
    (tmp_path / "allow.txt").write_text("i07\ni11\n")
    (tmp_path / "deny.csv").write_text("item,reason\ni05,sold out\n")
    named = ["--allow", "i03", "--allow", "The 5th Film", "--allow-file", tmp_path / "allow.txt"]
    flags = ["--user", "u3", "-k", "4", "--include-seen", "--json"]
    expected = run.recommend(users="u3", k=4, filter_seen=False, allow=CHOSEN)
    assert items_of(candid("recommend", toy.run, *flags, *named)) == expected["item"].to_list()
    assert sorted(expected["item"]) == CHOSEN
    both = [*named, "--deny-file", tmp_path / "deny.csv", "--deny", "i11"]
    found = items_of(candid("recommend", toy.run, *flags, *both))
    assert sorted(found) == ["i03", "i07"]
    best = run.recommend(users="u3", k=1)["item"][0]
    others = items_of(candid("recommend", toy.run, "--user", "u3", "--deny", best, "--json"))
    assert others == run.recommend(users="u3", k=10, deny=[best])["item"].to_list()
    assert best not in others


def test_allowed_items_hold_for_anonymous_users_and_fallbacks(candid, toy):
    allow = [flag for item in CHOSEN for flag in ("--allow", item)]
    for flags in (
        ["--history", "i01", "--include-seen"],
        ["--user", "stranger", "--fallback", "popular"],
    ):
        found = items_of(candid("recommend", toy.run, *flags, "-k", "4", *allow, "--json"))
        assert sorted(found) == CHOSEN


def test_allowed_items_hold_for_all_users(candid, toy, run, tmp_path):
    (tmp_path / "deny.jsonl").write_text(json.dumps({"item": "i03"}) + "\n")
    out = tmp_path / "recs.parquet"
    allow = [flag for item in CHOSEN for flag in ("--allow", item)]
    flags = ["--all-users", "-k", "3", "--out", out, "--deny-file", tmp_path / "deny.jsonl"]
    assert candid("recommend", toy.run, *flags, *allow).code == 0
    users = run.dataset.users["source_id"].to_list()
    expected = run.recommend(users=users, k=3, allow=CHOSEN, deny=["i03"])
    assert pl.read_parquet(out).equals(expected)
    assert set(expected["item"]) == set(CHOSEN) - {"i03"}


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--allow", "i99"], 3, "no item 'i99' in the dataset"),
        (["--deny", ""], 3, "is blank"),
        (["--allow-file", "{folder}/unknown.txt"], 3, "unknown.txt names 2 items that the dataset"),
        (["--deny-file", "{folder}/absent.txt"], 3, "absent.txt"),
        (["--deny-file", "{folder}/empty.txt"], 3, "has no items"),
        (["--allow", "i03", "--deny", "i03"], 2, "no item is left to recommend"),
        (["--deny", "i03", "--new-items", "x.csv"], 2, "leave out --new-items"),
    ],
)
def test_bad_choice_is_refused_in_one_sentence(candid, toy, tmp_path, flags, code, words):
    (tmp_path / "unknown.txt").write_text("i03\ni77\ni78\n")
    (tmp_path / "empty.txt").write_text("\n")
    flags = [flag.format(folder=tmp_path) for flag in flags]
    answer = candid("recommend", toy.run, "--user", "u3", *flags)
    assert answer.code == code
    assert words in answer.err
    assert len(answer.err.strip().splitlines()) == 1
