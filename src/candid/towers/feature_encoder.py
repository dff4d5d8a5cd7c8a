"""The encoder of one side: features, and optionally the id, of users or items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from candid.errors import ConfigError, DataError
from candid.features import FeatureTable, Values
from candid.towers.fields import FieldEncoder
from candid.towers.interaction import FieldMixer, Interaction
from candid.towers.perceptron import Activation, Hidden, Perceptron
from candid.towers.protocol import MAX_LAYERS, MAX_WIDTH, EncodeProgress, TowerConfig
from candid.towers.row_noise import HiddenValues, rows_of
from candid.towers.row_table import RowTable
from candid.towers.stored_values import StoredValues

IdMode = Literal["none", "field", "residual", "override"]

INITIAL_SCALE = 0.1
"""Initial scale of the output, so that vectors are as short as those of an embedding table. At full
length the initial NLL is far above log V, and training must first shrink random scores."""
CHUNK = 16_384
"""Rows encoded at a time without gradient, which bounds memory."""


class MixingTowerConfig(TowerConfig):
    """Settings of every tower that reads features."""

    dim: int = Field(64, ge=1, le=MAX_WIDTH, description="width of the vectors")
    field_dim: int = Field(32, ge=1, le=MAX_WIDTH, description="width of the vector of a feature")
    unknown_rate: float = Field(
        0.01, ge=0, lt=1, description="share of codes replaced by the unknown one in training"
    )
    interaction: Interaction = Field(
        "none", description="interaction before the perceptron: none, DCN-v2 or AutoInt"
    )
    cross_layers: int = Field(2, ge=1, le=MAX_LAYERS, description="layers of interaction = 'cross'")
    attention_layers: int = Field(
        1, ge=1, le=MAX_LAYERS, description="layers of interaction = 'attention'"
    )
    attention_heads: int = Field(
        2,
        ge=1,
        le=MAX_WIDTH,
        description="heads of interaction = 'attention'; must divide field_dim",
    )
    hidden: Hidden = Field(
        (128,), description="widths of the hidden layers of the perceptron; []: a linear map"
    )
    activation: Activation = Field("gelu", description="of the hidden layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="after each hidden layer")


class FeatureTowerConfig(MixingTowerConfig):
    """Settings of the feature towers of both sides."""

    id_mode: IdMode = Field(
        "residual",
        description="none: ignore the id; field: read it as a feature; residual: add its vector to "
        "that of the features; override: use its vector instead, if the id is trained",
    )
    id_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of ids replaced by the unknown one in training, so that features can "
        "represent new ids",
    )


class FeatureMixing(nn.Module):
    """The values of several features as one vector per row: fields → interaction → perceptron.

    Args:
        values: by feature name; only their form is read.
        dim: D.
        field_dim: d, width of one field.
        num_extra: fields that the caller adds to those of the features.
        unknown_rate: share of values replaced by unknown ones in training.
        interaction: "none", "cross" or "attention".
        cross_layers: layers of "cross".
        attention_layers: layers of "attention".
        attention_heads: heads of "attention".
        hidden: widths of the hidden layers of the perceptron.
        activation: of the hidden layers.
        dropout: after each activation.
    """

    def __init__(
        self,
        values: Mapping[str, Values],
        *,
        dim: int,
        field_dim: int,
        num_extra: int = 0,
        unknown_rate: float,
        interaction: Interaction,
        cross_layers: int,
        attention_layers: int,
        attention_heads: int,
        hidden: tuple[int, ...],
        activation: Activation,
        dropout: float,
    ) -> None:
        super().__init__()
        self.fields = FieldEncoder(values, dim=field_dim, unknown_rate=unknown_rate)
        self.mixer = FieldMixer(
            len(values) + num_extra,
            field_dim,
            interaction=interaction,
            cross_layers=cross_layers,
            attention_layers=attention_layers,
            attention_heads=attention_heads,
        )
        self.perceptron = Perceptron(
            self.mixer.width,
            dim=dim,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            scale=INITIAL_SCALE,
        )

    def mix(self, fields: Tensor) -> Tensor:
        """Combine fields [n, F, d] into vectors [n, D]."""
        vectors: Tensor = self.perceptron(self.mixer(fields))
        return vectors


class FeatureEncoder(FeatureMixing):
    """The encoder of n rows, the users or the items of a dataset.

    The id can be one more field ("field"). Its embedding can be added to the result ("residual"):
    features then model the properties that rows share, and the embedding models the rest. Or its
    embedding can replace the result ("override"): a trained row uses its embedding only, and
    features, which are trained only through ``id_dropout``, represent new ids. Wrong predictions
    from features then cannot affect trained rows.

    Ids without a training target always read the unknown id, code 0, whose vector is shared.
    ``id_dropout`` trains it, so that features alone can represent a row (DropoutNet, Volkovs et
    al., NeurIPS 2017). All dropout here is sampled once per distinct id and step, not per
    occurrence.

    Args:
        values: by feature name, n rows each.
        is_trained: [n] bool, whether a row is ever a training target; None: all are.
        dim: D.
        field_dim: d, width of one field.
        id_mode: "none", "field", "residual" or "override".
        id_dropout: in [0, 1].
        side: whether the rows are items or users.
        settings: the other arguments of ``FeatureMixing``.
    """

    id_codes: Tensor

    def __init__(
        self,
        values: Mapping[str, Values],
        is_trained: Tensor | None = None,
        *,
        dim: int,
        field_dim: int,
        id_mode: IdMode,
        id_dropout: float,
        side: Literal["item", "user"],
        **settings: Any,
    ) -> None:
        extra = int(id_mode == "field")
        super().__init__(values, dim=dim, field_dim=field_dim, num_extra=extra, **settings)
        self.id_mode = id_mode
        self.hidden_ids = HiddenValues(id_dropout)
        self.stored = StoredValues(values)
        self.num_rows = self.stored.num_rows
        self.register_buffer("id_codes", _id_codes(self.num_rows, is_trained), persistent=False)
        id_dim = {"none": None, "field": field_dim}.get(id_mode, dim)
        self.ids = None if id_dim is None else _id_table(self.num_rows, id_dim, side)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"id_mode={self.id_mode!r}"

    def forward(self, ids: Tensor) -> Tensor:
        """Encode rows [n] int64, each distinct one once; -1 is an unknown row.

        Raises:
            DataError: any other id outside the table (checked on CPU).
        """
        distinct, inverse = torch.unique(ids, return_inverse=True)
        # F.embedding, not indexing: its backward sums rows with the same id much faster.
        return F.embedding(inverse, self._rows(distinct))

    def every_row(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode all n rows: [n, D]; in chunks without gradient."""
        rows = torch.arange(self.num_rows, device=self.id_codes.device)
        if torch.is_grad_enabled():
            return self._rows(rows)
        vectors, done = [], 0
        for chunk in rows.split(CHUNK):
            vectors.append(self._rows(chunk))
            done += len(chunk)
            if progress is not None:
                progress(done, self.num_rows)
        return torch.cat(vectors)

    def encode_values(self, values: Mapping[str, Values], ids: Tensor | None = None) -> Tensor:
        """Encode new rows, or rows with new values: [m, D].

        Args:
            values: by feature name.
            ids: [m] int64, rows that have these values now; None: new rows with the unknown id.

        Raises:
            DataError: a feature is missing.
        """
        device = self.id_codes.device
        moved = {name: value.to(device) for name, value in values.items()}
        num_rows = len(next(iter(moved.values()), ()))
        if ids is None:
            return self._encode(moved, self.id_codes.new_zeros(num_rows))
        return self._encode(moved, self.id_codes[ids.to(device)])

    def _rows(self, rows: Tensor) -> Tensor:
        if rows.device.type == "cpu" and len(rows):  # on GPU the check would synchronise
            lowest, highest = (int(extreme) for extreme in torch.aminmax(rows))
            if lowest < -1 or highest >= self.num_rows:
                raise DataError(
                    f"id {lowest if lowest < -1 else highest} is outside the table; ids must be "
                    f"0 to {self.num_rows - 1}, or -1 for an unknown row"
                )
        with rows_of(rows):
            id_codes = self.hidden_ids.replace(self.id_codes[rows])
            return self._encode(self.stored.take(rows), id_codes)

    def _encode(self, values: Mapping[str, Values], id_codes: Tensor) -> Tensor:
        return self.encode_fields(self.fields(values), id_codes)

    def encode_fields(self, fields: Tensor, id_codes: Tensor) -> Tensor:
        """Encode rows from the fields of their features and the codes of their ids: [m, D].

        Args:
            fields: [m, F, d].
            id_codes: [m] int64, entries of ``id_codes``; 0 is the unknown id.
        """
        if self.ids is not None and self.id_mode == "field":
            fields = torch.cat([fields, self.ids(id_codes)[:, None]], dim=1)
        vectors = self.mix(fields)
        if self.ids is not None and self.id_mode == "residual":
            vectors = vectors + self.ids(id_codes)
        if self.ids is not None and self.id_mode == "override":
            vectors = torch.where((id_codes == 0)[:, None], vectors, self.ids(id_codes))
        # Autocast narrows products, but shared vectors must sum their gradients in full precision.
        return vectors.to(self.perceptron.linear.weight.dtype)


