"""Source ids of the items and users that a run was trained on, stored in its folder.

A later run or evaluation maps by them, also where the dataset of the run has been replaced since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from candid.atomic import replacing
from candid.batches import BatchesConfig, Ints, target_counts, users_with_rows
from candid.checksums import check_file, file_entry, find_fault, is_verifying
from candid.data import PreparedDataset, Role
from candid.data.chunks import owners_of, positions_of, user_chunks
from candid.errors import ArtifactError, DataError
from candid.runs.folder import TRAIN_AGAIN, dataset_of

ITEMS: Final = "trained_items.parquet"
USERS: Final = "trained_users.parquet"


@dataclass(frozen=True)
class TrainedIds:
    """Items and users of the dataset of a run, in the order of their ids.

    Attributes:
        items: columns ``source_id`` and ``is_trained`` (whether an epoch has the item as a target).
        users: the same, and where the training interactions of the user end: ``num_rows`` (UInt32,
            interactions up to the last training target), ``last_time`` (Int64, its time, null
            without times) and ``num_at_last_time`` (UInt32, how many of these have that time).
    """

    items: pl.DataFrame
    users: pl.DataFrame

    @classmethod
    def of(cls, dataset: PreparedDataset, batches: BatchesConfig) -> TrainedIds:
        """Collect the ids of a dataset.

        Args:
            dataset: of the run.
            batches: batch settings of the run, which decide what is a target.
        """
        num_rows = np.zeros(dataset.num_users, dtype=np.int64)
        last_time, ties = np.zeros_like(num_rows), np.zeros_like(num_rows)
        for chunk in user_chunks(dataset.user_offsets):
            owners = owners_of(dataset.user_offsets, chunk)
            position = positions_of(dataset.user_offsets, chunk)
            is_target = dataset.roles[chunk.rows] == Role.TRAIN
            # Positions ascend within a user, so that the last one stays.
            num_rows[chunk.users.start + owners[is_target]] = position[is_target] + 1
            if dataset.timestamps is None:
                continue
            times = dataset.timestamps[chunk.rows]
            last_time[chunk.users.start + owners[is_target]] = times[is_target]
            is_tie = times == last_time[chunk.users][owners]
            is_tie &= position < num_rows[chunk.users][owners]
            ties[chunk.users] = np.bincount(owners[is_tie], minlength=len(ties[chunk.users]))
        columns: dict[str, Any] = {
            "source_id": dataset.users["source_id"],
            "is_trained": users_with_rows(dataset, batches),
            "num_rows": num_rows.astype(np.uint32),
        }
        if dataset.timestamps is not None:
            columns["last_time"] = pl.Series(last_time).set(pl.Series(num_rows == 0), None)
            columns["num_at_last_time"] = ties.astype(np.uint32)
        items = {
            "source_id": dataset.items["source_id"],
            "is_trained": target_counts(dataset, batches) > 0,
        }
        return cls(pl.DataFrame(items), pl.DataFrame(columns))

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write both tables into the folder of a run; return the entries of the files by name."""
        for name, table in ((ITEMS, self.items), (USERS, self.users)):
            with replacing(folder / name) as path:
                table.write_parquet(path)
        return {name: file_entry(folder / name) for name in (ITEMS, USERS)}


def read_trained_ids(
    folder: Path, manifest: Mapping[str, Any], batches: BatchesConfig
) -> TrainedIds:
    """Read the ids of a run; those of its dataset for a run that stored none.

    Args:
        folder: of the run.
        manifest: content of ``run.json``.
        batches: batch settings of the run.

    Raises:
        ArtifactError: a file is damaged; or the run stored no ids and its dataset is missing.
    """
    facts = manifest["dataset"]
    if ITEMS not in manifest.get("files", {}) and not (folder / ITEMS).exists():
        return TrainedIds.of(dataset_of(folder, facts, None), batches)
    for name, entry in manifest.get("files", {}).items():
        check_file(folder / name, entry, TRAIN_AGAIN)
    try:
        tables = [pl.read_parquet(folder / name, glob=False) for name in (ITEMS, USERS)]
    except (OSError, pl.exceptions.PolarsError):
        raise ArtifactError(
            f"{folder / ITEMS} or {USERS} is damaged: train again, or restore the file"
        ) from None
    ids = TrainedIds(*tables)
    for table, kind in ((ids.items, "items"), (ids.users, "users")):
        if table.height != facts[kind]:
            raise ArtifactError(
                f"{folder} was trained on {facts[kind]:,} {kind} and stores the ids of "
                f"{table.height:,}: train again, or restore the file"
            )
    return ids


