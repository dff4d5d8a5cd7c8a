"""Interactions in parts: no user is divided, and files hold what memory holds."""

import itertools

import hypothesis.strategies as st
import numpy as np
import polars as pl
from hypothesis import given, settings

from candid.data.parts import MemoryParts, StoredParts, local_ids, sort_rows, whole_users

lengths = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def rows_of(lengths):
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return pl.DataFrame({"user": users, "row": np.arange(len(users))})


def sort_files(files, schema):
    """Sort as an engine does: by user, the rows of a user as they are."""
    frame = pl.concat([pl.read_parquet(file) for file in files]).sort("user", maintain_order=True)
    yield from whole_users([frame], 3)


@settings(deadline=None, max_examples=40)
@given(lengths, st.lists(st.integers(0, 60)), st.integers(1, 9))
def test_whole_users_divides_no_user_and_keeps_all_rows(lengths, cuts, num_rows):
    rows = rows_of(lengths)
    bounds = sorted({0, rows.height, *(cut for cut in cuts if cut < rows.height)})
    batches = [rows[start:stop] for start, stop in itertools.pairwise(bounds)]
    parts = list(whole_users(batches, num_rows))
    assert [row for part in parts for row in part.rows()] == rows.rows()
    users = [set(part["user"]) for part in parts]
    assert sum(map(len, users)) == len(set().union(*users))
    longest = max(lengths, default=0)
    assert all(num_rows - longest <= part.height for part in parts[:-1])
    assert all(part.height for part in parts)


def test_stored_parts_hold_what_memory_holds(tmp_path):
    rows = rows_of([2, 0, 3, 1, 4])
    memory = MemoryParts(iter([rows]))
    (tmp_path / "parts").mkdir()
    stored = StoredParts(tmp_path / "parts", whole_users([rows], 2), sort_files)

    def check():
        assert stored.num_rows == memory.num_rows
        found = [row for frame in stored.frames() for row in frame.rows()]
        assert found == [row for frame in memory.frames() for row in frame.rows()]
        assert [frame.columns for frame in stored.frames("row")] == [["row"]] * len(
            list(stored.frames())
        )

    check()
    for parts in (memory, stored):
        parts.update(lambda frame: frame.with_columns(twice=pl.col("row") * 2))
    check()
    for parts in (memory, stored):  # the part of users 0 and 1 has no rows any more
        parts.update(lambda frame: frame.filter((pl.col("user") > 1) & (pl.col("row") != 4)))
    check()
    files = len(list((tmp_path / "parts").iterdir()))
    for parts in (memory, stored):
        parts.regroup(np.array([-1, -1, 7, 9, 8], dtype=np.int32))
    check()
    assert [frame["user"].to_list() for frame in memory.frames()] == [[7, 7, 8, 8, 8, 8, 9]]
    assert len(list((tmp_path / "parts").iterdir())) <= files  # the earlier files are removed
    for parts in (memory, stored):
        parts.update(lambda frame: frame.clear())
    check()
    assert list(stored.frames()) == list(memory.frames()) == []


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(-2, 2)), max_size=30))
def test_sort_rows_puts_empty_values_first_and_keeps_ties(rows):
    frame = pl.DataFrame(
        {
            "user": pl.Series([user for user, _ in rows], dtype=pl.Int32),
            "key": pl.Series([key for _, key in rows], dtype=pl.Int64),
            "row": range(len(rows)),
        }
    )
    found = sort_rows(frame, [pl.col("key")])["row"].to_list()
    expected = sorted(
        range(len(rows)), key=lambda i: (rows[i][0], rows[i][1] is not None, rows[i][1] or 0, i)
    )
    assert found == expected


def test_local_ids_start_at_zero():
    assert local_ids(np.array([5, 5, 7], dtype=np.int32)).tolist() == [0, 0, 2]
    assert local_ids(np.array([], dtype=np.int32)).tolist() == []
