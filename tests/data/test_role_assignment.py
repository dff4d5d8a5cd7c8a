"""Splits of a prepared dataset, against plain Python over the rows of the file."""

import datetime

import numpy as np
import polars as pl
import pytest

from candid.data import DataConfig, Role, SplitConfig, held_out, prepare_folder
from candid.errors import ConfigError, DataError

TRAIN, HISTORY, VALIDATION, TEST = Role
START = datetime.datetime(2026, 3, 1, 7, 30)
COLUMNS = ("user_id", "item_id", "t", "event")


def log_rows(num_users=8, num_items=12, seed=0):
    """Return rows (user, item, time, event type) in random order, one hour to five days apart."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        time = START
        for _ in range(5 + user):
            time += datetime.timedelta(hours=int(rng.integers(1, 120)))
            rows.append((user, int(rng.integers(num_items)), time, rng.choice(["buy", "view"])))
    return [rows[i] for i in rng.permutation(len(rows))]


def run(folder, rows, split, **settings):
    path = folder / "log.parquet"
    pl.DataFrame(rows, schema=list(COLUMNS), orient="row").write_parquet(path)
    config = DataConfig(interactions=str(path), time="t", split=SplitConfig(**split), **settings)
    return prepare_folder(config, folder / "out")


def stored(dataset):
    """Return {(user, item, time): role} of a dataset, in source ids."""
    users = np.repeat(dataset.users["source_id"].to_numpy(), np.diff(dataset.user_offsets))
    items = dataset.items["source_id"].to_numpy()[dataset.item_ids]
    keys = zip(users.tolist(), items.tolist(), dataset.timestamps.tolist(), strict=True)
    return dict(zip(keys, dataset.roles.tolist(), strict=True))


def key_of(row):
    epoch = datetime.datetime(1970, 1, 1)
    return (*row[:2], (row[2] - epoch) // datetime.timedelta(microseconds=1))


def expected_by_user(rows, assign):
    expected = {}
    for user in {row[0] for row in rows}:
        mine = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
        for row, role in zip(mine, assign(len(mine)), strict=True):
            expected[key_of(row)] = role
    return expected


def test_leave_k_out_split_of_a_file(tmp_path):
    rows = log_rows()
    result = run(tmp_path, rows, {"kind": "leave-k-out", "k": 3})
    assert stored(result.dataset) == expected_by_user(
        rows,
        lambda n: [TRAIN] * n if n < 7 else [TRAIN] * (n - 6) + [VALIDATION] * 3 + [TEST] * 3,
    )
    assert result.report["split"]["kind"] == "leave-k-out"


def test_ratio_split_of_a_file(tmp_path):
    rows = log_rows()
    split = {"kind": "ratio", "validation_ratio": 0.25, "test_ratio": 0.2}
    assert stored(run(tmp_path, rows, split).dataset) == expected_by_user(
        rows,
        lambda n: [TRAIN] * (n - n // 4 - n // 5) + [VALIDATION] * (n // 4) + [TEST] * (n // 5),
    )


def test_no_split_trains_on_every_interaction(tmp_path):
    rows = log_rows()
    result = run(tmp_path, rows, {"kind": "none"})
    assert stored(result.dataset) == {key_of(row): TRAIN for row in rows}
    assert result.report["counts"]["train"] == len(rows)
    assert len(held_out(result.dataset, TEST)) == 0


def test_no_split_keeps_event_types_for_histories_as_history(tmp_path):
    rows = log_rows()
    result = run(
        tmp_path,
        rows,
        {"kind": "none"},
        event_type="event",
        event_types={"buy": {}, "view": {"use": "history"}},
    )
    assert stored(result.dataset) == {
        key_of(row): TRAIN if row[3] == "buy" else HISTORY for row in rows
    }


@pytest.mark.parametrize("fold", range(3))
def test_rolling_split_trains_before_and_tests_in_each_window(tmp_path, fold):
    rows = log_rows()
    split = {"kind": "rolling", "window": "4d", "folds": 3, "fold": fold, "unseen": "keep"}
    result = run(tmp_path, rows, split)
    midnight = datetime.datetime.combine(max(row[2] for row in rows).date(), datetime.time())
    end = midnight + datetime.timedelta(days=1) - datetime.timedelta(days=4) * (2 - fold)
    window = datetime.timedelta(days=4)
    expected = {
        key_of(row): TRAIN
        if row[2] < end - 2 * window
        else VALIDATION
        if row[2] < end - window
        else TEST
        for row in rows
        if row[2] < end
    }
    assert stored(result.dataset) == expected
    assert result.report["dropped"].get("after_test", 0) == len(rows) - len(expected)
    entry = result.report["split"]
    assert (entry["fold"], entry["folds"]) == (fold, 3)
    for key, time in (("test_from", end - window), ("test_until", end)):
        assert datetime.datetime.fromisoformat(entry[key][:-1]) == time


def test_rolling_split_of_test_windows_covers_the_end_of_the_log_once(tmp_path):
    rows = log_rows()
    tested = []
    for fold in range(4):
        (tmp_path / str(fold)).mkdir()
        split = {"kind": "rolling", "window": "60h", "folds": 4, "fold": fold}
        roles = stored(run(tmp_path / str(fold), rows, split).dataset)
        tested += [key for key, role in roles.items() if role == TEST]
    assert len(tested) == len(set(tested))
    first = min(time for *_, time in tested)
    assert set(tested) == {key_of(row) for row in rows if key_of(row)[2] >= first}


def test_cross_validation_of_users_leaves_them_out_of_training(tmp_path):
    rows = log_rows(num_items=3)
    tested = []
    for fold in range(4):
        (tmp_path / str(fold)).mkdir()
        split = {"kind": "cross-validation", "folds": 4, "fold": fold, "unseen": "drop"}
        result = run(tmp_path / str(fold), rows, split)
        roles = stored(result.dataset)
        sizes = {"test": 0, "validation": 0, "train": 0}
        for user in range(8):
            mine = [roles[key] for key in sorted(roles, key=lambda key: key[2]) if key[0] == user]
            if mine[-1] == TRAIN:
                assert set(mine) == {TRAIN}
                sizes["train"] += 1
            else:
                assert set(mine[:-1]) == {HISTORY}
                sizes["test" if mine[-1] == TEST else "validation"] += 1
                tested += [user] if mine[-1] == TEST else []
        assert sizes == {"test": 2, "validation": 2, "train": 4}
        assert result.report["split"]["unit"] == "user"
        assert result.report["split"]["unseen"]["test"]["unseen_users"] == 2
    assert sorted(tested) == list(range(8))


def sessions(ends):
    """Return rows user, item, time of sessions of three interactions that end on these days."""
    return [
        (user, (user + n) % 4, datetime.datetime(2026, 3, end, 9, n), "buy")
        for user, end in enumerate(ends)
        for n in range(3)
    ]


def test_temporal_split_of_users_holds_out_whole_sessions(tmp_path):
    split = {"kind": "temporal", "validation": "2026-03-05", "test": "2026-03-08", "unit": "user"}
    rows = sessions([1, 2, 3, 4, 5, 7, 8, 9])
    rows.append((0, 3, datetime.datetime(2026, 3, 6, 9), "buy"))  # user 0 comes back on day 6
    result = run(tmp_path, rows, split)
    roles = stored(result.dataset)
    of_user = [
        [roles[key] for key in sorted(roles, key=lambda key: key[2]) if key[0] == user]
        for user in range(8)
    ]
    held_out = [[HISTORY, HISTORY, part] for part in (VALIDATION, TEST)]
    assert of_user[0] == [HISTORY, *held_out[0]]
    assert of_user[1:4] == [[TRAIN] * 3] * 3
    assert of_user[4:6] == [held_out[0]] * 2
    assert of_user[6:] == [held_out[1]] * 2
    assert result.report["split"]["unit"] == "user"
    assert result.report["split"]["unseen"]["test"]["unseen_users"] == 2


def test_temporal_split_of_users_may_have_an_empty_validation_window(tmp_path):
    split = {"kind": "temporal", "validation": "2026-03-05", "test": "2026-03-08", "unit": "user"}
    counts = run(tmp_path, sessions([1, 2, 8, 9]), split).report["counts"]
    assert [counts[role] for role in ("train", "validation", "test")] == [6, 0, 2]


def test_temporal_split_of_users_without_training_users_is_refused(tmp_path):
    """The interactions before the cut are histories of users who come back after it."""
    split = {"kind": "temporal", "validation": "2026-03-05", "test": "2026-03-08", "unit": "user"}
    rows = sessions([1, 2, 3])
    rows += [(user, 3, datetime.datetime(2026, 3, 9, user), "buy") for user in range(3)]
    words = "no user has the last interaction before the validation window; choose later windows"
    with pytest.raises(DataError, match=words):
        run(tmp_path, rows, split)


def test_cross_validation_of_interactions_puts_training_first_for_each_user(tmp_path):
    rows = log_rows()
    split = {"kind": "cross-validation", "folds": 3, "fold": 1, "unit": "interaction"}
    events = {"buy": {}, "view": {"use": "history"}}
    dataset = run(tmp_path, rows, split, event_type="event", event_types=events).dataset
    assert set(stored(dataset)) == {key_of(row) for row in rows}
    for user in range(dataset.num_users):
        mine = slice(dataset.user_offsets[user], dataset.user_offsets[user + 1])
        rank = np.maximum(dataset.roles[mine], HISTORY)
        assert (np.diff(rank) >= 0).all()
        for part in (HISTORY, VALIDATION, TEST):
            assert (np.diff(dataset.timestamps[mine][rank == part]) > 0).all()
    counts = np.bincount(dataset.roles, minlength=4)
    assert counts[HISTORY] == sum(row[3] == "view" for row in rows)
    bought = sum(row[3] == "buy" for row in rows)
    assert {counts[VALIDATION], counts[TEST]} <= {bought // 3, -(-bought // 3)}


@pytest.mark.parametrize(
    ("split", "error", "words"),
    [
        (
            {"kind": "leave-k-out", "k": 7},
            DataError,
            "needs a user with 15 interactions; lower split.k = 7",
        ),
        (
            {"kind": "temporal", "validation": "2026-03-05", "test": "2027-01-01"},
            ConfigError,
            "split.test (2027-01-01T00:00:00.000000Z) is after the last interaction (2026-",
        ),
        (
            {"kind": "rolling", "window": "30d", "folds": 2},
            ConfigError,
            "2 folds of 30d and the validation window before them start at",
        ),
        (
            {"kind": "rolling", "window": "1h", "folds": 9},
            DataError,
            "window of fold 0 of the rolling split",
        ),
        (
            {"kind": "cross-validation", "folds": 9},
            ConfigError,
            "split.folds = 9 exceeds the 8 users of",
        ),
        (
            {"kind": "cross-validation", "folds": 100, "unit": "interaction"},
            ConfigError,
            "split.folds = 100 exceeds the 68 interactions of",
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
def test_a_split_that_does_not_fit_the_data_is_refused(tmp_path, split, error, words):
    with pytest.raises(error) as caught:
        run(tmp_path, log_rows(), split)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
