"""The interface of an index: search over item vectors by inner product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from torch import Tensor

from candid.component import ComponentConfig, tagged
from candid.errors import ConfigError
from candid.index.registry import INDEXES

EXHAUSTIVE = 50_000
"""Catalogs below this size are searched exactly by default: a query takes less than 1 ms."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best items of each query, best first.

    Attributes:
        item_ids: [B, K] int64; -1 where fewer than K items were found.
        scores: [B, K] float32; -inf where ``item_ids`` is -1.
    """

    item_ids: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Items that must not be returned, for each query, packed.

    Attributes:
        item_ids: [M] int64.
        offsets: [B + 1] int64; query b excludes ``item_ids[offsets[b]:offsets[b + 1]]``.
    """

    item_ids: Tensor
    offsets: Tensor


class Index(ABC):
    """Base of indexes: search over V item vectors.

    Only ``search`` and ``num_items`` are required. The other methods are hooks with defaults for
    an index whose searches have settings, or that stores data in addition to the vectors.

    Attributes:
        num_items: V.
        has_file: whether the index must be stored in a file next to the item vectors, because it
            takes long to build or holds more than the vectors; then ``save`` and
            ``Config.open`` are needed.
        scores_all_items: whether a search scores every item, so that
            ``search_with_log_partition`` costs little more than ``search``.

    Example:
        >>> class FirstItems(Index):
        ...     class Config(IndexConfig):
        ...         def build(self, item_vectors):
        ...             return FirstItems(item_vectors)
        ...
        ...     def __init__(self, item_vectors):
        ...         self.num_items = len(item_vectors)
        ...
        ...     def search(self, query, k, exclude=None):
        ...         ids = torch.arange(k).expand(len(query), k)
        ...         return SearchResult(ids, torch.zeros(ids.shape))
    """

    num_items: int
    has_file: ClassVar[bool] = False
    scores_all_items: ClassVar[bool] = False

    @abstractmethod
    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k items of largest inner product.

        Args:
            query: [B, D] float32.
            k: results per query, 1 ≤ k ≤ V.
            exclude: items to leave out, or None.

        Raises:
            ConfigError: k is outside 1..V.
        """

    def search_with_log_partition(
        self, query: Tensor, k: int, exclude: Exclusions | None = None
    ) -> tuple[SearchResult, Tensor | None]:
        """Search, and compute log Σ_d exp(q · v_d) over all V items, excluded ones included.

        Returns:
            the result of ``search``, and [B] float64, or None where the search does not score
            every item.
        """
        return self.search(query, k, exclude), None

    def tuning_axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Return the settings of a search that trade recall for speed.

        Args:
            k: results per query.

        Returns:
            Values to try by config key, ascending in cost; empty if there are no such settings.
        """
        return {}

    def with_settings(self, **settings: float) -> Self:
        """Return the same index with other settings of the search; the data are shared.

        Args:
            settings: by a key of ``tuning_axes``.

        Raises:
            ConfigError: the search has no such setting.
        """
        if settings:
            raise ConfigError(
                f"a search of {type(self).__name__} has no settings, got {min(settings)!r}"
            )
        return self

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; for an index with ``has_file``.

        ``Config.open`` reads the file.

        Args:
            file: to write.
        """
        raise NotImplementedError(f"{type(self).__name__} has no file")

    def settings(self) -> Mapping[str, Any]:
        """Return the settings that ``repr`` shows."""
        return {}

    def __repr__(self) -> str:
        """Return the class with its size and settings."""
        shown = {"num_items": self.num_items, **self.settings()}
        arguments = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({arguments})"


class IndexConfig(ComponentConfig, ABC):
    """Base of every index's nested ``Config``."""

    @property
    def variant(self) -> str | None:
        """Name of the algorithm for tables, if the class has several; else None."""
        return None

    @abstractmethod
    def build(self, item_vectors: Tensor) -> Index:
        """Build the index over ``item_vectors`` [V, D] float32."""

    def open(self, item_vectors: Tensor, file: Path) -> Index:
        """Open a file of ``Index.save``; for an index with ``has_file``.

        Args:
            item_vectors: [V, D] float32, those it was built over; may be mapped from disk.
            file: of ``save``.

        Raises:
            ArtifactError: the file is damaged or belongs to another index.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no file")

    @property
    def has_parts(self) -> bool:
        """Whether several processes can build the file of an index together.

        Then ``train_parts``, ``build_part`` and ``merge_parts`` write the file that ``open`` reads,
        with the results of an index that ``build`` returns.
        """
        return False

    def train_parts(self, item_vectors: Tensor, file: Path) -> None:
        """Write what all parts share, such as the centres of clusters, of a sample of the items.

        Args:
            item_vectors: [V, D] float32, finite; may be mapped from disk.
            file: to write.

        Raises:
            ConfigError: settings that cannot work, or a library that is not installed.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no parts")

    def build_part(self, item_vectors: Tensor, trained: Path, file: Path) -> None:
        """Write the index of a range of items.

        Args:
            item_vectors: [n, D] float32, those of the range, which may be empty.
            trained: file of ``train_parts``.
            file: to write.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no parts")

    def merge_parts(self, parts: Sequence[Path], file: Path) -> None:
        """Write the file that ``open`` reads.

        Args:
            parts: files of ``build_part``, whose ranges follow each other from item 0 on.
            file: to write.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no parts")

    def build_choices(self, num_items: int) -> Sequence[Mapping[str, Any]]:
        """Return settings of the construction among which a measurement chooses.

        Args:
            num_items: V.

        Returns:
            Choices, each as values by config key. One index is built for each; the one empty choice
            builds the config as it is.
        """
        return [{}]

    def extra_bytes(self, item_vectors: Tensor) -> int:
        """Return the memory of an index without a file, in addition to the vectors [V, D]."""
        return 0


IndexComponent = Annotated[IndexConfig, tagged(INDEXES, "index")]
"""A config field that holds the config of any registered index."""


def default_config(num_items: int) -> IndexConfig:
    """Return the config of the index that is built if the user names none.

    Args:
        num_items: V.
    """
    is_small = num_items < EXHAUSTIVE
    config: IndexConfig = (
        INDEXES["exact"].Config() if is_small else INDEXES["faiss"].Config(kind="pq")
    )
    return config
