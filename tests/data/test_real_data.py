"""Published counts of the evaluation data, if it is available."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from candid.data import DataConfig, ItemTableConfig, Role, SplitConfig, held_out, prepare_folder

DATA = Path(os.environ.get("CANDID_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="set CANDID_DATA to the evaluation data"),
]
PUBLIC_ROLES = {
    "train": "train",
    "validation": "validation",
    "validation_history": "history",
    "unused": "history",
    "test": "test",
}


def ml1m(split):
    return DataConfig(
        interactions=str(DATA / "ml-1m" / "interactions.parquet"),
        order="position",
        item_core=5,
        items=ItemTableConfig(path=str(DATA / "ml-1m" / "items.parquet"), attributes=("genres",)),
        split=split,
    )


def test_ml1m_leave_one_out_has_the_counts_of_sasrec(tmp_path):
    result = prepare_folder(ml1m(SplitConfig()), tmp_path / "out")
    counts = result.report["counts"]
    assert counts["interactions"] == 999_611
    assert counts["users"] == counts["validation"] == counts["test"] == 6_040
    assert counts["items"] == 3_416
    assert counts["train"] == 999_611 - 2 * 6_040
    assert result.report["items_without_row"] == 0
    assert result.dataset.items["title"][0] == "Toy Story (1995)"


def test_ml1m_public_roles(tmp_path):
    split = SplitConfig(kind="column", column="public_role", roles=PUBLIC_ROLES)
    result = prepare_folder(ml1m(split), tmp_path / "out")
    counts = result.report["counts"]
    assert (counts["interactions"], counts["items"]) == (999_611, 3_416)
    assert (counts["train"], counts["history"]) == (987_019, 6_040)
    assert (counts["validation"], counts["test"]) == (512, 6_040)
    assert result.report["split"]["out_of_order"] == 0
    test = held_out(result.dataset, Role.TEST)
    ends = result.dataset.user_offsets[1:]
    assert np.array_equal(test.history_stop, ends - 1)


def test_ml1m_positives_temporal_split(tmp_path):
    config = DataConfig(
        interactions=str(DATA / "ml-1m-positives" / "interactions.parquet"),
        time="timestamp",
        split=SplitConfig(kind="temporal", validation=0.8, test=0.9),
    )
    result = prepare_folder(config, tmp_path / "out")
    counts = result.report["counts"]
    assert (counts["interactions"], counts["users"], counts["items"]) == (575_281, 6_038, 3_533)
    assert 0.799 < counts["train"] / counts["interactions"] <= 0.8
    assert result.report["time"]["first"].startswith("2000-04-25")


def test_gowalla_column_split(tmp_path):
    config = DataConfig(
        interactions=str(DATA / "gowalla"), split=SplitConfig(kind="column", column="split")
    )
    counts = prepare_folder(config, tmp_path / "out").report["counts"]
    assert (counts["users"], counts["items"]) == (29_858, 40_981)
    assert (counts["train"], counts["test"]) == (810_128, 217_242)


def test_amazon_beauty_has_untrained_items(tmp_path):
    config = DataConfig(interactions=str(DATA / "amazon-beauty"), order="position")
    report = prepare_folder(config, tmp_path / "out").report
    assert (report["counts"]["users"], report["counts"]["items"]) == (40_226, 54_542)
    unseen = report["split"]["unseen"]["test"]
    assert 0 < unseen["targets_of_unseen_items"] < unseen["targets"] == 40_226


def counts_of(dataset):
    """Return the numbers of training, validation and test interactions."""
    counts = np.bincount(dataset.roles, minlength=len(Role))
    return counts[[Role.TRAIN, Role.VALIDATION, Role.TEST]].tolist()


def test_ml100k_splits_of_each_user_have_the_sizes_of_polars(tmp_path):
    path = str(DATA / "ml-100k" / "interactions.parquet")
    lengths = pl.read_parquet(path).group_by("user_id").len()["len"].cast(pl.Int64)
    for name, split, size in (
        ("k", {"kind": "leave-k-out", "k": 15}, (lengths >= 31).cast(pl.Int64) * 15),
        ("ratio", {"kind": "ratio"}, lengths // 10),
    ):
        config = DataConfig(interactions=path, time="timestamp", split=split)
        dataset = prepare_folder(config, tmp_path / name).dataset
        held_out = int(size.sum())
        assert counts_of(dataset) == [100_000 - 2 * held_out, held_out, held_out]


def test_ml100k_rolling_windows_have_the_sizes_of_polars(tmp_path):
    path = str(DATA / "ml-100k" / "interactions.parquet")
    day = pl.read_parquet(path)["timestamp"] // 86_400
    for fold in range(3):
        split = {"kind": "rolling", "window": "14d", "folds": 3, "fold": fold}
        config = DataConfig(interactions=path, time="timestamp", split=split)
        result = prepare_folder(config, tmp_path / str(fold))
        end = day.max() + 1 - 14 * (2 - fold)
        sizes = [
            int((day < end - 28).sum()),
            int(((day >= end - 28) & (day < end - 14)).sum()),
            int(((day >= end - 14) & (day < end)).sum()),
        ]
        assert counts_of(result.dataset) == sizes
        assert result.report["dropped"].get("after_test", 0) == 100_000 - sum(sizes)
