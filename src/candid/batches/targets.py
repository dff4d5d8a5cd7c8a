"""Targets of one epoch of a loader: how often each item is one, without making a batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from candid.batches.config import BatchesConfig
from candid.batches.new_targets import NewTargets, target_parts
from candid.batches.packing import Ints, offsets_of, ranges
from candid.batches.windows import windows_of
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """Which of the training interactions of a dataset an epoch trains on.

    Attributes:
        interactions: interactions with the role of a training target.
        trained: how many of them an epoch trains on; with ``drop_last`` the expected number.
        without_history: left out because they are the first interaction of their user, in units
            of histories without ``empty_histories``.
        before_window: left out because they are before their user's last window, with
            ``windows = "last"``.
        dropped: left out with the last batch (``drop_last``), other ones in each epoch: the
            expected number.
        items: items with a training interaction.
        items_never_target: how many of these are never a target.
        earlier: left out because an earlier training had them and the epoch does not replay them:
            the expected number.
    """

    interactions: int
    trained: int
    without_history: int
    before_window: int
    dropped: int
    items: int
    items_never_target: int
    earlier: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)

    def sentence(self) -> str:
        """Return one sentence for a terminal: how many are trained on, and what the rest is."""
        text = f"an epoch trains on {self.trained:,} of {self.interactions:,} training interactions"
        if self.trained == self.interactions:
            return text
        # Rounded down, so that 100 % means all.
        text += f" ({int(100 * self.trained / self.interactions)} %)"
        reasons = (
            (
                self.without_history,
                "first interactions, which have no history (batches.empty_histories = true trains "
                "on them)",
            ),
            (
                self.before_window,
                "before the last window of their user (batches.windows = 'all' trains on them)",
            ),
            (
                self.earlier,
                "of the earlier run, others in each epoch (training.replay replays a share)",
            ),
            (self.dropped, "in the last batch (batches.drop_last), others in each epoch"),
        )
        text += "; the rest: " + "; ".join(f"{num:,} {why}" for num, why in reasons if num)
        if self.items_never_target:
            text += (
                "; items with training interactions that are never a target: "
                f"{self.items_never_target:,} of {self.items:,}"
            )
        return text


@dataclass(frozen=True, slots=True, eq=False)
class EpochTargets:
    """Targets of one epoch of a loader.

    Attributes:
        counts: [V] float64, how often each item is the positive of a row in an epoch. With
            ``drop_last`` an epoch leaves out random units, and this is the expected number;
            otherwise it is whole and the same in every epoch. Rows count once, without their
            weights, because as in-batch candidates they also occur once.
        summary: the same in numbers of interactions.
    """

    counts: Floats
    summary: TargetSummary


def target_counts(dataset: PreparedDataset, config: BatchesConfig) -> Floats:
    """Return how often each item is a target in one epoch: ``EpochTargets.counts``.

    Args:
        dataset: the prepared dataset.
        config: batch settings of the loader.

    Returns:
        [V] float64.

    Raises:
        DataError: there is nothing to train on.
        ConfigError: ``drop_last`` leaves no batch.
    """
    events, num_units = _events_and_units(dataset, config)
    return _expected_counts(dataset, events) * _share_of_units(num_units, config)


def users_with_rows(dataset: PreparedDataset, config: BatchesConfig) -> npt.NDArray[np.bool_]:
    """Return whether a loader has a row of each user: [U] bool.

    A loader of histories without ``empty_histories`` has none of a user with a single training
    interaction.

    Args:
        dataset: the prepared dataset.
        config: batch settings of the loader.
    """
    events, _ = _events_and_units(dataset, config)
    has_row = np.zeros(dataset.num_users, dtype=np.bool_)
    has_row[_users_of(dataset, events)] = True
    return has_row


def epoch_targets(
    dataset: PreparedDataset, config: BatchesConfig, new: NewTargets | None = None
) -> EpochTargets:
    """Describe the targets of one epoch of a loader.

    Args:
        dataset: the prepared dataset.
        config: batch settings of the loader.
        new: as for ``Loader``.

    Raises:
        DataError: there is nothing to train on.
        ConfigError: ``drop_last`` leaves no batch.
    """
    parts = [_events_and_units(dataset, config, mask) for mask in target_parts(dataset, new)]
    events, num_units = parts[0]
    counts, not_replayed = _expected_counts(dataset, events), 0
    if new is not None:
        earlier, num_earlier = parts[1]
        num_replayed = new.num_replayed(num_earlier)
        replayed = num_replayed / max(num_earlier, 1)
        counts = counts + replayed * _expected_counts(dataset, earlier)
        # An interaction may have two rows, with and without its history.
        not_replayed = round((1 - replayed) * len(np.unique(earlier)))
        num_units += num_replayed
        events = np.concatenate([events, earlier])
    share = _share_of_units(num_units, config)
    is_target = np.asarray(dataset.roles) == Role.TRAIN
    left_out = is_target.copy()
    left_out[events] = False
    starts = dataset.user_offsets[:-1][np.diff(dataset.user_offsets) > 0]
    num_first = int(left_out[starts].sum())
    num_interactions, num_left_out = int(is_target.sum()), int(left_out.sum())
    trained = round(share * (num_interactions - num_left_out - not_replayed))
    is_trained_item = dataset.train_counts > 0
    summary = TargetSummary(
        interactions=num_interactions,
        trained=trained,
        without_history=num_first,
        before_window=num_left_out - num_first,
        dropped=num_interactions - num_left_out - not_replayed - trained,
        earlier=not_replayed,
        items=int(is_trained_item.sum()),
        items_never_target=int((is_trained_item & (counts == 0)).sum()),
    )
    return EpochTargets(counts * share, summary)


@dataclass(frozen=True, slots=True, eq=False)
class UnitTargets:
    """Targets of the units of a loader: what its batches are made of.

    Attributes:
        events: [R] int64, the interaction of each row of an epoch in which no unit is dropped,
            one unit after the other. With ``empty_histories`` an interaction may have two rows:
            with and without its history.
        user_ids: [R] int64, the user of each row.
        offsets: [W + 1] int64, unit w has the rows ``offsets[w]:offsets[w + 1]``.
    """

    events: Ints
    user_ids: Ints
    offsets: Ints


def unit_targets(dataset: PreparedDataset, config: BatchesConfig) -> UnitTargets:
    """Return the rows of every unit of a loader, without making a batch.

    Args:
        dataset: the prepared dataset.
        config: batch settings of the loader.

    Raises:
        DataError: there is nothing to train on.
        ConfigError: ``drop_last`` leaves no batch.
    """
    events, num_units = _events_and_units(dataset, config)
    num_batches_of(num_units, config)
    units = _unit_of_rows(dataset, config)
    order = np.argsort(units, kind="stable")
    events = events[order]
    return UnitTargets(
        events=events,
        user_ids=_users_of(dataset, events),
        offsets=offsets_of(np.bincount(units, minlength=num_units)),
    )


def num_batches_of(num_units: int, config: BatchesConfig) -> int:
    """Return the number of batches in an epoch of ``num_units`` units.

    Raises:
        DataError: there are no units.
        ConfigError: ``drop_last`` leaves no batch.
    """
    if num_units == 0:
        if config.unit == "interaction":
            raise DataError("nothing to train on: no training interaction; check the split")
        raise DataError(
            "nothing to train on: no user has two or more training interactions, and the first "
            "has no history; check the split, or set batches.empty_histories = true to train on it"
        )
    if not config.drop_last:
        return -(-num_units // config.batch_size)
    if num_units < config.batch_size:
        raise ConfigError(
            f"batches.batch_size {config.batch_size} exceeds the {num_units} units of "
            "an epoch and batches.drop_last leaves nothing; lower batch_size"
        )
    return num_units // config.batch_size


def _events_and_units(
    dataset: PreparedDataset,
    config: BatchesConfig,
    is_target: npt.NDArray[np.bool_] | None = None,
) -> tuple[Ints, int]:
    """Return the interaction of each row of all units, and the number of units.

    Args:
        dataset: the prepared dataset.
        config: batch settings of the loader.
        is_target: [E] bool, some of the training targets; None: all.
    """
    if is_target is None:
        is_target = np.asarray(dataset.roles) == Role.TRAIN
    if config.unit == "interaction":
        events = np.flatnonzero(is_target)
        return events, len(events)
    windows = windows_of(dataset, config, is_target)
    # The first interaction of a window is history only.
    events = ranges(windows.starts + 1, windows.stops - windows.starts - 1)
    openings = windows.openings[windows.openings >= 0]
    return np.concatenate([openings, events[is_target[events]]]), len(windows)


def _users_of(dataset: PreparedDataset, events: Ints) -> Ints:
    """Return the user of each interaction."""
    return np.searchsorted(dataset.user_offsets, events, side="right").astype(np.int64) - 1


def _unit_of_rows(dataset: PreparedDataset, config: BatchesConfig) -> Ints:
    """Return the unit of each row, in the order of ``_events_and_units``."""
    is_target = np.asarray(dataset.roles) == Role.TRAIN
    if config.unit == "interaction":
        return np.arange(int(is_target.sum()))
    windows = windows_of(dataset, config)
    num_targets = offsets_of(is_target.astype(np.int64))
    num_rows = num_targets[windows.stops] - num_targets[windows.starts + 1]
    return np.concatenate(
        [np.flatnonzero(windows.openings >= 0), np.repeat(np.arange(len(windows)), num_rows)]
    )


def _share_of_units(num_units: int, config: BatchesConfig) -> float:
    """Return the share of the units that an epoch has: 1 unless ``drop_last`` leaves some out."""
    num_batches = num_batches_of(num_units, config)
    return min(1.0, num_batches * config.batch_size / num_units)


def _expected_counts(dataset: PreparedDataset, events: Ints) -> Floats:
    counts = np.bincount(dataset.item_ids[events], minlength=dataset.num_items)
    return counts.astype(np.float64)
