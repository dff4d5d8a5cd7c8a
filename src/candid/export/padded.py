"""Towers as graphs: the same weights and the same mathematics, on padded inputs.

Towers read packed records, whose inner shapes depend on the data, and look rows up that they
encode once each. A graph has fixed operations: here histories and bags are padded, and what a
tower makes of an id is computed beforehand for every id and looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.errors import ConfigError
from candid.export.inputs import PADDING, Input, Named, feature_input, merged
from candid.features import Codes, Numbers, Values
from candid.towers import (
    CausalTransformer,
    ContextFeatures,
    ItemTower,
    Joined,
    QueryTower,
    RowTable,
    UserEmbedding,
    UserFeatures,
)
from candid.towers.feature_encoder import FeatureEncoder
from candid.towers.fields import BagField, CodeField, FieldEncoder
from candid.towers.rotary import BASE
from candid.towers.transformer import Block

Forms = Mapping[str, Mapping[str, Values]]
"""Features by side and name; only their form is read."""
Asked = Literal["user_id", "features"]
"""Who asks: a user of the dataset by id, or somebody by what is known of them."""


class Part(nn.Module):
    """A part of a graph.

    Attributes:
        inputs: what it reads.
    """

    inputs: tuple[Input, ...]


class Rows(Part):
    """Vectors of ids, looked up; -1 has one of its own.

    Args:
        name: of the input.
        vectors: [n, D].
        unknown: [D], of -1; NaN where there is no answer.
    """

    table: Tensor

    def __init__(self, name: str, vectors: Tensor, unknown: Tensor) -> None:
        super().__init__()
        self.inputs = (Input(name, "id", len(vectors)),)
        self.register_buffer("table", torch.cat([vectors.float(), unknown.float()[None]]))

    def forward(self, named: Named) -> Tensor:
        """Look B ids up: [B, D]."""
        ids = named[self.inputs[0].name]
        return F.embedding(torch.where(ids < 0, len(self.table) - 1, ids), self.table)


class PaddedTransformer(Part):
    """``CausalTransformer`` over histories that are padded at their ends.

    Padding is later than every token, so that causal attention never reads it.

    Args:
        tower: whose weights these are.
        max_length: L.
        num_items: V.
    """

    items: Tensor
    blocks: nn.ModuleList
    num_heads: int

    def __init__(self, tower: CausalTransformer, max_length: int, num_items: int) -> None:
        super().__init__()
        history = Input("history", "ids", num_items, longest=max_length)
        self.register_buffer("items", _vectors_of(tower.items))
        self.positions = tower.positions
        self.event_types = tower.event_types
        self.blocks = tower.blocks
        self.norm = tower.norm
        self.nothing = tower.nothing
        self.num_heads = next(block.num_heads for block in tower.blocks if isinstance(block, Block))
        self.inputs = (history,)
        if tower.event_types is not None:
            kinds = tower.event_types.num_embeddings
            self.inputs += (Input("event_types", "event_types", kinds, longest=max_length),)

    def forward(self, named: Named) -> Tensor:
        """Encode B histories: [B, D]; NaN for an empty one that has no answer."""
        history = named["history"]
        tokens = F.embedding(history.clamp(min=0), self.items)
        turns = None
        if self.positions is not None:
            tokens = tokens + self.positions.weight[: history.shape[1]]
        else:
            turns = _turns(history.shape[1], tokens.shape[2] // self.num_heads)
        if self.event_types is not None:
            tokens = tokens + self.event_types(named["event_types"])
        for block in self.blocks:
            assert isinstance(block, Block)
            tokens = tokens + self._attend(block, tokens, turns)
            tokens = tokens + block.feed_forward(tokens)
        length = (history != PADDING).sum(1)
        last = (length - 1).clamp(min=0)[:, None, None].expand(-1, 1, tokens.shape[2])
        asked = self.norm(tokens.gather(1, last).squeeze(1))
        nothing = asked.new_full((), torch.nan) if self.nothing is None else self.nothing
        return torch.where((length == 0)[:, None], nothing, asked)

    def _attend(self, block: Block, tokens: Tensor, turns: Tensor | None) -> Tensor:
        qkv: Tensor = block.qkv(block.attention_norm(tokens))
        parts = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # each [B, H, L, D/H]
        if turns is not None:
            query, key = _turned(query, turns), _turned(key, turns)
        scores = (query @ key.transpose(2, 3)) / query.shape[3] ** 0.5
        places = torch.arange(tokens.shape[1], device=tokens.device)
        is_later = places[None, :] > places[:, None]
        weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=3)
        mixed: Tensor = block.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class PaddedFields(nn.Module):
    """``FieldEncoder`` over padded bags.

    Args:
        encoder: whose weights these are.
        side: "item", "user" or "context".
        forms: of its features.
    """

    def __init__(self, encoder: FieldEncoder, side: str, forms: Mapping[str, Values]) -> None:
        super().__init__()
        self.inputs = tuple(feature_input(side, name, forms[name]) for name in encoder.names)
        self.fields = encoder.fields

    def forward(self, named: Named) -> Tensor:
        """Encode n rows: [n, F, d]."""
        vectors = [
            _field(field, named[one.name], one.size)
            for field, one in zip(self.fields, self.inputs, strict=True)
        ]
        return torch.stack(vectors, dim=1)


class FeatureValues(Part):
    """``FeatureEncoder`` over values that come with the question.

    Args:
        encoder: whose weights these are.
        side: "item", or "user", of whom an id is never known here.
        forms: of its features.
    """

    def __init__(self, encoder: FeatureEncoder, side: str, forms: Mapping[str, Values]) -> None:
        super().__init__()
        self.encoder = encoder
        self.fields = PaddedFields(encoder.fields, side, forms)
        self.inputs = self.fields.inputs
        # Without a table of ids the id of an item would change nothing.
        self.reads_id = side == "item" and encoder.ids is not None
        if self.reads_id:
            self.inputs += (Input("item_id", "id", encoder.num_rows),)

    def forward(self, named: Named) -> Tensor:
        """Encode n rows: [n, D]; an ``item_id`` of -1 is a new item."""
        fields = self.fields(named)
        codes = torch.zeros_like(fields[:, 0, 0], dtype=torch.int64)
        if self.reads_id:
            ids = named["item_id"]
            codes = F.embedding(
                torch.where(ids < 0, self.encoder.num_rows, ids), self.encoder.id_codes[:, None]
            )[:, 0]
        return self.encoder.encode_fields(fields, codes)


class ContextValues(Part):
    """``ContextFeatures`` over padded bags."""

    def __init__(self, tower: ContextFeatures, forms: Mapping[str, Values]) -> None:
        super().__init__()
        self.mixing = tower.mixing
        self.fields = PaddedFields(tower.mixing.fields, "context", forms)
        self.inputs = self.fields.inputs

    def forward(self, named: Named) -> Tensor:
        """Encode B moments: [B, D]."""
        return self.mixing.mixed(self.fields(named))


class JoinedParts(Part):
    """``Joined`` of parts of a graph."""

    def __init__(self, tower: Joined, parts: Sequence[Part]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.perceptron = tower.perceptron
        self.inputs = merged(part.inputs for part in parts)

    def forward(self, named: Named) -> Tensor:
        """Encode B queries: [B, D]."""
        vectors: Tensor = self.perceptron(torch.cat([part(named) for part in self.parts], dim=1))
        return vectors


def padded_query(
    tower: QueryTower, asked: Asked, forms: Forms, max_length: int, num_items: int
) -> Part:
    """A query tower as a part of a graph.

    Args:
        tower: in evaluation mode, on the CPU.
        asked: whether users are named by id or by their features.
        forms: of the features that the tower reads.
        max_length: L.
        num_items: V.

    Raises:
        ConfigError: a tower of a type that has no graph.
    """
    match tower:
        case CausalTransformer():
            return PaddedTransformer(tower, max_length, num_items)
        case UserEmbedding():
            table = tower.embedding.every_row().detach()
            return Rows("user_id", table, table.new_full((tower.dim,), torch.nan))
        case UserFeatures() if asked == "features":
            return FeatureValues(tower.encoder, "user", forms["user"])
        case UserFeatures():
            with torch.no_grad():
                nobody = tower.encoder(torch.tensor([PADDING]))[0]
                return Rows("user_id", tower.encoder.every_row(), nobody)
        case ContextFeatures():
            return ContextValues(tower, forms["context"])
        case Joined():
            parts = [
                padded_query(part, asked, forms, max_length, num_items)
                for part in tower.towers
                if isinstance(part, QueryTower)
            ]
            return JoinedParts(tower, parts)
    raise ConfigError(
        f"a query tower of class {type(tower).__name__} cannot be exported as a graph: leave out "
        "the formats onnx and torch, or give candid.export.padded a part for it"
    )


def _vectors_of(items: nn.Embedding | ItemTower) -> Tensor:
    """[V, D] float32, what the tokens of histories begin as."""
    if isinstance(items, RowTable):
        return items.every_row().detach()
    if isinstance(items, nn.Embedding):
        return items.weight.detach()
    with torch.no_grad():
        return items.catalog().float()


def _field(field: nn.Module, values: Tensor, size: int) -> Tensor:
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


def _turns(length: int, width: int) -> Tensor:
    """Cosine and sine at each place: [L, D/H/2, 2]; see ``rotary.rotations``."""
    pairs = torch.arange(0, width, 2, dtype=torch.float32)
    places = torch.arange(length, dtype=torch.float32)
    angles = places[:, None] * BASE ** (-pairs / width)
    return torch.stack([angles.cos(), angles.sin()], dim=2)


def _turned(heads: Tensor, turns: Tensor) -> Tensor:
    """Rotate pairs of [B, H, L, D/H]: (x + iy)(cos + i sin), without complex numbers."""
    x, y = heads.unflatten(3, (-1, 2)).unbind(4)
    cos, sin = turns.unbind(2)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=4).flatten(3)
