"""The causal transformer over histories that are padded at their ends."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.batches import UNKNOWN_TIME
from candid.towers.padded import PADDING, NamedTensors, PaddedInput, PaddedModule
from candid.towers.rotary import BASE
from candid.towers.time_gaps import (
    FIRST,
    gaps_plus_one,
    later_keys,
    query_gaps_plus_one,
    seconds_between,
    whole_seconds,
)


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

    def forward(self, tokens: Tensor, rotations: Tensor | None, bias: Tensor | None) -> Tensor:
        """Transform tokens [B, L, D].

        Args:
            tokens: [B, L, D].
            rotations: [L, D/H/2, 2], cosine and sine at each position, or None.
            bias: [B, H, L, L] on the logits of attention, or None.
        """
        tokens = add_branch(tokens, self._attend(tokens, rotations, bias), self.attention_gate)
        return add_branch(tokens, self.feed_forward(tokens), self.feed_forward_gate)

    def _attend(self, tokens: Tensor, rotations: Tensor | None, bias: Tensor | None) -> Tensor:
        qkv: Tensor = self.qkv(self.attention_norm(tokens))
        heads = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)  # each [B, H, L, D/H]
        if rotations is not None:
            query, key = _rotate(query, rotations), _rotate(key, rotations)
        scores = (query @ key.transpose(2, 3)) / query.shape[3] ** 0.5
        if bias is not None:
            scores = scores + bias
        is_later = later_keys(tokens.shape[1], tokens.device)
        weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=3)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class PaddedTransformer(PaddedModule):
    """``CausalTransformer`` over padded histories.

    Padding follows the tokens, so causal attention never reads it. A history with padding before or
    between its items, or with an id below -1, has the vector NaN: its positions are not known.

    Args:
        items: [V, D] float32, input vectors of the items of a history.
        max_length: L.
        blocks: the transformer blocks.
        norm: after the blocks.
        positions: table of learned positions, or None for rotary ones.
        event_types: table of event types, or None.
        time_gaps: table of the gaps to the previous interaction, or None.
        time_bias: [H, NUM_BUCKETS], bias of attention by time gap, or None.
        query_gap: scale and shift by the time since the last interaction, or None.
        empty_history: [D], the query of an empty history; None if it cannot be encoded.
    """

    items: Tensor
    time_bias: Tensor | None

    def __init__(
        self,
        items: Tensor,
        *,
        max_length: int,
        blocks: Iterable[PaddedBlock],
        norm: nn.Module,
        positions: nn.Embedding | None,
        event_types: nn.Embedding | None,
        time_gaps: nn.Embedding | None,
        time_bias: Tensor | None,
        query_gap: nn.Module | None,
        empty_history: nn.Parameter | None,
    ) -> None:
        super().__init__()
        self.register_buffer("items", items)
        self.positions = positions
        self.event_types = event_types
        self.time_gaps = time_gaps
        self.register_buffer("time_bias", None if time_bias is None else time_bias.detach())
        block_list = list(blocks)
        self.num_heads = block_list[0].num_heads
        self.blocks = nn.ModuleList(block_list)
        self.norm = norm
        self.query_gap = query_gap
        self.empty_history = empty_history
        self.inputs = (PaddedInput("history", "ids", len(items), max_length=max_length),)
        if event_types is not None:
            num_types = event_types.num_embeddings
            self.inputs += (
                PaddedInput("event_types", "event_types", num_types, max_length=max_length),
            )

        if time_gaps is not None or time_bias is not None or query_gap is not None:
            self.inputs += (PaddedInput("times", "times", 0, max_length=max_length),)
        if query_gap is not None:
            self.inputs += (PaddedInput("query_time", "time", 0),)

    def forward(self, tensors: NamedTensors) -> Tensor:
        """Encode B histories: [B, D]; NaN for those that cannot be encoded."""
        history = tensors["history"]
        tokens = F.embedding(history.clamp(min=0), self.items)
        rotations = None
        if self.positions is not None:
            tokens = tokens + self.positions.weight[: history.shape[1]]
        else:
            rotations = _rotations(history.shape[1], tokens.shape[2] // self.num_heads)
        if self.event_types is not None:
            tokens = tokens + self.event_types(tensors["event_types"])
        bias = None
        if self.time_gaps is not None or self.time_bias is not None:
            seconds = _seconds_before_last(tensors["times"], history != PADDING)
            if self.time_gaps is not None:
                tokens = tokens + self.time_gaps(_previous_buckets(seconds))
            if self.time_bias is not None:
                buckets = _bucket_of(gaps_plus_one(seconds[:, None, :], seconds[:, :, None]))
                bias = F.embedding(buckets, self.time_bias.T).permute(0, 3, 1, 2)
        for block in self.blocks:
            tokens = block(tokens, rotations, bias)
        is_token = history >= 0
        length = is_token.sum(1)
        positions = torch.arange(1, history.shape[1] + 1, device=history.device)
        end = (positions * is_token).amax(1)
        is_wrong = (end != length) | (history < PADDING).any(1)
        last = (length - 1).clamp(min=0)[:, None]
        states = tokens.gather(1, last[:, :, None].expand(-1, 1, tokens.shape[2])).squeeze(1)
        query = self.norm(states)
        if self.query_gap is not None:
            last_time = tensors["times"].gather(1, last).squeeze(1)
            gaps = query_gaps_plus_one(last_time, tensors["query_time"])
            query = self.query_gap(query, gaps)
        nan = query.new_full((), torch.nan)
        empty = nan if self.empty_history is None else self.empty_history
        query = torch.where((length == 0)[:, None], empty, query)
        return torch.where(is_wrong[:, None], nan, query)


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


def _seconds_before_last(times: Tensor, is_token: Tensor) -> Tensor:
    """Return the seconds as ``time_gaps.seconds_before_last``: [B, L] int32.

    Args:
        times: [B, L] int64 microseconds.
        is_token: [B, L] bool, False for padding.
    """
    is_known, seconds = is_token & (times != UNKNOWN_TIME), whole_seconds(times)
    last = torch.where(is_known, seconds, torch.iinfo(torch.int64).min).amax(1, keepdim=True)
    return seconds_between(seconds, last, is_known)


def _previous_buckets(seconds: Tensor) -> Tensor:
    """Return the buckets as ``time_gaps.previous_buckets``: [B, L] int32."""
    positions = torch.arange(seconds.shape[1], device=seconds.device)
    # Not a slice: torch.export would require two interactions.
    previous = seconds.index_select(1, (positions - 1).clamp(min=0))
    first = torch.where(seconds < 0, 0, FIRST).int()
    return torch.where(positions == 0, first, _bucket_of(gaps_plus_one(previous, seconds)))


def _bucket_of(gaps: Tensor) -> Tensor:
    """Return the buckets as ``time_gaps.bucket_of``, without the bits of a float."""
    numbers = gaps.float().int()  # rounded as there
    rest = numbers.clamp(min=1)
    logarithm = torch.zeros_like(rest)
    for bits in (16, 8, 4, 2, 1):
        is_large = rest >= 2**bits
        logarithm = logarithm + bits * is_large.int()
        rest = torch.where(is_large, rest // 2**bits, rest)
    return torch.where(numbers < 1, 0, logarithm + 1)
