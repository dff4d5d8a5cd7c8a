"""Preparation: source files in, a folder with the prepared dataset out.

The manifest (``manifest.json``, also ``PreparedDataset.manifest``) contains: kind,
schema_version, fingerprint (of the content), candid_version, config, sources (path, size,
mtime_ns), rows_read, dropped (reason -> rows), counts, split (kind, cuts, unseen targets),
time, items_without_row, users_without_row (None without a table), ids_from (fingerprint of the
dataset whose ids are kept, and the numbers of users and items kept, new and retired; None without
one), event_types (names, by code),
target_event_types (training and evaluation targets), negatives (number, and numbers left out by
reason; None for a source without negatives), files (bytes, sha256).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from candid.atomic import atomic_folder
from candid.data import negatives
from candid.data.columns import select_columns
from candid.data.config import DataConfig
from candid.data.dataset import PreparedDataset, Role
from candid.data.event_types import target_types
from candid.data.events import Events, load_events
from candid.data.ids import EarlierIds, read_earlier_ids
from candid.data.readers import Source, open_sources
from candid.data.role_assignment import assign_roles, iso_time
from candid.data.store import MANIFEST, open_dataset, read_manifest, write_dataset
from candid.data.tables import TableConfig, join_table, open_table
from candid.errors import ArtifactError
from candid.version import __version__

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The result of ``prepare``.

    Attributes:
        dataset: opened from disk.
        up_to_date: True if the folder already held the dataset and nothing was done.
        report: the manifest.
    """

    dataset: PreparedDataset
    up_to_date: bool
    report: dict[str, Any] = field(repr=False)


def prepare(
    config: DataConfig, out: Path | str, *, progress: Progress | None = None, force: bool = False
) -> Prepared:
    """Prepare the interactions of ``config`` and write them to the folder ``out``.

    Users and items are numbered by ascending source id; with ``config.ids_from``, those of that
    dataset keep their ids and new ones follow. ``out`` appears complete or not at all; an earlier
    dataset there, which may be ``ids_from``, is replaced at the end.

    Args:
        config: the ``[data]`` section of a recipe.
        out: folder to write; new, empty, or an earlier prepared dataset.
        progress: called with one line before each step.
        force: prepare even if ``out`` is up to date.

    Raises:
        ConfigError: settings that do not fit the data.
        DataError: invalid input; the message names file, column and row.
        ArtifactError: ``out`` or ``config.ids_from`` is not a prepared dataset, or ``out`` cannot
            be written.

    Example:
        >>> dataset = prepare(DataConfig(interactions="log.csv", time="t"), "data/log").dataset
    """
    out = Path(out)
    report = progress or (lambda line: None)
    earlier = _read_earlier(out)
    earlier_ids = _read_earlier_ids(config, out, report)
    sources = open_sources(config.interactions, config.format, config.separator)
    item_sources = [] if config.items is None else open_table(config.items)
    user_sources = [] if config.users is None else open_table(config.users)
    inputs = {
        "config": config.model_dump(mode="json"),
        "sources": [_stat(source) for source in [*sources, *item_sources, *user_sources]],
    }
    if earlier is not None:
        difference = _difference(earlier, inputs) or _ids_difference(earlier, earlier_ids, out)
        if difference is None and not force:
            return Prepared(open_dataset(out), True, earlier)
        # Runs that were trained on the earlier dataset will refuse the new one.
        report(f"{out} will be replaced: {difference or 'forced'}")
    report(f"reading {config.interactions}")
    table = select_columns(sources, config)
    events = load_events(table, config)
    report(f"splitting {events.frame.height:,} interactions ({config.split.kind})")
    split = assign_roles(events, config)
    kept_ids = None
    if earlier_ids is not None:
        kept_ids = {"fingerprint": earlier_ids.fingerprint, **events.keep_ids(earlier_ids)}
    items, items_without_row = _join_table(events.items, item_sources, config.items)
    users, users_without_row = _join_table(events.users, user_sources, config.users)
    dataset = _assemble(events, users, items, target_types(events.event_types, config))
    metadata = {
        "candid_version": __version__,
        **inputs,
        "rows_read": events.rows_read,
        "dropped": events.dropped,
        "counts": _counts(dataset),
        "split": split,
        "time": _time_range(dataset),
        "items_without_row": items_without_row,
        "users_without_row": users_without_row,
        "negatives": _count_negatives(events, dataset),
        "ids_from": kept_ids,
    }
    report(f"writing {out}")
    with atomic_folder(out) as folder:
        manifest = write_dataset(folder, dataset, metadata)
    return Prepared(open_dataset(out), False, manifest)


