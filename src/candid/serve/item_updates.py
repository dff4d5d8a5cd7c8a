"""Item updates while the server runs: applied to the index, stored, and applied after a reload.

The stored form is title and attributes, not the vector: a model that is loaded later encodes them
again. With a file, one JSON object per line, updates outlive the server.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candid.atomic import replacing, write_error
from candid.errors import ArtifactError, DataError
from candid.serve.errors import RequestError, short_repr
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id
from candid.serve.validation import check_attributes

SourceId = int | str


@dataclass(frozen=True)
class ItemUpdate:
    """Title and attributes of an added or updated item.

    Attributes:
        title: None: the item has none.
        attributes: by column; an absent one is unknown.
    """

    title: str | None
    attributes: Mapping[str, Any]


def put_item(version: ModelVersion, source_id: Id, update: ItemUpdate) -> str:
    """Add an item to a model version, or update one.

    Returns:
        "added" or "updated".

    Raises:
        RequestError: the model cannot encode items from attributes, or the attributes are not
            valid.
    """
    bundle, items = version.bundle, version.items
    if bundle.item_encoder is None or bundle.snapshot is None:
        raise RequestError(
            "unsupported",
            bundle.why_no_vectors
            or "this model has one embedding per item: for item updates train it with "
            "model.item_tower = 'item_features'",
        )
    key = items.ids.to_source_id(source_id)
    if key is None or key == "":
        raise RequestError(
            "invalid", f"item ids must be integers, got {short_repr(source_id)}", "id"
        )
    check_attributes(update.attributes, items.attributes, "items", "attributes")
    try:
        table, features = bundle.item_encoder([{**update.attributes, "title": update.title}])
    except DataError as error:
        raise RequestError("invalid", str(error)[:500], "attributes") from None
    item_id = items.ids.find(key)
    is_built = item_id is not None and item_id < bundle.dataset.num_items
    vectors = bundle.item_encoder.vectors(features, torch.tensor([item_id]) if is_built else None)
    # A vector beyond float32 cannot be ranked.
    if not bool(vectors.square().sum().isfinite()):
        raise RequestError(
            "invalid", "the attributes give a vector that is not finite; check the numbers"
        )
    attributes = table.select(list(items.attributes)).row(0, named=True)
    was_live = item_id is not None and bool(bundle.index.is_live(torch.tensor([item_id]))[0])
    if item_id is None:
        item_id = items.ids.add(key)
    items.update(item_id, update.title, attributes)
    bundle.snapshot.put([key], vectors)
    items.count_revision()
    return "updated" if was_live else "added"


def delete_item(version: ModelVersion, source_id: Id) -> None:
    """Remove an item from all recommendations.

    Raises:
        RequestError: the item is unknown or already deleted.
    """
    item_id = version.live_item(source_id, "id", "not_found")
    version.bundle.index.delete(torch.tensor([item_id]))
    version.items.count_revision()


class ItemUpdates:
    """The latest update of each item, by model; None for a deleted item.

    Args:
        file: to read and append to; None: updates end with the server.

    Attributes:
        lock: held during an update.

    Raises:
        ArtifactError: the file is damaged or cannot be written.
    """

    def __init__(self, file: Path | str | None = None) -> None:
        self.lock = threading.Lock()
        self._file = None if file is None else Path(file)
        self._updates: dict[str, dict[SourceId, ItemUpdate | None]] = {}
        if self._file is None:
            return
        if self._file.exists():
            self._read(self._file)
        try:
            self._file.open("a").close()  # Fail now, not at the first update.
        except OSError as error:
            raise write_error(self._file, error) from error

    def __repr__(self) -> str:
        return f"ItemUpdates(file={None if self._file is None else str(self._file)!r})"

    def record(self, model: str, source_id: SourceId, update: ItemUpdate | None) -> None:
        """Store an update; None: the item is deleted.

        Raises:
            ArtifactError: the file cannot be written.
        """
        self._updates.setdefault(model, {})[source_id] = update
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(_to_line(model, source_id, update))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(self._file, error) from error

    def apply(self, version: ModelVersion) -> list[str]:
        """Apply all updates to a model version; return a message for each that fails."""
        failures = []
        for source_id, update in self._updates.get(version.name, {}).items():
            try:
                if update is not None:
                    put_item(version, source_id, update)
                elif version.items.ids.find(source_id) is not None:
                    delete_item(version, source_id)
            except RequestError as error:
                if error.code != "not_found":
                    failures.append(error.message)
        return failures

    def _read(self, file: Path) -> None:
        lines = file.read_text(encoding="utf-8").split("\n")
        # Text after the last line break is left from an interrupted write: skip it.
        for number, line in enumerate(lines[:-1], 1):
            try:
                entry = json.loads(line)
                content = entry["update"]
                update = None
                if content is not None:
                    update = ItemUpdate(content["title"], dict(content["attributes"]))
                self._updates.setdefault(entry["model"], {})[entry["item"]] = update
            except (ValueError, KeyError, TypeError):
                raise ArtifactError(
                    f"line {number} of {file} is not an item update with the keys model, item and "
                    "update; correct or remove the line"
                ) from None
        with replacing(file) as temporary:
            text = (
                _to_line(model, source_id, update)
                for model, updates in self._updates.items()
                for source_id, update in updates.items()
            )
            temporary.write_text("".join(text), encoding="utf-8")


def _to_line(model: str, source_id: SourceId, update: ItemUpdate | None) -> str:
    content = None
    if update is not None:
        content = {"title": update.title, "attributes": dict(update.attributes)}
    entry = {"model": model, "item": source_id, "update": content}
    return json.dumps(entry, ensure_ascii=False) + "\n"
