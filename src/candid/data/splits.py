"""The role of every interaction: train, history, validation or test.

All functions take interactions grouped by user, earliest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from candid.data.dataset import Role

Roles = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def leave_k_out(users: Ids, k: int, targets: Mask | None = None) -> Roles:
    """Assign each user's last k interactions to test and the k before them to validation.

    Users with fewer than 2k + 1 interactions are train only. With k = 1 this is leave-one-out.

    Args:
        users: [E] int32, ascending.
        k: validation and test interactions of a user.
        targets: [E], interactions to assign and to count; the others become history. None: all.
    """
    if targets is not None:
        return _of_targets(leave_k_out(users[targets], k), targets)
    counts = np.bincount(users)[users]
    from_end = _from_end(users)
    is_held_out = (counts > 2 * k) & (from_end < 2 * k)
    return _by_condition(test=is_held_out & (from_end < k), validation=is_held_out)


def ratio(
    users: Ids, validation_ratio: float, test_ratio: float, targets: Mask | None = None
) -> Roles:
    """Assign the last share of each user's interactions to test, the share before to validation.

    Of n interactions, test has ``floor(n * test_ratio)`` and validation
    ``floor(n * validation_ratio)``. Where that is 0, the part has 1 if at least two interactions
    remain for training, test first: the rule of RecBole's ``RS`` split of each user in order of
    time. A ratio is read as a fraction with a denominator of at most 10^6, so that 0.29 of 100
    is 29.

    Args:
        users: [E] int32, ascending.
        validation_ratio: between 0 and 1.
        test_ratio: between 0 and 1; the sum is below 1.
        targets: [E], interactions to assign and to count; the others become history. None: all.
    """
    if targets is not None:
        assigned = ratio(users[targets], validation_ratio, test_ratio)
        return _of_targets(assigned, targets)
    counts = np.bincount(users).astype(np.int64)
    num_test = _share(counts, test_ratio)
    num_validation = _share(counts, validation_ratio)
    num_test += (num_test == 0) & (counts - num_validation >= 2)
    num_validation += (num_validation == 0) & (counts - num_test >= 2)
    from_end = _from_end(users)
    return _by_condition(
        test=from_end < num_test[users],
        validation=from_end < (num_test + num_validation)[users],
    )


def temporal(timestamps: npt.NDArray[np.int64], validation: int, test: int) -> Roles:
    """Assign train before ``validation``, validation before ``test``, and test from then on.

    Args:
        timestamps: [E] int64.
        validation: first time of validation.
        test: first time of test.
    """
    cuts = np.array([validation, test])
    window = np.searchsorted(cuts, timestamps, side="right")
    return np.array([Role.TRAIN, Role.VALIDATION, Role.TEST], dtype=np.uint8)[window]


def temporal_users(
    users: Ids,
    timestamps: npt.NDArray[np.int64],
    validation: int,
    test: int,
    targets: Mask | None = None,
) -> Roles:
    """Assign each user to the window of their last interaction.

    Users before ``validation`` train with all interactions. Of a user of a later window the last
    interaction is the target, and the earlier ones are history.

    Args:
        users: [E] int32, ascending.
        timestamps: [E] int64.
        validation: first time of validation.
        test: first time of test.
        targets: [E], interactions to assign; the others become history. None: all.
    """
    if targets is not None:
        assigned = temporal_users(users[targets], timestamps[targets], validation, test)
        return _of_targets(assigned, targets)
    is_last = _from_end(users) == 0
    by_user = np.zeros(int(users.max(initial=-1)) + 1, dtype=np.uint8)
    by_user[users[is_last]] = temporal(timestamps[is_last], validation, test)
    return _last_targets(users, by_user[users])


def quantile_time(
    times: Callable[[], Iterable[npt.NDArray[np.int64]]], num_rows: int, quantile: float
) -> int:
    """Return the time before which at most this share of the interactions lies.

    All interactions at exactly that time are after the cut.

    Args:
        times: returns the times of all interactions, in one or more parts; it is called four
            times.
        num_rows: number of interactions.
        quantile: between 0 and 1.
    """
    rank = min(int(quantile * num_rows), num_rows - 1)
    # Each pass finds 16 bits of the result, the highest first; numbers in the order of int64.
    sign = np.uint64(1 << 63)
    prefix = np.uint64(0)
    for shift in range(48, -16, -16):
        counts = np.zeros(1 << 16, dtype=np.int64)
        for part in times():
            keys = part.view(np.uint64) ^ sign
            if shift < 48:
                keys = keys[keys >> np.uint64(shift + 16) == prefix]
            digits = (keys >> np.uint64(shift)).astype(np.uint16)
            counts += np.bincount(digits, minlength=1 << 16)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[digit] - counts[digit])
        prefix = (prefix << np.uint64(16)) | np.uint64(digit)
    return int((prefix ^ sign).astype(np.int64))


def rolling_cuts(last: int, window: int, unit: int, folds: int, fold: int) -> tuple[int, int, int]:
    """Return the start of validation, the start of test and the end of test of a fold.

    The test window of the last fold ends with the unit that contains the last interaction; those
    of earlier folds end where the next one begins. The validation window is the one before the
    test window. Test windows are those of RecTools' ``TimeRangeSplitter``.

    Args:
        last: time of the last interaction, microseconds.
        window: length of a window, microseconds.
        unit: a day or an hour, microseconds.
        folds: number of folds.
        fold: from 0, the earliest.
    """
    end = (last // unit + 1) * unit - (folds - 1 - fold) * window
    return end - 2 * window, end - window, end


def cross_validation(
    users: Ids,
    folds: int,
    fold: int,
    seed: int,
    *,
    by_user: bool,
    targets: Mask | None = None,
) -> Roles:
    """Assign users or interactions to parts of equal size at random; one is test, one validation.

    Part ``fold`` is test, part ``(fold + 1) % folds`` validation, the others train: each
    interaction, or user, is in test in exactly one fold.

    Args:
        users: [E] int32, ascending.
        folds: number of parts, at least 3.
        fold: from 0.
        seed: of the parts, the same for all folds.
        by_user: deal users: the last interaction of a user of the test or validation part is the
            target, and the earlier ones are history (strong generalization). False: deal
            interactions.
        targets: [E], interactions to assign; the others become history. None: all.
    """
    part = deal(count_units(users, by_user=by_user, targets=targets), folds, seed)
    return roles_of_folds(users, part, folds, fold, by_user=by_user, targets=targets)


def count_units(users: Ids, *, by_user: bool, targets: Mask | None = None) -> int:
    """Count what a cross-validation deals: users with an interaction to assign, or these.

    The arguments are those of ``cross_validation``.
    """
    if targets is not None:
        users = users[targets]
    return int(np.count_nonzero(np.diff(users, prepend=-1))) if by_user else len(users)


def deal(num_units: int, folds: int, seed: int) -> npt.NDArray[np.unsignedinteger]:
    """Return the part of each unit of a cross-validation: [num_units], from 0.

    They take one byte for each unit with at most 256 folds.
    """
    parts = np.arange(folds, dtype=np.min_scalar_type(folds - 1))
    parts = np.tile(parts, -(-num_units // folds))[:num_units]
    # As the numbers of the units, shuffled, modulo folds.
    np.random.default_rng(seed).shuffle(parts)
    return parts


def roles_of_folds(
    users: Ids,
    part: npt.NDArray[np.unsignedinteger],
    folds: int,
    fold: int,
    *,
    by_user: bool,
    targets: Mask | None = None,
) -> Roles:
    """Assign the roles of a cross-validation whose units are dealt.

    Args:
        users: [E] int32, ascending.
        part: part of each unit of these interactions, in their order (``count_units``).
        folds: as for ``cross_validation``, like the further arguments.
        fold: likewise.
        by_user: likewise.
        targets: likewise.
    """
    if targets is not None:
        assigned = roles_of_folds(users[targets], part, folds, fold, by_user=by_user)
        return _of_targets(assigned, targets)
    if by_user:
        part = part[np.cumsum(np.diff(users, prepend=users[:1]) > 0)]
    is_test, is_validation = part == fold, part == (fold + 1) % folds
    if not by_user:
        return _by_condition(test=is_test, validation=is_validation)
    return _last_targets(users, _by_condition(test=is_test, validation=is_validation))


def sample_users(candidates: Ids, size: int, seed: int) -> Ids:
    """Return ``size`` random users of ``candidates``, which are distinct and ascending.

    All of them where there are no more than that.
    """
    if size >= len(candidates):
        return candidates
    return np.random.default_rng(seed).choice(candidates, size, replace=False)


def keep_validation(users: Ids, roles: Roles, is_validated: Mask) -> Roles:
    """Keep the validation targets of some users; those of the others become history.

    Args:
        users: [E].
        roles: [E].
        is_validated: by user, whether its validation targets stay.
    """
    is_other = (roles == Role.VALIDATION) & ~is_validated[users]
    return np.where(is_other, np.uint8(Role.HISTORY), roles)


def _from_end(users: Ids) -> npt.NDArray[np.int64]:
    """Return the number of later interactions of the same user: [E]."""
    return np.cumsum(np.bincount(users))[users] - 1 - np.arange(len(users))


def _last_targets(users: Ids, roles: Roles) -> Roles:
    """Keep the role of each user's last interaction; earlier ones of a target become history.

    Args:
        users: [E].
        roles: [E], the same for all interactions of a user: train, validation or test.
    """
    is_earlier = (roles != Role.TRAIN) & (_from_end(users) > 0)
    return np.where(is_earlier, np.uint8(Role.HISTORY), roles)


def _share(counts: npt.NDArray[np.int64], ratio: float) -> npt.NDArray[np.int64]:
    """Return ``floor(counts * ratio)`` in whole numbers, as 0.29 * 100 in floats is below 29."""
    fraction = Fraction(ratio).limit_denominator(1_000_000)
    return counts * fraction.numerator // fraction.denominator


def _by_condition(*, test: Mask, validation: Mask) -> Roles:
    """Return test where ``test``, else validation where ``validation``, else train."""
    roles = np.full(len(test), Role.TRAIN, dtype=np.uint8)
    roles[validation] = Role.VALIDATION
    roles[test] = Role.TEST
    return roles


def _of_targets(assigned: Roles, targets: Mask) -> Roles:
    """Return the roles of all interactions: ``assigned`` at ``targets``, elsewhere history."""
    roles = np.full(len(targets), Role.HISTORY, dtype=np.uint8)
    roles[targets] = assigned
    return roles
