"""What an index is: search over item vectors by inner product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from torch import Tensor

from candid.component import ComponentConfig, tagged


@dataclass(frozen=True, slots=True)
class SearchResult:
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

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k items of largest inner product.

        Args:
            query: [B, D] float32.
            k: results a query, 1 ≤ k ≤ V.
            exclude: items to leave out, or None.

        Raises:
            ConfigError: k is larger than the catalog.
        """
        ...


class MutableIndex(Index, Protocol):
    """An index whose items change while others search.

    Ids are never used twice: ``num_items`` counts those of deleted items too, and a search finds
    none of them.
    """

    def add(self, vectors: Tensor) -> Tensor:
        """Add items.

        Args:
            vectors: [n, D] float32.

        Returns:
            Their ids, [n] int64: the next ones after those in use.
        """
        ...

    def update(self, item_ids: Tensor, vectors: Tensor) -> None:
        """Give items other vectors; a deleted item is there again.

        Args:
            item_ids: [n] int64, distinct.
            vectors: [n, D] float32.
        """
        ...

    def delete(self, item_ids: Tensor) -> None:
        """Find some items no more; one that is deleted already stays so.

        Args:
            item_ids: [n] int64.
        """
        ...


@runtime_checkable
class StoredIndex(Index, Protocol):
    """An index that takes long to build, or holds more than vectors: it writes a file of its own.

    ``Config.open`` of its class reads the file.
    """

    def save(self, file: Path) -> None:
        """Write everything but the item vectors."""
        ...


class IndexConfig(ComponentConfig, ABC):
    """Base of every index's nested ``Config``."""

    @abstractmethod
    def build(self, item_vectors: Tensor) -> Index:
        """Make the index over ``item_vectors`` [V, D] float32."""

    def open(self, item_vectors: Tensor, file: Path) -> Index:
        """Open what ``StoredIndex.save`` wrote; for every index that is one.

        Args:
            item_vectors: [V, D] float32, those it was built over; may be mapped from disk.
            file: of ``save``.

        Raises:
            ArtifactError: the file is damaged or of another index.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no file of its own")

    def bytes_beside(self, item_vectors: Tensor) -> int:
        """Memory of an index without a file of its own, beside the item vectors [V, D]."""
        return 0


def _registry() -> Mapping[str, Any]:
    import candid.index  # The registry lists the modules that import this one.

    return candid.index.INDEXES


IndexComponent = Annotated[IndexConfig, tagged(_registry, "index")]
"""A config field that holds the config of any registered index."""
