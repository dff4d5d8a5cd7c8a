"""The feature towers over padded inputs: bags are padded, all other values stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.features import Codes, Numbers, Values
from candid.towers.feature_encoder import FeatureEncoder, FeatureMixing
from candid.towers.fields import BagField, CodeField, FieldEncoder
from candid.towers.padded import PADDING, NamedTensors, PaddedInput, PaddedModule, feature_input


class PaddedFields(nn.Module):
    """``FieldEncoder`` over padded bags.

    Args:
        encoder: its weights are shared.
        side: "item", "user" or "context".
        forms: values of its features; only their form is read.
    """

    def __init__(self, encoder: FieldEncoder, side: str, forms: Mapping[str, Values]) -> None:
        super().__init__()
        self.inputs = tuple(feature_input(side, name, forms[name]) for name in encoder.names)
        self.fields = encoder.fields

    def forward(self, tensors: NamedTensors) -> Tensor:
        """Encode n rows: [n, F, d]."""
        vectors = [
            _encode_field(field, tensors[padded_input.name], padded_input.size)
            for field, padded_input in zip(self.fields, self.inputs, strict=True)
        ]
        return torch.stack(vectors, dim=1)


class PaddedFeatureEncoder(PaddedModule):
    """``FeatureEncoder`` over the values of a request.

    An encoder of items that has a table of ids reads ``item_id`` as well. An encoder of users
    reads features only.

    Args:
        encoder: its weights are shared.
        side: "item" or "user".
        forms: values of its features; only their form is read.
    """

    def __init__(self, encoder: FeatureEncoder, side: str, forms: Mapping[str, Values]) -> None:
        super().__init__()
        self.encoder = encoder
        self.fields = PaddedFields(encoder.fields, side, forms)
        self.inputs = self.fields.inputs
        self.reads_id = side == "item" and encoder.ids is not None
        if self.reads_id:
            self.inputs += (PaddedInput("item_id", "id", encoder.num_rows),)

    def forward(self, tensors: NamedTensors) -> Tensor:
        """Encode n rows: [n, D]; an ``item_id`` of -1 is a new item."""
        fields = self.fields(tensors)
        codes = torch.zeros_like(fields[:, 0, 0], dtype=torch.int64)
        if self.reads_id:
            ids = tensors["item_id"]
            codes = F.embedding(
                torch.where(ids < 0, self.encoder.num_rows, ids), self.encoder.id_codes[:, None]
            )[:, 0]
        return self.encoder.encode_fields(fields, codes)


class PaddedContextFeatures(PaddedModule):
    """``ContextFeatures`` over padded bags.

    Args:
        mixing: its weights are shared.
        forms: values of the context features; only their form is read.
    """

    def __init__(self, mixing: FeatureMixing, forms: Mapping[str, Values]) -> None:
        super().__init__()
        self.mixing = mixing
        self.fields = PaddedFields(mixing.fields, "context", forms)
        self.inputs = self.fields.inputs

    def forward(self, tensors: NamedTensors) -> Tensor:
        """Encode B request contexts: [B, D]."""
        return self.mixing.mix(self.fields(tensors))


def _encode_field(field: nn.Module, values: Tensor, size: int) -> Tensor:
    if isinstance(field, BagField):
        is_member = (values != PADDING)[:, :, None]
        members: Tensor = field.table(values.clamp(min=0))
        count = is_member.sum(1)
        means = (members * is_member).sum(1) / count.clamp(min=1)
        return torch.where(count == 0, field.empty, means)
    encoded: Tensor = field(
        Codes(values, size) if isinstance(field, CodeField) else Numbers(values)
    )
    return encoded
