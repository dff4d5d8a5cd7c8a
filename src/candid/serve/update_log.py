"""The log of item updates: the latest update of each item of each served model.

The stored form is title and attributes, not the vector: a model that is loaded later encodes them
again. This module needs no torch: a process that only writes the file can use it.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from candid.serve.errors import RequestError
from candid.serve.logs import log_event
from candid.serve.update_file import UpdateFile, to_record

SourceId = int | str
SLACK: Final = 65_536
"""Bytes by which a file may exceed twice its latest updates before it is compacted."""
RETRY_SECONDS: Final = 30
"""Value of Retry-After for an update that could not be stored."""


@dataclass(frozen=True)
class ItemUpdate:
    """Title and attributes of an added or updated item.

    Attributes:
        title: None: the item has none.
        attributes: by column; an absent one is unknown.
    """

    title: str | None
    attributes: Mapping[str, Any]


def to_json(update: ItemUpdate | None) -> dict[str, Any] | None:
    """Return an update as JSON values; null for a deletion."""
    if update is None:
        return None
    return {"title": update.title, "attributes": dict(update.attributes)}


def from_json(content: Mapping[str, Any] | None) -> ItemUpdate | None:
    """Return the update that ``to_json`` wrote."""
    return None if content is None else ItemUpdate(content["title"], content["attributes"])


class UpdateLog(Protocol):
    """The log as the models of a server use it. All methods may be called from any thread.

    Models are named as they are served. An update of None deletes the item.
    """

    def append(self, model: str, source_id: SourceId, update: ItemUpdate | None) -> None:
        """Store an update durably, and only then in memory.

        Raises:
            RequestError: with the code ``not_stored``; then nothing has changed.
        """

    def latest(self, model: str) -> Mapping[SourceId, ItemUpdate | None]:
        """Return a copy of the latest update of each item, in the order of the updates."""

    def get(self, model: str, source_id: SourceId) -> ItemUpdate | None:
        """Return the latest update of an item; None also for an item without updates."""


class ItemUpdates:
    """An update log in memory, and in a file if there is one.

    The file is compacted in a thread when it is larger than twice its latest updates.

    Args:
        file: to read and append to; None: updates end with the server.

    Raises:
        ArtifactError: the file cannot be read or written, or was not written by candid.

    Example:
        >>> updates = ItemUpdates()
        >>> updates.append("films", 500, ItemUpdate("Dark Wood", {"year": 2001}))
        >>> updates.latest("films")
        {500: ItemUpdate(title='Dark Wood', attributes={'year': 2001})}
    """

    def __init__(self, file: Path | str | None = None) -> None:
        self._lock = threading.Lock()
        # By model and item: the update, and the bytes of its record.
        self._latest: dict[str, dict[SourceId, tuple[ItemUpdate | None, int]]] = {}
        self._live_bytes = 0
        self._compact_above = SLACK
        self._compaction: threading.Thread | None = None
        self._file = None if file is None else UpdateFile(Path(file))
        if self._file is not None:
            self._load(self._file)

    def __repr__(self) -> str:
        return f"ItemUpdates(file={None if self._file is None else str(self._file.path)!r})"

    def append(self, model: str, source_id: SourceId, update: ItemUpdate | None) -> None:
        """Store an update: first on disk, if there is a file, then in memory.

        Args:
            model: served name.
            source_id: in the type of the data.
            update: None: the item is deleted.

        Raises:
            RequestError: with the code ``not_stored``: the file cannot be written; then nothing
                has changed.
        """
        record = _to_record(model, source_id, update)
        with self._lock:
            if self._file is not None:
                try:
                    self._put_in_place(self._file)
                    self._file.append(record)
                except OSError as error:
                    raise _not_stored(self._file, error) from error
            self._set(model, source_id, update, len(record))
            if self._file is not None:
                self._compact_if_large(self._file)

    def latest(self, model: str) -> dict[SourceId, ItemUpdate | None]:
        """Return a copy of the latest update of each item, in the order of the updates."""
        with self._lock:
            return {item: update for item, (update, _) in self._latest.get(model, {}).items()}

    def get(self, model: str, source_id: SourceId) -> ItemUpdate | None:
        """Return the latest update of an item; None also for an item without updates."""
        with self._lock:
            return self._latest.get(model, {}).get(source_id, (None, 0))[0]

    def counts(self) -> dict[str, int]:
        """Return the number of items with an update, by model."""
        with self._lock:
            return {model: len(updates) for model, updates in self._latest.items()}

    def log_unserved(self, served: Collection[str]) -> None:
        """Write a log line if there are updates of models that are not served; they are kept."""
        counts = {model: n for model, n in self.counts().items() if model not in served}
        if counts:
            log_event("item updates of models that are not served", logging.WARNING, items=counts)

    def close(self) -> None:
        """Finish a running compaction and close the file."""
        if (compaction := self._compaction) is not None:
            compaction.join()
        if self._file is not None:
            self._file.close()

    def _set(
        self, model: str, source_id: SourceId, update: ItemUpdate | None, num_bytes: int
    ) -> None:
        updates = self._latest.setdefault(model, {})
        # The latest update comes last, also of an item that has an earlier one.
        _, before = updates.pop(source_id, (None, 0))
        updates[source_id] = (update, num_bytes)
        self._live_bytes += num_bytes - before

    def _load(self, file: UpdateFile) -> None:
        contents = file.contents
        for entry, num_bytes in contents.records:
            self._set(entry["model"], entry["item"], from_json(entry["update"]), num_bytes)
        try:
            if contents.damaged:
                copy = file.copy_damaged()
                log_event(
                    "item updates damaged",
                    logging.ERROR,
                    file=str(file.path),
                    damaged_bytes=contents.damaged,
                    valid_updates=len(contents.records),
                    copy=str(copy),
                )
            if contents.torn:
                log_event(
                    "incomplete item update removed",
                    logging.WARNING,
                    file=str(file.path),
                    bytes=contents.torn,
                )
            if contents.damaged or not contents.ends_cleanly:
                file.replace_with(file.write_copy(self._records()))
            elif contents.torn:
                file.cut_torn_end()
            elif file.size > 2 * self._live_bytes + SLACK:
                file.replace_with(file.write_copy(self._records()))
        except OSError as error:
            # Records are found behind damaged bytes too, so that the server can start.
            _log_failure("item updates not repaired", file, error)

    def _records(self) -> Iterator[bytes]:
        """Return the records of the latest updates; a list of them is made at once."""
        latest = [
            (model, source_id, update)
            for model, updates in self._latest.items()
            for source_id, (update, _) in updates.items()
        ]
        return itertools.starmap(_to_record, latest)

    def _put_in_place(self, file: UpdateFile) -> None:
        """Write a new file if a person removed or replaced it: else updates would be lost."""
        if file.is_in_place:
            return
        log_event("item updates file was removed", logging.ERROR, file=str(file.path))
        file.replace_with(file.write_copy(self._records()))

    def _compact_if_large(self, file: UpdateFile) -> None:
        is_running = self._compaction is not None and self._compaction.is_alive()
        if is_running or file.size <= max(2 * self._live_bytes + SLACK, self._compact_above):
            return
        self._compaction = threading.Thread(
            target=self._compact,
            args=(file, self._records(), file.size, file.num_replaced),
            name="candid-compaction",
        )
        self._compaction.start()

    def _compact(
        self, file: UpdateFile, records: Iterator[bytes], size: int, num_replaced: int
    ) -> None:
        try:
            temporary = file.write_copy(records)
            with self._lock:
                if file.num_replaced != num_replaced:
                    temporary.unlink()  # The file was removed and is written again: it is compact.
                    return
                file.replace_with(temporary, since=size)
            self._compact_above = SLACK
            log_event("item updates compacted", before=size, after=file.size)
        except OSError as error:
            # The next attempt is made when the file has doubled.
            self._compact_above = 2 * size
            _log_failure("item updates not compacted", file, error)


def _to_record(model: str, source_id: SourceId, update: ItemUpdate | None) -> bytes:
    return to_record({"model": model, "item": source_id, "update": to_json(update)})


def _not_stored(file: UpdateFile, error: OSError) -> RequestError:
    _log_failure("item update not stored", file, error)
    return RequestError(
        "not_stored",
        f"the update could not be stored ({_reason(error)}), so nothing has changed; send it again "
        "later",
        retry_after=RETRY_SECONDS,
    )


def _log_failure(event: str, file: UpdateFile, error: OSError) -> None:
    log_event(event, logging.ERROR, file=str(file.path), reason=_reason(error))


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
