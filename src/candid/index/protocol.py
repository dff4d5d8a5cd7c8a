"""What an index is: search over item vectors by inner product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from torch import Tensor

from candid.component import ComponentConfig, tagged


@dataclass(frozen=True, slots=True)
class Hits:
    """The best items of each query, best first.

    Attributes:
        item_ids: [B, K] int64; -1 where fewer than K items were allowed.
        scores: [B, K] float32; -inf where ``item_ids`` is -1.
    """

    item_ids: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Items that must not be returned, per query, packed.

    Attributes:
        item_ids: [M] int64.
        offsets: [B + 1] int64; query b excludes ``item_ids[offsets[b]:offsets[b + 1]]``.
    """

    item_ids: Tensor
    offsets: Tensor


class Index(Protocol):
    """Search over V item vectors."""

    num_items: int

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> Hits:
        """Find the k items of largest inner product.

        Args:
            query: [B, D] float32.
            k: results a query, 1 ≤ k ≤ V.
            exclude: items to leave out, or None.

        Raises:
            ConfigError: k is larger than the catalog.
        """
        ...


class IndexConfig(ComponentConfig, ABC):
    """Base of every index's nested ``Config``."""

    @abstractmethod
    def build(self, item_vectors: Tensor) -> Index:
        """Make the index over ``item_vectors`` [V, D] float32."""


def _registry() -> Mapping[str, Any]:
    import candid.index  # The registry lists the modules that import this one.

    return candid.index.INDEXES


IndexComponent = Annotated[IndexConfig, tagged(_registry, "index")]
"""A config field that holds the config of any registered index."""
