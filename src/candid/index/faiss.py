"""Search by FAISS: every inner product, those of near lists, a graph, or short codes.

FAISS (Douze et al. 2024, "The Faiss library") works on the CPU; vectors of another device are
copied there and the results back.
"""

from __future__ import annotations

import math
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
from candid.index.checks import check_item_vectors
from candid.index.protocol import IndexConfig

Kind = Literal["flat", "ivf", "hnsw", "pq", "sq"]
SMALL = 1000
"""Below so many items there is nothing to learn codes from: they are compared one by one."""
OVERSAMPLES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)


class FaissIndex(ApproximateIndex):
    """An index of FAISS, by inner product.

    - "flat" computes every product.
    - "ivf" sorts the items into lists around centres of a k-means and looks at the
      ``num_probes`` lists nearest to the query: a fraction of the work, and some items are missed,
      which for a sampler's head costs nothing but closeness.
    - "pq" is "ivf" over codes of 4 bits for each of ``num_codes`` parts of a vector (product
      quantisation, compared in registers), and "sq" over 8 bits a number; the candidates are
      ranked again by their float32 vectors.
    - "hnsw" walks a graph of neighbours (Malkov and Yashunin 2016). Its walk is made for distances:
      by inner product it may miss much, and with ``augment`` inner products become distances,
      which is far better where lengths are alike and far worse where they are not.

    Apart from "flat", each may find fewer than k items even where there are more. Threads are
    those of torch at the time of each call.

    Args:
        item_vectors: [V, D] float32; "flat" and "ivf" copy them, the others keep them for ranking.
        kind: see above. Below 1,000 items "pq" and "sq" are "flat".
        num_lists: lists of "ivf", "pq" and "sq"; None for about the square root of V, a quarter of
            it for "pq".
        num_probes: lists that a search looks at, all where there are fewer.
        num_links: links of an item in the graph of "hnsw".
        build_width: items that building the graph looks at for each new one.
        search_width: items that a search of the graph keeps in view, at least k.
        num_codes: parts of a vector for "pq", a divisor of D; None for D.
        oversample: candidates of "pq" and "sq" ranked again, as a multiple of k.
        augment: distances instead of inner products in "hnsw"; None: where lengths are alike.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: FAISS is not installed, vectors that are not a matrix with V, D ≥ 1, more
            lists than items, codes that do not divide D, or a number below 1.
        ArtifactError: a vector is not finite.
    """

    class Config(IndexConfig):
        """Settings of a FAISS index."""

        kind: Kind = Field(
            "ivf",
            description="flat: every inner product; ivf: those of near lists; hnsw: a graph; pq "
            "and sq: near lists by short codes, then exact ranking of the best",
        )
        num_lists: int | None = Field(
            None, ge=1, description="lists of ivf, pq, sq; 'none': from the size of the catalog"
        )
        num_probes: int = Field(16, ge=1, description="lists of ivf that a search looks at")
        num_links: int = Field(16, ge=2, description="links of an item in the graph of hnsw")
        build_width: int = Field(100, ge=1, description="care in building the graph of hnsw")
        search_width: int = Field(200, ge=1, description="care in searching the graph of hnsw")
        num_codes: int | None = Field(
            None, ge=1, description="codes of 4 bits a vector in pq; 'none': one for each dimension"
        )
        oversample: float = Field(
            5.0, ge=1, description="candidates of pq and sq ranked exactly, as a multiple of k"
        )
        augment: bool | None = Field(
            None,
            description="hnsw by distances of vectors brought to one length; 'none': where their "
            "lengths are alike",
        )

        def build(self, item_vectors: Tensor) -> FaissIndex:
            """Make the index over ``item_vectors`` [V, D]."""
            return FaissIndex(item_vectors, **self.model_dump())

        def open(self, item_vectors: Tensor, file: Path) -> FaissIndex:
            """Open a file of ``FaissIndex.save``; see ``IndexConfig.open``."""
            return FaissIndex(item_vectors, **self.model_dump(), file=file)

    def __init__(
        self,
        item_vectors: Tensor,
        kind: Kind = "ivf",
        num_lists: int | None = None,
        num_probes: int = 16,
        num_links: int = 16,
        build_width: int = 100,
        search_width: int = 200,
        num_codes: int | None = None,
        oversample: float = 5.0,
        augment: bool | None = None,
        file: Path | None = None,
    ) -> None:
        check_item_vectors(item_vectors)
        num_items, dim = item_vectors.shape
        if num_lists is None:
            num_lists = max(1, math.isqrt(num_items) // (4 if kind == "pq" else 1))
        if not 1 <= num_lists <= num_items:
            raise ConfigError(
                f"num_lists must be between 1 and the {num_items} items of the catalog, got "
                f"{num_lists}"
            )
        if min(num_probes, num_links, build_width, search_width, oversample) < 1:
            raise ConfigError(
                "num_probes, num_links, build_width, search_width and oversample must be at least "
                f"1, got {num_probes}, {num_links}, {build_width}, {search_width} and {oversample}"
            )
        if num_codes is not None and dim % num_codes:
            raise ConfigError(f"num_codes {num_codes} must divide the width {dim} of the vectors")
        super().__init__(item_vectors, is_checked=file is not None)
        if kind in ("pq", "sq") and num_items < SMALL:
            kind = "flat"
        self._kind = kind
        self.num_probes = num_probes
        self.search_width = search_width
        self.oversample = oversample
        if file is not None:
            self._index: Any = _read(file, kind, dim)
        elif kind == "hnsw":
            is_augmented = norms_are_alike(self._vectors) if augment is None else augment
            self._index = _graph(self._vectors, num_links, build_width, is_augmented)
        else:
            self._index = _lists(self._vectors, kind, num_lists, num_codes or dim)
        if self._index.ntotal != num_items:
            raise ArtifactError(f"{file} is the index of {self._index.ntotal} items, not of these")
        if kind in ("flat", "ivf"):
            # These hold the vectors themselves, and what the caller does with his is no matter.
            self._vectors = torch.empty(0)
        self._num_lists = num_lists

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; see ``StoredIndex``."""
        faiss_library().write_index(self._index, str(file))

    def axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Lists to look at, care in the graph, candidates to rank; see ``TunableIndex``."""
        probes = ladder(1, self._num_lists, 1.2)
        axes: dict[Kind, dict[str, Sequence[float]]] = {
            "flat": {},
            "ivf": {"num_probes": probes},
            "hnsw": {"search_width": ladder(k, max(k, min(32 * k, self.num_items)), 1.25)},
            "pq": {"num_probes": probes, "oversample": OVERSAMPLES},
            "sq": {"num_probes": probes, "oversample": OVERSAMPLES[:3]},
        }
        return axes[self._kind]

    def _best(self, query: Floats, k: int, spare: int = 0) -> tuple[Ints, Floats]:
        if self._kind not in ("flat", "ivf"):
            return super()._best(query, k, spare)
        ids, scores = self._found(query, k + spare)
        return ids, np.where(ids < 0, np.float32(-np.inf), scores)

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        oversample = 1.0 if self._kind == "hnsw" else self.oversample
        asked = augmented_queries(query) if self._index.d > self._dim else query
        return self._found(asked, self._width(k, spare, oversample))[0]

    def _found(self, query: Floats, k: int) -> tuple[Ints, Floats]:
        """What FAISS finds: ids, -1 where none, and its own scores."""
        faiss = faiss_library()
        if self._kind == "flat":
            parameters = None
        elif self._kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(int(self.search_width), k))
        else:
            probes = min(int(self.num_probes), self._num_lists)
            parameters = faiss.SearchParametersIVF(nprobe=probes)
        scores, ids = self._index.search(query, k, params=parameters)
        return ids, scores


