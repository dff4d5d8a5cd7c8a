"""Search by USearch: a graph of neighbours over vectors of few bits."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.index.approximate import (
    ApproximateIndex,
    Floats,
    Ints,
    array,
    augmented_items,
    augmented_queries,
    ladder,
    norms_are_alike,
)
from candid.index.protocol import IndexConfig

Precision = Literal["float32", "bfloat16", "int8"]
DTYPES: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "i8"}


class UsearchIndex(ApproximateIndex):
    """A hierarchical graph of USearch; what it finds is ranked by the float32 vectors.

    The walk of such a graph (Malkov and Yashunin 2016) is made for distances: see ``augment``. It
    may find fewer than k items even where there are more. Calls from several threads wait for each
    other; one call uses as many threads as torch does.

    Args:
        item_vectors: [V, D] float32; kept for ranking, not copied.
        num_links: links of an item in the graph.
        build_width: items that building the graph looks at for each new one.
        search_width: items that a search keeps in view, at least k.
        precision: of the vectors in the graph.
        augment: distances instead of inner products (``augmented_items``); None: where lengths
            are alike.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: USearch is not installed, vectors that are not a matrix with V, D ≥ 1, or a
            number below 1.
        ArtifactError: a vector is not finite.
    """

    class Config(IndexConfig):
        """Settings of a USearch index."""

        num_links: int = Field(16, ge=2, description="links of an item in the graph")
        build_width: int = Field(128, ge=1, description="care in building the graph")
        search_width: int = Field(200, ge=1, description="care in searching the graph")
        precision: Precision = Field("bfloat16", description="of the vectors in the graph")
        augment: bool | None = Field(
            None,
            description="distances of vectors brought to one length, not inner products; 'none': "
            "where their lengths are alike",
        )

        def build(self, item_vectors: Tensor) -> UsearchIndex:
            """Make the index over ``item_vectors`` [V, D]."""
            return UsearchIndex(item_vectors, **self.model_dump())

        def open(self, item_vectors: Tensor, file: Path) -> UsearchIndex:
            """Open a file of ``UsearchIndex.save``; see ``IndexConfig.open``."""
            return UsearchIndex(item_vectors, **self.model_dump(), file=file)

    def __init__(
        self,
        item_vectors: Tensor,
        num_links: int = 16,
        build_width: int = 128,
        search_width: int = 200,
        precision: Precision = "bfloat16",
        augment: bool | None = None,
        file: Path | None = None,
    ) -> None:
        if min(num_links, build_width, search_width) < 1:
            raise ConfigError(
                "num_links, build_width and search_width must be at least 1, got "
                f"{num_links}, {build_width} and {search_width}"
            )
        super().__init__(item_vectors, is_checked=file is not None)
        self.search_width = search_width
        self._lock = threading.Lock()
        library = _usearch()
        if file is not None:
            self._index: Any = _read(library, file)
            if len(self._index) != self.num_items:
                raise ArtifactError(
                    f"{file} is the index of {len(self._index)} items, not of these"
                )
            return
        is_augmented = norms_are_alike(self._vectors) if augment is None else augment
        items = array(self._vectors)
        if is_augmented:
            items = augmented_items(items)
        self._index = library.Index(
            ndim=items.shape[1],
            metric="l2sq" if is_augmented else "ip",
            dtype=DTYPES[precision],
            connectivity=num_links,
            expansion_add=build_width,
            expansion_search=search_width,
        )
        self._index.add(np.arange(self.num_items), items, threads=torch.get_num_threads())

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; see ``StoredIndex``."""
        self._index.save(str(file))

    def axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Care in the search; see ``TunableIndex``."""
        return {"search_width": ladder(k, max(k, min(32 * k, self.num_items)), 1.25)}

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        k += spare
        if len(query) == 0:
            return np.empty((0, k), dtype=np.int64)
        asked = augmented_queries(query) if self._index.ndim > self._dim else query
        # USearch gives the threads of one call working memory by number, and two calls at once
        # would share it.
        with self._lock:
            self._index.expansion_search = max(int(self.search_width), k)
            found = self._index.search(asked, k, threads=torch.get_num_threads())
        ids = np.asarray(found.keys).astype(np.int64).reshape(len(query), -1)
        counts = np.atleast_1d(getattr(found, "counts", np.full(len(query), ids.shape[1])))
        ids[np.arange(ids.shape[1]) >= counts[:, None]] = -1
        return ids


def _read(library: ModuleType, file: Path) -> Any:
    try:
        index = library.Index.restore(str(file), view=True)
    except (RuntimeError, ValueError):
        index = None
    if index is None:
        raise ArtifactError(
            f"{file} is damaged or of another version of USearch; build it again with candid index"
        )
    return index


def _usearch() -> ModuleType:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import usearch.index
    except ImportError:
        raise ConfigError(
            "index 'usearch' needs USearch, which is not installed: pip install 'candid[index]'"
        ) from None
    module: ModuleType = usearch.index
    return module
