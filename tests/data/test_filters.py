import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from candid.data import filters

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def brute_force_core(rows, user_core, item_core):
    """Remove one row below the core at a time."""
    remaining = list(range(len(rows)))
    while True:
        for position in remaining:
            user, item = rows[position]
            if (
                sum(rows[other][0] == user for other in remaining) < user_core
                or sum(rows[other][1] == item for other in remaining) < item_core
            ):
                remaining.remove(position)
                break
        else:
            return set(remaining)


def core_rows(rows, user_core, item_core, cut=0):
    """Return the rows of the k-core of ``rows``, given to it in two parts."""
    users, items = np.array(rows, dtype=np.int32).T
    parts = [(users[:cut], items[:cut]), (users[cut:], items[cut:])]
    is_user, is_item = filters.k_core(lambda: parts, 20, 30, user_core, item_core)
    return set(np.flatnonzero(is_user[users] & is_item[items]))


@given(pairs, st.integers(0, 4), st.integers(0, 4), st.integers(0, 60))
def test_k_core_equals_removing_one_row_at_a_time(rows, user_core, item_core, cut):
    expected = brute_force_core(rows, user_core, item_core)
    assert core_rows(rows, user_core, item_core, cut) == expected


def test_k_core_takes_several_rounds():
    # Without item 9, user 2 is below the core, then item 1, and so on until no row remains.
    rows = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 9)]
    assert core_rows(rows, 2, 2) == {0, 1, 2, 3}


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))),
    st.booleans(),
    st.sampled_from(["first", "last"]),
)
def test_without_repetitions_keeps_one_row_of_each_pair(rows, has_types, keep):
    users, items, types = np.array(rows, dtype=np.int32).reshape(-1, 3).T
    event_types = types.astype(np.uint8) if has_types else None
    mask = filters.without_repetitions(users, items, event_types, keep)
    keys = [row if has_types else row[:2] for row in rows]
    numbered = list(enumerate(keys))
    kept = {key: row for row, key in (numbered[::-1] if keep == "first" else numbered)}
    assert np.flatnonzero(mask).tolist() == sorted(kept.values())


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_compact_keeps_order_without_gaps(values):
    ids, old = filters.compact(np.array(values, dtype=np.int32))
    assert old.tolist() == sorted(set(values))
    assert [sorted(set(values))[i] for i in ids] == values
