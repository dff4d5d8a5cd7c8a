"""The feature values of all items or users, on the device of the tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from candid.features import Bags, Codes, Numbers, Values


class StoredValues(nn.Module):
    """The values of n rows and of one unknown row.

    They are buffers, which move with the model, and not persistent: checkpoints do not repeat
    what dataset and fitted features contain.

    Args:
        values: by feature name, n rows each.
    """

    def __init__(self, values: Mapping[str, Values]) -> None:
        super().__init__()
        self.num_rows = len(next(iter(values.values())))
        self._forms: dict[str, tuple[type[Values], dict[str, Any]]] = {}
        for position, (name, value) in enumerate(values.items()):
            members = {f.name: getattr(_with_unknown_row(value), f.name) for f in fields(value)}
            settings = {key: m for key, m in members.items() if not isinstance(m, Tensor)}
            self._forms[name] = (type(value), settings)
            # In the order of the fields: several processes send buffers in the order of the model.
            for key, member in members.items():
                if key not in settings:
                    self.register_buffer(f"{key}_{position}", member, persistent=False)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"num_rows={self.num_rows}, features={list(self._forms)}"

    def take(self, rows: Tensor) -> dict[str, Values]:
        """Return the values of rows [m] int64; a negative row is the unknown one."""
        rows = torch.where(rows < 0, self.num_rows, rows)
        return {
            name: self._values(position, *form).take(rows)
            for position, (name, form) in enumerate(self._forms.items())
        }

    def _values(self, position: int, form: type[Values], settings: dict[str, Any]) -> Values:
        names = [f.name for f in fields(form) if f.name not in settings]
        return form(**{n: getattr(self, f"{n}_{position}") for n in names}, **settings)


def _with_unknown_row(values: Values) -> Values:
    """Append a row: the unknown code, an empty bag, or the numbers of an unknown row."""
    match values:
        case Codes(ids=ids):
            return replace(values, ids=torch.cat([ids, ids.new_zeros(1, ids.shape[1])]))
        case Bags(offsets=offsets):
            return replace(values, offsets=torch.cat([offsets, offsets[-1:]]))
        case Numbers(values=numbers):
            return replace(values, values=torch.cat([numbers, values.unknown_row()]))
