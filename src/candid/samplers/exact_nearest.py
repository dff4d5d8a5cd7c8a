"""The items nearest to the batch's queries exactly, the rest by draws."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Positives
from candid.errors import ConfigError
from candid.index import ExactIndex, Index, IndexComponent, IndexConfig, SearchResult
from candid.samplers.adaptive import checked_item_vectors, query_of
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.exact_popular import ExactAndSampled
from candid.samplers.excluding import excluding
from candid.samplers.popularity import Popularity
from candid.samplers.sampler import Sampler


class ExactNearest(ExactAndSampled):
    """A head that follows the model: what an index finds near the queries of the batch.

    Each query's k nearest items are looked up among the item vectors of the last refresh. The
    head is their union over the batch, at most ``num_exact`` items: those that would add most to
    the noise of the rows' Z'. One head for all rows keeps scoring one matrix product. Where
    rows differ much, each row's own k nearest (``shared`` false) leave far less to chance than
    as many items chosen for all; that gathers B·k vectors, and needs every row looked up.

    That the vectors are stale, the index approximate, or only some rows looked up, makes the
    head a worse one and never the estimate a biased one; see ``ExactAndSampled``.

    Args:
        num_items: V.
        tail: draws the rest.
        num_exact: H, items of the head at most.
        k: items found for each query.
        shared: one head for all rows; or each row's own k nearest, where ``num_exact`` and
            ``num_queries`` have no say.
        num_queries: rows of a batch that are looked up, spread evenly over it, to choose for
            all; None for all.
        refresh_every: R, steps between refreshes.
        index: settings of the index, built anew at each refresh.

    Raises:
        ConfigError: ``num_exact`` or ``k`` is less than 1 or more than V, ``num_queries`` or
            ``refresh_every`` less than 1, or the tail has a head itself.
    """

    class Config(SamplerConfig):
        """Settings of ``ExactNearest``."""

        num_exact: int = Field(128, ge=1, description="items compared exactly, at most")
        k: int = Field(32, ge=1, description="nearest items found for each query")
        shared: bool = Field(
            True,
            description="one head for all rows of a batch; false: each row's own k nearest, "
            "closer to its softmax for k item vectors a row to gather",
        )
        num_queries: int | None = Field(
            256,
            ge=1,
            description="rows of a batch that are looked up, to choose for all; 'none': all",
        )
        refresh_every: int = Field(
            100, ge=1, description="steps between refreshes of the item vectors"
        )
        index: IndexComponent = Field(
            default_factory=ExactIndex.Config, description="what finds the nearest items"
        )
        rest: SamplerComponent = Field(
            default_factory=Popularity.Config, description="where the other candidates come from"
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Exact candidates and those of the rest; see ``SamplerConfig``."""
            num_exact = self.num_exact if self.shared else self.k
            return num_exact + self.rest.candidates_per_row(batch_rows)

        @property
        def parts(self) -> tuple[SamplerConfig, ...]:
            """The rest; see ``SamplerConfig``."""
            return (self.rest,)

        @property
        def has_exact(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> ExactNearest:
            """Build head and tail for the same catalog."""
            return ExactNearest(
                len(counts),
                self.rest.build(counts),
                self.num_exact,
                self.k,
                self.shared,
                self.num_queries,
                self.refresh_every,
                self.index,
            )

    def __init__(
        self,
        num_items: int,
        rest: Sampler,
        num_exact: int = 128,
        k: int = 32,
        shared: bool = True,
        num_queries: int | None = 256,
        refresh_every: int = 100,
        index: IndexConfig | None = None,
    ) -> None:
        super().__init__(rest)
        for name, value in (("num_exact", num_exact), ("k", k)):
            if not 1 <= value <= num_items:
                raise ConfigError(
                    f"{name} must be between 1 and the {num_items} items of the catalog, got "
                    f"{value}"
                )
        if refresh_every < 1 or (num_queries is not None and num_queries < 1):
            raise ConfigError(
                "refresh_every and num_queries must be at least 1, got "
                f"{refresh_every} and {num_queries}"
            )
        self.num_items = num_items
        self.num_exact = num_exact
        self.k = k
        self.shared = shared
        self.num_queries = num_queries
        self._refresh_every = refresh_every
        self._index_config = ExactIndex.Config() if index is None else index
        self._item_vectors: Tensor | None = None
        self._index: Index | None = None
        self._last: tuple[Positives, tuple[Tensor, Sampler]] | None = None

    @property
    def refresh_every(self) -> int:
        """R, or the tail's interval where that is shorter."""
        return min(self._refresh_every, super().refresh_every or self._refresh_every)

    def refresh(self, item_vectors: Tensor) -> None:
        """Build the index over the item vectors; see ``AdaptiveSampler.refresh``."""
        self._build_index(item_vectors)
        super().refresh(item_vectors)

    def state(self) -> dict[str, Tensor]:
        """The vectors of the last refresh, and the tail's state; see ``Stateful.state``."""
        vectors = self._item_vectors
        return super().state() | ({} if vectors is None else {"item_vectors": vectors})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Build the index over the vectors of the last refresh; see ``Stateful.restore``."""
        if "item_vectors" in state:
            self._build_index(state["item_vectors"])
        super().restore(state)

    def split(self, batch: Positives) -> tuple[Tensor, Sampler]:
        """What is near the queries, and the tail beside it; see ``ExactAndSampled.split``.

        Raises:
            ConfigError: the batch has no queries, or there was no refresh yet.
        """
        if self._last is None or self._last[0] is not batch:
            self._last = batch, self._split(query_of(batch))
        return self._last[1]

    def _split(self, query: Tensor) -> tuple[Tensor, Sampler]:
        if self._index is None:
            raise ConfigError(
                "exact_nearest knows no item vectors yet: call refresh(item_vectors) before the "
                "first draw"
            )
        if not self.shared:
            return self._index.search(query, self.k).item_ids, self.rest
        num_rows = len(query)
        num_queries = min(self.num_queries or num_rows, num_rows)
        rows = torch.arange(num_queries, device=query.device) * num_rows // max(1, num_queries)
        exact_ids = noisiest(self._index.search(query[rows], self.k), self.num_exact)
        return exact_ids, excluding(self.rest, exact_ids)

    def _build_index(self, item_vectors: Tensor) -> None:
        vectors = checked_item_vectors(item_vectors, self.num_items)
        self._index = self._index_config.build(vectors)
        self._item_vectors = vectors
        self._last = None


def noisiest(accidental_hits: SearchResult, num_items: int) -> Tensor:
    """The items whose draws would add most to the noise of the rows' Z': [H] int64 ascending.

    An item that is estimated from draws adds P(d|u)² / (n·Q(d)) to the relative variance of a
    row's Z'. Items are ranked by the sum of P² over the rows, P taken over what was found for
    the row. Q is left out: with it, the few rows that want the rarest items decide for all.

    Args:
        hits: items and logits found for each row, -1 where there is none.
        num_items: how many at most; all that were found where they are fewer.
    """
    is_found = accidental_hits.item_ids >= 0
    # A row for which nothing was found is nan throughout, and nothing of it is taken.
    share = torch.softmax(accidental_hits.scores, dim=1)[is_found]
    ids, place = torch.unique(accidental_hits.item_ids[is_found], return_inverse=True)
    noise = share.new_zeros(len(ids)).scatter_add(0, place, share.square())
    order = torch.sort(noise, descending=True, stable=True).indices
    kept: Tensor = ids[order[:num_items]].sort().values
    return kept
