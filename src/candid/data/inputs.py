"""Inputs of a preparation: the config, and the sources of interactions, items and users."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import pydantic

from candid.component import explain
from candid.data.config import DataConfig, ItemTableConfig, UserTableConfig
from candid.data.in_memory import TableReader, is_table
from candid.data.readers import (
    Found,
    Source,
    columns_of,
    find_sources,
    open_sources,
)
from candid.data.tables import TableConfig, check_table, find_table, storable_columns
from candid.errors import ConfigError

MEMORY_NAMES: Final[Mapping[str, str]] = {
    "interactions": "the table",
    "items": "the table of items",
    "users": "the table of users",
}
"""What messages and a config call tables in memory, by their key in ``DataConfig``."""
FILE_SETTINGS = ("format", "separator", "column_names", "query")
"""Keys of ``DataConfig`` that a table in memory takes no part in."""


class Sources(Protocol):
    """Files or a table in memory that are found but not yet read."""

    @property
    def states(self) -> list[dict[str, Any]]:
        """Entries of the manifest, with a ``path`` for a file."""

    def open(self, columns: Iterable[str] | None = None) -> list[Source]:
        """Return what to read; ``columns`` are those that are needed, None: all."""


@dataclass(frozen=True)
class TableInMemory:
    """A table in memory as ``Sources``."""

    source: Source

    @property
    def states(self) -> list[dict[str, Any]]:
        """The name of the table."""
        return [{"table": str(self.source.path)}]

    def open(self, columns: Iterable[str] | None = None) -> list[Source]:
        """Return the table, whose columns were chosen before."""
        return [self.source]


@dataclass(frozen=True)
class Inputs:
    """What a dataset is prepared from.

    Files are opened, and remote ones downloaded, when their sources are first used.

    Attributes:
        config: settings; a path is what messages call the table where it is in memory.
        found: interactions, and the tables of items and users where there are any, by these names.
    """

    config: DataConfig
    found: Mapping[str, Sources]

    @cached_property
    def interactions(self) -> list[Source]:
        """Sources of the interactions."""
        return self.found["interactions"].open(self.config.columns.values())

    @cached_property
    def items(self) -> list[Source]:
        """Sources of the table of items; empty without one."""
        return self._open_table("items", self.config.items)

    @cached_property
    def users(self) -> list[Source]:
        """Sources of the table of users; empty without one."""
        return self._open_table("users", self.config.users)

    def _open_table(self, name: str, config: TableConfig | None) -> list[Source]:
        if config is None:
            return []
        return check_table(self.found[name].open(config.columns), config)

    def open(self) -> None:
        """Open all sources, so that a wrong column of any is found before the long work.

        Raises:
            DataError: a file cannot be read, or lacks a column.
        """
        _ = self.interactions, self.items, self.users

    def unversioned(self) -> str | None:
        """Return why the sources may have changed without a sign of it, or None."""
        for state in self._states():
            if "path" not in state:
                return "a table in memory is always prepared again"
            if state.get("unversioned"):
                return f"{state['path']} has no version to compare with"
        return None

    def facts(self) -> dict[str, Any]:
        """Return config and sources for the manifest, as plain JSON values."""
        return {"config": self.config.model_dump(mode="json"), "sources": self._states()}

    def _states(self) -> list[dict[str, Any]]:
        return [state for found in self.found.values() for state in found.states]


def inputs_of_config(config: DataConfig) -> Inputs:
    """Find the files that a config names.

    Raises:
        DataError: a file does not exist.
    """
    found: dict[str, Sources] = {"interactions": _find_files(config)}
    for name, table in (("items", config.items), ("users", config.users)):
        if table is not None:
            found[name] = find_table(table)
    return Inputs(config, found)


def inputs_of_tables(
    data: Any, items: Any, users: Any, split: Any, settings: Mapping[str, Any]
) -> Inputs:
    """Open tables in memory, files, or both.

    Args:
        data: interactions: a table, a path, or a list of paths.
        items: a table, a path, a mapping with ``table`` or ``path`` and settings, or None.
        users: likewise.
        split: kind of the split, its settings, or a ``SplitConfig``.
        settings: further keys of ``DataConfig``.

    Raises:
        ConfigError: ``data``, ``items`` or ``users`` is something else, or a setting is wrong.
        DataError: a table or file cannot be read, or lacks a column.
    """
    if "interactions" in settings:
        raise ConfigError("prepare: interactions are the first argument; remove the keyword")
    values = dict(settings)
    values["split"] = {"kind": split} if isinstance(split, str) else split
    readers: dict[str, TableReader] = {}
    if is_table(data):
        for key in FILE_SETTINGS:
            if values.get(key) not in (None, "auto", (), []):
                raise ConfigError(
                    f"prepare: {key} has no effect on a table in memory; remove it, or give a path"
                )
        readers["interactions"] = TableReader(data, MEMORY_NAMES["interactions"])
        values["interactions"] = MEMORY_NAMES["interactions"]
    else:
        values["interactions"] = _paths(data)
    for kind, given in (("items", items), ("users", users)):
        if given is not None:
            values[kind] = _table_settings(kind, given, str(values[kind[:-1]]), readers)
    config = _config(values)
    found: dict[str, Sources] = {}
    if "interactions" in readers:
        source = readers["interactions"].source(config.columns.values())
        found["interactions"] = TableInMemory(source)
    else:
        found["interactions"] = _find_files(config)
    for name, table in (("items", config.items), ("users", config.users)):
        if table is None:
            continue
        if name in readers:
            found[name] = TableInMemory(readers[name].source(table.columns))
        else:
            found[name] = find_table(table)
    return Inputs(config, found)


def _paths(data: Any) -> Any:
    if isinstance(data, str | os.PathLike):
        return data
    if isinstance(data, list | tuple) and all(isinstance(path, str | os.PathLike) for path in data):
        return tuple(data)
    if isinstance(data, DataConfig):
        raise ConfigError(
            "prepare takes a table or paths, got a DataConfig; use candid.data.prepare_folder"
        )
    raise ConfigError(
        "prepare takes a table of Polars, pandas or Arrow, a path, or a list of paths, got "
        f"{type(data).__name__}"
    )


def _table_settings(
    kind: str, given: Any, id_column: str, readers: dict[str, TableReader]
) -> dict[str, Any] | ItemTableConfig | UserTableConfig:
    """Return the settings of a table of items or users; a table in memory goes into ``readers``."""
    id_key = kind[:-1]
    if isinstance(given, ItemTableConfig | UserTableConfig):
        return given
    if isinstance(given, Mapping):
        settings = {id_key: id_column, **given}
        table = settings.pop("table", None)
        if (table is None) == (settings.get("path") is None):
            raise ConfigError(f"prepare: {kind} needs one of the keys table and path")
        if table is not None:
            if not is_table(table):
                raise ConfigError(
                    f"prepare: {kind}['table'] must be a table of Polars, pandas or Arrow, got "
                    f"{type(table).__name__}; name a file with the key path"
                )
            readers[kind] = TableReader(table, MEMORY_NAMES[kind])
            settings["path"] = MEMORY_NAMES[kind]
        return settings
    if is_table(given):
        reader = readers[kind] = TableReader(given, MEMORY_NAMES[kind])
        path, columns = MEMORY_NAMES[kind], reader.storable_columns()
    elif isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        columns = storable_columns(columns_of(open_sources(path, "auto", None)[0]))
    else:
        raise ConfigError(
            f"prepare: {kind} must be a table, a path or a mapping with the key table or path, got "
            f"{type(given).__name__}"
        )
    settings = {"path": path, id_key: id_column}
    others = [name for name in columns if name not in (id_column, "source_id")]
    if kind == "items":
        settings["title"] = "title" if "title" in others else None
        others = [name for name in others if name != "title"]
    return settings | {"attributes": others}


def _config(values: dict[str, Any]) -> DataConfig:
    try:
        return DataConfig.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"prepare: {explain(error, DataConfig, values)}") from None


def _find_files(config: DataConfig) -> Found:
    return find_sources(
        config.interactions, config.format, config.separator, config.query, config.column_names
    )
