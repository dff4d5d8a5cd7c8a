"""The values of all items or users, where the tower is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from candid.features import Bags, Codes, Numbers, Values


class StoredValues(nn.Module):
    """The values of n rows and of one more, of which nothing is known.

    Buffers, so that they move with the model; not persistent, so that checkpoints do not hold
    what the dataset and the fitted features give.

    Args:
        values: by feature name, n rows each.
    """

    def __init__(self, values: Mapping[str, Values]) -> None:
        super().__init__()
        self.num_rows = len(next(iter(values.values())))
        self._forms: dict[str, tuple[type[Values], dict[str, Any]]] = {}
        for place, (name, value) in enumerate(values.items()):
            parts = {f.name: getattr(_with_blank(value), f.name) for f in fields(value)}
            rest = {key: part for key, part in parts.items() if not isinstance(part, Tensor)}
            self._forms[name] = (type(value), rest)
            for key in parts.keys() - rest.keys():
                self.register_buffer(f"{key}_{place}", parts[key], persistent=False)

    def take(self, rows: Tensor) -> dict[str, Values]:
        """The values of rows [m] int64; below 0 is the one of which nothing is known."""
        rows = torch.where(rows < 0, self.num_rows, rows)
        return {
            name: self._stored(place, *form).take(rows)
            for place, (name, form) in enumerate(self._forms.items())
        }

    def _stored(self, place: int, kind: type[Values], rest: dict[str, Any]) -> Values:
        buffers = {
            f.name: getattr(self, f"{f.name}_{place}") for f in fields(kind) if f.name not in rest
        }
        return kind(**buffers, **rest)


def _with_blank(values: Values) -> Values:
    """Add a last row: the unknown code, an empty bag, the numbers of an unknown row."""
    match values:
        case Codes(ids=ids):
            return replace(values, ids=torch.cat([ids, ids.new_zeros(1, ids.shape[1])]))
        case Bags(offsets=offsets):
            return replace(values, offsets=torch.cat([offsets, offsets[-1:]]))
        case Numbers(values=numbers):
            return replace(values, values=torch.cat([numbers, values.unknown_row()]))
