"""The items nearest to the batch's queries as exact candidates, and samples of the others."""

from __future__ import annotations

from typing import Final

import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ConfigError
from candid.index.exact import ExactIndex
from candid.index.protocol import Index, IndexComponent, IndexConfig, SearchResult
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.exact_and_sampled import ExactAndSampled
from candid.samplers.item_vectors import ItemVectors
from candid.samplers.kernel_sampler import REFRESH_EVERY, check_query
from candid.samplers.popularity import Popularity
from candid.samplers.sampler import Sampler

NUM_NEAREST: Final = 32
"""Default of ``k``."""

SHARED: Final = True
"""Default of ``shared``."""

NUM_QUERIES: Final = 256
"""Default of ``num_queries``."""


class ExactNearest(ExactAndSampled):
    """Exact candidates that follow the model: items that an index finds near the queries.

    Each query's k nearest items are searched among the item vectors of the last refresh. The
    exact candidates are their union over the batch, at most ``num_exact`` items: those that
    would add most to the variance of the rows' Z'. Exact candidates that all rows share need
    one matrix product. If rows differ much, each row's own k nearest (``shared=False``) leave
    much less variance than as many items chosen for all; that gathers B·k vectors, and needs a
    search for every row.

    Stale vectors, an approximate index, or a search for some rows only make the choice of exact
    candidates worse and never bias the estimate; see ``ExactAndSampled``.

    Args:
        num_items: V.
        num_exact: H, the largest number of exact candidates that all rows share.
        rest: sampler of the other candidates.
        k: number of items found for each query.
        shared: the same exact candidates for all rows; False: each row's own k nearest, where
            ``num_exact`` and ``num_queries`` have no effect.
        num_queries: number of rows of a batch to search for, evenly spaced, when all rows share
            the result; None for all.
        refresh_every: R, steps between refreshes.
        index: settings of the index, built again at each refresh; None for exact search.

    Raises:
        ConfigError: ``k``, or a shared ``num_exact``, is less than 1 or more than V,
            ``num_queries`` or ``refresh_every`` is less than 1, or ``rest`` has exact
            candidates itself.

    Example:
        >>> import torch
        >>> from candid.samplers import ExactNearest, Uniform
        >>> sampler = ExactNearest(4, num_exact=2, rest=Uniform(4, num_candidates=4), k=1)
        >>> sampler.refresh(torch.eye(4))
        >>> sampler.sample(torch.tensor([0, 2]), query=torch.eye(4)[[1, 3]]).exact.ids
        tensor([1, 3])
    """

    class Config(SamplerConfig):
        """Settings of ``ExactNearest``."""

        num_exact: int = Field(
            128, ge=1, le=2**31, description="largest number of exact candidates"
        )
        k: int = Field(
            NUM_NEAREST, ge=1, le=2**31, description="nearest items found for each query"
        )
        shared: bool = Field(
            SHARED,
            description="the same exact candidates for all rows of a batch; false: each row's own "
            "k nearest, closer to its softmax, with k item vectors per row to gather",
        )
        num_queries: int | None = Field(
            NUM_QUERIES,
            ge=1,
            description="rows of a batch to search for, when all rows share the result; "
            "'none': all",
        )
        refresh_every: int = Field(
            REFRESH_EVERY, ge=1, description="steps between refreshes of the item vectors"
        )
        index: IndexComponent = Field(
            default_factory=ExactIndex.Config, description="index that finds the nearest items"
        )
        rest: SamplerComponent = Field(
            default_factory=Popularity.Config, description="sampler of the other candidates"
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return exact candidates and those of the rest; see ``SamplerConfig``."""
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
            """Build both parts for the same catalog."""
            return ExactNearest(
                len(counts),
                num_exact=self.num_exact,
                rest=self.rest.build(counts),
                k=self.k,
                shared=self.shared,
                num_queries=self.num_queries,
                refresh_every=self.refresh_every,
                index=self.index,
            )

    reads_query = True

    def __init__(
        self,
        num_items: int,
        *,
        num_exact: int,
        rest: Sampler,
        k: int = NUM_NEAREST,
        shared: bool = SHARED,
        num_queries: int | None = NUM_QUERIES,
        refresh_every: int = REFRESH_EVERY,
        index: IndexConfig | None = None,
    ) -> None:
        for name, value in (({"num_exact": num_exact} if shared else {}) | {"k": k}).items():
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
        super().__init__(num_items, rest)
        self.num_exact = num_exact
        self.k = k
        self.shared = shared
        self.num_queries = num_queries
        self._refresh_every = refresh_every
        self._index_config = ExactIndex.Config() if index is None else index
        self.item_vectors: ItemVectors[Index] = ItemVectors(num_items, self._index_config.build)
        # The last query and its split: one search serves all samples of a batch and the
        # expected counts of its given negatives.
        self._last_split: tuple[Tensor, tuple[Tensor, Sampler]] | None = None

    @property
    def refresh_every(self) -> int:
        """R, or the interval of the rest if that is shorter."""
        return min(self._refresh_every, super().refresh_every or self._refresh_every)

    def refresh(self, item_vectors: Tensor) -> None:
        """Build the index over the item vectors; see ``Sampler.refresh``."""
        self.item_vectors.set(item_vectors)
        self._last_split = None
        super().refresh(item_vectors)

    def split(self, positive_ids: Tensor, query: Tensor | None) -> tuple[Tensor, Sampler]:
        """Return items near the queries, and the rest; see ``ExactAndSampled.split``.

        Raises:
            ConfigError: there is no query, or there was no refresh yet.
        """
        checked = check_query(query)
        if self._last_split is None or self._last_split[0] is not query:
            self._last_split = checked, self._split(checked)
        return self._last_split[1]

    def _split(self, query: Tensor) -> tuple[Tensor, Sampler]:
        index = self.item_vectors.structure
        if not self.shared:
            return index.search(query, self.k).item_ids, self.rest
        num_rows = len(query)
        num_queries = min(self.num_queries or num_rows, num_rows)
        rows = torch.arange(num_queries, device=query.device) * num_rows // max(1, num_queries)
        exact_ids = highest_variance(index.search(query[rows], self.k), self.num_exact)
        return exact_ids, self.rest.excluding(exact_ids)


def highest_variance(nearest: SearchResult, num_items: int) -> Tensor:
    """Return the items whose samples would add most to the variance of the rows' Z'.

    An item that is estimated from samples adds P(d|u)² / (n·Q(d)) to the relative variance of a
    row's Z'. Items are ranked by the sum of P² over the rows, where P is a softmax over the
    items found for the row. Q is left out: with it, the few rows that prefer the rarest items
    would dominate the choice.

    Args:
        nearest: items and logits found for each row, padded with -1.
        num_items: the largest number of items to return.

    Returns:
        [H] int64 ascending; all items found if they are fewer.
    """
    is_item = nearest.item_ids >= 0
    # The softmax of a row without items is NaN; the mask selects none of it.
    probability = torch.softmax(nearest.scores, dim=1)[is_item]
    ids, position = torch.unique(nearest.item_ids[is_item], return_inverse=True)
    variance = probability.new_zeros(len(ids)).scatter_add(0, position, probability.square())
    order = torch.sort(variance, descending=True, stable=True).indices
    highest: Tensor = ids[order[:num_items]].sort().values
    return highest
