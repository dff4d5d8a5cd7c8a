"""Given recommendations of any kind of table, measured beside a run."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import candid
from candid.batches import offsets_of
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError, DataError

NUM_USERS, NUM_ITEMS, LENGTH = 30, 40, 6


@pytest.fixture(name="dataset", scope="module")
def _dataset():
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    roles = np.tile([Role.TRAIN] * 4 + [Role.VALIDATION, Role.TEST], NUM_USERS)
    return PreparedDataset(
        item_ids=items.astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=roles.astype(np.uint8),
        users=pl.DataFrame({"source_id": [f"u{user}" for user in range(NUM_USERS)]}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS) + 100}),
        manifest={"config": {"order": "at"}},
    )


@pytest.fixture(name="lists", scope="module")
def _lists(dataset):
    """The test target of user n is at rank 1 + n modulo 4; lists of three other items."""
    rows = []
    for user in range(NUM_USERS):
        events = dataset.item_ids[user * LENGTH : (user + 1) * LENGTH]
        others = [i for i in range(NUM_ITEMS) if i not in events][:3]
        ranked = [*others[: user % 4], int(events[-1]), *others[user % 4 :]]
        rows += [(f"u{user}", item + 100, rank) for rank, item in enumerate(ranked, 1)]
    return pl.DataFrame(rows, schema=["query", "item", "rank"], orient="row")


@pytest.mark.parametrize(
    "kind", ["polars", "lazy", "arrow", "pandas", "csv", "tsv", "jsonl", "folder"]
)
def test_table_of_every_kind_has_the_same_report(dataset, lists, tmp_path, kind):
    table = lists
    if kind == "lazy":
        table = lists.lazy()
    elif kind == "arrow":
        table = pytest.importorskip("pyarrow").table(lists.to_dict(as_series=False))
    elif kind == "pandas":
        table = pytest.importorskip("pandas").DataFrame(lists.to_dict(as_series=False))
    elif kind in ("csv", "tsv"):
        table = tmp_path / f"recs.{kind}"
        lists.write_csv(table, separator="," if kind == "csv" else "\t")
    elif kind == "jsonl":
        table = tmp_path / "recs.jsonl"
        lists.write_ndjson(table)
    elif kind == "folder":
        table = str(tmp_path / "recs.parquet")
        (tmp_path / "recs.parquet").mkdir()
        lists[:50].write_parquet(tmp_path / "recs.parquet" / "part-00000.parquet")
        lists[50:].write_parquet(tmp_path / "recs.parquet" / "part-00001.parquet")
    report = candid.evaluate_recommendations(table, dataset, ks=(1, 2))
    sizes = np.bincount(np.arange(NUM_USERS) % 4)
    assert report.metrics["recall@1"].value == pytest.approx(sizes[0] / NUM_USERS)
    assert report.metrics["mrr@2"].value == pytest.approx((sizes[0] + sizes[1] / 2) / NUM_USERS)
    assert report.metric == "ndcg@2"
    assert "nll" not in report.metrics


def test_splits_and_settings_are_those_of_an_evaluation(dataset, lists):
    report = candid.evaluate_recommendations(lists, dataset, "validation", ks=(2,))
    assert report.metrics["recall@2"].value == 0.0
    assert report.settings["role"] == "validation"
    assert report.settings["filter_seen"] is True
    shown = candid.evaluate_recommendations(lists, dataset, ks=(2,), filter_seen=False)
    assert shown.settings["filter_seen"] is False
    with pytest.raises(ConfigError, match="unknown split 'train'"):
        candid.evaluate_recommendations(lists, dataset, "train", ks=(2,))
    with pytest.raises(ConfigError, match="filter_sen"):
        candid.evaluate_recommendations(lists, dataset, ks=(2,), filter_sen=False)


def test_repeats_in_the_data_are_not_hidden_as_in_the_default_recipe(dataset, lists):
    repeated = np.tile(np.arange(3), NUM_USERS * LENGTH // 3).astype(np.int32)
    other = PreparedDataset(
        item_ids=repeated,
        user_offsets=dataset.user_offsets,
        roles=dataset.roles,
        users=dataset.users,
        items=dataset.items,
        manifest=dataset.manifest,
    )
    report = candid.evaluate_recommendations(lists, other, ks=(2,))
    assert report.settings["filter_seen"] is False


def test_object_of_another_kind_is_refused(dataset, tmp_path):
    with pytest.raises(DataError, match="data frame or a path, not dict"):
        candid.evaluate_recommendations({"query": [1]}, dataset)
    with pytest.raises(DataError, match=r"missing\.csv does not exist"):
        candid.evaluate_recommendations(tmp_path / "missing.csv", dataset)


@pytest.mark.parametrize("ks", [5, "5", (2.5,), ("five",), None, ()])
def test_cut_offs_are_refused_unless_a_list_of_whole_numbers(dataset, lists, ks):
    with pytest.raises(ConfigError, match=r"^evaluate_recommendations: ks"):
        candid.evaluate_recommendations(lists, dataset, ks=ks)


@pytest.mark.parametrize("ks", [("2", 5), {2, 5}, np.array([5, 2])])
def test_cut_offs_of_another_type_are_converted(dataset, lists, ks):
    report = candid.evaluate_recommendations(lists, dataset, ks=ks)
    expected = candid.evaluate_recommendations(lists, dataset, ks=(2, 5))
    assert report.metric == expected.metric == "ndcg@5"
    assert report.metrics == expected.metrics


def test_folder_of_several_formats_is_read_by_a_pattern(dataset, lists, tmp_path):
    lists.write_csv(tmp_path / "recs.csv")
    lists.write_parquet(tmp_path / "recs.parquet")
    with pytest.raises(DataError, match=r"name one file, .* by a pattern such as '\*\.csv'$"):
        candid.evaluate_recommendations(tmp_path, dataset)
    report = candid.evaluate_recommendations(tmp_path / "*.csv", dataset, ks=(2,))
    assert report.counts["unknown_users"] == 0
