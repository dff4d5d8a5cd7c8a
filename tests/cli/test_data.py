"""``candid data``: the list of public sets, and the preparation of a copy."""

import polars as pl
import pytest

from candid.data import PUBLIC_SETS

RATINGS = "".join(
    f"{user}::{item}::5::{978300000 + item}\n" for user in (1, 2) for item in (5, 6, 7, 8)
)


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_text(RATINGS)
    return tmp_path / "ml-1m"


def test_list_has_every_set_with_its_terms_and_page(candid):
    answer = candid("data")
    assert answer.code == 0
    for name, one in PUBLIC_SETS.items():
        (line,) = [line for line in answer.out.splitlines() if line.startswith(f"{name} ")]
        assert one.licence in line
        assert line.rstrip().endswith(f"  {one.url}")
    sets = candid("data", "--json").document["sets"]
    assert sets.keys() == PUBLIC_SETS.keys()
    assert sets["ml-1m"]["rows"] == 1_000_209


def test_description_has_the_page_and_the_next_command(candid):
    answer = candid("data", "ml-1m")
    assert "page: https://grouplens.org/datasets/movielens/" in answer.out
    assert answer.out.splitlines()[-1] == "next: candid data ml-1m --from PATH"


def test_part_of_a_set_is_prepared_on_request_only(candid, copy, tmp_path):
    arguments = ["data", "ml-1m", "--from", copy, "--out", tmp_path / "out"]
    answer = candid(*arguments)
    assert answer.code == 3
    assert "has 8 rows, and the complete files have 1,000,209: download them again" in answer.err
    assert not (tmp_path / "out").exists()
    answer = candid(*arguments, "--partial")
    assert answer.code == 0, answer.err
    assert "8 interactions of 2 users with 4 items" in answer.out
    assert "8 rows were read, and the publisher states 1,000,209" in answer.out
    assert f"terms of use: {PUBLIC_SETS['ml-1m'].licence}" in answer.out
    assert "movies.dat is not beside the interactions" in answer.err
    answer = candid(*arguments, "--partial", "--json", "--set", "data.split.kind=none")
    assert answer.document["split"]["kind"] == "none"
    assert answer.document["stated_rows"] == 1_000_209
    assert answer.err == ""


def test_another_kind_of_split_leaves_out_the_settings_of_the_usual_one(candid, tmp_path):
    table = {"uid": [1, 1, 1, 2], "item_id": [5, 6, 7, 5], "timestamp": [5, 10, 15, 20]}
    pl.DataFrame(table).write_parquet(tmp_path / "likes.parquet")
    answer = candid(
        *("data", "yambda-50m", "--from", tmp_path, "--out", tmp_path / "out", "--partial"),
        *("--set", "data.split.kind=leave-one-out"),
    )
    assert answer.code == 0, answer.err
    assert "split: 2 train, 1 validation, 1 test" in answer.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x"], "--out needs the name of a set; candid data lists the names"),
        (["ml-1m", "--partial"], "need your copy of the set: name it with --from"),
        (["ml-2m"], "unknown public data set 'ml-2m': did you mean"),
        (["ml-1m", "--from", "{copy}", "--set", "training.lr=1"], "only keys of [data] apply"),
    ],
)
def test_wrong_usage_is_one_sentence(candid, copy, arguments, sentence):
    answer = candid("data", *(one.format(copy=copy) for one in arguments))
    assert answer.code == 2
    assert sentence in answer.err
