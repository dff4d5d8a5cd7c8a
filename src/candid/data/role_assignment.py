"""Assignment of roles: the split of a config, applied to interactions, checked and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import splits, times
from candid.data.config import DataConfig
from candid.data.dataset import Role
from candid.data.event_types import is_target
from candid.data.events import Events
from candid.data.parts import local_ids
from candid.data.split_config import SplitConfig
from candid.data.user_steps import keep_order
from candid.errors import ConfigError, DataError

Roles = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_UNSEEN_COUNTS: Final = (
    "targets",
    "targets_of_unseen_items",
    "unseen_items",
    "targets_of_unseen_users",
    "unseen_users",
)


def assign_roles(events: Events, config: DataConfig) -> dict[str, Any]:
    """Assign a role to every interaction and apply ``split.unseen``.

    Interactions after the test window of a rolling split are dropped. The interactions of each
    user of a cross-validation of interactions are reordered: training and history, then
    validation, then test.

    Args:
        events: changed in place.
        config: its split is applied.

    Returns:
        the entry ``split`` of the manifest: the kind, the cuts in time or the fold, and the
        numbers of unseen targets.

    Raises:
        ConfigError: cuts that do not fit each other or the times of the interactions.
        DataError: a part that must have interactions has none, or ``split.unseen`` refuses.
    """
    _check_size(events, config)
    entry: dict[str, Any] = {"kind": config.split.kind}
    entry |= _set_roles(events, config)
    if config.split.validation_users is not None:
        _sample_validation(events, config.split.validation_users, config.split.seed)
    _check_roles(events, config)
    entry["unseen"] = _apply_unseen(events, config)
    _check_roles(events, config)
    _check_size(events, config)
    return entry


def iso_time(microseconds: int) -> str:
    """Return a time as ISO 8601 text in UTC."""
    return str(np.datetime64(microseconds, "us")) + "Z"


def _set_roles(events: Events, config: DataConfig) -> dict[str, Any]:
    """Set the column ``role`` and return what the manifest has of this kind of split."""
    split = config.split
    entry: dict[str, Any] = {}
    if split.needs_time:
        validation, test, entry = _windows(events, split)
    elif split.kind == "cross-validation":
        roles_of_next = _folds(events, config)
        entry = {"fold": split.fold, "folds": split.folds, "unit": split.unit}
    elif split.kind == "column":
        entry = {"out_of_order": events.out_of_order}

    def role_of(frame: pl.DataFrame) -> Roles:
        users, targets = local_ids(frame["user"].to_numpy()), _targets(frame, events, config)
        match split.kind:
            case "column":
                roles = frame["role"].to_numpy()
            case "temporal" | "rolling" if split.holds_out_users:
                time = frame["time"].to_numpy()
                roles = splits.temporal_users(users, time, validation, test, targets)
            case "temporal" | "rolling":
                roles = splits.temporal(frame["time"].to_numpy(), validation, test)
            case "cross-validation":
                roles = roles_of_next(users, targets)
            case "ratio":
                roles = splits.ratio(users, split.validation_ratio, split.test_ratio, targets)
            case "none":
                roles = np.full(len(users), Role.TRAIN, dtype=np.uint8)
            case _:
                roles = splits.leave_k_out(users, split.k or 1, targets)
        return roles if targets is None else np.where(targets, roles, np.uint8(Role.HISTORY))

    events.set_role(role_of)
    if split.kind == "cross-validation" and split.unit == "interaction":
        # Histories end before the first target, so training must come first for each user.
        rank = pl.col("role").clip(lower_bound=int(Role.HISTORY))
        events.parts.update(lambda frame: keep_order(frame).sort("user", rank, maintain_order=True))
    return entry


def _targets(frame: pl.DataFrame, events: Events, config: DataConfig) -> Mask | None:
    """Return the interactions of target event types: [E], None if all are."""
    if not events.event_types:
        return None
    return is_target(frame["event_type"].to_numpy(), events.event_types, config)


def _windows(events: Events, split: SplitConfig) -> tuple[int, int, dict[str, Any]]:
    """Return the start of validation and of test, and the entries of the manifest.

    Interactions after the test window of a rolling split are dropped.
    """
    if split.kind == "temporal":
        validation, test = _cuts(split, events)
    else:
        validation, test, end = _rolling_cuts(split, events)
        events.filter("after_test", lambda frame: frame["time"].to_numpy() < end)
    starts = {"validation_from": iso_time(validation), "test_from": iso_time(test)}
    starts["unit"] = split.unit
    if split.kind == "temporal":
        return validation, test, starts
    folds = {"fold": split.fold, "folds": split.folds}
    return validation, test, {**folds, **starts, "test_until": iso_time(end)}


def _folds(events: Events, config: DataConfig) -> Callable[[Ids, Mask | None], Roles]:
    """Deal the units of a cross-validation; return the roles of the parts, in their order."""
    split, by_user = config.split, config.split.unit == "user"
    columns = ("user", "event_type") if events.event_types else ("user",)
    num_units = num_targets = 0
    for frame in events.parts.frames(*columns):
        targets = _targets(frame, events, config)
        users = frame["user"].to_numpy()
        num_targets += len(users) if targets is None else int(targets.sum())
        num_units += splits.count_units(users, by_user=by_user, targets=targets)
    _check_folds(split, num_targets, events)
    dealt = splits.deal(num_units, split.folds, split.seed)
    start = 0

    def roles_of_next(users: Ids, targets: Mask | None) -> Roles:
        nonlocal start
        part = dealt[start:][: splits.count_units(users, by_user=by_user, targets=targets)]
        start += len(part)
        return splits.roles_of_folds(
            users, part, split.folds, split.fold, by_user=by_user, targets=targets
        )

    return roles_of_next


def _sample_validation(events: Events, size: int, seed: int) -> None:
    """Validate on ``size`` random users; the validation targets of the others become history."""
    is_candidate = np.zeros(len(events.users), dtype=np.bool_)
    for frame in events.parts.frames("user", "role"):
        is_candidate[frame["user"].to_numpy()[frame["role"].to_numpy() == Role.VALIDATION]] = True
    candidates = np.flatnonzero(is_candidate).astype(np.int32)
    is_sampled = np.zeros(len(events.users), dtype=np.bool_)
    is_sampled[splits.sample_users(candidates, size, seed)] = True
    events.set_role(
        lambda frame: splits.keep_validation(
            frame["user"].to_numpy(), frame["role"].to_numpy(), is_sampled
        )
    )


def _times(events: Events) -> Iterator[npt.NDArray[np.int64]]:
    return (frame["time"].to_numpy() for frame in events.parts.frames("time"))


def time_range(events: Events) -> tuple[int, int]:
    """Return the times of the first and of the last interaction."""
    ranges = np.array([(time.min(), time.max()) for time in _times(events)])
    return int(ranges[:, 0].min()), int(ranges[:, 1].max())


def _cuts(split: SplitConfig, events: Events) -> tuple[int, int]:
    time_unit, cuts = events.time_unit, []
    for cut in (split.validation, split.test):
        if _is_quantile(cut):
            num_rows = events.parts.num_rows
            cuts.append(splits.quantile_time(lambda: _times(events), num_rows, float(cut)))
        else:
            cuts.append(times.parse_cut(cut, time_unit))
    if cuts[0] >= cuts[1]:
        raise ConfigError(
            f"split.validation ({iso_time(cuts[0])}) must be before split.test "
            f"({iso_time(cuts[1])})"
        )
    first, last = time_range(events)
    if cuts[0] <= first and not _is_quantile(split.validation):
        raise ConfigError(
            f"split.validation ({iso_time(cuts[0])}) is not after the first interaction "
            f"({iso_time(first)}), so there is nothing to train on; choose a later cut"
            f"{_unit_advice(split.validation, time_unit)}"
        )
    if cuts[1] > last:
        raise ConfigError(
            f"split.test ({iso_time(cuts[1])}) is after the last interaction ({iso_time(last)}), "
            "so there is nothing to test on; choose an earlier cut"
            f"{_unit_advice(split.test, time_unit)}"
        )
    return cuts[0], cuts[1]


def _is_quantile(cut: int | float | str) -> bool:
    return isinstance(cut, float) and 0 < cut < 1


def _unit_advice(cut: int | float | str, time_unit: str | None) -> str:
    """Return how to write a cut that was a number, perhaps in another unit."""
    if isinstance(cut, str):
        return ""
    unit = "" if time_unit is None else f" in {time_unit}, as the times of the data"
    return f"{unit}, or an ISO date such as '2015-06-01'"


def _rolling_cuts(split: SplitConfig, events: Events) -> tuple[int, int, int]:
    first, last = time_range(events)
    window, unit = split.window_and_unit
    earliest, _, _ = splits.rolling_cuts(last, window, unit, split.folds, 0)
    if earliest <= first:
        raise ConfigError(
            f"{split.folds} folds of {split.window} and the validation window before them start "
            f"at {iso_time(earliest)}, which leaves nothing to train on: the first interaction of "
            f"{events.origin} is at {iso_time(first)}; use fewer split.folds or a shorter "
            "split.window"
        )
    return splits.rolling_cuts(last, window, unit, split.folds, split.fold)


def _check_folds(split: SplitConfig, num_targets: int, events: Events) -> None:
    """Refuse more folds than there are users, or interactions, to deal."""
    num_units = int((events.user_counts > 0).sum()) if split.unit == "user" else num_targets
    if split.folds > num_units:
        raise ConfigError(
            f"split.folds = {split.folds} exceeds the {num_units:,} {split.unit}s of "
            f"{events.origin} that are dealt to folds; use fewer split.folds"
        )


def _check_roles(events: Events, config: DataConfig) -> None:
    kind = config.split.kind
    counts, max_weight = np.zeros(len(Role), dtype=np.int64), 0.0
    has_weight = "weight" in events.columns
    for frame in events.parts.frames("role", *(["weight"] if has_weight else [])):
        roles = frame["role"].to_numpy()
        counts += np.bincount(roles, minlength=len(Role))
        if has_weight:
            trained = frame["weight"].to_numpy()[roles == Role.TRAIN]
            max_weight = max(max_weight, float(trained.max(initial=0.0)))
    if not counts[Role.TRAIN]:
        remedy = "change the split"
        if config.split.needs_time and config.split.holds_out_users:
            remedy = (
                "no user has the last interaction before the validation window; choose later "
                'windows, or split.unit = "interaction"'
            )
        raise DataError(
            f"the {kind} split of {config.origin} has no training interaction; {remedy}"
        )
    if has_weight and max_weight == 0:
        raise DataError(
            f"{f'column {config.weight!r}' if config.weight else 'the weight of event_types'} "
            f"of {config.origin} is 0 in every training interaction; set some above 0"
        )
    if kind == "none":
        return
    if kind == "rolling":
        for role in (Role.VALIDATION, Role.TEST):
            if not counts[role]:
                raise DataError(
                    f"the {role.name.lower()} window of fold {config.split.fold} of the rolling "
                    f"split of {config.origin} has no interaction; use a longer split.window"
                )
    if not counts[Role.VALIDATION] and not counts[Role.TEST]:
        raise DataError(
            f"the {kind} split of {config.origin} has no validation or test interaction; "
            f"{_remedy(config.split)}"
        )


def _remedy(split: SplitConfig) -> str:
    if split.kind == "leave-one-out":
        return "it needs a user with three interactions; add interactions or choose another split"
    if split.kind == "leave-k-out":
        assert split.k is not None
        return f"it needs a user with {2 * split.k + 1} interactions; lower split.k = {split.k}"
    return "change the split"


class _Unseen:
    """Validation and test targets without training interactions of their item or user."""

    def __init__(self, events: Events) -> None:
        self._is_trained_user = np.zeros(len(events.users), dtype=np.bool_)
        self._is_trained_item = np.zeros(len(events.items), dtype=np.bool_)
        for frame in events.parts.frames("user", "item", "role"):
            is_trained = frame["role"].to_numpy() == Role.TRAIN
            self._is_trained_user[frame["user"].to_numpy()[is_trained]] = True
            self._is_trained_item[frame["item"].to_numpy()[is_trained]] = True

    def find(self, frame: pl.DataFrame) -> tuple[Mask, Mask]:
        """Return the targets with an unseen item, and those with an unseen user: [E] each."""
        is_target = frame["role"].to_numpy() >= Role.VALIDATION
        by_item = is_target & ~self._is_trained_item[frame["item"].to_numpy()]
        return by_item, is_target & ~self._is_trained_user[frame["user"].to_numpy()]


def _apply_unseen(events: Events, config: DataConfig) -> dict[str, dict[str, int]]:
    unseen = _Unseen(events)

    def is_unseen(frame: pl.DataFrame) -> Mask:
        by_item, by_user = unseen.find(frame)
        # Users of the held-out parts or windows are never trained on, by design.
        return by_item if config.split.holds_out_users else by_item | by_user

    report = {role: dict.fromkeys(_UNSEEN_COUNTS, 0) for role in (Role.VALIDATION, Role.TEST)}
    items = {role: np.zeros(len(events.items), dtype=np.bool_) for role in report}
    num_unseen, example = 0, None
    for frame in events.parts.frames("user", "item", "role"):
        roles, by_item_or_user = frame["role"].to_numpy(), unseen.find(frame)
        for role, counts in report.items():
            is_role = roles == role
            by_item, by_user = (mask & is_role for mask in by_item_or_user)
            counts["targets"] += int(is_role.sum())
            counts["targets_of_unseen_items"] += int(by_item.sum())
            items[role][frame["item"].to_numpy()[by_item]] = True
            counts["targets_of_unseen_users"] += int(by_user.sum())
            counts["unseen_users"] += len(np.unique(frame["user"].to_numpy()[by_user]))
        mask = is_unseen(frame)
        num_unseen += int(mask.sum())
        if example is None and mask.any():
            example = frame.row(int(np.argmax(mask)), named=True)
    for role, counts in report.items():
        counts["unseen_items"] = int(items[role].sum())
        all_unseen = 0 < counts["targets"] == counts["targets_of_unseen_items"]
        if all_unseen and config.split.unseen == "drop":
            raise DataError(
                f"all {counts['targets']:,} {role.name.lower()} targets of {config.origin} "
                "are items without training interactions; change the split or the item ids, or, "
                'for an item tower that reads attributes, set split.unseen = "keep" and '
                'evaluation.catalog = "cold"'
            )
    if example is not None and config.split.unseen == "error":
        raise DataError(
            f"{num_unseen:,} held-out interactions of {config.origin} have an item "
            f"or user without training interactions, such as item "
            f"{events.items[example['item']]!r} of user {events.users[example['user']]!r}; set "
            "split.unseen to keep or drop"
        )
    if config.split.unseen == "drop":
        events.filter("unseen", lambda frame: ~is_unseen(frame))
    return {role.name.lower(): counts for role, counts in report.items()}


def _check_size(events: Events, config: DataConfig) -> None:
    for name, source_ids, counts in (
        ("user", events.users, events.user_counts),
        ("item", events.items, events.item_counts),
    ):
        present = np.flatnonzero(counts)
        if len(present) < 2:
            raise DataError(
                f"{config.origin} has only one {name} after filtering "
                f"({source_ids[int(present[0])]!r}), but training needs "
                f"two; check that {getattr(config, name)!r} is the right column"
            )
