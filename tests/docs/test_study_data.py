"""The files of the study, from files as their publishers provide them, and facts about catalogs."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from pathlib import Path

import polars as pl
import pytest

from candid.study import parse_study, read_study
from candid.study.datasets import Datasets

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text()
RATINGS = [
    *[
        (user, item, 3 + item % 3, 1000 - 10 * user + item)
        for user in range(1, 8)
        for item in (1, 2)
    ],
    *[(user, 3, 5, 500 + user) for user in range(1, 8)],
    (1, 9, 5, 1),
]
"""User, item, rating and time, not in the order of time; item 9 has a single rating."""
SESSIONS = [
    [1, 2, 1],
    [3, 4],
    [2, 5, 2],
    [1, 3],
    [5, 1],
    [2, 4],
    [1, 2],
    [3, 1],
    [4, 2],
    [2, 1, 5],
] * 2
FILES = {
    "ml-1m": "\n".join("::".join(map(str, row)) for row in RATINGS),
    "amazon-beauty": "1 1\n1 2\n1 3\n2 4\n2 1\n2 2\n3 1\n3 2\n3 4",
    "retailrocket": pickle.dumps(SESSIONS),
}
FILES["ml-1m-positives"] = FILES["ml-1m"]


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("study_data")


@pytest.fixture(scope="module")
def results(script):
    return json.loads(script.RESULTS.read_text())


@pytest.fixture
def folder(script, tmp_path):
    """The files of the study from small files of the publishers."""
    for name, content in FILES.items():
        source = tmp_path / script.SOURCES[name].name
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
        script.write_file(name, source, tmp_path)
    return tmp_path


def read(folder, name):
    return pl.read_parquet(folder / name / "interactions.parquet")


def test_every_file_of_the_study_has_a_source(script):
    of_study = {name for name, one in read_study(script.STUDY).datasets.items() if one.data}
    assert of_study == script.SOURCES.keys()


def test_ratings_are_in_order_of_time(folder):
    rows = read(folder, "ml-1m").filter(pl.col("user_id") == 2)
    assert rows.select("item_id", "position").rows() == [(3, 0), (1, 1), (2, 2)]
    assert 9 not in read(folder, "ml-1m")["item_id"]


def test_positives_have_ratings_of_4_and_5(folder):
    rows = read(folder, "ml-1m-positives")
    assert set(rows["item_id"]) == {1, 2, 3, 9}
    assert rows["rating"].min() == 4
    assert rows["timestamp"].is_sorted()


def test_lines_of_a_user_keep_their_order(folder):
    rows = read(folder, "amazon-beauty").filter(pl.col("user_id") == 2)
    assert rows.select("item_id", "position").rows() == [(4, 0), (1, 1), (2, 2)]


def test_last_sessions_are_validation_and_test(folder):
    rows = read(folder, "retailrocket")
    last = rows.group_by("session_id", maintain_order=True).agg(pl.col("split").last())
    assert last["split"].to_list() == ["train"] * 16 + ["validation"] * 2 + ["test"] * 2
    test = rows.filter(pl.col("session_id") == 19)
    assert test["split"].to_list() == ["history", "history", "test"]
    assert test["item_id"].to_list() == SESSIONS[19]
    assert set(rows.filter(pl.col("session_id") < 16)["split"]) == {"train"}


@pytest.mark.parametrize("name", FILES)
def test_study_reads_the_file(script, folder, monkeypatch, name):
    monkeypatch.setenv("CANDID_DATA", str(folder))
    study = read_study(script.STUDY)
    dataset = Datasets(study, folder / "study", threading.Event()).open(
        name, study.datasets[name].split_names[0]
    )
    assert len(dataset.item_ids) == read(folder, name).height


def test_pickle_with_code_is_refused(script, tmp_path):
    path = tmp_path / "all_train_seq.txt"
    path.write_bytes(pickle.dumps([print]))
    with pytest.raises(SystemExit, match=r"builtins\.print, not numbers alone"):
        script.sessions(path)


def stored(script, folder):
    return {"datasets": {name: {"checksums": _sums(script, folder, name)} for name in FILES}}


def _sums(script, folder, name):
    return script.checksums(name, folder / name / "interactions.parquet")


def test_compare_finds_another_order_and_other_interactions(script, folder):
    before = stored(script, folder)
    assert script.differences(folder, before) == []
    path = folder / "amazon-beauty" / "interactions.parquet"
    rows = pl.read_parquet(path)
    rows.with_columns(position=-pl.col("position")).write_parquet(path)
    assert script.differences(folder, before) == [
        f"{path}: the interactions of the study in another order"
    ]
    rows.head(8).write_parquet(path)
    assert script.differences(folder, before) == [
        f"{path}: other interactions than those of the study"
    ]
    path.unlink()
    (missing,) = script.differences(folder, before)
    assert missing.startswith(f"{path} does not exist")


def test_compare_ends_with_1_after_a_difference(script, folder, monkeypatch, capsys):
    monkeypatch.setenv("CANDID_DATA", str(folder))
    monkeypatch.setattr(sys, "argv", ["study_data.py", "compare"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.count("other interactions") == len(FILES)


def test_facts_count_the_targets_of_training(script, tmp_path):
    study = parse_study(
        {
            "name": "small",
            "seeds": [1],
            "budget": {"cpu_hours": 1},
            "recipe": {
                "batches": {"batch_size": 2},
                "training": {"softmax_over": "trained", "max_steps": 1},
            },
            "pilot": {"learning_rates": [0.1]},
            "datasets": {
                "films": {"data": {"interactions": str(tmp_path / "f.csv"), "order": "n"}}
            },
            "towers": {
                "small": {
                    "model": {
                        "query_tower": {"type": "causal_transformer", "dim": 4},
                        "item_tower": {"type": "item_embedding", "dim": 4},
                    }
                }
            },
            "grids": [{"arms": ["full_softmax"]}],
        },
        "study",
    )
    # Of each user, the first item is never a target, the last two are held out.
    users = [f"{u},{item},{n}" for u in range(3) for n, item in enumerate((u, 5, 6, u))]
    (tmp_path / "f.csv").write_text("\n".join(["user_id,item_id,n", *users]))
    facts = script.catalog_facts(study, tmp_path / "study", "films")
    assert (facts["rows"], facts["users"], facts["items"]) == (12, 3, 5)
    assert facts["softmax_items"] == 1
    assert facts["steps_per_epoch"] == 2


def test_ties_are_counted_where_both_times_are_known(script, tmp_path):
    rows = [(1, 0, 5), (1, 1, 7), (1, 2, 7), (2, 0, 3), (2, 1, 4), (3, 0, 9), (3, 1, None)]
    table = pl.DataFrame(rows, ["user_id", "position", "timestamp"], orient="row")
    table.write_parquet(tmp_path / "rows.parquet")
    assert script.tied_last_ratings(tmp_path / "rows.parquet") == {"users": 2, "tied": 1}


def test_page_has_the_measured_catalogs(script, results):
    table = script.catalog_table(results["datasets"], results["steps"])
    assert f"<!-- {script.BLOCK} -->\n{table}\n<!-- /{script.BLOCK} -->" in PAGE
    assert list(results["datasets"]) == list(read_study(script.STUDY).datasets)


def test_guide_states_the_ties_of_the_last_ratings(results):
    users, tied = (results["last_two_ratings"][key] for key in ("users", "tied"))
    guide = " ".join((ROOT / "docs" / "guides" / "study.md").read_text().split())
    assert f"Of the {users:,} users of `ml-1m`" in guide
    assert f"known time, {tied:,} have both in the same second" in guide
