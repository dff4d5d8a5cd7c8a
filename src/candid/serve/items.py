"""What the server says of items: ids, titles, attributes, popularity; and changes of them."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic_core import to_json

from candid import index
from candid.serve.problems import Problem, shown

Ints = npt.NDArray[np.int64]
SHOWN_COLUMNS = ("source_id", "title")
WRITTEN = 200_000
"""Items whose JSON is kept: the popular ones are in one answer after the other."""


class SourceIds:
    """Source ids to dense ids and back, for users or items, as requests write them.

    Args:
        source_ids: [n], integer or text; row i has the id i.
        kind: "user" or "item".
        model: its name, for messages.
    """

    def __init__(self, source_ids: pl.Series, kind: str, model: str) -> None:
        self.is_text = not source_ids.dtype.is_integer()
        self._ids = index.SourceIds(source_ids)
        self._range = range(0)
        if not self.is_text:
            bounds = np.iinfo(source_ids.to_numpy().dtype)
            self._range = range(int(bounds.min), int(bounds.max) + 1)
        self._kind = kind
        self._model = model
        self._ids.find([])  # Sorted now, by whoever loads, and not by the first who asks.

    def __len__(self) -> int:
        return len(self._ids)

    def key(self, source_id: int | str) -> int | str | None:
        """The id as the data holds it; None where it cannot be one."""
        if self.is_text:
            return str(source_id)
        if isinstance(source_id, str):
            digits = source_id.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
                return None
            source_id = int(source_id)
        return source_id if source_id in self._range else None

    def find(self, source_id: int | str) -> int | None:
        """The dense id; None where there is none."""
        [found] = self.find_all([source_id])
        return found

    def find_all(self, source_ids: Sequence[int | str]) -> list[int | None]:
        """The dense id of each; None where there is none."""
        keys = list(map(self.key, source_ids))
        nobody = "" if self.is_text else 0  # in place of what cannot be an id
        found = self._ids.find([nobody if key is None else key for key in keys])
        return [
            None if item_id < 0 or key is None else item_id
            for key, item_id in zip(keys, found.tolist(), strict=True)
        ]

    def names(self, ids: Sequence[int] | Ints) -> list[int | str]:
        """The source ids of dense ids."""
        return self._ids.source_ids(ids)

    def require(self, source_id: int | str, field: str | None) -> int:
        """The dense id.

        Raises:
            Problem: there is none.
        """
        found = self.find(source_id)
        if found is None:
            raise self.unknown(source_id, field)
        return found

    def unknown(self, source_id: int | str, field: str | None) -> Problem:
        """What to say of an id that nobody has."""
        message = f"no {self._kind} {shown(source_id)} in model {self._model!r}"
        return Problem(f"unknown_{self._kind}", message, field)

    def add(self, key: int | str) -> int:
        """Give a new source id, as ``key`` returns it, the next dense id."""
        self._ids.add([key])
        return len(self._ids) - 1


class ItemTable:
    """Titles, attributes and popularity of items, those that came later included.

    Args:
        items: V rows; ``source_id``, optional ``title``, attributes.
        added: source ids of items that an index on disk has beyond these.
        counts: [V] int64, how often each was trained on.
        model: its name, for messages.

    Attributes:
        ids: source ids of all items, deleted ones too.
        attributes: type of each attribute.
        version: grows with every change.
    """

    def __init__(self, items: pl.DataFrame, added: pl.Series, counts: Ints, model: str) -> None:
        self.ids = SourceIds(
            pl.concat([items["source_id"], added.cast(items["source_id"].dtype)]), "item", model
        )
        self.has_titles = "title" in items.columns
        names = [name for name in items.columns if name not in SHOWN_COLUMNS]
        self.attributes: dict[str, pl.DataType] = {name: items.schema[name] for name in names}
        self.version = 0
        self._frame = items
        self._counts = counts
        self._changed: dict[int, dict[str, Any]] = {}
        self._written: dict[bool, dict[int, str]] = {False: {}, True: {}}
        self._lock = threading.Lock()
        for item_id in range(items.height, len(self.ids)):
            self.change(item_id, None, {})
        self._lower: pl.Series | None = None
        self._by_popularity: Ints | None = None

    @property
    def frame(self) -> pl.DataFrame:
        """The items of the dataset, as they were."""
        return self._frame

    @property
    def changed(self) -> Mapping[int, Mapping[str, Any]]:
        """``title`` and attributes of items that came later or were changed, by id."""
        return self._changed

    def change(self, item_id: int, title: str | None, attributes: Mapping[str, Any]) -> None:
        """Say something else of an item, or something of one that ``ids`` has just got."""
        row = dict.fromkeys(self.attributes) | dict(attributes)
        with self._lock:
            self._changed[item_id] = {"title": title, "attributes": _plain(row)}
            self.version += 1
            for written in self._written.values():
                written.pop(item_id, None)

    def touched(self) -> None:
        """Note that an item came or went otherwise than by ``change``."""
        self.version += 1

    def describe(self, item_ids: Sequence[int], with_attributes: bool) -> list[dict[str, Any]]:
        """``item``, ``title``, ``popularity`` and, if wanted, ``attributes`` of items."""
        base = len(self._counts)
        ids = np.asarray(item_ids, dtype=np.int64)
        rows = np.where(ids < base, ids, 0)
        found: list[dict[str, Any]] = [
            {"item": name, "title": None, "popularity": count if item < base else 0}
            for item, name, count in zip(
                item_ids, self.ids.names(ids), self._counts[rows].tolist(), strict=True
            )
        ]
        if base == 0:
            return found
        if self.has_titles:
            for entry, title in zip(found, self._frame["title"].gather(rows), strict=True):
                entry["title"] = title
        if with_attributes:
            columns = self._frame.select(list(self.attributes))[rows] if self.attributes else None
            dicts = [{} for _ in found] if columns is None else columns.to_dicts()
            for entry, row in zip(found, dicts, strict=True):
                entry["attributes"] = _plain(row)
        if self._changed:
            for item, entry in zip(item_ids, found, strict=True):
                if (change := self._changed.get(int(item))) is not None:
                    entry["title"] = change["title"]
                    if with_attributes:
                        entry["attributes"] = change["attributes"]
        return found

    def written(self, item_ids: Sequence[int], with_attributes: bool) -> list[str]:
        """What ``describe`` says of items as JSON, each without its closing brace."""
        kept, version = self._written[with_attributes], self.version
        found = list(map(kept.get, item_ids))
        if None in found:
            missing = list({item for item, text in zip(item_ids, found, strict=True) if not text})
            entries = self.describe(missing, with_attributes)
            fresh = {
                item: to_json(entry).decode()[:-1]
                for item, entry in zip(missing, entries, strict=True)
            }
            found = [text or fresh[item] for item, text in zip(item_ids, found, strict=True)]
            with self._lock:
                # Of an item that was changed meanwhile the old words must not stay.
                if self.version == version:
                    if len(kept) + len(fresh) > WRITTEN:
                        kept.clear()
                    kept.update(fresh)
        return cast("list[str]", found)

    def search(self, query: str, limit: int, is_live: npt.NDArray[np.bool_]) -> list[int]:
        """Ids of items whose title holds all words of a query, or whose source id it is.

        The item of that id comes first, then the most popular. A blank query finds all.
        """
        words = query.lower().split()
        base = len(self._counts)
        if self._lower is None:
            name = "title" if self.has_titles else "source_id"
            text = self._frame[name].cast(pl.String)
            self._lower = text.str.to_lowercase().fill_null("")
            self._by_popularity = np.argsort(-self._counts, kind="stable")
        assert self._by_popularity is not None
        matches = is_live[:base].copy()
        for word in words:
            matches &= self._lower.str.contains(word, literal=True).to_numpy()
        matches[[item for item in self._changed if item < base]] = False
        exact = self.ids.find(query.strip()) if query.strip() else None

        def is_there(item: int) -> bool:
            return item < len(is_live) and bool(is_live[item])

        found = [exact] if exact is not None and is_there(exact) else []
        for item, change in list(self._changed.items()):
            title = (change["title"] or str(self.ids.names([item])[0])).lower()
            if is_there(item) and item not in found and all(word in title for word in words):
                found.append(item)
        ranked = self._by_popularity[matches[self._by_popularity]][: limit + 1].tolist()
        return [*found, *(item for item in ranked if item not in found)][:limit]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as JSON has them: moments as text, numbers that are not finite as null."""
    return {name: _plain_value(value) for name, value in row.items()}


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, list):
        return [_plain_value(part) for part in value]
    if isinstance(value, dict):
        return _plain(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
