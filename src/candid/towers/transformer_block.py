"""Blocks of the causal transformer on packed tokens: attention, then a feed-forward network."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.towers.dropout import Dropout
from candid.towers.length_groups import LengthGroups
from candid.towers.padded_transformer import PaddedBlock, add_branch
from candid.towers.rotary import rotate
from candid.towers.row_noise import row_keys, rows_of
from candid.towers.time_gaps import later_keys

FeedForward = Literal["gelu", "swiglu"]


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scales: Tensor | None
) -> Tensor:
    """Attend with a bias on the logits, dropout of the weights, or both.

    Args:
        query: [S, H, L, D/H].
        key: the same.
        value: the same.
        bias: [S, H, L, L] on the logits, minus infinity for later keys; None for causal attention
            without a bias.
        scales: [S, H, L, L] float32, factors of dropout of the weights; None for no dropout.
    """
    device = query.device.type
    if scales is None and bias is not None and device != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
    # The fused kernel on CPU has no gradient of a bias, and torch's own path without it takes a
    # third longer than this. No kernel takes the random numbers of rows.
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        if query.dtype == torch.bfloat16:
            query, key, value = query.float(), key.float(), value.float()
        scores: Tensor = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        if bias is None:
            scores.masked_fill_(later_keys(scores.shape[3], scores.device), -torch.inf)
        else:
            scores.add_(bias)
        weights = scores.softmax(dim=3)
        if scales is not None:
            weights = weights * scales
        return weights @ value


class SwiGLU(nn.Module):
    """The product of a layer with SiLU and a linear layer (Shazeer, 2020, arXiv 2002.05202).

    Args:
        dim: D, width of the input.
        hidden: width of the output.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # Two layers: the halves of one are not contiguous, which takes a tenth longer.
        self.gate = nn.Linear(dim, hidden)
        self.value = nn.Linear(dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens [..., D] to [..., hidden]."""
        product: Tensor = F.silu(self.gate(tokens)) * self.value(tokens)
        return product


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to the same and to earlier tokens; all arguments [S, H, L, D/H].

    Padding is at the end, so that no token attends to it.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # The fused kernel on CPU is slower in bfloat16 than in float32, unlike matrix products.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True
        )


class Block(nn.Module):
    """Attention, then a feed-forward network, each a pre-norm residual branch.

    A gated branch is multiplied by sigmoid(W x + b), where x are the tokens before the norm
    (Borisyuk et al., 2025, arXiv 2502.03417, section 4).

    Args:
        dim: D, width of the tokens.
        num_heads: attention heads; must divide ``dim``.
        hidden: width inside the feed-forward network.
        feed_forward: "gelu" or "swiglu".
        gated_residual: whether the branches are gated.
        dropout: inside the feed-forward network and on both branches.
        attention_dropout: on the attention weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        hidden: int,
        feed_forward: FeedForward,
        gated_residual: bool,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        # None without dropout: an idle module would change the random numbers of those after it.
        self.attention_dropout = Dropout(attention_dropout) if attention_dropout else None
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        inner = (
            [SwiGLU(dim, hidden)]
            if feed_forward == "swiglu"
            else [nn.Linear(dim, hidden), nn.GELU()]
        )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), *inner, Dropout(dropout), nn.Linear(hidden, dim)
        )
        self.attention_gate = nn.Linear(dim, dim) if gated_residual else None
        self.feed_forward_gate = nn.Linear(dim, dim) if gated_residual else None
        self.branch_dropout = Dropout(dropout)
        self.feed_forward_dropout = Dropout(dropout)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"num_heads={self.num_heads}"

    def forward(
        self,
        tokens: Tensor,
        groups: LengthGroups,
        factors: Tensor | None,
        biases: list[Tensor] | None = None,
    ) -> Tensor:
        """Transform packed tokens [T, D].

        Args:
            tokens: [T, D].
            groups: of the sequences.
            factors: of rotary positions, from ``rotary.rotation_factors``, or None.
            biases: [S, H, L, L] of each group, on the logits of attention, or None.
        """
        branch = self.branch_dropout(self._attend(tokens, groups, factors, biases))
        tokens = add_branch(tokens, branch, self.attention_gate)
        branch = self.feed_forward_dropout(self.feed_forward(tokens))
        return add_branch(tokens, branch, self.feed_forward_gate)

    def _attend(
        self,
        tokens: Tensor,
        groups: LengthGroups,
        factors: Tensor | None,
        biases: list[Tensor] | None,
    ) -> Tensor:
        qkv = self.qkv(self.attention_norm(tokens))
        if factors is not None:
            qkv = rotate(qkv, factors, self.num_heads)
        padded = groups.pad(qkv).unflatten(1, (3, self.num_heads, -1))
        scales = self._dropout_scales(len(tokens), groups)
        heads = []
        for group, parts in enumerate(zip(*map(groups.split, padded.unbind(1)), strict=True)):
            query, key, value = (part.transpose(1, 2) for part in parts)
            if biases is None and scales is None:
                heads.append(causal_attention(query, key, value))
            else:
                bias = None if biases is None else biases[group]
                scale = None if scales is None else scales[group]
                heads.append(explicit_attention(query, key, value, bias, scale))
        out: Tensor = self.out(groups.unpad([head.transpose(1, 2).flatten(2) for head in heads]))
        return out

    def _dropout_scales(self, num_tokens: int, groups: LengthGroups) -> list[Tensor] | None:
        """Return the factors of the weights of each group: [S, H, L, L]; None without dropout.

        They belong to the token of a query, in the order of the keys and then of the heads, so that
        they do not depend on the length of the longest sequence of the group.
        """
        dropout = self.attention_dropout
        if dropout is None or not dropout.is_active:
            return None
        keys = row_keys(num_tokens, groups.gather.device).index_select(0, groups.gather)
        scales = []
        for (size, length), part in zip(groups.shapes, groups.split(keys), strict=True):
            with rows_of(part.flatten()):
                flat = dropout.scales(size * length, length * self.num_heads, part.device)
            scales.append(flat.view(size, length, length, -1).permute(0, 3, 1, 2))
        return scales

    def to_padded(self) -> PaddedBlock:
        """Return the block on padded tokens, with the same weights."""
        return PaddedBlock(
            self.num_heads,
            attention_norm=self.attention_norm,
            qkv=self.qkv,
            out=self.out,
            feed_forward=self.feed_forward,
            attention_gate=self.attention_gate,
            feed_forward_gate=self.feed_forward_gate,
        )
