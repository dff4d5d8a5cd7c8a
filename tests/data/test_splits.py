"""Splits against plain Python."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from candid.data import Role, splits

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=8)
TRAIN, HISTORY, VALIDATION, TEST = Role


@given(lengths)
def test_leave_one_out_holds_out_the_last_two_of_users_with_three(lengths):
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    expected = []
    for length in lengths:
        expected += [TRAIN] * length if length < 3 else [TRAIN] * (length - 2) + [VALIDATION, TEST]
    assert splits.leave_one_out(users).tolist() == expected


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(0, 25), st.integers(26, 50))
def test_temporal_cuts_belong_to_the_later_window(time, validation, test):
    roles = splits.temporal(np.array(time, dtype=np.int64), validation, test)
    expected = [TRAIN if t < validation else VALIDATION if t < test else TEST for t in time]
    assert roles.tolist() == expected


@given(st.lists(st.integers(-50, 50), min_size=1), st.floats(0.01, 0.99))
def test_quantile_time_has_at_most_its_share_before_the_cut(time, quantile):
    cut = splits.quantile_time(np.array(time, dtype=np.int64), quantile)
    assert sum(t < cut for t in time) <= quantile * len(time)
    assert sum(t <= cut for t in time) > quantile * len(time) - 1
    assert cut in time


@given(lengths, st.integers(1, 8), st.integers(0, 3))
def test_sample_validation_turns_other_users_into_history(lengths, size, seed):
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    before = splits.leave_one_out(users)
    after = splits.sample_validation(users, before, size, seed)
    validated = set(users[before == VALIDATION])
    sampled = set(users[after == VALIDATION])
    assert len(sampled) == min(size, len(validated))
    for user, old, new in zip(users, before, after, strict=True):
        moved = old == VALIDATION and user not in sampled
        assert new == (HISTORY if moved else old)
    assert np.array_equal(after, splits.sample_validation(users, before, size, seed))


rows = st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from(list(Role)))


@given(st.lists(rows, min_size=1, max_size=30))
def test_find_unseen_finds_targets_without_a_training_row(rows):
    users, items, roles = (np.array(column) for column in zip(*rows, strict=True))
    unseen = splits.find_unseen(
        users.astype(np.int32), items.astype(np.int32), roles.astype(np.uint8)
    )
    trained = [(u, i) for u, i, role in rows if role == TRAIN]
    targets = [role in (VALIDATION, TEST) for *_, role in rows]
    by_item = [t and i not in {i for _, i in trained} for t, i in zip(targets, items, strict=True)]
    by_user = [t and u not in {u for u, _ in trained} for t, u in zip(targets, users, strict=True)]
    assert unseen.item.tolist() == by_item
    assert unseen.user.tolist() == by_user
