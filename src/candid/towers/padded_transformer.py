"""The causal transformer over histories that are padded at their ends."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.towers.padded import PADDING, NamedTensors, PaddedInput, PaddedModule
from candid.towers.rotary import BASE


def add_branch(tokens: Tensor, branch: Tensor, gate: nn.Module | None) -> Tensor:
    """Add a residual branch to tokens, multiplied by its gate if there is one; all [..., D].

    Args:
        tokens: [..., D], before the branch and its norm.
        branch: output of the branch.
        gate: maps the tokens to the logits of the gate, or None.
    """
    if gate is None:
        return tokens + branch
    return tokens + branch * torch.sigmoid(gate(tokens))


class PaddedBlock(nn.Module):
    """One transformer block on padded tokens, in evaluation mode.

    Args:
        num_heads: attention heads.
        attention_norm: before the attention.
        qkv: tokens to queries, keys and values.
        out: after the attention.
        feed_forward: the second residual branch, its norm included.
        attention_gate: gate of the first branch, or None.
        feed_forward_gate: gate of the second branch, or None.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        attention_norm: nn.Module,
        qkv: nn.Module,
        out: nn.Module,
        feed_forward: nn.Module,
        attention_gate: nn.Module | None,
        feed_forward_gate: nn.Module | None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = attention_norm
        self.qkv = qkv
        self.out = out
        self.feed_forward = feed_forward
        self.attention_gate = attention_gate
        self.feed_forward_gate = feed_forward_gate

    def forward(self, tokens: Tensor, rotations: Tensor | None) -> Tensor:
        """Transform tokens [B, L, D].

        Args:
            tokens: [B, L, D].
            rotations: [L, D/H/2, 2], cosine and sine at each position, or None.
        """
        tokens = add_branch(tokens, self._attend(tokens, rotations), self.attention_gate)
        return add_branch(tokens, self.feed_forward(tokens), self.feed_forward_gate)

    def _attend(self, tokens: Tensor, rotations: Tensor | None) -> Tensor:
        qkv: Tensor = self.qkv(self.attention_norm(tokens))
        heads = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)  # each [B, H, L, D/H]
        if rotations is not None:
            query, key = _rotate(query, rotations), _rotate(key, rotations)
        scores = (query @ key.transpose(2, 3)) / query.shape[3] ** 0.5
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        is_later = positions[None, :] > positions[:, None]
        weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=3)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class PaddedTransformer(PaddedModule):
    """``CausalTransformer`` over padded histories.

    Padding follows the tokens, so causal attention never reads it.

    Args:
        items: [V, D] float32, input vectors of the items of a history.
        max_length: L.
        blocks: the transformer blocks.
        norm: after the blocks.
        positions: table of learned positions, or None for rotary ones.
        event_types: table of event types, or None.
        empty_history: [D], the query of an empty history; None if it cannot be encoded.
    """

    items: Tensor

    def __init__(
        self,
        items: Tensor,
        *,
        max_length: int,
        blocks: Iterable[PaddedBlock],
        norm: nn.Module,
        positions: nn.Embedding | None,
        event_types: nn.Embedding | None,
        empty_history: nn.Parameter | None,
    ) -> None:
        super().__init__()
        self.register_buffer("items", items)
        self.positions = positions
        self.event_types = event_types
        block_list = list(blocks)
        self.num_heads = block_list[0].num_heads
        self.blocks = nn.ModuleList(block_list)
        self.norm = norm
        self.empty_history = empty_history
        self.inputs = (PaddedInput("history", "ids", len(items), max_length=max_length),)
        if event_types is not None:
            num_types = event_types.num_embeddings
            self.inputs += (
                PaddedInput("event_types", "event_types", num_types, max_length=max_length),
            )

    def forward(self, tensors: NamedTensors) -> Tensor:
        """Encode B histories: [B, D]; NaN for an empty one that cannot be encoded."""
        history = tensors["history"]
        tokens = F.embedding(history.clamp(min=0), self.items)
        rotations = None
        if self.positions is not None:
            tokens = tokens + self.positions.weight[: history.shape[1]]
        else:
            rotations = _rotations(history.shape[1], tokens.shape[2] // self.num_heads)
        if self.event_types is not None:
            tokens = tokens + self.event_types(tensors["event_types"])
        for block in self.blocks:
            tokens = block(tokens, rotations)
        length = (history != PADDING).sum(1)
        last = (length - 1).clamp(min=0)[:, None, None].expand(-1, 1, tokens.shape[2])
        query = self.norm(tokens.gather(1, last).squeeze(1))
        empty = self.empty_history
        if empty is None:
            return torch.where((length == 0)[:, None], query.new_full((), torch.nan), query)
        return torch.where((length == 0)[:, None], empty, query)


def _rotations(length: int, width: int) -> Tensor:
    """Return cosine and sine at each position: [L, D/H/2, 2]; as ``rotary.rotations``."""
    pairs = torch.arange(0, width, 2, dtype=torch.float32)
    positions = torch.arange(length, dtype=torch.float32)
    angles = positions[:, None] * BASE ** (-pairs / width)
    return torch.stack([angles.cos(), angles.sin()], dim=2)


def _rotate(heads: Tensor, rotations: Tensor) -> Tensor:
    """Rotate pairs of [B, H, L, D/H]: (x + iy)(cos + i sin), without complex numbers."""
    x, y = heads.unflatten(3, (-1, 2)).unbind(4)
    cos, sin = rotations.unbind(2)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=4).flatten(3)
