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
    assert splits.leave_k_out(users, 1).tolist() == expected


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(0, 25), st.integers(26, 50))
def test_temporal_cuts_belong_to_the_later_window(time, validation, test):
    roles = splits.temporal(np.array(time, dtype=np.int64), validation, test)
    expected = [TRAIN if t < validation else VALIDATION if t < test else TEST for t in time]
    assert roles.tolist() == expected


timed_users = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=5).map(sorted),
    min_size=1,
    max_size=6,
)


@given(timed_users, st.booleans(), st.integers(0, 25), st.integers(26, 50))
def test_users_belong_to_the_window_of_their_last_target(log, has_targets, validation, test):
    users = np.repeat(np.arange(len(log), dtype=np.int32), [len(one) for one in log])
    rows = [row for one in log for row in one]
    times, is_target = (np.array(column) for column in zip(*rows, strict=True))
    targets = is_target if has_targets else None
    expected = []
    for one in log:
        chosen = [not has_targets or is_chosen for _, is_chosen in one]
        last = max((row for row, is_chosen in enumerate(chosen) if is_chosen), default=0)
        time = one[last][0]
        role = TRAIN if time < validation else VALIDATION if time < test else TEST
        expected += [
            HISTORY if not is_chosen or (role != TRAIN and row < last) else role
            for row, is_chosen in enumerate(chosen)
        ]
    roles = splits.temporal_users(users, times.astype(np.int64), validation, test, targets)
    assert roles.tolist() == expected
    assert roles.dtype == np.uint8


wide_times = st.integers(-(2**63), 2**63 - 1) | st.integers(-50, 50)


@given(st.lists(wide_times, min_size=1), st.floats(0.01, 0.99), st.integers(0, 10))
def test_quantile_time_has_at_most_its_share_before_the_cut(time, quantile, stop):
    parts = [np.array(part, dtype=np.int64) for part in (time[:stop], time[stop:])]
    cut = splits.quantile_time(lambda: parts, len(time), quantile)
    assert sum(t < cut for t in time) <= quantile * len(time)
    assert sum(t <= cut for t in time) > quantile * len(time) - 1
    assert cut in time


def sampled_validation(users, roles, size, seed):
    candidates = np.unique(users[roles == VALIDATION])
    is_sampled = np.zeros(users.max() + 1, dtype=np.bool_)
    is_sampled[splits.sample_users(candidates, size, seed)] = True
    return splits.keep_validation(users, roles, is_sampled)


@given(lengths, st.integers(1, 8), st.integers(0, 3))
def test_sample_of_validation_users_turns_the_others_into_history(lengths, size, seed):
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    before = splits.leave_k_out(users, 1)
    after = sampled_validation(users, before, size, seed)
    validated = set(users[before == VALIDATION])
    sampled = set(users[after == VALIDATION])
    assert len(sampled) == min(size, len(validated))
    for user, old, new in zip(users, before, after, strict=True):
        moved = old == VALIDATION and user not in sampled
        assert new == (HISTORY if moved else old)
    assert np.array_equal(after, sampled_validation(users, before, size, seed))


def by_user(users, assign):
    """Apply a plain function (list of positions of one user) -> roles to every user."""
    roles = [None] * len(users)
    for user in sorted(set(users)):
        positions = [index for index, owner in enumerate(users) if owner == user]
        for position, role in zip(positions, assign(len(positions)), strict=True):
            roles[position] = role
    return roles


def with_history(users, is_target, assign):
    """As ``by_user`` over the targets alone; the others are history."""
    kept = [user for user, target in zip(users, is_target, strict=True) if target]
    assigned = iter(by_user(kept, assign))
    return [next(assigned) if target else HISTORY for target in is_target]


# Users and whether each interaction is a target.
logs = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60).map(sorted)


@given(logs, st.integers(1, 4))
def test_leave_k_out_holds_out_the_last_2k_targets_of_long_users(log, k):
    users, is_target = (list(column) for column in zip(*log, strict=True))

    def assign(length):
        if length < 2 * k + 1:
            return [TRAIN] * length
        return [TRAIN] * (length - 2 * k) + [VALIDATION] * k + [TEST] * k

    array = np.array(users, dtype=np.int32)
    assert splits.leave_k_out(array, k).tolist() == by_user(users, assign)
    if any(is_target):
        roles = splits.leave_k_out(array, k, np.array(is_target))
        assert roles.tolist() == with_history(users, is_target, assign)


percents = st.tuples(st.integers(1, 98), st.integers(1, 98)).filter(lambda pair: sum(pair) < 100)


