"""Blocks of the causal transformer on packed tokens: attention, then a feed-forward network."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.towers.dropout import Dropout
from candid.towers.length_groups import LengthGroups
from candid.towers.padded_transformer import PaddedBlock, add_branch
from candid.towers.rotary import rotate

FeedForward = Literal["gelu", "swiglu"]


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float
) -> Tensor:
    """Attend with a bias on the logits; queries, keys and values [S, H, L, D/H].

    Args:
        query: [S, H, L, D/H].
        key: the same.
        value: the same.
        bias: [S, H, L, L], minus infinity for later keys.
        dropout: on the attention weights.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout
        )
    # The fused kernel on CPU has no gradient of a bias, and torch's own path without it takes a
    # third longer than this.
    with torch.autocast("cpu", enabled=False):
        if query.dtype == torch.bfloat16:
            query, key, value = query.float(), key.float(), value.float()
        scores = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        weights = scores.add_(bias).softmax(dim=3)
        return F.dropout(weights, dropout) @ value


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


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Attend to the same and to earlier tokens; all arguments [S, H, L, D/H].

    Padding is at the end, so that no token attends to it.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
    # The fused kernel on CPU is slower in bfloat16 than in float32, unlike matrix products.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True, dropout_p=dropout
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
        self.attention_dropout = attention_dropout
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
        return f"num_heads={self.num_heads}, attention_dropout={self.attention_dropout}"

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
        dropout = self.attention_dropout if self.training else 0.0
        heads = []
        for group, parts in enumerate(zip(*map(groups.split, padded.unbind(1)), strict=True)):
            query, key, value = (part.transpose(1, 2) for part in parts)
            if biases is None:
                heads.append(causal_attention(query, key, value, dropout))
            else:
                heads.append(biased_attention(query, key, value, biases[group], dropout))
        out: Tensor = self.out(groups.unpad([head.transpose(1, 2).flatten(2) for head in heads]))
        return out

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
