"""A causal transformer over the history, based on SASRec (Kang & McAuley, 2018).

Differences from the original:
- pre-norm blocks and a final norm, which train stably without tuning the warm-up;
- token-wise products run on packed tokens; only attention uses padding, inside groups of sequences
  of similar length, so that short histories do not cost as much as long ones;
- attention is ``scaled_dot_product_attention`` without dropout on its weights by default: dropout
  there stores L × L weights, and dropout on the residual branches has the same effect;
- positions count from the first interaction in the window, so that every longer history trains
  the position of a query; rotary positions depend on differences alone.

With ``gated_residual`` and ``feed_forward = "swiglu"`` the blocks are those of LiGR (Borisyuk et
al., 2025, arXiv 2502.03417), in the form of eSASRec (Tikhonovich et al., 2025, arXiv 2508.06450).
"""

from __future__ import annotations

from typing import Final, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.batches import UNKNOWN_TIME, History, Queries
from candid.errors import ConfigError
from candid.towers.dropout import Dropout
from candid.towers.embedding import embedding_table
from candid.towers.fields import code_table
from candid.towers.length_groups import LengthGroups, length_groups
from candid.towers.padded import PaddedContext
from candid.towers.padded_transformer import PaddedTransformer
from candid.towers.protocol import (
    MAX_LAYERS,
    MAX_WIDTH,
    ItemTower,
    QueryTower,
    TowerConfig,
    TowerContext,
)
from candid.towers.query_gap import QueryGap
from candid.towers.rotary import rotation_factors
from candid.towers.row_noise import rows_of
from candid.towers.row_table import RowTable
from candid.towers.time_gaps import (
    NUM_BUCKETS,
    NUM_CODES,
    look_up,
    pair_buckets,
    previous_buckets,
    query_gaps_plus_one,
    seconds_before_last,
    with_later,
)
from candid.towers.transformer_block import Block, FeedForward

MAX_TOKENS: Final = 1 << 32
"""More than the tokens of any history."""


