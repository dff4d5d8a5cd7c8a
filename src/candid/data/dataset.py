"""The prepared dataset in memory, and the held-out targets of an evaluation.

Inside candid an *id* is a dense integer (items 0..V-1, users 0..U-1). The identifiers of the
user's own files are *source ids*: they are a column of the tables ``users`` and ``items``, whose
row number is the id.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.atomic import atomic_folder, remove_stale
from candid.checksums import FileChecks
from candid.data.chunks import UserChunk, add_counts, owners_of, row_chunks, user_chunks
from candid.data.dataset_files import (
    ARRAYS,
    TABLES,
    content_fingerprint,
    read_earlier,
    write_dataset_files,
)

IN_MEMORY: Final = "the dataset in memory"
"""What messages call a dataset without a folder."""


class Role(enum.IntEnum):
    """Use of an interaction, in the order of use within a user."""

    TRAIN = 0
    """A training target, and part of every later history."""
    HISTORY = 1
    """Part of later histories, never a target."""
    VALIDATION = 2
    """A validation target, then part of the histories of test."""
    TEST = 3
    """A test target."""


@dataclass(frozen=True, repr=False)
class PreparedDataset:
    """Interactions of U users with V items, grouped by user and in order of use.

    Attributes:
        item_ids: [E] int32, item of each interaction; user u owns the slice
            ``user_offsets[u]:user_offsets[u + 1]``, earliest first.
        user_offsets: [U + 1] int64.
        roles: [E] uint8, values of ``Role``.
        users: U rows; column ``source_id`` (integer or text), then attributes.
        items: V rows; column ``source_id``, optional ``title`` (string), then attributes.
        timestamps: [E] int64 microseconds since 1970-01-01 UTC; None for a source without time
            (with an order column, or without any order).
        weights: [E] float32, or None.
        event_types: [E] uint8, code of the event type of each interaction; None for one type.
        event_type_names: name of each event type, by code.
        target_event_types: event types that are training and evaluation targets; empty: all.
            Only interactions of these types make an item a seen item.
        negative_ids: [M] int32, items that were shown with an interaction and not chosen, or
            None; interaction e owns the slice ``negative_offsets[e]:negative_offsets[e + 1]``,
            with the item shown last at the end.
        negative_offsets: [E + 1] int64, or None.
        retired_items: [V] bool, items of an earlier dataset that keep their ids here and have no
            interaction any more; None: no item is retired. They are not ranked in evaluations and
            not recommended, unless a caller allows them by id.
        order_ranks: [E] int32, place of each interaction among those of its user by time and
            order, from 0; None where the interactions are stored in that order. A column split
            and a cross-validation of interactions store them by role first.
        manifest: content of ``manifest.json`` (described in ``candid.data.prepare``); in memory
            without files; empty for a dataset that was not prepared.
        path: folder of the dataset; None for a dataset in memory.
        checks: the comparison of its files with their checksums; None for a dataset in memory.

    Example:
        >>> dataset = candid.prepare(table, time="timestamp")
        >>> dataset.save("data/films")
    """

    item_ids: npt.NDArray[np.int32]
    user_offsets: npt.NDArray[np.int64]
    roles: npt.NDArray[np.uint8]
    users: pl.DataFrame
    items: pl.DataFrame
    timestamps: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None
    event_types: npt.NDArray[np.uint8] | None = None
    event_type_names: tuple[str, ...] = ()
    target_event_types: tuple[str, ...] = ()
    negative_ids: npt.NDArray[np.int32] | None = None
    negative_offsets: npt.NDArray[np.int64] | None = None
    retired_items: npt.NDArray[np.bool_] | None = None
    order_ranks: npt.NDArray[np.int32] | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    checks: FileChecks | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return (
            f"PreparedDataset({self.num_users:,} users, {self.num_items:,} items, "
            f"{len(self.item_ids):,} interactions, path={str(self.path) if self.path else None!r})"
        )

    @property
    def origin(self) -> str:
        """What messages call the dataset: its folder, or that it is in memory."""
        return IN_MEMORY if self.path is None else str(self.path)

    def wait_until_verified(self) -> None:
        """Wait until all its files have been compared with their checksums.

        Raises:
            ArtifactError: a file is damaged.
        """
        if self.checks is not None:
            self.checks.wait()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: ids, order, roles and tables, wherever they came from.

        That of the manifest; computed for a dataset that was not prepared.
        """
        return str(self.manifest.get("fingerprint") or content_fingerprint(*self._content()))

    def save(self, path: Path | str) -> PreparedDataset:
        """Write the dataset to a folder, completely or not at all.

        An earlier dataset in the folder is replaced. ``open_dataset(path)`` opens it with
        memory-mapped arrays, in any process.

        Args:
            path: folder to write; new, empty, or an earlier prepared dataset.

        Returns:
            the same dataset, with its path.

        Raises:
            ArtifactError: the folder holds anything else, or cannot be written.
        """
        path = Path(path)
        remove_stale(path.resolve())  # a kill may have left the earlier dataset under another name
        read_earlier(path)
        structure = {
            "fingerprint": self.fingerprint,
            "event_types": list(self.event_type_names),
            "target_event_types": list(self.target_event_types),
        }
        with atomic_folder(path) as folder:
            manifest = write_dataset_files(folder, *self._content(), {**self.manifest, **structure})
        return replace(self, manifest=manifest, path=path)

    def _content(self) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
        """Return the arrays and the tables, by name."""
        return (
            {name: getattr(self, name) for name in ARRAYS},
            {name: getattr(self, name) for name in TABLES},
        )

    @property
    def num_users(self) -> int:
        """U, the number of users."""
        return len(self.user_offsets) - 1

    @property
    def num_items(self) -> int:
        """V, the size of the catalog."""
        return self.items.height

    @cached_property
    def is_target_event_type(self) -> npt.NDArray[np.bool_] | None:
        """[number of event types] bool, whether each is a target; None if all are."""
        if self.event_types is None or not self.target_event_types:
            return None
        return np.array([name in self.target_event_types for name in self.event_type_names])

    @cached_property
    def train_counts(self) -> npt.NDArray[np.int64]:
        """[V] int64, the number of training interactions of each item.

        A property of the data: an epoch of a loader may leave some out, such as the first
        interaction of each user (``candid.batches.target_counts``).
        """
        counts = np.zeros(self.num_items, dtype=np.int64)
        for rows in row_chunks(len(self.item_ids)):
            add_counts(counts, self.item_ids[rows][self.roles[rows] == Role.TRAIN])
        return counts

    @cached_property
    def train_user_counts(self) -> npt.NDArray[np.int64]:
        """[V] int64, the number of users with a training interaction with each item."""
        counts = np.zeros(self.num_items, dtype=np.int64)
        for chunk in user_chunks(self.user_offsets):
            is_trained = self.roles[chunk.rows] == Role.TRAIN
            # Users are counted from the first one of the chunk, which keeps the product small.
            users = owners_of(self.user_offsets, chunk)[is_trained]
            # np.unique hashes integers, which takes ten times as long as sorting these.
            pairs = np.sort(users * self.num_items + self.item_ids[chunk.rows][is_trained])
            is_new = np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]
            add_counts(counts, pairs[is_new] % self.num_items)
        return counts

    @cached_property
    def user_is_trained(self) -> npt.NDArray[np.bool_]:
        """[U] bool, whether each user has a training interaction.

        A property of the data: a loader of histories has no row of a user with a single one
        (``candid.batches.users_with_rows``).
        """
        is_trained = np.zeros(self.num_users, dtype=np.bool_)
        for chunk in user_chunks(self.user_offsets):
            owners = owners_of(self.user_offsets, chunk)[self.roles[chunk.rows] == Role.TRAIN]
            is_trained[chunk.users.start + owners] = True
        return is_trained

    def events_of(self, role: Role) -> npt.NDArray[np.int64]:
        """Return the interactions with a role, as indices into ``item_ids``: [N] int64, ascending.

        Args:
            role: of the interactions.
        """
        parts = [
            np.flatnonzero(self.roles[rows] == role) + rows.start
            for rows in row_chunks(len(self.roles))
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def has_role(self, role: Role) -> bool:
        """Return whether an interaction has a role."""
        return any(bool((self.roles[rows] == role).any()) for rows in row_chunks(len(self.roles)))


@dataclass(frozen=True)
class HeldOutTargets:
    """The held-out targets of one evaluation: one query per user, with all its targets.

    The history of a query is every interaction of the user before the first target. Targets are
    all interactions of the role, in order.

    Attributes:
        user_ids: [Q] int64, ascending.
        history_stop: [Q] int64, index into ``PreparedDataset.item_ids``: the history is
            ``item_ids[user_offsets[u]:history_stop]``.
        target_ids: [M] int64, packed item ids of the targets.
        target_offsets: [Q + 1] int64.
    """

    user_ids: npt.NDArray[np.int64]
    history_stop: npt.NDArray[np.int64]
    target_ids: npt.NDArray[np.int64]
    target_offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)

    def __repr__(self) -> str:
        return f"HeldOutTargets({len(self):,} queries, {len(self.target_ids):,} targets)"