def restored_ids(
    folder: Path, manifest: Mapping[str, Any], dataset: PreparedDataset, batches: BatchesConfig
) -> dict[str, dict[str, Any]]:
    """Write the tables of ids of a run again if one is missing or damaged; return their entries.

    Args:
        folder: of the run.
        manifest: content of its ``run.json``.
        dataset: that of the run, compared with the fingerprint in ``manifest``.
        batches: batch settings of the run.
    """
    files: dict[str, dict[str, Any]] = manifest.get("files", {})
    compare = is_verifying()
    if any(find_fault(folder / name, entry, compare=compare) for name, entry in files.items()):
        return TrainedIds.of(dataset, batches).write(folder)
    return files


def earlier_rows(before: pl.DataFrame, now: pl.DataFrame, kind: str, origin: str) -> Ints:
    """Return the earlier id of each item or user of a dataset by its source id: [n] int64, or -1.

    Args:
        before: [m] with the column ``source_id``, in the order of the earlier ids.
        now: [n] with the column ``source_id``.
        kind: "item" or "user", for messages.
        origin: of the earlier ids, for messages.

    Raises:
        DataError: one has numbers and the other text.
    """
    old, new = before["source_id"], now["source_id"]
    if old.dtype.is_integer() != new.dtype.is_integer():
        words = ["integers" if ids.dtype.is_integer() else "text" for ids in (new, old)]
        raise DataError(
            f"{kind} ids of the dataset are {words[0]} and those of {origin} are {words[1]}, so "
            "that none can be mapped: prepare the dataset with ids of the same type"
        )
    if old.dtype != new.dtype:
        old, new = old.cast(pl.Int128), new.cast(pl.Int128)
    known = pl.DataFrame({"source_id": old, "row": np.arange(len(old), dtype=np.int64)})
    joined = pl.DataFrame({"source_id": new}).join(
        known, on="source_id", how="left", maintain_order="left"
    )
    return joined["row"].fill_null(-1).to_numpy()


def find_new_targets(users: pl.DataFrame, dataset: PreparedDataset, origin: str) -> Ints:
    """Return the first training target of each user after those of an earlier run: [U] int64.

    With times, an interaction of a known user is new if it is later than the user's last training
    target; of those at the same time, as many are earlier as the earlier training had. Without
    times the position decides, so that histories must only have grown at their end. A user's
    training targets are stored in order of time, so that those after a new one are new.

    Args:
        users: of ``TrainedIds``.
        dataset: the prepared dataset.
        origin: of the earlier run, for messages.

    Returns:
        indices into ``dataset.item_ids``; ``user_offsets[u + 1]`` for a user without a new target.
    """
    source = earlier_rows(users, dataset.users, "user", origin)
    num_rows = np.append(users["num_rows"].to_numpy().astype(np.int64), 0)[source]
    has_times = dataset.timestamps is not None and "last_time" in users.columns
    if has_times:
        last_times = np.append(users["last_time"].fill_null(0).to_numpy(), 0)[source]
        ties = np.append(users["num_at_last_time"].to_numpy().astype(np.int64), 0)[source]
    first_new = np.array(dataset.user_offsets[1:], dtype=np.int64)
    for chunk in user_chunks(dataset.user_offsets):
        owners = owners_of(dataset.user_offsets, chunk)
        position = positions_of(dataset.user_offsets, chunk)
        is_new = position >= num_rows[chunk.users][owners]
        if has_times:
            assert dataset.timestamps is not None
            times, last = dataset.timestamps[chunk.rows], last_times[chunk.users][owners]
            is_tie = times == last
            before = np.concatenate([[0], np.cumsum(is_tie)])
            rank = before[:-1] - before[np.arange(len(owners)) - position]
            is_new = (times > last) | (is_tie & (rank >= ties[chunk.users][owners]))
            is_new |= num_rows[chunk.users][owners] == 0
        new = np.flatnonzero(is_new & (dataset.roles[chunk.rows] == Role.TRAIN))[::-1]
        # From the last one to the first, so that the first one stays.
        first_new[chunk.users.start + owners[new]] = new + chunk.rows.start
    return first_new
