"""Targets of one epoch of a loader: how often each item is one, without making a batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from candid.batches.config import BatchesConfig
from candid.batches.new_targets import NewTargets, TargetPart, target_parts
from candid.batches.packing import Ints, offsets_of
from candid.batches.user_targets import InteractionUnits
from candid.batches.windows import WindowUnits
from candid.data import PreparedDataset, Role
from candid.data.chunks import UserChunk, add_counts, owners_of, user_chunks
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
    units = units_of(TargetPart(dataset), config)
    share = _share_of_units(len(units), config)
    counts = np.zeros(dataset.num_items, dtype=np.int64)
    for chunk in user_chunks(dataset.user_offsets):
        add_counts(counts, dataset.item_ids[units.events_of_users(chunk)[0]])
    return counts.astype(np.float64) * share


def users_with_rows(dataset: PreparedDataset, config: BatchesConfig) -> npt.NDArray[np.bool_]:
    """Return whether a loader has a row of each user: [U] bool.

    A loader of histories without ``empty_histories`` has none of a user with a single training
    interaction.

    Args:
        dataset: the prepared dataset.
        config: batch settings of the loader.
    """
    units = units_of(TargetPart(dataset), config)
    has_row = np.zeros(dataset.num_users, dtype=np.bool_)
    for chunk in user_chunks(dataset.user_offsets):
        events, _ = units.events_of_users(chunk)
        has_row[_users_of(dataset, events, chunk)] = True
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
    units = [units_of(part, config) for part in target_parts(dataset, new)]
    num_units, replayed = len(units[0]), 0.0
    if new is not None:
        num_replayed = new.num_replayed(len(units[1]))
        replayed = num_replayed / max(len(units[1]), 1)
        num_units += num_replayed
    share = _share_of_units(num_units, config)
    counts = [np.zeros(dataset.num_items, dtype=np.int64) for _ in units]
    num_interactions = num_left_out = num_first = num_earlier = 0
    for chunk in user_chunks(dataset.user_offsets):
        left_out = dataset.roles[chunk.rows] == Role.TRAIN
        num_interactions += int(left_out.sum())
        for number, one in enumerate(units):
            events, _ = one.events_of_users(chunk)
            add_counts(counts[number], dataset.item_ids[events])
            # An interaction may have two rows, with and without its history.
            num_before = int(left_out.sum())
            left_out[events - chunk.rows.start] = False
            if number == 1:
                num_earlier += num_before - int(left_out.sum())
        num_left_out += int(left_out.sum())
        offsets = dataset.user_offsets[chunk.users.start : chunk.users.stop + 1]
        starts = offsets[:-1][np.diff(offsets) > 0]
        num_first += int(left_out[starts - chunk.rows.start].sum())
    num_not_replayed = round((1 - replayed) * num_earlier)
    trained = round(share * (num_interactions - num_left_out - num_not_replayed))
    expected = counts[0].astype(np.float64)
    if new is not None:
        expected += replayed * counts[1]
    is_trained_item = dataset.train_counts > 0
    summary = TargetSummary(
        interactions=num_interactions,
        trained=trained,
        without_history=num_first,
        before_window=num_left_out - num_first,
        dropped=num_interactions - num_left_out - num_not_replayed - trained,
        earlier=num_not_replayed,
        items=int(is_trained_item.sum()),
        items_never_target=int((is_trained_item & (expected == 0)).sum()),
    )
    return EpochTargets(expected * share, summary)


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
    units = units_of(TargetPart(dataset), config)
    num_batches_of(len(units), config)
    parts: list[list[Ints]] = []
    num_before = 0
    for chunk in user_chunks(dataset.user_offsets):
        events, numbers = units.events_of_users(chunk)
        order = np.argsort(numbers, kind="stable")
        events, numbers = events[order], numbers[order] + num_before
        parts.append([events, _users_of(dataset, events, chunk), numbers])
        num_before = int(numbers[-1]) + 1 if len(numbers) else num_before
    events, user_ids, numbers = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return UnitTargets(events, user_ids, offsets_of(np.bincount(numbers, minlength=len(units))))


def units_of(part: TargetPart, config: BatchesConfig) -> InteractionUnits | WindowUnits:
    """Return the units of a loader that have the targets of one part as rows."""
    return InteractionUnits(part) if config.unit == "interaction" else WindowUnits(part, config)


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


def _users_of(dataset: PreparedDataset, events: Ints, chunk: UserChunk) -> Ints:
    """Return the user of each interaction of a chunk."""
    owners = owners_of(dataset.user_offsets, chunk) + chunk.users.start
    users: Ints = owners[events - chunk.rows.start]
    return users


def _share_of_units(num_units: int, config: BatchesConfig) -> float:
    """Return the share of the units that an epoch has: 1 unless ``drop_last`` leaves some out."""
    num_batches = num_batches_of(num_units, config)
    return min(1.0, num_batches * config.batch_size / num_units)
