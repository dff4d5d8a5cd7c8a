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


@given(pairs, st.integers(0, 4), st.integers(0, 4))
def test_k_core_equals_removing_one_row_at_a_time(rows, user_core, item_core):
    users, items = np.array(rows, dtype=np.int32).T
    mask = filters.k_core(users, items, user_core, item_core)
    assert set(np.flatnonzero(mask)) == brute_force_core(rows, user_core, item_core)


def test_k_core_takes_several_rounds():
    # Without item 9, user 2 is below the core, then item 1, and so on until no row remains.
    rows = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 9)]
    users, items = np.array(rows, dtype=np.int32).T
    mask = filters.k_core(users, items, 2, 2)
    assert mask.tolist() == [True] * 4 + [False] * 2


@given(pairs, st.integers(0, 5))
def test_min_history_counts_each_user_once(rows, least):
    users = np.array(rows, dtype=np.int32)[:, 0]
    expected = [sum(other == user for other, _ in rows) >= least for user, _ in rows]
    assert filters.min_history(users, least).tolist() == expected


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_compact_keeps_order_without_gaps(values):
    ids, old = filters.compact(np.array(values, dtype=np.int32))
    assert old.tolist() == sorted(set(values))
    assert [sorted(set(values))[i] for i in ids] == values
