"""Preparation: tables or source files in, a prepared dataset out, in memory or in a folder.

The manifest (``manifest.json``, also ``PreparedDataset.manifest``) contains: kind, schema_version,
fingerprint (of the content), candid_version, config, sources (path, and what changes with the
content: bytes, mtime_ns, etag or modified, version; unversioned where nothing is known; for a
table in memory its name), rows_read (of the sources), dropped (reason -> interactions; empty_lists
-> rows of the sources), counts, split (kind, cuts, unseen targets), tied (interactions in the
order of the file), time (first, last, unit), items_without_row, items_without_interactions,
users_without_row, users_without_interactions (None without a table), ids_from (fingerprint of the
dataset whose ids are kept, and the numbers of users and items kept, new and retired; None without
one), event_types (names, by code), target_event_types (training and evaluation targets), negatives
(number, and numbers left out by reason; None for a source without negatives), files (bytes,
sha256; empty in memory).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from candid.atomic import atomic_folder, check_folder_writable, remove_stale
from candid.data.assembly import arrays_of, manifest_of
from candid.data.columns import select_columns
from candid.data.config import DataConfig
from candid.data.dataset import PreparedDataset
from candid.data.dataset_files import (
    MANIFEST,
    PREPARE_AGAIN,
    ArrayStream,
    Tables,
    read_earlier,
    write_dataset_files,
)
from candid.data.engine import Engine, MemoryEngine, MemoryLimit, check_engine, choose, parse_limit
from candid.data.events import check_rows, load_events
from candid.data.final_ids import number
from candid.data.ids import EarlierIds, read_earlier_ids
from candid.data.inputs import Inputs, inputs_of_config, inputs_of_tables
from candid.data.readers import Source
from candid.data.role_assignment import assign_roles
from candid.data.split_config import SplitConfig
from candid.data.store import open_dataset, open_written
from candid.data.tables import JoinedTable, TableConfig, join_table
from candid.errors import ArtifactError, ConfigError, DataError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The result of ``prepare_folder``.

    Attributes:
        dataset: opened from disk.
        up_to_date: True if the folder already held the dataset and nothing was done.
        report: the manifest.
    """

    dataset: PreparedDataset
    up_to_date: bool
    report: dict[str, Any] = field(repr=False)


def prepare(
    data: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = None,
    order: str | None = None,
    items: Any = None,
    users: Any = None,
    split: str | Mapping[str, Any] | SplitConfig = "leave-one-out",
    out: Path | str | None = None,
    ids_from: PreparedDataset | Path | str | None = None,
    progress: Progress | None = None,
    force: bool = False,
    engine: str = "auto",
    memory_limit: int | str | None = None,
    **settings: Any,
) -> PreparedDataset:
    """Prepare interactions for training: read, filter, order and split them.

    Users and items are numbered by ascending source id, or as in ``ids_from``. The same
    interactions give a dataset with the same fingerprint, whether they come from a table or from
    files, and in memory or on disk.

    Args:
        data: the interactions, one row each: a table (Polars ``DataFrame`` or ``LazyFrame``, pandas
            ``DataFrame``, Arrow table, or any object with the Arrow PyCapsule interface), a file or
            folder, or a list of files. A table is not changed; a lazy frame is collected once, with
            the named columns only.
        user: column with the user id, integers or text.
        item: column with the item id.
        time: column with the time of the interaction.
        order: column that orders the interactions of a user, or those of the same ``time``.
        items: titles and attributes of the items: a table, a file, or a mapping with ``table`` or
            ``path`` and the keys ``item``, ``title`` and ``attributes``. A table or file alone
            gives its column ``title``, if it has one, and all other columns as attributes.
        users: attributes of the users, in the same forms; a mapping has the keys ``user`` and
            ``attributes``. The id column is by default named as in the interactions.
        split: the kind of split, such as "leave-one-out", "temporal" or "none", or a mapping with
            its settings, such as ``{"kind": "leave-k-out", "k": 5}`` (``SplitConfig``).
        out: folder to write: new, empty, or an earlier prepared dataset, which is replaced. None:
            the dataset stays in memory; ``PreparedDataset.save`` writes it later.
        ids_from: an earlier dataset, or its folder, whose users and items keep their ids; new ones
            follow. None: all are numbered by ascending source id.
        progress: called with one line before each step.
        force: prepare even if ``out`` is up to date with its files.
        engine: "memory", "duckdb" or "auto"; all give the same dataset. "duckdb" works within
            ``memory_limit``, with temporary files beside ``out`` (20 to 100 bytes a row); it needs
            the extra ``bigdata``. "auto" takes memory where 64 bytes for each row fit into
            the limit, or where ``out`` is None.
        memory_limit: bytes, or text such as "4GiB", at least 1 GiB; it includes the ids of users
            and items, about 64 bytes each. None: half of the memory that is available.
        **settings: further keys of ``DataConfig``, such as ``k_core=5`` or ``weight="stars"``.

    Raises:
        ConfigError: settings that are unknown, wrong, or do not fit the data.
        DataError: invalid input; the message names table or file, column and row.
        ArtifactError: ``out`` is not a prepared dataset, or cannot be written.

    Example:
        >>> table = pl.DataFrame({"user": [1, 1, 1], "film": [7, 8, 9], "t": [1, 2, 3]})
        >>> dataset = candid.prepare(table, user="user", item="film", time="t")
        >>> run = candid.train(dataset, out="runs/films")
    """
    columns = {"user": user, "item": item, "time": time, "order": order}
    kept = None
    if isinstance(ids_from, PreparedDataset):
        kept = EarlierIds.of(ids_from)
        ids_from = kept.origin
    elif not isinstance(ids_from, str | os.PathLike | None):
        raise ConfigError(
            "prepare: ids_from must be a prepared dataset or its folder, got "
            f"{type(ids_from).__name__}"
        )
    inputs = inputs_of_tables(
        data, items, users, split, {**columns, "ids_from": ids_from, **settings}
    )
    if out is not None:
        return _prepare_folder(
            inputs, Path(out), progress, force, engine, memory_limit, kept
        ).dataset
    limit = parse_limit(memory_limit, engine)
    check_engine(engine, None)
    report = progress or (lambda line: None)
    kept = kept or _read_earlier_ids(inputs.config, None, report)
    build = _Build(inputs, kept, report)
    choose(engine, build.num_rows, limit, None, inputs.config)
    return build.in_memory()