class CausalTransformer(QueryTower):
    """The query vector is the state after the most recent interaction.

    Args:
        num_items: V.
        dim: D, width of the tokens and of the query vector.
        num_blocks: transformer blocks.
        num_heads: attention heads; must divide ``dim``.
        hidden: width inside the feed-forward network; None for ``dim``, as in SASRec.
        feed_forward: "gelu", a layer with GELU, or "swiglu", the product of a layer with SiLU and
            a linear one (Shazeer, 2020), with half again as many weights for the same ``hidden``.
        gated_residual: multiply each residual branch by the sigmoid of a linear map of the tokens.
        dropout: on the input and on both residual branches.
        attention_dropout: on the attention weights; anything above 0 stores them, which is slow.
        positions: "learned" vectors added to the tokens, as in SASRec, or "rotary" (RoFormer).
        max_length: L, longest history.
        input_items: encoder of the items of histories: the table of the item tower or, if the
            tower computes more than a look-up, the tower ("tied"); None for a separate table.
        num_event_types: event types in histories that have a vector; 0 for none.
        read_time_gaps: add a vector of the time since the previous interaction to each token; the
            first interaction of a history and an unknown time have their own.
        time_bias: add a trained number to each logit of attention, by head and by the time between
            the two interactions; the same in all blocks. A free trained value for each bucket of
            powers of two seconds, not a formula of decay.
        read_query_gap: scale and shift the state of a query by the time since the last
            interaction.
        empty_histories: whether there is a vector for an empty history; without it, such a query
            cannot be encoded.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``, or tied items have another width.
    """

    reads_history = True

    class Config(TowerConfig):
        """Settings of ``CausalTransformer``."""

        dim: int = Field(
            64, ge=1, le=MAX_WIDTH, description="width of the tokens and of the query vector"
        )
        num_blocks: int = Field(2, ge=1, le=MAX_LAYERS, description="transformer blocks")
        num_heads: int = Field(
            1, ge=1, le=MAX_WIDTH, description="attention heads; must divide dim"
        )
        hidden: int | None = Field(
            None, ge=1, le=MAX_WIDTH, description="width inside the feed-forward network; none: dim"
        )
        feed_forward: FeedForward = Field(
            "gelu",
            description="gelu: one layer with GELU; swiglu: the product of a layer with SiLU and a "
            "linear one, with half again as many weights for the same hidden",
        )
        gated_residual: bool = Field(
            False,
            description="multiply each residual branch by the sigmoid of a linear map of its "
            "input, as in LiGR",
        )
        dropout: float = Field(0.2, ge=0, lt=1, description="on the input and residual branches")
        attention_dropout: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="on the attention weights; above 0 stores them, which is slow",
        )
        positions: Literal["learned", "rotary"] = Field(
            "learned",
            description="learned: a vector for each position in the window; rotary: attention "
            "depends on distances",
        )
        read_event_types: bool = Field(
            False, description="add a vector of the event type to each token"
        )
        read_time_gaps: bool = Field(
            False,
            description="add a vector of the time since the previous interaction to each token "
            "(an unknown time has a vector of its own, 0 until training has one); needs data.time",
        )
        time_bias: bool = Field(
            False,
            description="add a trained number to each attention logit, by head and by the time "
            "between the two interactions (an unknown time has a number of its own, 0 until "
            "training has one); needs data.time",
        )
        read_query_gap: bool = Field(
            False,
            description="scale and shift the query vector by the time since the last interaction: "
            "a user who continues is not one who returns; training and evaluation read the time of "
            "the target, serving that of the request; needs data.time",
        )
        input_items: Literal["tied", "separate"] = Field(
            "tied",
            description="vectors of the items of histories: those of the item tower, or their own",
        )

        def build(self, context: TowerContext) -> CausalTransformer:
            """Build the tower for a dataset."""
            items = None
            if self.input_items == "tied":
                items = _table_or_tower(context.item_tower)
            if self.read_event_types and not context.num_event_types:
                raise ConfigError(
                    "query_tower.read_event_types needs event types; name their column with "
                    "data.event_type"
                )
            for key in ("read_time_gaps", "time_bias", "read_query_gap"):
                if getattr(self, key) and not context.has_times:
                    raise ConfigError(
                        f"query_tower.{key} needs the time of interactions; name its column with "
                        "data.time"
                    )
            return CausalTransformer(
                num_items=context.num_items,
                max_length=context.max_length,
                input_items=items,
                num_event_types=context.num_event_types if self.read_event_types else 0,
                empty_histories=context.empty_histories,
                **self.model_dump(exclude={"input_items", "read_event_types"}),
            )

    def __init__(
        self,
        *,
        num_items: int,
        dim: int,
        num_blocks: int,
        num_heads: int,
        max_length: int,
        hidden: int | None,
        feed_forward: FeedForward,
        gated_residual: bool,
        dropout: float,
        attention_dropout: float,
        positions: Literal["learned", "rotary"],
        input_items: nn.Embedding | ItemTower | None = None,
        num_event_types: int = 0,
        read_time_gaps: bool = False,
        time_bias: bool = False,
        read_query_gap: bool = False,
        empty_histories: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"query_tower.num_heads must divide dim {dim}, got {num_heads}")
        if positions == "rotary" and dim // num_heads % 2:
            raise ConfigError(
                f"query_tower.positions = 'rotary' needs an even width of heads, got dim {dim} / "
                f"num_heads {num_heads}"
            )
        if input_items is not None and _width(input_items) != dim:
            raise ConfigError(
                f"query_tower.dim must equal item_tower.dim {_width(input_items)} when input_items "
                f"is 'tied', got {dim}"
            )
        self.dim = dim
        self.max_length = max_length
        self._head_width = dim // num_heads
        self.items = RowTable(num_items, dim, "item") if input_items is None else input_items
        self.positions = embedding_table(max_length, dim) if positions == "learned" else None
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads=num_heads,
                hidden=hidden or dim,
                feed_forward=feed_forward,
                gated_residual=gated_residual,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.event_types = code_table(num_event_types + 1, dim) if num_event_types else None
        self.time_gaps = code_table(NUM_CODES, dim) if read_time_gaps else None
        self.time_bias = nn.Parameter(torch.zeros(num_heads, NUM_BUCKETS)) if time_bias else None
        self.query_gap = QueryGap(dim) if read_query_gap else None
        self.reads_query_gap = read_query_gap
        self.reads_times = read_time_gaps or time_bias or read_query_gap
        self.needs_history = not empty_histories
        # Not zeros: the gradient of the cosine at a vector of zeros is about 1e12 times its own.
        self.empty_history = nn.Parameter(0.02 * torch.randn(dim)) if empty_histories else None

    def extra_repr(self) -> str:
        """Return the settings."""
        positions = "learned" if self.positions is not None else "rotary"
        return f"dim={self.dim}, max_length={self.max_length}, positions={positions!r}"

    def forward(self, queries: Queries) -> Tensor:
        """Encode the histories: [B, D]."""
        history = queries.history
        if history is None:
            raise ConfigError(
                "a causal_transformer query tower needs histories; set batches.unit = 'sequence'"
            )
        if len(history.item_ids) == 0:
            # Every rank takes part in the look-up of a sharded table, also one without a history.
            no_rows: Tensor = self.items(history.item_ids)
            if self.empty_history is None:
                return no_rows
            return self.empty_history.expand(len(history.query_positions), -1)
        if self.empty_history is None:
            return self._vectors(history, history.query_positions, queries.times)
        is_empty = history.query_positions < 0
        vectors = self._vectors(history, history.query_positions.clamp(min=0), queries.times)
        return torch.where(is_empty[:, None], self.empty_history, vectors)

    def to_padded(self, context: PaddedContext) -> PaddedTransformer:
        """Return the transformer on padded histories."""
        return PaddedTransformer(
            _item_vectors(self.items),
            max_length=context.max_length,
            blocks=[block.to_padded() for block in self.blocks if isinstance(block, Block)],
            norm=self.norm,
            positions=self.positions,
            event_types=self.event_types,
            time_gaps=self.time_gaps,
            time_bias=self.time_bias,
            query_gap=self.query_gap,
            empty_history=self.empty_history,
        )

    def _vectors(self, history: History, positions: Tensor, times: Tensor | None) -> Tensor:
        """Return the vectors of queries after the tokens at packed positions [B]: [B, D].

        Args:
            history: of the queries.
            positions: [B] int64.
            times: [B] int64, as in ``Queries``.
        """
        vectors: Tensor = self.norm(self._states(history, positions))
        if self.query_gap is None:
            return vectors
        if times is None or history.times is None:
            gaps = torch.zeros_like(positions)
        else:
            gaps = query_gaps_plus_one(history.times.index_select(0, positions), times)
        return cast(Tensor, self.query_gap(vectors, gaps))

    def _states(self, history: History, positions: Tensor) -> Tensor:
        """Return the state of the tokens at packed positions [n]: [n, D]."""
        # Not indexing: its backward sorts the positions.
        return self._tokens(history).index_select(0, positions)

    def _tokens(self, history: History) -> Tensor:
        """Return the state of every token: [T, D]."""
        groups = length_groups(history.offsets, len(history.item_ids), history.cpu_offsets)
        sequences = _sequences(history)
        positions = _positions(history, sequences)
        tokens: Tensor = self.items(history.item_ids)
        factors = None
        if self.positions is not None:
            tokens = tokens + self.positions(positions)
        else:
            factors = rotation_factors(positions, self._head_width)
        if self.event_types is not None:
            # The vector of an unknown event type, as in a typed history, is zero at the start.
            codes = history.event_types
            tokens = tokens + self.event_types(
                torch.zeros_like(history.item_ids) if codes is None else codes
            )
        biases = None
        if self.time_gaps is not None or self.time_bias is not None:
            seconds = _seconds_before_last(history, sequences)
            if self.time_gaps is not None:
                tokens = tokens + self.time_gaps(previous_buckets(seconds, positions))
            if self.time_bias is not None:
                biases = _time_biases(self.time_bias, seconds, groups)
        with rows_of(_token_keys(history, sequences, positions) if self.training else None):
            tokens = self.dropout(tokens)
            for block in self.blocks:
                tokens = block(tokens, groups, factors, biases)
        return tokens


