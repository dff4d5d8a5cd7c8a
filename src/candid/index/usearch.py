"""Search with USearch: a graph of neighbours over vectors of reduced precision."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.index.approximate import (
    ApproximateIndex,
    Floats,
    Ints,
    augment_items,
    augment_queries,
    geometric_steps,
    has_similar_norms,
    scale_rows,
    to_array,
)
from candid.index.protocol import IndexConfig

Precision = Literal["float32", "bfloat16", "int8"]
DTYPES: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "i8"}


class UsearchIndex(ApproximateIndex):
    """A hierarchical graph of USearch; its candidates are ranked by the float32 vectors.

    The search of such a graph (Malkov and Yashunin 2016) is designed for distances: see
    ``augment``. It may find fewer than k items even if there are more. Calls from several threads
    run one after the other; one call uses as many threads as torch does.

    Args:
        item_vectors: [V, D] float32; kept for ranking, not copied.
        num_links: links per item in the graph.
        build_width: items considered for each new one when the graph is built.
        search_width: items considered in a search, at least k.
        precision: of the vectors in the graph. "int8" has one scale for all items, so that their
            lengths count, and one for each query.
        augment: distances instead of inner products (``augment_items``); None: if lengths are
            similar.
        file: of ``save``, read instead of building; None: build.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: USearch is not installed, vectors that are not a matrix with V, D ≥ 1, or a
            number below 1.
        ArtifactError: a vector is not finite, or a damaged file.
    """

    has_file = True

    class Config(IndexConfig):
        """Settings of a USearch index."""

        num_links: int = Field(16, ge=2, description="links per item in the graph")
        build_width: int = Field(
            128, ge=1, description="items considered per item when the graph is built"
        )
        search_width: int = Field(200, ge=1, description="items considered in a search")
        precision: Precision = Field("bfloat16", description="of the vectors in the graph")
        augment: bool | None = Field(
            None,
            description="distances of vectors augmented to one length, not inner products; "
            "none: if their lengths are similar",
        )

        def build(self, item_vectors: Tensor) -> UsearchIndex:
            """Build the index over ``item_vectors`` [V, D]."""
            return UsearchIndex(item_vectors, **self.model_dump())

        def open(self, item_vectors: Tensor, file: Path) -> UsearchIndex:
            """Open a file of ``UsearchIndex.save``; see ``IndexConfig.open``."""
            return UsearchIndex(item_vectors, **self.model_dump(), file=file)

    def __init__(
        self,
        item_vectors: Tensor,
        *,
        num_links: int,
        build_width: int,
        search_width: int,
        precision: Precision,
        augment: bool | None,
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
        library = _usearch_library()
        if file is not None:
            self._index: Any = _read(library, file)
            if len(self._index) != self.num_items:
                raise ArtifactError(
                    f"{file} is the index of {len(self._index)} items, not of these "
                    f"{self.num_items}"
                )
        else:
            self._index = self._build(library, num_links, build_width, precision, augment)
        self._is_int8 = precision == "int8"
        # Of every item of an augmented graph.
        first = np.asarray(self._index.get(0, dtype="f32"), dtype=np.float64)
        self._length = float(np.linalg.norm(first))

    def _build(
        self,
        library: ModuleType,
        num_links: int,
        build_width: int,
        precision: Precision,
        augment: bool | None,
    ) -> Any:
        is_augmented = has_similar_norms(self._vectors) if augment is None else augment
        items: npt.NDArray[Any] = to_array(self._vectors)
        if is_augmented:
            items = augment_items(items)
        if precision == "int8":
            # USearch itself would scale each vector to one length, and the order of inner products
            # would be lost.
            items = _to_int8(items, np.abs(items).max())
        index = library.Index(
            ndim=items.shape[1],
            metric="l2sq" if is_augmented else "ip",
            dtype=DTYPES[precision],
            connectivity=num_links,
            expansion_add=build_width,
            expansion_search=self.search_width,
        )
        index.add(np.arange(self.num_items), items, threads=torch.get_num_threads())
        return index

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; see ``Index.save``."""
        self._index.save(str(file))

    def tuning_axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Return values of ``search_width``; see ``Index.tuning_axes``."""
        return {"search_width": geometric_steps(k, max(k, min(32 * k, self.num_items)), 1.25)}

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        k += spare
        if len(query) == 0:
            return np.empty((0, k), dtype=np.int64)
        vectors = self._graph_queries(query)
        # USearch numbers the working memory of the threads of one call, so two calls at the same
        # time would share it.
        with self._lock:
            self._index.expansion_search = max(int(self.search_width), k)
            matches = self._index.search(vectors, k, threads=torch.get_num_threads())
        ids = np.asarray(matches.keys).astype(np.int64).reshape(len(query), -1)
        counts = np.atleast_1d(getattr(matches, "counts", np.full(len(query), ids.shape[1])))
        ids[np.arange(ids.shape[1]) >= counts[:, None]] = -1
        return ids

    def _graph_queries(self, query: Floats) -> npt.NDArray[Any]:
        """Return queries in the precision and the width of the graph; the order of items stays.

        Candidates are ranked exactly afterwards, so each query may have a scale of its own.
        """
        is_augmented = self._index.ndim > self._dim
        if is_augmented:
            query = augment_queries(query)
        if self._is_int8:
            return _to_int8(query, np.abs(query).max(axis=1, keepdims=True))
        return scale_rows(query, self._length) if is_augmented else query


def _to_int8(vectors: Floats, largest: Floats | np.float32) -> npt.NDArray[np.int8]:
    """Return rounded vectors in which ``largest`` is 127."""
    codes = vectors * (127 / np.where(largest > 0, largest, 1)).astype(np.float32)
    return np.rint(codes, out=codes).astype(np.int8)


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


def _usearch_library() -> ModuleType:
    """Import USearch.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import usearch.index
    except ImportError:
        raise ConfigError(
            "the index 'usearch' needs USearch, which is not installed; "
            "run pip install 'candid-retrieval[index]'"
        ) from None
    module: ModuleType = usearch.index
    return module