def prepare_folder(
    config: DataConfig,
    out: Path | str,
    *,
    progress: Progress | None = None,
    force: bool = False,
    engine: str = "auto",
    memory_limit: int | str | None = None,
    complete_rows: int | None = None,
) -> Prepared:
    """Prepare the files of ``config`` and write them to the folder ``out``.

    Users and items are numbered by ascending source id; with ``config.ids_from``, those of that
    dataset keep their ids and new ones follow. ``out`` appears complete or not at all; an earlier
    dataset there, which may be ``ids_from``, is replaced at the end.

    Args:
        config: the ``[data]`` section of a recipe.
        out: folder to write; new, empty, or an earlier prepared dataset.
        progress: called with one line before each step.
        force: prepare even if ``out`` is up to date.
        engine: "memory", "duckdb" or "auto"; all give the same dataset. "duckdb" works within
            ``memory_limit``, with temporary files beside ``out`` (20 to 100 bytes a row); it needs
            the extra ``bigdata``. "auto" takes memory where 64 bytes for each row fit into
            the limit.
        memory_limit: bytes, or text such as "4GiB", at least 1 GiB; it includes the ids of users
            and items, about 64 bytes each. None: half of the memory that is available.
        complete_rows: rows of the complete files; fewer are refused before anything is written.
            None: any number.

    Raises:
        ConfigError: settings that do not fit the data.
        DataError: invalid input, or fewer rows than ``complete_rows``; the message names file,
            column and row.
        ArtifactError: ``out`` or ``config.ids_from`` is not a prepared dataset, or ``out`` cannot
            be written.

    Example:
        >>> config = DataConfig(interactions="log.csv", time="t")
        >>> dataset = prepare_folder(config, "data/log").dataset
    """
    inputs = inputs_of_config(config)
    return _prepare_folder(
        inputs, Path(out), progress, force, engine, memory_limit, complete_rows=complete_rows
    )


def _prepare_folder(
    inputs: Inputs,
    out: Path,
    progress: Progress | None,
    force: bool,
    engine: str,
    memory_limit: int | str | None,
    kept: EarlierIds | None = None,
    complete_rows: int | None = None,
) -> Prepared:
    limit = parse_limit(memory_limit, engine)
    check_engine(engine, out)
    report = progress or (lambda line: None)
    remove_stale(out.resolve())  # a kill may have left the earlier dataset under another name
    earlier = read_earlier(out)
    earlier_ids = kept or _read_earlier_ids(inputs.config, out, report)
    is_replaced = out.is_dir() and any(out.iterdir())
    if earlier is not None:
        difference = _difference(earlier, inputs.facts())
        difference = difference or _ids_difference(earlier, earlier_ids, out)
        difference = difference or inputs.unversioned()
        if difference is None and not force:
            try:
                return Prepared(open_dataset(out), True, earlier)
            except ArtifactError as error:
                difference = str(error).removesuffix(f"; {PREPARE_AGAIN}")
        report(f"preparing {out} again: {difference or 'forced'}")
    check_folder_writable(out)  # before reading, which may take an hour
    build = _Build(inputs, earlier_ids, report)
    if complete_rows is not None and build.num_rows < complete_rows:
        raise DataError(
            f"{inputs.config.origin} has {build.num_rows:,} rows, and the complete files have "
            f"{complete_rows:,}: download them again, or prepare a part of them with --partial "
            "(partial=True)"
        )
    # Runs that were trained on a replaced dataset will refuse the new one.
    writing = f"{'replacing' if is_replaced else 'writing'} {out}"
    if choose(engine, build.num_rows, limit, out, inputs.config) == "memory":
        dataset = build.in_memory()
        report(writing)
        manifest = dataset.save(out).manifest
    else:
        with atomic_folder(out) as folder:
            manifest = build.on_disk(folder, limit, writing)
    return Prepared(open_written(out, manifest), False, manifest)