def _lists(vectors: Tensor, kind: Kind, num_lists: int, num_codes: int) -> Any:
    """Build everything but a graph."""
    faiss, items = faiss_library(), array(vectors)
    dim = items.shape[1]
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    else:
        centres = faiss.IndexFlatIP(dim)
        inner = faiss.METRIC_INNER_PRODUCT
        if kind == "ivf":
            index = faiss.IndexIVFFlat(centres, dim, num_lists, inner)
        elif kind == "sq":
            bits = faiss.ScalarQuantizer.QT_8bit
            index = faiss.IndexIVFScalarQuantizer(centres, dim, num_lists, bits, inner, False)
        else:
            index = faiss.IndexIVFPQFastScan(centres, dim, num_lists, num_codes, 4, inner)
            index.by_residual = False
        # Lists of few items are fine here; FAISS would print a warning for each training.
        index.cp.min_points_per_centroid = 1
        index.train(items)
    index.add(items)
    return index


def _graph(vectors: Tensor, num_links: int, build_width: int, is_augmented: bool) -> Any:
    faiss, items = faiss_library(), array(vectors)
    if is_augmented:
        items = augmented_items(items)
    metric = faiss.METRIC_L2 if is_augmented else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexHNSWFlat(items.shape[1], num_links, metric)
    index.hnsw.efConstruction = build_width
    index.add(items)
    return index


def _read(file: Path, kind: Kind, dim: int) -> Any:
    faiss = faiss_library()
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        expected = {
            "flat": faiss.IndexFlat,
            "ivf": faiss.IndexIVFFlat,
            "hnsw": faiss.IndexHNSWFlat,
            "pq": faiss.IndexIVFPQFastScan,
            "sq": faiss.IndexIVFScalarQuantizer,
        }[kind]
        if not isinstance(index, expected) or index.d - dim not in (0, 1):
            raise RuntimeError(f"not of kind {kind}")
        return index
    except RuntimeError as error:
        raise ArtifactError(
            f"{file} is damaged or of another version of FAISS; build it again with candid index"
        ) from error


def faiss_library(index: str = "faiss") -> ModuleType:
    """The library, told to use as many threads as torch does.

    Args:
        index: that needs it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            f"index {index!r} needs FAISS, which is not installed: pip install 'candid[index]'"
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    module: ModuleType = faiss
    return module
