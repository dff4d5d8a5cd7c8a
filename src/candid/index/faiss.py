"""Search with FAISS: exhaustive, IVF, PQ, SQ or HNSW.

FAISS (Douze et al. 2024, "The Faiss library") runs on the CPU; vectors on another device are
copied to the CPU, and the results back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.index.approximate import (
    ApproximateIndex,
    Floats,
    Ints,
    augment_queries,
    geometric_steps,
    has_similar_norms,
    scale_rows,
)
from candid.index.checks import check_item_vectors
from candid.index.faiss_build import (
    LISTED,
    Kind,
    add_part,
    build_graph,
    build_lists,
    faiss_library,
    merge_parts,
    train_lists,
    write_file,
)
from candid.index.protocol import IndexConfig

MIN_QUANTIZED = 1000
"""Catalogs below this size are searched exhaustively: they are too small to train a quantizer."""
SCANNED_QUERIES = 4
"""Smaller batches are searched item by item, larger ones by matrix products. At 10⁶ items × 64 one
query takes 12 ms of CPU item by item and 38 ms by products; 8 queries take 47 ms by products."""
OVERSAMPLES = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)


class FaissIndex(ApproximateIndex):
    """An index of FAISS, by inner product.

    - "flat" computes every product.
    - "ivf" clusters the items by k-means and searches the ``num_probes`` clusters nearest to the
      query: a fraction of the work, but some items are missed. For the exact candidates of a
      sampler, missed items only make the candidates less similar to the query.
    - "pq" is "ivf" over codes of 4 bits for each of ``num_codes`` parts of the difference to the
      centre of the cluster (product quantization, compared in registers), and "sq" over 8 bits per
      number of a vector; the candidates are ranked again by their float32 vectors.
    - "hnsw" searches a graph of neighbours (Malkov and Yashunin 2016). Its search is designed for
      distances: by inner product it can miss many items. With ``augment`` inner products become
      distances, which is far better for vectors of similar length and far worse for others.

    Apart from "flat", each may find fewer than k items even if there are more. The number of
    threads is that of torch at the time of each call.

    Args:
        item_vectors: [V, D] float32; "flat" and "ivf" copy them, the others keep them for ranking.
        kind: see above. Below 1,000 items "pq" and "sq" are "flat".
        num_lists: clusters of "ivf", "pq" and "sq"; None for about the square root of V, a
            quarter of it for "pq". ``benchmark_index`` measures three numbers then.
        num_probes: clusters that a search reads; all if there are fewer.
        num_links: links per item in the graph of "hnsw".
        build_width: items considered for each new one when the graph is built.
        search_width: items considered in a search of the graph, at least k.
        num_codes: parts of a vector for "pq", a divisor of D; None for D.
        oversample: candidates of "pq" and "sq" ranked exactly, as a multiple of k.
        augment: distances instead of inner products in "hnsw"; None: if lengths are similar.
        file: of ``save``, read instead of building; None: build.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: FAISS is not installed, vectors that are not a matrix with V, D ≥ 1, more
            clusters than items, ``num_codes`` that does not divide D, or a number below 1.
        ArtifactError: a vector is not finite, or a damaged file.
    """

    has_file = True

    class Config(IndexConfig):
        """Settings of a FAISS index."""

        kind: Kind = Field(
            "ivf",
            description="flat: exhaustive; ivf: inverted file; hnsw: graph; pq and sq: inverted "
            "file with product or scalar quantization, then exact ranking",
        )
        num_lists: int | None = Field(
            None, ge=1, description="clusters of ivf, pq, sq; none: from the catalog size"
        )
        num_probes: int = Field(16, ge=1, description="clusters that a search of ivf reads")
        num_links: int = Field(16, ge=2, description="links per item in the graph of hnsw")
        build_width: int = Field(
            100, ge=1, description="items considered per item when hnsw is built"
        )
        search_width: int = Field(200, ge=1, description="items considered in a search of hnsw")
        num_codes: int | None = Field(
            None, ge=1, description="codes of 4 bits per vector in pq; none: one per dimension"
        )
        oversample: float = Field(
            5.0, ge=1, description="candidates of pq and sq ranked exactly, as a multiple of k"
        )
        augment: bool | None = Field(
            None,
            description="hnsw by distances of vectors augmented to one length; none: if their "
            "lengths are similar",
        )

        @property
        def variant(self) -> str:
            """The kind; see ``IndexConfig.variant``."""
            return self.kind

        def build_choices(self, num_items: int) -> Sequence[Mapping[str, Any]]:
            """Return numbers of lists if none is given; see ``IndexConfig.build_choices``."""
            if self.kind not in LISTED or self.num_lists is not None or num_items < MIN_QUANTIZED:
                return [{}]
            root = math.isqrt(num_items)
            return [{"num_lists": lists} for lists in (root // 4, root, 2 * root)]

        def build(self, item_vectors: Tensor) -> FaissIndex:
            """Build the index over ``item_vectors`` [V, D]."""
            return FaissIndex(item_vectors, **self.model_dump())

        def open(self, item_vectors: Tensor, file: Path) -> FaissIndex:
            """Open a file of ``FaissIndex.save``; see ``IndexConfig.open``."""
            return FaissIndex(item_vectors, **self.model_dump(), file=file)

        @property
        def has_parts(self) -> bool:
            """Whether the kind has lists or is flat; see ``IndexConfig.has_parts``."""
            return self.kind != "hnsw"

        def train_parts(self, item_vectors: Tensor, file: Path) -> None:
            """Write the centres and quantizers; see ``IndexConfig.train_parts``."""
            check_item_vectors(item_vectors)
            shape = *item_vectors.shape, self.num_lists, self.num_codes
            write_file(train_lists(item_vectors, *_complete(self.kind, *shape)), file)

        def build_part(self, item_vectors: Tensor, trained: Path, file: Path) -> None:
            """Write the codes of some items; see ``IndexConfig.build_part``."""
            add_part(trained, item_vectors, file)

        def merge_parts(self, parts: Sequence[Path], file: Path) -> None:
            """Append the lists of all parts; see ``IndexConfig.merge_parts``."""
            merge_parts(parts, file)

    def __init__(
        self,
        item_vectors: Tensor,
        *,
        kind: Kind,
        num_lists: int | None,
        num_probes: int,
        num_links: int,
        build_width: int,
        search_width: int,
        num_codes: int | None,
        oversample: float,
        augment: bool | None,
        file: Path | None = None,
    ) -> None:
        check_item_vectors(item_vectors)
        num_items, dim = item_vectors.shape
        # Before the vectors are read.
        kind, num_lists, num_codes = _complete(kind, num_items, dim, num_lists, num_codes)
        if min(num_probes, num_links, build_width, search_width, oversample) < 1:
            raise ConfigError(
                "num_probes, num_links, build_width, search_width and oversample must be at least "
                f"1, got {num_probes}, {num_links}, {build_width}, {search_width} and {oversample}"
            )
        super().__init__(item_vectors, is_checked=file is not None)
        self._kind = kind
        self.num_probes = num_probes
        self.search_width = search_width
        self.oversample = oversample
        if file is not None:
            self._index: Any = _read(file, kind, dim)
        elif kind == "hnsw":
            is_augmented = has_similar_norms(self._vectors) if augment is None else augment
            self._index = build_graph(self._vectors, num_links, build_width, is_augmented)
        else:
            self._index = build_lists(self._vectors, kind, num_lists, num_codes)
        if self._index.ntotal != num_items:
            raise ArtifactError(
                f"{file} is the index of {self._index.ntotal} items, not of these {num_items}"
            )
        # Of every item of an augmented graph.
        is_wider = self._index.d > dim
        self._length = float(np.linalg.norm(self._index.reconstruct(0))) if is_wider else 1.0
        if kind in ("flat", "ivf"):
            # FAISS has copied the vectors, so the caller may change them.
            self._vectors = torch.empty(0)
        self._num_lists = num_lists

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; see ``Index.save``."""
        write_file(self._index, file)

    def settings(self) -> Mapping[str, Any]:
        """Return the kind and the settings of the search."""
        return {"kind": self._kind, **super().settings()}

    def tuning_axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Return values of the settings that the kind reads; see ``Index.tuning_axes``."""
        probes = geometric_steps(1, self._num_lists, 1.2)
        widths = geometric_steps(k, max(k, min(32 * k, self.num_items)), 1.25)
        axes: dict[Kind, dict[str, Sequence[float]]] = {
            "flat": {},
            "ivf": {"num_probes": probes},
            "hnsw": {"search_width": widths},
            "pq": {"num_probes": probes, "oversample": OVERSAMPLES},
            "sq": {"num_probes": probes, "oversample": OVERSAMPLES[:4]},
        }
        return axes[self._kind]

    def _search_all(self, query: Floats, k: int, spare: int = 0) -> tuple[Ints, Floats]:
        if self._kind not in ("flat", "ivf"):
            return super()._search_all(query, k, spare)
        ids, scores = self._search_faiss(query, k + spare)
        return ids, np.where(ids < 0, np.float32(-np.inf), scores)

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        oversample = 1.0 if self._kind == "hnsw" else self.oversample
        if self._index.d > self._dim:
            query = scale_rows(augment_queries(query), self._length)
        return self._search_faiss(query, self._num_candidates(k, spare, oversample))[0]

    def _search_faiss(self, query: Floats, k: int) -> tuple[Ints, Floats]:
        """Return the ids of FAISS, -1 where missing, and its own scores."""
        faiss = faiss_library()
        if self._kind == "flat":
            parameters = None
        elif self._kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(int(self.search_width), k))
        else:
            probes = min(int(self.num_probes), self._num_lists)
            parameters = faiss.SearchParametersIVF(nprobe=probes)
        # Global to FAISS. Its own value scans up to 2,000 queries of width 64 one by one.
        threshold = SCANNED_QUERIES * self._index.d if _counts_numbers(faiss) else SCANNED_QUERIES
        faiss.cvar.distance_compute_blas_threshold = threshold
        scores, ids = self._index.search(query, k, params=parameters)
        return ids, scores


def _complete(
    kind: Kind, num_items: int, dim: int, num_lists: int | None, num_codes: int | None
) -> tuple[Kind, int, int]:
    """Return kind, clusters and codes of an index over [V, D] vectors, without open choices.

    Raises:
        ConfigError: more clusters than items, or codes that do not divide D.
    """
    if num_lists is None:
        num_lists = max(1, math.isqrt(num_items) // (4 if kind == "pq" else 1))
    if not 1 <= num_lists <= num_items:
        raise ConfigError(
            f"num_lists must be between 1 and the number of items, {num_items}, got {num_lists}"
        )
    if num_codes is not None and dim % num_codes:
        raise ConfigError(f"num_codes {num_codes} must divide the width {dim} of the vectors")
    is_small = kind in ("pq", "sq") and num_items < MIN_QUANTIZED
    return "flat" if is_small else kind, num_lists, num_codes or dim


@functools.cache
def _counts_numbers(faiss: ModuleType) -> bool:
    """Return whether the threshold counts numbers, B · D, as in FAISS 1.15, and not queries."""
    is_larger: bool = faiss.cvar.distance_compute_blas_threshold >= MIN_QUANTIZED
    return is_larger


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