class _Build:
    """A dataset that is built from inputs, whose columns are checked when this object is made."""

    def __init__(self, inputs: Inputs, earlier_ids: EarlierIds | None, report: Progress) -> None:
        self._inputs, self._config = inputs, inputs.config
        self._earlier_ids, self._report = earlier_ids, report
        # Before the files are read: a file that changes meanwhile is not up to date later.
        self._facts = inputs.facts()
        report(f"reading {self._config.origin}")
        inputs.open()
        self._rows = check_rows(
            select_columns(inputs.interactions, self._config), self._config, report
        )

    @property
    def num_rows(self) -> int:
        """Interactions to read, before any filter."""
        return self._rows.parsed.num_rows

    def in_memory(self) -> PreparedDataset:
        """Return the dataset in memory."""
        arrays, tables, manifest = self._run(MemoryEngine())
        loaded: dict[str, Any] = {
            name: array.load() if isinstance(array, ArrayStream) else array
            for name, array in arrays.items()
        }
        return PreparedDataset(
            **loaded,
            users=tables["users"],
            items=tables["items"],
            event_type_names=tuple(manifest["event_types"]),
            target_event_types=tuple(manifest["target_event_types"]),
            manifest=manifest,
        )

    def on_disk(self, folder: Path, limit: MemoryLimit, writing: str) -> dict[str, Any]:
        """Write the dataset into an empty folder and return the manifest.

        Args:
            folder: from ``atomic_folder``; temporary files are in it too until the end.
            limit: of memory.
            writing: line to report before the dataset is written.
        """
        from candid.data.duckdb_engine import DuckDBEngine

        temporary = folder / "temporary"
        temporary.mkdir()
        engine = DuckDBEngine(temporary, limit, self._config)
        arrays, tables, manifest = self._run(engine)
        self._report(writing)
        manifest = write_dataset_files(folder, arrays, tables, manifest)
        shutil.rmtree(temporary)
        return manifest

    def _run(self, engine: Engine) -> tuple[dict[str, Any], Tables, dict[str, Any]]:
        """Return the arrays, the tables and the manifest."""
        inputs, config, report = self._inputs, self._config, self._report
        events = load_events(self._rows, config, engine, report)
        report(f"splitting {events.parts.num_rows:,} interactions ({config.split.kind})")
        split = assign_roles(events, config)
        ids = number(events, self._earlier_ids)
        if inputs.items or inputs.users:
            report("reading the tables of items and users")
        items = _join_table(ids.items, inputs.items, config.items)
        users = _join_table(ids.users, inputs.users, config.users)
        arrays = arrays_of(events, ids)
        earlier = None if self._earlier_ids is None else self._earlier_ids.fingerprint
        manifest = manifest_of(
            events, ids, config, self._facts, split, (users, items), arrays, earlier
        )
        return arrays, {"users": users.frame, "items": items.frame}, manifest


def _difference(earlier: dict[str, Any], inputs: dict[str, Any]) -> str | None:
    """Return why an earlier dataset differs from the inputs, or None if it does not.

    A key that is missing on one side counts as None: the earlier version may not have had it.
    """
    difference = _key_difference("data", earlier.get("config") or {}, inputs["config"])
    if difference is not None:
        return difference
    if earlier.get("sources") != inputs["sources"]:
        return "its files have changed"
    return None


def _key_difference(name: str, before: Any, now: Any) -> str | None:
    """Return the first key below ``name`` whose values differ, or None if none does."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys(), key=lambda key: (key != "kind", key))
        differences = (_key_difference(f"{name}.{k}", before.get(k), now.get(k)) for k in keys)
        return next((difference for difference in differences if difference is not None), None)
    return f"it was prepared with {name} = {before!r}, not {now!r}"


def _read_earlier_ids(config: DataConfig, out: Path | None, report: Progress) -> EarlierIds | None:
    """Return the ids that the dataset keeps; None without ``ids_from``, and on the first night.

    On the first night of a job that replaces its own dataset, ``ids_from`` is ``out`` and holds
    none yet.
    """
    if config.ids_from is None:
        return None
    path = Path(config.ids_from)
    is_own = out is not None and path.resolve() == out.resolve()
    if is_own and not (path / MANIFEST).exists():
        report(f"{out} has no dataset yet, so all ids are new")
        return None
    return read_earlier_ids(path)


def _ids_difference(earlier: dict[str, Any], ids: EarlierIds | None, out: Path) -> str | None:
    """Return why an earlier dataset differs from the ids to keep, or None if it does not."""
    if ids is None or (ids.path is not None and ids.path.resolve() == out.resolve()):
        return None
    if (earlier.get("ids_from") or {}).get("fingerprint") == ids.fingerprint:
        return None
    return f"{ids.origin} (ids_from) has changed"


def _join_table(
    source_ids: pl.Series, sources: Sequence[Source], config: TableConfig | None
) -> JoinedTable:
    if config is None:
        return JoinedTable(pl.DataFrame({"source_id": source_ids}), 0, 0)
    return join_table(source_ids, sources, config)
