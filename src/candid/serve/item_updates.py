"""Item updates of a model version: checked and encoded first, applied to the index later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from candid.errors import DataError
from candid.serve.errors import RequestError, short_repr
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id
from candid.serve.update_log import ItemUpdate, SourceId
from candid.serve.validation import check_attributes


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
        items, bundle = self.version.items, self.version.bundle
        item_id = items.ids.find(self.source_id)
        if self.update is None:
            if item_id is not None:
                bundle.index.delete(torch.tensor([item_id]))
        else:
            assert bundle.snapshot is not None
            assert self.vectors is not None
            if item_id is None:
                item_id = items.ids.add(self.source_id)
            items.update(item_id, self.update.title, self.attributes)
            bundle.snapshot.put([self.source_id], self.vectors)
        items.count_revision()


def prepare_put(version: ModelVersion, source_id: Id, update: ItemUpdate) -> PreparedUpdate:
    """Check and encode an item to add or update.

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
    return PreparedUpdate(
        version,
        key,
        update,
        attributes=table.select(list(items.attributes)).row(0, named=True),
        vectors=vectors,
        was_live=item_id is not None and bool(bundle.index.is_live(torch.tensor([item_id]))[0]),
    )


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

    An item of a deletion may be unknown to the version.

    Returns:
        A message for each update that the version refuses.
    """
    refused = []
    for source_id, update in updates.items():
        try:
            if update is not None:
                put_item(version, source_id, update)
            else:
                delete_item(version, source_id)
        except RequestError as error:
            if error.code != "not_found":
                refused.append(error.message)
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
