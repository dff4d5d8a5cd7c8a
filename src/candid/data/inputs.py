"""Inputs of a preparation: the config, and the sources of interactions, items and users."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from candid.component import explain
from candid.data.config import DataConfig, ItemTableConfig, UserTableConfig
from candid.data.in_memory import TableReader, is_table
from candid.data.readers import Source, columns_of, open_sources
from candid.data.tables import open_table, storable_columns
from candid.errors import ConfigError

TABLE = "the table"
"""What messages call interactions in memory."""
TABLES = {"items": "the table of items", "users": "the table of users"}
"""What messages call the other tables in memory, by their key in ``DataConfig``."""


@dataclass(frozen=True)
class Inputs:
    """What a dataset is prepared from.

    Attributes:
        config: settings; a path is what messages call the table where it is in memory.
        interactions: sources of the interactions.
        items: sources of the table of items; empty without one.
        users: sources of the table of users; empty without one.
    """

    config: DataConfig
    interactions: Sequence[Source]
    items: Sequence[Source] = ()
    users: Sequence[Source] = ()

    @property
    def sources(self) -> list[Source]:
        """All sources."""
        return [*self.interactions, *self.items, *self.users]

    @property
    def in_memory(self) -> bool:
        """Whether a source is a table in memory, whose changes no file shows."""
        return not all(source.state for source in self.sources)

    def facts(self) -> dict[str, Any]:
        """Return config and sources for the manifest, as plain JSON values."""
        return {
            "config": self.config.model_dump(mode="json"),
            "sources": [
                dict(source.state) or {"table": str(source.path)} for source in self.sources
            ],
        }


def inputs_of_config(config: DataConfig) -> Inputs:
    """Open the files that a config names.

    Raises:
        DataError: a file does not exist, or cannot be read.
    """
    return Inputs(
        config,
        _open_files(config),
        [] if config.items is None else open_table(config.items),
        [] if config.users is None else open_table(config.users),
    )


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
    values = dict(settings)
    values["split"] = {"kind": split} if isinstance(split, str) else split
    readers: dict[str, TableReader] = {}
    if is_table(data):
        readers["interactions"] = TableReader(data, TABLE)
        values["interactions"] = TABLE
    else:
        values["interactions"] = _paths(data)
    for kind, given in (("items", items), ("users", users)):
        if given is not None:
            values[kind] = _table_settings(kind, given, str(values[kind[:-1]]), readers)
    config = _config(values)
    return Inputs(
        config,
        [readers["interactions"].source(config.columns.values())]
        if "interactions" in readers
        else _open_files(config),
        _open_table(config.items, readers.get("items")),
        _open_table(config.users, readers.get("users")),
    )


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
            readers[kind] = TableReader(table, TABLES[kind])
            settings["path"] = TABLES[kind]
        return settings
    if is_table(given):
        reader = readers[kind] = TableReader(given, TABLES[kind])
        path, columns = TABLES[kind], reader.storable_columns()
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


def _open_files(config: DataConfig) -> list[Source]:
    return open_sources(config.interactions, config.format, config.separator)


def _open_table(
    config: ItemTableConfig | UserTableConfig | None, reader: TableReader | None
) -> Sequence[Source]:
    if config is None:
        return ()
    return open_table(config) if reader is None else [reader.source(config.columns)]
