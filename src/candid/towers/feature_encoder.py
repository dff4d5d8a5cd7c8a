"""The encoder of one side: the features, and where wanted the id, of users or items to vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from candid.errors import ConfigError, DataError
from candid.features import FeatureTable, Values
from candid.towers.fields import FieldEncoder, code_table, with_unknown
from candid.towers.interaction import FieldMixer, Interaction
from candid.towers.perceptron import Activation, Hidden, Perceptron
from candid.towers.protocol import EncodeProgress, TowerConfig
from candid.towers.stored_values import StoredValues

IdMode = Literal["none", "field", "residual", "override"]

START_SCALE = 0.1
"""Vectors begin short, as those of a table do: at full length the NLL begins far above log V,
and the scores of a random catalog have to be unlearnt first."""
CHUNK = 16_384
"""Rows encoded at a time where no gradient is wanted, so that memory stays bounded."""


class MixingTowerConfig(TowerConfig):
    """What every tower that reads features has in common."""

    dim: int = Field(64, ge=1, description="width of the vectors")
    field_dim: int = Field(32, ge=1, description="width of one feature's vector")
    unknown_rate: float = Field(
        0.01, ge=0, lt=1, description="in training, the share of codes replaced by the unknown one"
    )
    interaction: Interaction = Field(
        "none", description="how features meet before the perceptron: not, DCN-v2, AutoInt"
    )
    cross_layers: int = Field(2, ge=1, description="layers of interaction = 'cross'")
    attention_layers: int = Field(1, ge=1, description="layers of interaction = 'attention'")
    attention_heads: int = Field(
        2, ge=1, description="heads of interaction = 'attention'; must divide field_dim"
    )
    hidden: Hidden = Field(
        (128,), description="widths of the perceptron's hidden layers; [] for a linear map"
    )
    activation: Activation = Field("gelu", description="of the hidden layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="after each hidden layer")


class FeatureTowerConfig(MixingTowerConfig):
    """What the feature towers of both sides have in common."""

    id_mode: IdMode = Field(
        "residual",
        description="leave the id out, read it as one more feature, add a vector of the id to "
        "that of the features, or put it in their place wherever the id is known",
    )
    id_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="in training, the share of ids replaced by the unknown one, so that the "
        "features carry those that training never saw",
    )


class FeatureMixing(nn.Module):
    """Values of several features to one vector a row: fields → interaction → perceptron.

    Args:
        values: by feature name; only their form is read.
        dim: D.
        field_dim: d, width of one field.
        num_more: fields that the caller adds to those of the features.
        unknown_rate: see ``FieldEncoder``.
        interaction: see ``FieldMixer``, as for the three that follow.
        cross_layers: of "cross".
        attention_layers: of "attention".
        attention_heads: of "attention".
        hidden: see ``Perceptron``, as for the two that follow.
        activation: of the hidden layers.
        dropout: after each activation.
    """

    def __init__(
        self,
        values: Mapping[str, Values],
        *,
        dim: int,
        field_dim: int = 32,
        num_more: int = 0,
        unknown_rate: float = 0.0,
        interaction: Interaction = "none",
        cross_layers: int = 2,
        attention_layers: int = 1,
        attention_heads: int = 2,
        hidden: tuple[int, ...] = (128,),
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.fields = FieldEncoder(values, field_dim, unknown_rate)
        self.mixer = FieldMixer(
            len(values) + num_more,
            field_dim,
            interaction,
            cross_layers=cross_layers,
            attention_layers=attention_layers,
            attention_heads=attention_heads,
        )
        self.perceptron = Perceptron(
            self.mixer.width, hidden, dim, activation, dropout, scale=START_SCALE
        )

    def mixed(self, fields: Tensor) -> Tensor:
        """Fields [n, F, d] to vectors [n, D]."""
        vectors: Tensor = self.perceptron(self.mixer(fields))
        return vectors


class FeatureEncoder(FeatureMixing):
    """n rows (the users or the items of a dataset), each to one vector.

    The id comes in as one more field ("field"), is added to the result ("residual": a row that
    is trained on has all the freedom of a table, and its features carry what the rows share), or
    replaces it ("override": a row that is trained on is its vector in a table and nothing else,
    and features, which training meets through ``id_dropout`` alone, stand in for the ids that it
    never saw. What features foretell wrongly cannot harm the rows that are known).

    Ids that no training target has always read the unknown id, code 0, whose vector is shared;
    ``id_dropout`` lets training meet it, so that the features must do alone (DropoutNet,
    Volkovs et al., NeurIPS 2017). It is drawn once a distinct id and call, not once an
    occurrence, and so is all dropout here.

    Args:
        values: by feature name, n rows each.
        is_trained: [n] bool, whether a row is ever trained on; None: all are.
        dim: D.
        field_dim: d, width of one field.
        id_mode: "none", "field", "residual" or "override".
        id_dropout: in [0, 1].
        settings: further ones of ``FeatureMixing``.
    """

    id_codes: Tensor

    def __init__(
        self,
        values: Mapping[str, Values],
        is_trained: Tensor | None = None,
        *,
        dim: int,
        field_dim: int = 32,
        id_mode: IdMode = "residual",
        id_dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        more = int(id_mode == "field")
        super().__init__(values, dim=dim, field_dim=field_dim, num_more=more, **settings)
        self.id_mode = id_mode
        self.id_dropout = id_dropout
        self.stored = StoredValues(values)
        self.num_rows = self.stored.num_rows
        self.register_buffer("id_codes", _id_codes(self.num_rows, is_trained), persistent=False)
        id_dim = {"none": None, "field": field_dim}.get(id_mode, dim)
        self.ids = None if id_dim is None else code_table(self.num_rows + 1, id_dim, by_row=True)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode rows [n] int64, each distinct one once; -1 is a row of which nothing is known.

        Raises:
            DataError: another id outside the table (checked on the CPU).
        """
        distinct, inverse = torch.unique(ids, return_inverse=True)
        # As a look-up: its backward sums the rows that share a vector much faster than indexing's.
        return F.embedding(inverse, self._rows(distinct))

    def every_row(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode all n rows: [n, D]; in chunks where no gradient is wanted."""
        rows = torch.arange(self.num_rows, device=self.id_codes.device)
        if torch.is_grad_enabled():
            return self._rows(rows)
        parts, done = [], 0
        for chunk in rows.split(CHUNK):
            parts.append(self._rows(chunk))
            done += len(chunk)
            if progress is not None:
                progress(done, self.num_rows)
        return torch.cat(parts)

    def encode_values(self, values: Mapping[str, Values], ids: Tensor | None = None) -> Tensor:
        """Encode rows by values that the dataset does not have: [m, D].

        Args:
            values: by feature name.
            ids: [m] int64, the rows whose values these are now; None: new rows, all of the
                unknown id.

        Raises:
            DataError: a feature is missing.
        """
        device = self.id_codes.device
        here = {name: value.to(device) for name, value in values.items()}
        num_rows = len(next(iter(here.values()), ()))
        if ids is None:
            return self._encode(here, self.id_codes.new_zeros(num_rows))
        return self._encode(here, self.id_codes[ids.to(device)])

    def _rows(self, rows: Tensor) -> Tensor:
        if rows.device.type == "cpu" and len(rows):  # where looking is free
            lowest, highest = (int(extreme) for extreme in torch.aminmax(rows))
            if lowest < -1 or highest >= self.num_rows:
                raise DataError(
                    f"id {lowest if lowest < -1 else highest} is outside the table: ids must be "
                    f"0 to {self.num_rows - 1}, or -1 for somebody or something unknown"
                )
        id_codes = with_unknown(self.id_codes[rows], self.id_dropout, self.training)
        return self._encode(self.stored.take(rows), id_codes)

    def _encode(self, values: Mapping[str, Values], id_codes: Tensor) -> Tensor:
        return self.encode_fields(self.fields(values), id_codes)

    def encode_fields(self, fields: Tensor, id_codes: Tensor) -> Tensor:
        """Encode rows by the fields of their features and the codes of their ids: [m, D].

        Args:
            fields: [m, F, d].
            id_codes: [m] int64, entries of ``id_codes``; 0 is the unknown id.
        """
        if self.ids is not None and self.id_mode == "field":
            fields = torch.cat([fields, self.ids(id_codes)[:, None]], dim=1)
        vectors = self.mixed(fields)
        if self.ids is not None and self.id_mode == "residual":
            vectors = vectors + self.ids(id_codes)
        if self.ids is not None and self.id_mode == "override":
            vectors = torch.where((id_codes == 0)[:, None], vectors, self.ids(id_codes))
        # Autocast narrows products; what many occurrences share must add up its gradient in full.
        return vectors.to(self.perceptron.linear.weight.dtype)


def features_of(table: FeatureTable | None, num_rows: int, side: str, tower: str) -> FeatureTable:
    """The features of a side, "user" or "item", that the tower of this type needs.

    Raises:
        ConfigError: there are none, or they are of another dataset.
    """
    if table is None:
        raise ConfigError(
            f"the tower {tower!r} has no features to read: add a section [features.{side}.NAME] "
            "for each to the recipe"
        )
    if len(table) != num_rows:
        raise ConfigError(
            f"features.{side} describes {len(table)} {side}s and the dataset has {num_rows}: "
            "encode the features of this dataset"
        )
    return table


def _id_codes(num_rows: int, is_trained: Tensor | None) -> Tensor:
    """[n + 1] int64: the code of each row, 0 where it is never trained and for the last, -1."""
    codes = torch.arange(1, num_rows + 2)
    codes[-1] = 0
    if is_trained is not None:
        codes[:-1].masked_fill_(~is_trained.cpu(), 0)
    return codes
