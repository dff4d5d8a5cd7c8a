"""The log of item updates in a worker: the supervisor stores updates and sends those of others."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from candid.serve.channel import Channel, ChannelClosedError
from candid.serve.errors import RequestError
from candid.serve.update_log import ItemUpdate, SourceId, from_json, to_json


class WorkerLog:
    """The log of item updates in a worker: a copy of that of the supervisor.

    Args:
        channel: to the supervisor.
        updates: model, source id and update of each item, the earliest first.
    """

    def __init__(
        self, channel: Channel, updates: Iterable[tuple[str, SourceId, Mapping[str, Any] | None]]
    ) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._latest: dict[str, dict[SourceId, ItemUpdate | None]] = {}
        for model, source_id, content in updates:
            self.set(model, source_id, from_json(content))

    def __repr__(self) -> str:
        return f"WorkerLog({self._channel})"

    def append(self, model: str, source_id: SourceId, update: ItemUpdate | None) -> None:
        """Return when the supervisor has stored the update and all other workers have applied it.

        Raises:
            RequestError: it could not be stored; then nothing has changed. Or the server ends.
        """
        try:
            self._channel.call("append", model=model, item=source_id, update=to_json(update))
        except ChannelClosedError:
            raise shutting_down() from None

    def set(self, model: str, source_id: SourceId, update: ItemUpdate | None) -> None:
        """Take an update of the supervisor."""
        with self._lock:
            updates = self._latest.setdefault(model, {})
            updates.pop(source_id, None)  # The latest update comes last.
            updates[source_id] = update

    def latest(self, model: str) -> dict[SourceId, ItemUpdate | None]:
        """Return a copy of the latest update of each item, in the order of the updates."""
        with self._lock:
            return dict(self._latest.get(model, {}))

    def get(self, model: str, source_id: SourceId) -> ItemUpdate | None:
        """Return the latest update of an item; None also for an item without updates."""
        with self._lock:
            return self._latest.get(model, {}).get(source_id)


def shutting_down() -> RequestError:
    """Return the error for a request that the supervisor did not answer before it ended."""
    return RequestError("not_ready", "the server is shutting down", retry_after=1)


def files_changed(name: str) -> str:
    """Return the message for a model whose files are not those that other workers have loaded."""
    return (
        f"the files of model {name!r} have changed since other workers loaded them; reload the "
        "model, or put the files back"
    )