def require_features(
    table: FeatureTable | None, num_rows: int, *, side: str, tower: str
) -> FeatureTable:
    """Check the features that a tower reads, and return them.

    Args:
        table: features, or None.
        num_rows: users or items of the dataset.
        side: "user" or "item".
        tower: registered name of the tower.

    Raises:
        ConfigError: there are no features, or they belong to another dataset.
    """
    if table is None:
        raise ConfigError(
            f"the tower {tower!r} has no features; add a section [features.{side}.NAME] for each "
            "to the recipe"
        )
    if len(table) != num_rows:
        raise ConfigError(
            f"features.{side} has {len(table)} rows, but the dataset has {num_rows} {side}s; use "
            "the features of this dataset"
        )
    return table


def _id_table(num_rows: int, dim: int, side: Literal["item", "user"]) -> RowTable:
    """Return the table of ids; row 0, the unknown id, is zero, and id i has row i + 1."""
    table = RowTable(num_rows + 1, dim, side, first_row=1)
    table.set_row(0, 0.0)
    return table


def _id_codes(num_rows: int, is_trained: Tensor | None) -> Tensor:
    """[n + 1] int64: code of each row, 0 for untrained rows and for the last one, id -1."""
    codes = torch.arange(1, num_rows + 2)
    codes[-1] = 0
    if is_trained is not None:
        codes[:-1].masked_fill_(~is_trained.cpu(), 0)
    return codes
