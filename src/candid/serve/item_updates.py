"""Item updates of a model version: checked and encoded first, applied to the index later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from candid.errors import DataError
from candid.serve.errors import RequestError, short_repr
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id
from candid.serve.update_log import ItemUpdate, SourceId
from candid.serve.validation import check_attributes

BATCH_SIZE: Final = 1024
"""Stored updates that are encoded at once."""


@dataclass(frozen=True)
class PreparedUpdate:
    """A checked update of one item for one model version; nothing has changed yet.

    Attributes:
        version: to apply it to.
        source_id: of the item, in the type of the data.
        update: None: the item is deleted.
        attributes: of the item, a value or None for each column.
        vectors: [1, D] float32, the item vector; None: the item is deleted.
        was_live: whether the item could be recommended before.
    """

    version: ModelVersion
    source_id: SourceId
    update: ItemUpdate | None
    attributes: Mapping[str, Any]
    vectors: Tensor | None
    was_live: bool

    @property
    def outcome(self) -> str:
        """The word of an answer: "added", "updated" or "deleted"."""
        if self.update is None:
            return "deleted"
        return "updated" if self.was_live else "added"

    def apply(self) -> None:
        """Change the model version; the caller lets no other update run at the same time."""
        if self.update is None:
            _delete(self.version, [self.source_id])
        else:
            assert self.vectors is not None
            item = EncodedItem(self.source_id, self.update, self.attributes)
            _put(self.version, [item], self.vectors)


@dataclass(frozen=True)
class EncodedItem:
    """One item to add or update.

    Attributes:
        source_id: in the type of the data.
        update: of the item.
        attributes: a value or None for each column.
    """

    source_id: SourceId
    update: ItemUpdate
    attributes: Mapping[str, Any]


def prepare_put(version: ModelVersion, source_id: Id, update: ItemUpdate) -> PreparedUpdate:
    """Check and encode an item to add or update.

    Raises:
        RequestError: the model cannot encode items from attributes, or the attributes are not
            valid.
    """
    _check_support(version)
    ids, index = version.items.ids, version.bundle.index
    key = ids.to_source_id(source_id)
    if key is None or key == "":
        raise _wrong_id(source_id)
    [item], vectors = _encode(version, [(key, update)])
    item_id = ids.find(key)
    was_live = item_id is not None and bool(index.is_live(torch.tensor([item_id]))[0])
    return PreparedUpdate(version, key, update, item.attributes, vectors, was_live)


def prepare_delete(version: ModelVersion, source_id: Id) -> PreparedUpdate:
    """Check that an item can be deleted.

    Raises:
        RequestError: the item is unknown or already deleted.
    """
    item_id = version.live_item(source_id, "id", "not_found")
    [key] = version.items.ids.source_ids([item_id])
    return PreparedUpdate(version, key, None, attributes={}, vectors=None, was_live=True)


def put_item(version: ModelVersion, source_id: Id, update: ItemUpdate) -> str:
    """Add an item to a model version, or update one; return "added" or "updated".

    Raises:
        RequestError: as ``prepare_put``.
    """
    prepared = prepare_put(version, source_id, update)
    prepared.apply()
    return prepared.outcome


def delete_item(version: ModelVersion, source_id: Id) -> None:
    """Remove an item from all recommendations.

    Raises:
        RequestError: the item is unknown or already deleted.
    """
    prepare_delete(version, source_id).apply()


def apply_updates(
    version: ModelVersion, updates: Mapping[SourceId, ItemUpdate | None]
) -> list[str]:
    """Apply stored updates to a model version.

    The result is that of one update after the other; items are encoded in batches. An item of a
    deletion may be unknown to the version.

    Returns:
        A message for each update that the version refuses.
    """
    refused, by_key = [], dict[SourceId, ItemUpdate | None]()
    for source_id, update in updates.items():
        key = version.items.ids.to_source_id(source_id)
        if key is None or key == "":
            refused.append(_wrong_id(source_id).message)
            continue
        by_key.pop(key, None)  # The ids 500 and "500" may be of one item: the later one counts.
        by_key[key] = update
    _delete(version, [key for key, update in by_key.items() if update is None])
    puts = [(key, update) for key, update in by_key.items() if update is not None]
    for begin in range(0, len(puts), BATCH_SIZE):
        refused += _put_valid(version, puts[begin : begin + BATCH_SIZE])
    return refused


def changed_updates(
    before: Mapping[SourceId, ItemUpdate | None], now: Mapping[SourceId, ItemUpdate | None]
) -> dict[SourceId, ItemUpdate | None]:
    """Return the updates of ``now`` that are not in ``before``, in their order."""
    return {
        source_id: update
        for source_id, update in now.items()
        if source_id not in before or before[source_id] != update
    }


def _put_valid(version: ModelVersion, puts: Sequence[tuple[SourceId, ItemUpdate]]) -> list[str]:
    """Add or update the items that the version accepts; return a message for each other."""
    try:
        _check_support(version)
        items, vectors = _encode(version, puts)
    except RequestError as error:
        if len(puts) == 1:
            return [error.message]
        return [message for put in puts for message in _put_valid(version, [put])]
    _put(version, items, vectors)
    return []


def _check_support(version: ModelVersion) -> None:
    bundle = version.bundle
    if bundle.item_encoder is None or bundle.snapshot is None:
        raise RequestError(
            "unsupported",
            bundle.why_no_vectors
            or "this model has one embedding per item: for item updates train it with "
            "model.item_tower = 'item_features'",
        )


def _wrong_id(source_id: Id) -> RequestError:
    return RequestError(
        "invalid",
        f"item ids must be integers of 64 bits without leading zeros, got {short_repr(source_id)}",
        "id",
    )


def _encode(
    version: ModelVersion, puts: Sequence[tuple[SourceId, ItemUpdate]]
) -> tuple[list[EncodedItem], Tensor]:
    """Return items with their attributes, and their vectors [n, D]; nothing changes.

    Raises:
        RequestError: an attribute is not valid, or a vector is not finite.
    """
    bundle, columns = version.bundle, list(version.items.attributes)
    assert bundle.item_encoder is not None
    for _, update in puts:
        check_attributes(update.attributes, columns, "items", "attributes")
    item_ids = version.items.ids.find_all([source_id for source_id, _ in puts])
    # An item of the training data keeps what its id adds to the vector.
    built = [item_id is not None and item_id < bundle.dataset.num_items for item_id in item_ids]
    attributes = list[Mapping[str, Any]]([{}] * len(puts))
    vectors = torch.empty(len(puts), bundle.dim)
    for is_built in (False, True):
        rows = [row for row, each in enumerate(built) if each == is_built]
        if not rows:
            continue
        updates = [puts[row][1] for row in rows]
        try:
            table, features = bundle.item_encoder(
                [{**update.attributes, "title": update.title} for update in updates]
            )
        except DataError as error:
            raise RequestError("invalid", str(error)[:500], "attributes") from None
        ids = torch.tensor([item_ids[row] for row in rows]) if is_built else None
        vectors[rows] = bundle.item_encoder.vectors(features, ids)
        for row, values in zip(rows, table.select(columns).iter_rows(named=True), strict=True):
            attributes[row] = values
    # A vector beyond float32 cannot be ranked.
    if not bool(vectors.square().sum(1).isfinite().all()):
        raise RequestError(
            "invalid", "the attributes give a vector that is not finite; check the numbers"
        )
    items = [EncodedItem(*put, values) for put, values in zip(puts, attributes, strict=True)]
    return items, vectors


def _put(version: ModelVersion, encoded: Sequence[EncodedItem], vectors: Tensor) -> None:
    """Add or update items."""
    items, snapshot = version.items, version.bundle.snapshot
    assert snapshot is not None
    keys = [item.source_id for item in encoded]
    for item, item_id in zip(encoded, items.ids.find_all(keys), strict=True):
        new_id = items.ids.add(item.source_id) if item_id is None else item_id
        items.update(new_id, item.update.title, item.attributes)
    snapshot.put(keys, vectors)
    items.count_revision()


def _delete(version: ModelVersion, source_ids: Sequence[SourceId]) -> None:
    """Delete items; unknown ones are passed over."""
    found = version.items.ids.find_all(source_ids)
    item_ids = [item_id for item_id in found if item_id is not None]
    if item_ids:
        version.bundle.index.delete(torch.tensor(item_ids))
        version.items.count_revision()
