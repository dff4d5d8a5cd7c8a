"""Items as the server describes them: ids, titles, attributes, popularity, and their updates."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic_core import to_json

from candid import index
from candid.serve.errors import RequestError, short_repr

Ints = npt.NDArray[np.int64]
OTHER_COLUMNS: Final = ("source_id", "title")
"""Columns of the table of items that are not attributes."""
CACHED_ITEMS: Final = 200_000
"""Items whose JSON is cached: popular items occur in many answers."""


class RequestIds:
    """Converter between source ids, as requests write them, and dense ids.

    Args:
        source_ids: [n], integer or text; row i has the dense id i.
        kind: "user" or "item".
        model: name of the model, for messages.
    """

    def __init__(self, source_ids: pl.Series, *, kind: str, model: str) -> None:
        self.is_text = not source_ids.dtype.is_integer()
        self._ids = index.SourceIds(source_ids)
        self._range = range(0)
        if not self.is_text:
            bounds = np.iinfo(source_ids.to_numpy().dtype)
            self._range = range(int(bounds.min), int(bounds.max) + 1)
        self._kind = kind
        self._model = model
        self._ids.find([])  # Sorts the ids now, so that the first request does not wait for it.

    def __repr__(self) -> str:
        return f"RequestIds({len(self)} {self._kind} ids of {self._model!r})"

    def __len__(self) -> int:
        return len(self._ids)

    def to_source_id(self, request_id: int | str) -> int | str | None:
        """Return the id in the type of the data; None if it cannot have that type.

        An integer in text must be written as an integer is: ``"42"``, not ``"0042"``.
        """
        if self.is_text:
            return str(request_id)
        if isinstance(request_id, str):
            digits = request_id.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
                return None
            if str(number := int(request_id)) != request_id:
                return None  # 0042 is not an id of the data: an integer is written as 42.
            request_id = number
        return request_id if request_id in self._range else None

    def find(self, request_id: int | str) -> int | None:
        """Return the dense id; None if the id is unknown."""
        [dense_id] = self.find_all([request_id])
        return dense_id

    def find_all(self, request_ids: Sequence[int | str]) -> list[int | None]:
        """Return the dense id of each; None for an unknown id."""
        source_ids = list(map(self.to_source_id, request_ids))
        placeholder = "" if self.is_text else 0
        dense_ids = self._ids.find([placeholder if s is None else s for s in source_ids])
        return [
            None if dense_id < 0 or source_id is None else dense_id
            for source_id, dense_id in zip(source_ids, dense_ids.tolist(), strict=True)
        ]

    def source_ids(self, dense_ids: Sequence[int] | Ints) -> list[int | str]:
        """Return the source ids of dense ids."""
        return self._ids.source_ids(dense_ids)

    def require(self, request_id: int | str, field: str | None) -> int:
        """Return the dense id.

        Raises:
            RequestError: the id is unknown.
        """
        dense_id = self.find(request_id)
        if dense_id is None:
            raise self.unknown_error(request_id, field)
        return dense_id

    def check_type(self, request_id: int | str, field: str | None) -> None:
        """Refuse an id that cannot have the type of the data.

        Raises:
            RequestError: with the code ``invalid``.
        """
        if self.to_source_id(request_id) is None:
            raise RequestError(
                "invalid",
                f"{self._kind} {short_repr(request_id)} cannot be an id of model {self._model!r}, "
                f"whose {self._kind} ids are 64-bit integers: write it as the data has it",
                field,
            )

    def unknown_error(self, request_id: int | str, field: str | None) -> RequestError:
        """Return the error for an unknown id."""
        message = f"no {self._kind} {short_repr(request_id)} in model {self._model!r}"
        return RequestError(f"unknown_{self._kind}", message, field)

    def add(self, source_id: int | str) -> int:
        """Give the next dense id to a new source id, which has the type of the data."""
        self._ids.add([source_id])
        return len(self._ids) - 1


class ItemTable:
    """Titles, attributes and popularity of all items, added ones included.

    Args:
        items: V rows; ``source_id``, optional ``title``, attributes.
        added: source ids of items that an index on disk has beyond these.
        counts: [V] int64, number of training interactions of each item.
        model: name of the model, for messages.

    Attributes:
        ids: ids of all items, deleted ones included.
        attributes: type of each attribute.
        revision: grows with every update.
    """

    def __init__(self, items: pl.DataFrame, added: pl.Series, counts: Ints, *, model: str) -> None:
        self.ids = RequestIds(
            pl.concat([items["source_id"], added.cast(items["source_id"].dtype)]),
            kind="item",
            model=model,
        )
        self.has_titles = "title" in items.columns
        names = [name for name in items.columns if name not in OTHER_COLUMNS]
        self.attributes: dict[str, pl.DataType] = {name: items.schema[name] for name in names}
        self.revision = 0
        self._frame = items
        self._counts = counts
        self._updates: dict[int, dict[str, Any]] = {}
        self._json_cache: dict[bool, dict[int, str]] = {False: {}, True: {}}
        self._lock = threading.Lock()
        for item_id in range(items.height, len(self.ids)):
            self.update(item_id, None, {})
        self._text_and_order: tuple[pl.Series, Ints] | None = None

    @property
    def frame(self) -> pl.DataFrame:
        """The items of the dataset, without updates."""
        return self._frame

    @property
    def updates(self) -> Mapping[int, Mapping[str, Any]]:
        """``title`` and ``attributes`` of added and updated items, by id."""
        return self._updates

    def update(self, item_id: int, title: str | None, attributes: Mapping[str, Any]) -> None:
        """Set title and attributes of an existing item, or of one just added to ``ids``."""
        row = dict.fromkeys(self.attributes) | dict(attributes)
        with self._lock:
            self._updates[item_id] = {"title": title, "attributes": _to_plain_row(row)}
            self.revision += 1
            for cache in self._json_cache.values():
                cache.pop(item_id, None)

    def count_revision(self) -> None:
        """Count a change of the index, such as a deletion, as a new revision."""
        self.revision += 1

    def describe(self, item_ids: Sequence[int], include_attributes: bool) -> list[dict[str, Any]]:
        """Return ``item``, ``title``, ``popularity`` and optionally ``attributes`` of items."""
        num_built = len(self._counts)
        ids = np.asarray(item_ids, dtype=np.int64)
        rows = np.where(ids < num_built, ids, 0)
        entries: list[dict[str, Any]] = [
            {"item": name, "title": None, "popularity": count if item < num_built else 0}
            for item, name, count in zip(
                item_ids, self.ids.source_ids(ids), self._counts[rows].tolist(), strict=True
            )
        ]
        if num_built == 0:
            return entries
        if self.has_titles:
            for entry, title in zip(entries, self._frame["title"].gather(rows), strict=True):
                entry["title"] = title
        if include_attributes:
            columns = self._frame.select(list(self.attributes))[rows] if self.attributes else None
            dicts = [{} for _ in entries] if columns is None else columns.to_dicts()
            for entry, row in zip(entries, dicts, strict=True):
                entry["attributes"] = _to_plain_row(row)
        if self._updates:
            for item, entry in zip(item_ids, entries, strict=True):
                if (update := self._updates.get(int(item))) is not None:
                    entry["title"] = update["title"]
                    if include_attributes:
                        entry["attributes"] = update["attributes"]
        return entries

    def describe_json(self, item_ids: Sequence[int], include_attributes: bool) -> list[str]:
        """Return the entries of ``describe`` as JSON objects, each without its closing brace."""
        cache, revision = self._json_cache[include_attributes], self.revision
        texts = list(map(cache.get, item_ids))
        if None in texts:
            missing = list({item for item, text in zip(item_ids, texts, strict=True) if not text})
            entries = self.describe(missing, include_attributes)
            new_texts = {
                item: to_json(entry).decode()[:-1]
                for item, entry in zip(missing, entries, strict=True)
            }
            texts = [text or new_texts[item] for item, text in zip(item_ids, texts, strict=True)]
            with self._lock:
                # An item may have been updated meanwhile: its old text must not stay.
                if self.revision == revision:
                    if len(cache) + len(new_texts) > CACHED_ITEMS:
                        cache.clear()
                    cache.update(new_texts)
        return cast("list[str]", texts)

    def find_by_title(self, query: str, limit: int, live: npt.NDArray[np.bool_]) -> list[int]:
        """Return ids of live items whose title contains all words of a query.

        The item whose source id is the query comes first, then the most popular items. Data
        without titles is searched by source id. A blank query matches every item.

        Args:
            query: words, in any case.
            limit: number of ids.
            live: [n] bool, items that can be recommended.
        """
        words = query.lower().split()
        num_built = len(self._counts)
        if self._text_and_order is None:
            name = "title" if self.has_titles else "source_id"
            text = self._frame[name].cast(pl.String)
            # Both at once: another thread may search meanwhile.
            self._text_and_order = (
                text.str.to_lowercase().fill_null(""),
                np.argsort(-self._counts, kind="stable"),
            )
        text, by_popularity = self._text_and_order
        matches = live[:num_built].copy()
        for word in words:
            matches &= text.str.contains(word, literal=True).to_numpy()
        matches[[item for item in self._updates if item < num_built]] = False

        def is_live(item: int) -> bool:
            return item < len(live) and bool(live[item])

        exact = self.ids.find(query.strip()) if query.strip() else None
        ids = [exact] if exact is not None and is_live(exact) else []
        for item, update in list(self._updates.items()):
            title = (update["title"] or str(self.ids.source_ids([item])[0])).lower()
            if is_live(item) and item not in ids and all(word in title for word in words):
                ids.append(item)
        popular = by_popularity[matches[by_popularity]][: limit + 1].tolist()
        return [*ids, *(item for item in popular if item not in ids)][:limit]


def _to_plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON values: times as text, numbers that are not finite as null."""
    return {name: _to_plain(value) for name, value in row.items()}


def _to_plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, list):
        return [_to_plain(part) for part in value]
    if isinstance(value, dict):
        return _to_plain_row(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