def _read_earlier(out: Path) -> dict[str, Any] | None:
    """Return the manifest of a complete dataset at ``out``, or None.

    Raises:
        ArtifactError: ``out`` contains anything that candid did not write.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    refusal = f"{out} exists and is not a prepared dataset; choose another folder or remove it"
    try:
        raw = json.loads((out / MANIFEST).read_bytes())
        known = {MANIFEST, *raw["files"]} if raw["kind"] == "candid-dataset" else set()
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(refusal) from None
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if not known:
        raise ArtifactError(refusal)
    if foreign:
        raise ArtifactError(
            f"{out} contains {foreign[0]!r}, which candid did not write; move it elsewhere"
        )
    try:
        return read_manifest(out)
    except ArtifactError:
        return None


def _difference(earlier: dict[str, Any], inputs: dict[str, Any]) -> str | None:
    """Return why an earlier dataset differs from the inputs, or None if it does not.

    A key that is missing on one side counts as None: the earlier version may not have had it.
    """
    before, now = earlier.get("config") or {}, inputs["config"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"it was prepared with data.{key} = {before.get(key)!r}, not {now.get(key)!r}"
    if earlier.get("sources") != inputs["sources"]:
        return "its files have changed"
    return None


def _read_earlier_ids(config: DataConfig, out: Path, report: Progress) -> EarlierIds | None:
    """Return the ids that the dataset keeps; None without ``ids_from``, and on the first night.

    On the first night of a job that replaces its own dataset, ``ids_from`` is ``out`` and holds
    none yet.
    """
    if config.ids_from is None:
        return None
    path = Path(config.ids_from)
    if path.resolve() == out.resolve() and _read_earlier(out) is None:
        report(f"{out} has no dataset yet, so all ids are new")
        return None
    return read_earlier_ids(path)


def _ids_difference(earlier: dict[str, Any], ids: EarlierIds | None, out: Path) -> str | None:
    """Return why an earlier dataset differs from the ids to keep, or None if it does not."""
    if ids is None or ids.path.resolve() == out.resolve():
        return None
    if (earlier.get("ids_from") or {}).get("fingerprint") == ids.fingerprint:
        return None
    return f"the dataset in {ids.path} (ids_from) has changed"


def _stat(source: Source) -> dict[str, Any]:
    status = source.path.stat()
    return {
        "path": str(source.path.resolve()),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def _join_table(
    source_ids: pl.Series, sources: list[Source], config: TableConfig | None
) -> tuple[pl.DataFrame, int | None]:
    if config is None:
        return pl.DataFrame({"source_id": source_ids}), None
    return join_table(source_ids, sources, config)


def _assemble(
    events: Events, users: pl.DataFrame, items: pl.DataFrame, targets: tuple[str, ...]
) -> PreparedDataset:
    counts = np.bincount(events.ids("user"), minlength=len(events.users))
    frame = events.frame
    negative_ids, negative_offsets = None, None
    if "negatives" in frame.columns:
        negative_ids, negative_offsets = negatives.pack_negatives(frame, events.new_item_ids)
    return PreparedDataset(
        item_ids=events.ids("item"),
        user_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        roles=frame["role"].to_numpy(),
        users=users,
        items=items,
        timestamps=frame["time"].to_numpy() if "time" in frame.columns else None,
        weights=frame["weight"].to_numpy() if "weight" in frame.columns else None,
        event_types=frame["event_type"].to_numpy() if events.event_types else None,
        event_type_names=events.event_types,
        target_event_types=targets,
        negative_ids=negative_ids,
        negative_offsets=negative_offsets,
    )


def _count_negatives(events: Events, dataset: PreparedDataset) -> dict[str, int] | None:
    if dataset.negative_ids is None:
        return None
    before = len(negatives.flatten_negatives(events.frame).rows)
    filtered = before - len(dataset.negative_ids)
    left_out = events.negatives_left_out | ({"of_filtered_items": filtered} if filtered else {})
    return {"stored": len(dataset.negative_ids), **left_out}


def _counts(dataset: PreparedDataset) -> dict[str, int]:
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    by_role = np.bincount(dataset.roles, minlength=len(Role))
    counts = {
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": len(dataset.item_ids),
        **{role.name.lower(): int(by_role[role]) for role in Role},
    }
    for role in (Role.TRAIN, Role.VALIDATION, Role.TEST):
        present = np.bincount(owners[dataset.roles == role], minlength=dataset.num_users) > 0
        counts[f"{role.name.lower()}_users"] = int(present.sum())
    counts["items_trained"] = int((dataset.train_counts > 0).sum())
    return counts


def _time_range(dataset: PreparedDataset) -> dict[str, str] | None:
    if dataset.timestamps is None:
        return None
    return {
        "first": iso_time(int(dataset.timestamps.min())),
        "last": iso_time(int(dataset.timestamps.max())),
    }