@dataclass(frozen=True, eq=False)
class HeldOutUsers:
    """The users of the queries of an evaluation, without their targets.

    Attributes:
        user_ids: [Q] int64, ascending.
        history_stop: [Q] int64, as in ``HeldOutTargets``.
    """

    user_ids: npt.NDArray[np.int64]
    history_stop: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> HeldOutUsers:
        return HeldOutUsers(self.user_ids[rows], self.history_stop[rows])


def held_out_users(
    dataset: PreparedDataset, role: Role, is_target: npt.NDArray[np.bool_] | None = None
) -> HeldOutUsers:
    """Find the users with a target of ``role``, in memory that grows with the users.

    Args:
        dataset: the prepared dataset.
        role: ``Role.VALIDATION`` or ``Role.TEST``.
        is_target: [V] bool, items that are targets; users without one of them are left out. A
            history ends before the first interaction of the role with any item. None: all.
    """
    users, stops = [], []
    for chunk in user_chunks(dataset.user_offsets):
        events, bounds = _events_of_users(dataset, role, chunk)
        firsts = np.append(events, chunk.rows.stop)[bounds[:-1]]
        if is_target is not None:
            events, bounds = _only(dataset, events, bounds, is_target)
        owners = np.flatnonzero(np.diff(bounds))
        users.append(owners + chunk.users.start)
        stops.append(firsts[owners])
    empty = np.empty(0, dtype=np.int64)
    return HeldOutUsers(np.concatenate([empty, *users]), np.concatenate([empty, *stops]))


