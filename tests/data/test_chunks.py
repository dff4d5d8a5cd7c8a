"""Chunks of users against loops over users."""

import os
import subprocess
import sys
from unittest import mock

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.data import PreparedDataset, Role, chunks
from candid.data.chunks import add_counts, owners_of, positions_of, row_chunks, user_chunks
from candid.data.store import open_dataset


def offsets_from(lengths):
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def users_of(chunk):
    return range(chunk.users.start, chunk.users.stop)


def rows_of(chunk):
    return range(chunk.rows.start, chunk.rows.stop)


@settings(deadline=None, max_examples=200)
@given(lengths=st.lists(st.integers(0, 9), max_size=30), num_rows=st.integers(1, 25))
def test_chunks_have_every_user_and_interaction_once(lengths, num_rows):
    offsets = offsets_from(lengths)
    users, rows = [], []
    for chunk in user_chunks(offsets, num_rows):
        users += users_of(chunk)
        rows += rows_of(chunk)
        assert len(rows_of(chunk)) <= num_rows or len(users_of(chunk)) == 1
        expected = [user for user in users_of(chunk) for _ in range(lengths[user])]
        assert (owners_of(offsets, chunk) + chunk.users.start).tolist() == expected
        positions = [position for user in users_of(chunk) for position in range(lengths[user])]
        assert positions_of(offsets, chunk).tolist() == positions
    assert users == list(range(len(lengths)))
    assert rows == list(range(sum(lengths)))


def test_chunks_of_interactions():
    with mock.patch.object(chunks, "CHUNK_ROWS", 4):
        assert list(row_chunks(9)) == [slice(0, 4), slice(4, 8), slice(8, 9)]
        assert list(row_chunks(8)) == [slice(0, 4), slice(4, 8)]
        assert list(row_chunks(0)) == []


@pytest.mark.parametrize("num_items", [3, 1000])
def test_counts_are_added(num_items):
    counts = np.ones(num_items, dtype=np.int64)
    add_counts(counts, np.array([2, 0, 2], dtype=np.int32))
    assert counts[:3].tolist() == [2, 1, 3]
    assert (counts[3:] == 1).all()


@settings(deadline=None, max_examples=100)
@given(
    users=st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.sampled_from(list(Role))), max_size=7),
        min_size=1,
        max_size=6,
    ),
    chunk_rows=st.sampled_from([1, 4, 1 << 20]),
)
def test_facts_of_a_dataset_do_not_depend_on_chunks(users, chunk_rows):
    rows = [(user, *row) for user, part in enumerate(users) for row in part]
    dataset = PreparedDataset(
        item_ids=np.array([item for _, item, _ in rows], dtype=np.int32),
        user_offsets=offsets_from([len(part) for part in users]),
        roles=np.array([role for _, _, role in rows], dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(len(users))}),
        items=pl.DataFrame({"source_id": np.arange(5)}),
    )
    trained = [(user, item) for user, item, role in rows if role == Role.TRAIN]
    with mock.patch.object(chunks, "CHUNK_ROWS", chunk_rows):
        assert dataset.train_counts.tolist() == [
            sum(item == n for _, item in trained) for n in range(5)
        ]
        assert dataset.train_user_counts.tolist() == [
            len({user for user, item in trained if item == n}) for n in range(5)
        ]
        assert dataset.user_is_trained.tolist() == [
            any(user == n for user, _ in trained) for n in range(len(users))
        ]
        for role in Role:
            events = [event for event, row in enumerate(rows) if row[2] == role]
            assert dataset.events_of(role).tolist() == events
            assert dataset.has_role(role) == bool(events)


READ_ALL = """
import sys
from candid.data.store import open_dataset
dataset = open_dataset(sys.argv[1], verify=False)
dataset.train_counts, dataset.timestamps.sum()
print(open("/proc/self/smaps").read())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_processes_share_the_pages_of_a_dataset(tmp_path, mapped_kib):
    num = 1 << 20
    rng = np.random.default_rng(0)
    PreparedDataset(
        item_ids=rng.integers(0, 9, num).astype(np.int32),
        user_offsets=np.arange(0, num + 1, 64),
        roles=np.zeros(num, dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(num // 64)}),
        items=pl.DataFrame({"source_id": np.arange(9)}),
        timestamps=np.arange(num),
    ).save(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    assert dataset.train_counts.sum() + dataset.timestamps[-1] == 2 * num - 1
    assert dataset.timestamps.sum() > 0
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "data")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    listing = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    kib = mapped_kib(listing)
    mapped = {name.removesuffix(".npy") for name in kib if name and name.endswith(".npy")}
    assert mapped - {"user_offsets"} == {"item_ids", "roles", "timestamps"}
    for name, width in (("item_ids", 4), ("roles", 1), ("timestamps", 8)):
        size, pages = num * width // 1024, kib[f"{name}.npy"]
        assert pages["Rss"] >= size
        # This process has the same pages, so that half of them counts for each.
        assert pages["Private_Clean"] + pages["Private_Dirty"] == 0
        assert pages["Pss"] <= size * 0.6
