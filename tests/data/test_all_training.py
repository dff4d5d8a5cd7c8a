"""Datasets whose held-out interactions train, against those prepared without a split."""

import numpy as np
import polars as pl
import pytest

import candid
from candid.data import (
    DataConfig,
    PreparedDataset,
    Role,
    SplitConfig,
    chunks,
    open_dataset,
    prepare_folder,
    with_all_training,
)

ARRAYS = (
    "item_ids",
    "user_offsets",
    "roles",
    "timestamps",
    "weights",
    "event_types",
    "negative_ids",
    "negative_offsets",
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make a pass over these small data one of many chunks."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 20)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for user in range(12):
        times = rng.choice(400, 9, replace=False) * 7200 + 1_700_000_000
        for n, time in enumerate(np.sort(times)):
            negatives = rng.integers(0, 10, rng.integers(0, 4)).tolist()
            role = ["train", "train", "test", "validation", "history"][rng.integers(5)]
            event = ["buy", "view"][n % 3 == 1]
            rows.append((user, int(rng.integers(10)), int(time), event, 1.0 + n, negatives, role))
    rows = [rows[n] for n in rng.permutation(len(rows))]
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    columns = ["user_id", "item_id", "t", "event", "w", "shown", "role"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path


def prepared(path, folder, types=None, **split):
    config = DataConfig(
        interactions=str(path),
        time="t",
        weight="w",
        negatives="shown",
        event_type=None if types is None else "event",
        event_types=types,
        split=SplitConfig(**split),
    )
    return prepare_folder(config, folder).dataset


HISTORY_VIEWS = {"buy": {}, "view": {"use": "history"}}
SPLITS = {
    "leave-one-out": {},
    "sampled validation": {"kind": "leave-k-out", "k": 2, "validation_users": 3},
    "temporal": {"kind": "temporal"},
    "users": {"kind": "cross-validation"},
    "interactions": {"kind": "cross-validation", "unit": "interaction"},
}


@pytest.mark.parametrize("types", [None, HISTORY_VIEWS], ids=["one type", "types"])
@pytest.mark.parametrize("name", SPLITS)
def test_all_training_equals_a_dataset_without_a_split(path, tmp_path, name, types):
    held_out = prepared(path, tmp_path / "a", types, **SPLITS[name])
    expected = prepared(path, tmp_path / "b", types, kind="none")
    changed = with_all_training(held_out)
    assert (np.asarray(held_out.roles) == Role.VALIDATION).any()
    for array in ARRAYS:
        one, two = getattr(changed, array), getattr(expected, array)
        assert (one is None) == (two is None), array
        assert one is None or np.array_equal(one, two), array
    assert changed.manifest == held_out.manifest
    assert changed.path == held_out.path


def test_all_training_keeps_the_history_of_a_column_split(path, tmp_path):
    held_out = prepared(path, tmp_path / "a", kind="column", column="role")
    expected = prepared(path, tmp_path / "b", kind="none")
    changed = with_all_training(held_out)
    assert np.array_equal(changed.timestamps, expected.timestamps)
    assert np.array_equal(changed.item_ids, expected.item_ids)
    rows = pl.read_parquet(path).sort("user_id", "t")
    is_history = (rows["role"] == "history").to_numpy()
    assert np.array_equal(changed.roles == Role.HISTORY, is_history)
    assert set(changed.roles[~is_history]) == {Role.TRAIN}


def test_all_training_of_a_dataset_in_memory_trains_on_held_out_interactions():
    dataset = PreparedDataset(
        item_ids=np.array([0, 1, 0, 1], dtype=np.int32),
        user_offsets=np.array([0, 2, 4]),
        roles=np.array([Role.TRAIN, Role.TEST, Role.HISTORY, Role.VALIDATION], dtype=np.uint8),
        users=pl.DataFrame({"source_id": [0, 1]}),
        items=pl.DataFrame({"source_id": [0, 1]}),
    )
    changed = with_all_training(dataset)
    assert changed.roles.tolist() == [Role.TRAIN, Role.TRAIN, Role.HISTORY, Role.TRAIN]
    assert dataset.roles.tolist() == [Role.TRAIN, Role.TEST, Role.HISTORY, Role.VALIDATION]


BY_ROLE = {
    "column": {"kind": "column", "column": "role"},
    "interactions": {"kind": "cross-validation", "unit": "interaction", "folds": 3},
}


@pytest.mark.parametrize("split", BY_ROLE.values(), ids=BY_ROLE)
@pytest.mark.parametrize(
    "keys", [{"order": "n"}, {"time": "t", "order": "n"}, {"time": "t"}, {}], ids=str
)
@pytest.mark.parametrize("ids_from", [False, True])
def test_all_training_restores_the_order_of_datasets_stored_by_role(
    tmp_path, split, keys, ids_from
):
    roles = ["test", "train", "validation", "train", "train", "test"]
    rows = [
        {"user_id": user, "item_id": item, "t": 100 + n // 3, "n": 50 - n, "role": roles[n]}
        for user in (8, 3)
        for n, item in enumerate((5, 2, 4, 1, 6, 3))
    ]
    table = pl.DataFrame(rows)
    if ids_from:
        earlier = candid.prepare(table.reverse(), split="none", out=tmp_path / "earlier")
        keys = keys | {"ids_from": str(earlier.path)}
    held_out = candid.prepare(table, split=split, **keys)
    assert held_out.order_ranks is not None
    stored = open_dataset(held_out.save(tmp_path / "d").path)
    expected = candid.prepare(table, split="none", **keys)
    assert expected.order_ranks is None
    for dataset in (held_out, stored):
        changed = with_all_training(dataset)
        assert np.array_equal(changed.item_ids, expected.item_ids)
        assert np.array_equal(changed.roles, expected.roles)
        assert changed.order_ranks is None
