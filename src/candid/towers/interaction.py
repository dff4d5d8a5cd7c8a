"""Interactions between fields: effects of several features together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from candid.errors import ConfigError

Interaction = Literal["none", "cross", "attention"]


class CrossLayers(nn.Module):
    """The crosses of DCN-v2 (Wang et al., WWW 2021, eq. 1): x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l.

    l layers model all products of up to l + 1 inputs.

    Args:
        width: of x_0.
        num_layers: at least 1.
    """

    def __init__(self, width: int, *, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, inputs: Tensor) -> Tensor:
        """Cross x_0 [n, width] with itself: [n, width]."""
        crossed = inputs
        for layer in self.layers:
            crossed = inputs * layer(crossed) + crossed
        return crossed


class FieldAttention(nn.Module):
    """Self-attention between the fields of a row, as in AutoInt (Song et al., CIKM 2019, eq. 5-8).

    Each layer is ReLU(heads + W e). Scores are divided by √(d/H) as in Vaswani et al. (2017),
    which AutoInt does not do.

    Args:
        dim: d, width of a field.
        num_layers: at least 1.
        num_heads: H; must divide ``dim``.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, num_layers: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"attention_heads must divide field_dim {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.layers = nn.ModuleList(nn.Linear(dim, 4 * dim, bias=False) for _ in range(num_layers))

    def forward(self, fields: Tensor) -> Tensor:
        """Apply attention between the fields [n, F, d]: [n, F, d]."""
        for layer in self.layers:
            query, key, value, residual = layer(fields).chunk(4, dim=-1)
            fields = torch.relu(self._attend(query, key, value) + residual)
        return fields

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Not the fused attention: few fields gain nothing from it, and its kernels limit the
        # number of rows.
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        scores = (query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5
        weights = scores.softmax(dim=-1).to(value.dtype)
        outputs: Tensor = (weights @ value).transpose(1, 2).flatten(2)
        return outputs


class FieldMixer(nn.Module):
    """The concatenation of all fields, normalised, then their interaction.

    Layer norm covers the whole row, not each field, so that fields keep their relative sizes.
    Without it, products of the small initial field vectors would vanish.

    Args:
        num_fields: F.
        dim: d, width of a field.
        interaction: "none", "cross" or "attention".
        cross_layers: layers of "cross".
        attention_layers: layers of "attention".
        attention_heads: heads of "attention".
    """

    def __init__(
        self,
        num_fields: int,
        dim: int,
        *,
        interaction: Interaction,
        cross_layers: int,
        attention_layers: int,
        attention_heads: int,
    ) -> None:
        super().__init__()
        self.width = num_fields * dim
        self.norm = nn.LayerNorm(self.width)
        self.attention = self.cross = None
        if interaction == "attention":
            self.attention = FieldAttention(
                dim, num_layers=attention_layers, num_heads=attention_heads
            )
        if interaction == "cross":
            self.cross = CrossLayers(self.width, num_layers=cross_layers)

    def forward(self, fields: Tensor) -> Tensor:
        """Mix [n, F, d] to [n, F·d]."""
        row: Tensor = self.norm(fields.flatten(1))
        if self.attention is not None:
            row = self.attention(row.view_as(fields)).flatten(1)
        if self.cross is not None:
            row = self.cross(row)
        return row
