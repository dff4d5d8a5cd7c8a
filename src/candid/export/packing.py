"""Padded tensors as the packed records that towers read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from candid.batches import History, Queries
from candid.features import Bags, Codes, Numbers, Values
from candid.towers import PADDING, NamedTensors


def pack_values(form: Values, tensor: Tensor) -> Values:
    """Return a padded feature as the towers read it.

    Args:
        form: values of the feature; only their form is read.
        tensor: [B, K] codes, [B, M] members of a bag with padding, or [B, M] numbers.
    """
    match form:
        case Codes():
            return Codes(tensor, form.num_codes)
        case Numbers():
            return Numbers(tensor, form.unknown)
        case Bags():
            is_member = tensor != PADDING
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), is_member.sum(1).cumsum(0)])
            return Bags(tensor[is_member], offsets, form.num_codes)


def pack_features(
    side: str, forms: Mapping[str, Values], tensors: NamedTensors
) -> dict[str, Values]:
    """Return the features of one side that are among the inputs.

    Args:
        side: "item", "user" or "context".
        forms: by feature name; only their form is read.
        tensors: by input name, such as "item.genres".
    """
    return {
        name: pack_values(form, tensors[f"{side}.{name}"])
        for name, form in forms.items()
        if f"{side}.{name}" in tensors
    }


def pack_queries(tensors: NamedTensors, features: Mapping[str, Mapping[str, Values]]) -> Queries:
    """Return the inputs of a query graph as the towers read them.

    Args:
        tensors: by input name.
        features: side -> feature -> values; only their form is read.
    """
    batch = len(next(iter(tensors.values())))
    return Queries(
        user_ids=tensors.get("user_id", torch.full((batch,), PADDING)),
        history=_pack_history(tensors),
        context=pack_features("context", features.get("context", {}), tensors) or None,
        times=tensors.get("query_time"),
        user_features=pack_features("user", features.get("user", {}), tensors) or None,
    )


def _pack_history(tensors: NamedTensors) -> History | None:
    if "history" not in tensors:
        return None
    is_token = tensors["history"] != PADDING
    lengths = is_token.sum(1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return History(
        item_ids=tensors["history"][is_token],
        offsets=offsets,
        query_positions=torch.where(lengths > 0, offsets[1:] - 1, PADDING),
        event_types=tensors["event_types"][is_token] if "event_types" in tensors else None,
        times=tensors["times"][is_token] if "times" in tensors else None,
    )
