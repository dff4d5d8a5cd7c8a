"""Records of a step: histories, queries and training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

import torch
from torch import Tensor

from candid.features import Values
from candid.features.transfer import to_device

UNKNOWN_TIME: Final = -1
"""Stands for the time of an interaction in a history where it is not known."""


@dataclass(frozen=True, slots=True)
class History:
    """The histories of a batch, packed: S sequences one after the other, no padding.

    Attributes:
        item_ids: [T] int64, the items, earliest first within a sequence.
        offsets: [S + 1] int64, sequence s is ``item_ids[offsets[s]:offsets[s + 1]]``.
        query_positions: [B] int64, the last token of each row's history: the history is that
            token and everything before it in its sequence. -1 is a row without a history.
        event_types: [T] int64, 1 + the code of each interaction's event type, 0 if it is not
            known; None if the data have no event types.
        times: [T] int64, microseconds since 1970-01-01 UTC, ``UNKNOWN_TIME`` where it is not known;
            None if all are unknown.
        cpu_offsets: ``offsets`` on the CPU, for a history on another device, so that the lengths
            can be read without a synchronisation; None if there is no such copy.
        first_sequence: number of the first sequence in the whole batch, of which this may be a
            part.
    """

    item_ids: Tensor
    offsets: Tensor
    query_positions: Tensor
    event_types: Tensor | None = None
    times: Tensor | None = None
    cpu_offsets: Tensor | None = None
    first_sequence: int = 0

    def to(self, device: torch.device) -> History:
        """Return a copy on ``device``, with the offsets on the CPU as well if they were there."""
        tensors: dict[str, Any] = {
            f.name: to_device(value, device)
            for f in fields(self)
            if f.name != "cpu_offsets" and isinstance(value := getattr(self, f.name), Tensor)
        }
        cpu_offsets = None
        if device.type != "cpu":
            cpu_offsets = self.offsets if self.offsets.device.type == "cpu" else self.cpu_offsets
        return replace(self, **tensors, cpu_offsets=cpu_offsets)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The user side of a batch, the input of a query tower.

    Attributes:
        user_ids: [B] int64.
        history: the packed histories, or None for loaders of single interactions.
        context: features of the context of each query, by name, B entries each; or None.
        user_features: features of B users who are not in the dataset, by name; None if
            ``user_ids`` are users of the dataset.
        times: [B] int64, time of each query, microseconds since 1970-01-01 UTC: in training and
            evaluation that of the target. None: unknown.
        row_numbers: [B] int64, number of each query in the whole batch, of which this may be a
            part; None: this is the whole batch.
    """

    user_ids: Tensor
    history: History | None = None
    context: Mapping[str, Values] | None = None
    user_features: Mapping[str, Values] | None = None
    times: Tensor | None = None
    row_numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def to(self, device: torch.device) -> Self:
        """Return a copy with every tensor on ``device``."""
        changes: dict[str, Any] = {
            f.name: value.to(device) if isinstance(value, History) else to_device(value, device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | History)
        }
        for name in ("context", "user_features"):
            if (values := getattr(self, name)) is not None:
                changes[name] = {feature: value.to(device) for feature, value in values.items()}
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Batch(Queries):
    """B training rows: queries with the item that was chosen.

    Attributes:
        positive_ids: [B] int64.
        weights: [B] float32, weight of each row, or None for equal weights.
        negative_ids: [B, S] int64, items that were shown with the positive and not chosen,
            padded with -1. None if no row has any.
    """

    positive_ids: Tensor
    weights: Tensor | None = None
    negative_ids: Tensor | None = None