@given(logs, percents)
def test_ratio_rounds_down_and_holds_out_one_where_two_remain(log, percents):
    users, is_target = (list(column) for column in zip(*log, strict=True))

    def assign(length):
        validation, test = (length * percent // 100 for percent in percents)
        if test == 0 and length - validation > 1:
            test = 1
        if validation == 0 and length - test > 1:
            validation = 1
        return [TRAIN] * (length - validation - test) + [VALIDATION] * validation + [TEST] * test

    array = np.array(users, dtype=np.int32)
    shares = [percent / 100 for percent in percents]
    assert splits.ratio(array, *shares).tolist() == by_user(users, assign)
    if any(is_target):
        roles = splits.ratio(array, *shares, np.array(is_target))
        assert roles.tolist() == with_history(users, is_target, assign)


def test_ratio_of_a_long_user_has_no_rounding_error():
    users = np.zeros(100, dtype=np.int32)
    assert 0.29 * 100 < 29  # as a float
    roles = splits.ratio(users, 0.29, 0.58)
    assert np.bincount(roles, minlength=4).tolist() == [13, 0, 29, 58]


HOUR, DAY = 3_600_000_000, 86_400_000_000


@given(
    st.integers(-(10**16), 10**16),
    st.integers(1, 50),
    st.sampled_from([HOUR, DAY]),
    st.integers(1, 9),
)
def test_rolling_cuts_tile_the_time_up_to_the_last_unit(last, length, unit, folds):
    window = length * unit
    cuts = [splits.rolling_cuts(last, window, unit, folds, fold) for fold in range(folds)]
    end = cuts[-1][2]
    assert end % unit == 0
    assert last < end <= last + unit
    for validation, test, stop in cuts:
        assert (test - validation, stop - test) == (window, window)
    assert [stop for _, _, stop in cuts[:-1]] == [test for _, test, _ in cuts[1:]]


@given(logs, st.integers(3, 6), st.integers(0, 3))
def test_cross_validation_of_interactions_tests_each_target_once(log, folds, seed):
    users, is_target = (np.array(column) for column in zip(*log, strict=True))
    users = users.astype(np.int32)
    targets = None if is_target.all() or not is_target.any() else is_target
    roles = [
        splits.cross_validation(users, folds, fold, seed, by_user=False, targets=targets).tolist()
        for fold in range(folds)
    ]
    for row in range(len(users)):
        seen = [roles[fold][row] for fold in range(folds)]
        if targets is not None and not targets[row]:
            assert seen == [HISTORY] * folds
            continue
        [tested] = [fold for fold in range(folds) if seen[fold] == TEST]
        expected = [TRAIN] * folds
        expected[tested], expected[tested - 1] = TEST, VALIDATION
        assert seen == expected
    sizes = [fold.count(TEST) for fold in roles]
    assert max(sizes) - min(sizes) <= 1


@given(logs, st.integers(3, 6), st.integers(0, 3))
def test_cross_validation_of_users_tests_the_last_target_of_each_user_once(log, folds, seed):
    users, is_target = (np.array(column) for column in zip(*log, strict=True))
    users = users.astype(np.int32)
    targets = None if is_target.all() or not is_target.any() else is_target
    mask = np.ones(len(users), dtype=bool) if targets is None else targets
    tested = {}
    for fold in range(folds):
        roles = splits.cross_validation(users, folds, fold, seed, by_user=True, targets=targets)
        assert set(roles[~mask]) <= {HISTORY}
        for user in set(users[mask]):
            mine = roles[mask & (users == user)].tolist()
            if TEST in mine:
                tested.setdefault(user, []).append(fold)
            if TRAIN in mine:
                assert set(mine) == {TRAIN}
            else:
                assert mine[:-1] == [HISTORY] * (len(mine) - 1)
                assert mine[-1] in (VALIDATION, TEST)
    assert {user: len(found) for user, found in tested.items()} == dict.fromkeys(users[mask], 1)
    sizes = [sum(found == [fold] for found in tested.values()) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 1


def test_units_of_a_cross_validation_are_dealt_as_by_a_permutation_of_their_numbers():
    for num_units, folds, seed in [(1, 3, 0), (10, 3, 1), (1000, 7, 2), (600, 300, 3)]:
        expected = np.random.default_rng(seed).permutation(num_units) % folds
        dealt = splits.deal(num_units, folds, seed)
        np.testing.assert_array_equal(dealt, expected)
        assert dealt.dtype == (np.uint8 if folds <= 256 else np.uint16)


def test_cross_validation_deals_by_the_seed():
    users = np.repeat(np.arange(40, dtype=np.int32), 3)
    for by_user in (True, False):
        first, again, other = (
            splits.cross_validation(users, 4, 1, seed, by_user=by_user) for seed in (0, 0, 1)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
