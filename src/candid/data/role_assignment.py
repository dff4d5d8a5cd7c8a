"""Assignment of roles: the split of a config, applied to interactions, checked and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import splits, times
from candid.data.config import DataConfig
from candid.data.dataset import Role
from candid.data.event_types import is_target
from candid.data.events import Events
from candid.data.split_config import SplitConfig
from candid.errors import ConfigError, DataError

Roles = npt.NDArray[np.uint8]


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
        roles = splits.sample_validation(
            events.ids("user"),
            events.frame["role"].to_numpy(),
            config.split.validation_users,
            config.split.seed,
        )
        events.frame = events.frame.with_columns(pl.Series("role", roles, dtype=pl.UInt8))
    _check_roles(events, config)
    entry["unseen"] = _apply_unseen(events, config)
    _check_roles(events, config)
    _check_size(events, config)
    return entry


def iso_time(microseconds: int) -> str:
    """Return a time as ISO 8601 text in UTC."""
    return str(np.datetime64(microseconds, "us")) + "Z"


def _set_roles(events: Events, config: DataConfig) -> dict[str, Any]:
    """Add the column ``role`` and return what the manifest has of this kind of split."""
    split = config.split
    entry: dict[str, Any] = {}
    if split.kind == "rolling":
        validation, test, end = _rolling_cuts(split, events)
        events.filter("after_test", events.frame["time"].to_numpy() < end)
    users, targets = events.ids("user"), _targets(events, config)
    match split.kind:
        case "column":
            roles = events.frame["role"].to_numpy()
            entry["out_of_order"] = events.out_of_order
        case "temporal":
            time = events.frame["time"].to_numpy()
            validation, test = _cuts(split, time, events.time_unit)
            roles = splits.temporal(time, validation, test)
            entry |= {"validation_from": iso_time(validation), "test_from": iso_time(test)}
        case "rolling":
            roles = splits.temporal(events.frame["time"].to_numpy(), validation, test)
            entry |= {"fold": split.fold, "folds": split.folds}
            entry |= {"validation_from": iso_time(validation), "test_from": iso_time(test)}
            entry["test_until"] = iso_time(end)
        case "cross-validation":
            _check_folds(split, len(users) if targets is None else int(targets.sum()), events)
            roles = splits.cross_validation(
                users,
                split.folds,
                split.fold,
                split.seed,
                by_user=split.unit == "user",
                targets=targets,
            )
            entry |= {"fold": split.fold, "folds": split.folds, "unit": split.unit}
        case "ratio":
            roles = splits.ratio(users, split.validation_ratio, split.test_ratio, targets)
        case "none":
            roles = np.full(len(users), Role.TRAIN, dtype=np.uint8)
        case _:
            roles = splits.leave_k_out(users, split.k or 1, targets)
    if targets is not None:
        roles = np.where(targets, roles, np.uint8(Role.HISTORY))
    events.frame = events.frame.with_columns(pl.Series("role", roles, dtype=pl.UInt8))
    if split.kind == "cross-validation" and split.unit == "interaction":
        # Histories end before the first target, so training must come first for each user.
        events.keep_order()
        rank = pl.col("role").clip(lower_bound=int(Role.HISTORY))
        events.frame = events.frame.sort("user", rank, maintain_order=True)
    return entry


def _targets(events: Events, config: DataConfig) -> npt.NDArray[np.bool_] | None:
    """Return the interactions of target event types: [E], None if all are."""
    if not events.event_types:
        return None
    return is_target(events.frame["event_type"].to_numpy(), events.event_types, config)


def _cuts(
    split: SplitConfig, time: npt.NDArray[np.int64], time_unit: str | None
) -> tuple[int, int]:
    cuts = []
    for cut in (split.validation, split.test):
        if _is_quantile(cut):
            cuts.append(splits.quantile_time(time, float(cut)))
        else:
            cuts.append(times.parse_cut(cut, time_unit))
    if cuts[0] >= cuts[1]:
        raise ConfigError(
            f"split.validation ({iso_time(cuts[0])}) must be before split.test "
            f"({iso_time(cuts[1])})"
        )
    first, last = int(time.min()), int(time.max())
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
    time = events.frame["time"].to_numpy()
    first, last = int(time.min()), int(time.max())
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
    num_units = len(events.users) if split.unit == "user" else num_targets
    if split.folds > num_units:
        raise ConfigError(
            f"split.folds = {split.folds} exceeds the {num_units:,} {split.unit}s of "
            f"{events.origin} that are dealt to folds; use fewer split.folds"
        )


def _check_roles(events: Events, config: DataConfig) -> None:
    kind = config.split.kind
    counts = np.bincount(events.frame["role"].to_numpy(), minlength=len(Role))
    if not counts[Role.TRAIN]:
        raise DataError(
            f"the {kind} split of {config.origin} has no training interaction; change the split"
        )
    if "weight" in events.frame.columns:
        trained = events.frame.filter(pl.col("role") == int(Role.TRAIN))
        if trained["weight"].max() == 0:
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


def _apply_unseen(events: Events, config: DataConfig) -> dict[str, dict[str, int]]:
    users, items = events.ids("user"), events.ids("item")
    roles = events.frame["role"].to_numpy()
    unseen = splits.find_unseen(users, items, roles)
    report = {}
    for role in (Role.VALIDATION, Role.TEST):
        is_role = roles == role
        by_item, by_user = unseen.item & is_role, unseen.user & is_role
        report[role.name.lower()] = {
            "targets": int(is_role.sum()),
            "targets_of_unseen_items": int(by_item.sum()),
            "unseen_items": len(np.unique(items[by_item])),
            "targets_of_unseen_users": int(by_user.sum()),
            "unseen_users": len(np.unique(users[by_user])),
        }
        all_unseen = is_role.any() and by_item.sum() == is_role.sum()
        if all_unseen and config.split.unseen == "drop":
            raise DataError(
                f"all {int(is_role.sum()):,} {role.name.lower()} targets of {config.origin} "
                "are items without training interactions; change the split or the item ids, or "
                'set split.unseen = "keep" and evaluate them with evaluation.catalog = "cold"'
            )
    # Users of the held-out parts of a cross-validation are never trained on, by design.
    is_unseen = unseen.item if config.split.holds_out_users else unseen.item | unseen.user
    if is_unseen.any() and config.split.unseen == "error":
        first = int(np.flatnonzero(is_unseen)[0])
        raise DataError(
            f"{int(is_unseen.sum()):,} held-out interactions of {config.origin} have an item "
            f"or user without training interactions, such as item "
            f"{events.items[int(items[first])]!r} of user {events.users[int(users[first])]!r}; set "
            "split.unseen to keep or drop"
        )
    if config.split.unseen == "drop":
        events.filter("unseen", ~is_unseen)
    return report


def _check_size(events: Events, config: DataConfig) -> None:
    for name, count in (("user", len(events.users)), ("item", len(events.items))):
        if count < 2:
            raise DataError(
                f"{config.origin} has only one {name} after filtering "
                f"({(events.users if name == 'user' else events.items)[0]!r}), but training needs "
                f"two; check that {getattr(config, name)!r} is the right column"
            )