def _table_or_tower(item_tower: ItemTower | None) -> nn.Embedding | ItemTower:
    if item_tower is None:
        raise ConfigError(
            "query_tower.input_items = 'tied' needs an item tower; set it to 'separate'"
        )
    return item_tower if item_tower.table is None else item_tower.table


def _item_vectors(items: nn.Embedding | ItemTower) -> Tensor:
    """Return the vectors of the items of histories: [V, D] float32."""
    if isinstance(items, RowTable):
        return items.every_row().detach()
    if isinstance(items, nn.Embedding):
        return items.weight.detach()
    with torch.no_grad():
        return items.catalog().float()


def _width(items: nn.Embedding | ItemTower) -> int:
    return items.embedding_dim if isinstance(items, nn.Embedding) else items.dim


def _sequences(history: History) -> Tensor:
    """[T] int64, the sequence of each token."""
    lengths = history.offsets.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(
        lengths, output_size=len(history.item_ids)
    )


def _positions(history: History, sequences: Tensor) -> Tensor:
    """[T] int64, position of each token in its sequence."""
    starts = history.offsets.index_select(0, sequences)
    return torch.arange(len(sequences), device=starts.device) - starts


def _token_keys(history: History, sequences: Tensor, positions: Tensor) -> Tensor:
    """[T] int64, distinct for the tokens of the whole batch."""
    return (sequences + history.first_sequence) * MAX_TOKENS + positions


def _seconds_before_last(history: History, sequences: Tensor) -> Tensor:
    """[T] int32, as ``time_gaps.seconds_before_last``."""
    times = history.times
    if times is None:
        times = torch.full_like(history.item_ids, UNKNOWN_TIME)
    return seconds_before_last(times, sequences, len(history.offsets) - 1)


def _time_biases(table: Tensor, seconds: Tensor, groups: LengthGroups) -> list[Tensor]:
    """Return the biases of each group: [S, H, L, L]."""
    cells = groups.split(seconds.index_select(0, groups.gather))
    extended = with_later(table)
    return [look_up(extended, pair_buckets(group)) for group in cells]