def targets_of_users(
    dataset: PreparedDataset,
    role: Role,
    users: HeldOutUsers,
    is_target: npt.NDArray[np.bool_] | None = None,
) -> HeldOutTargets:
    """Collect the targets of some users, in memory that grows with these targets.

    Args:
        dataset: the prepared dataset.
        role: as for ``held_out_users``.
        users: some of those of ``held_out_users``.
        is_target: as for ``held_out_users``.
    """
    ids, counts = [], []
    for chunk in user_chunks(dataset.user_offsets):
        first, last = np.searchsorted(users.user_ids, (chunk.users.start, chunk.users.stop))
        if first == last:
            continue
        events, bounds = _events_of_users(dataset, role, chunk)
        if is_target is not None:
            events, bounds = _only(dataset, events, bounds, is_target)
        chosen = users.user_ids[first:last] - chunk.users.start
        is_chosen = np.zeros(len(bounds) - 1, dtype=np.bool_)
        is_chosen[chosen] = True
        lengths = np.diff(bounds)
        counts.append(lengths[chosen])
        ids.append(dataset.item_ids[events[np.repeat(is_chosen, lengths)]].astype(np.int64))
    empty = np.empty(0, dtype=np.int64)
    return HeldOutTargets(
        user_ids=users.user_ids,
        history_stop=users.history_stop,
        target_ids=np.concatenate([empty, *ids]),
        target_offsets=np.append(0, np.cumsum(np.concatenate([empty, *counts]))),
    )


def held_out(dataset: PreparedDataset, role: Role) -> HeldOutTargets:
    """Collect the queries of ``role`` (``Role.VALIDATION`` or ``Role.TEST``).

    A user without a target of that role has no query. A user with an empty history has one
    (``history_stop == user_offsets[u]``); the caller counts and skips it.

    Example:
        >>> held_out(dataset, Role.TEST)  # doctest: +SKIP
        HeldOutTargets(6,040 queries, 6,040 targets)
    """
    return targets_of_users(dataset, role, held_out_users(dataset, role))


def _events_of_users(
    dataset: PreparedDataset, role: Role, chunk: UserChunk
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the interactions of a role of n users [N], and where those of each begin [n + 1]."""
    events = np.flatnonzero(dataset.roles[chunk.rows] == role) + chunk.rows.start
    edges = dataset.user_offsets[chunk.users.start : chunk.users.stop + 1]
    return events, np.searchsorted(events, edges)


def _only(
    dataset: PreparedDataset,
    events: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
    is_target: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return those of the interactions whose items are targets, as ``_events_of_users`` does."""
    is_kept = is_target[dataset.item_ids[events]]
    return events[is_kept], np.append(0, np.cumsum(is_kept))[bounds]
