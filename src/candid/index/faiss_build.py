"""Construction of indexes of FAISS: whole, or in parts that share one training and are merged.

Lists of a part are appended to those of the parts before it, so that merged parts have the lists of
an index that was built whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index.approximate import Floats, augment_items, to_array

Kind = Literal["flat", "ivf", "hnsw", "pq", "sq"]
LISTED: Final = ("ivf", "pq", "sq")
"""Kinds that group the items in lists."""


def train_lists(vectors: Tensor, kind: Kind, num_lists: int, num_codes: int) -> Any:
    """Return an index without items of any kind but "hnsw", with its centres and quantizers.

    Args:
        vectors: [V, D], of which a sample is read.
        kind: of the index.
        num_lists: clusters.
        num_codes: codes of 4 bits of "pq".
    """
    faiss, items = faiss_library(), to_array(vectors)
    dim = items.shape[1]
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    quantizer = faiss.IndexFlatIP(dim)
    inner = faiss.METRIC_INNER_PRODUCT
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, dim, num_lists, inner)
    elif kind == "sq":
        bits = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, num_lists, bits, inner, False)
    else:
        quantizer.add(_scaled_centres(items, num_lists))
        index = faiss.IndexIVFPQFastScan(quantizer, dim, num_lists, num_codes, 4, inner)
        index.by_residual = True
    # FAISS would print a warning for small clusters, which are fine here.
    index.cp.min_points_per_centroid = 1
    index.train(items)
    return index


def build_lists(vectors: Tensor, kind: Kind, num_lists: int, num_codes: int) -> Any:
    """Build an index of any kind but "hnsw"; the arguments are those of ``train_lists``."""
    index = train_lists(vectors, kind, num_lists, num_codes)
    index.add(to_array(vectors))
    return index


def add_part(trained: Path, vectors: Tensor, file: Path) -> None:
    """Write the index of a part of the catalog.

    Args:
        trained: file of an index of ``train_lists``.
        vectors: [n, D], of the items of the part, which count from 0.
        file: to write.
    """
    faiss = faiss_library()
    index = faiss.read_index(str(trained))
    index.add(to_array(vectors))
    write_file(index, file)


def merge_parts(parts: Sequence[Path], file: Path) -> None:
    """Write the index of the whole catalog; memory is that of the index and of one part.

    Args:
        parts: files of ``add_part``, in the order of their items.
        file: to write.
    """
    faiss = faiss_library()
    index = faiss.read_index(str(parts[0]))
    # Lists shift the ids of the part, and a flat index has none.
    has_ids = isinstance(index, faiss.IndexIVF)
    for part in parts[1:]:
        index.merge_from(faiss.read_index(str(part)), index.ntotal if has_ids else 0)
    write_file(index, file)


def _scaled_centres(items: Floats, num_lists: int) -> Floats:
    """Return the centres [num_lists, D] of spherical k-means, as long as their items on average.

    The length is the mean product of the items with the centre of length 1. Codes store the
    difference to the centre of the list: one of length 1 would leave most of an item in it.
    """
    faiss, dim = faiss_library(), items.shape[1]
    clustering = faiss.Clustering(dim, num_lists)
    clustering.spherical = True
    clustering.niter = 10
    clustering.min_points_per_centroid = 1
    size = min(len(items), num_lists * clustering.max_points_per_centroid)
    sample = items[np.random.default_rng(0).choice(len(items), size, replace=False)]
    quantizer = faiss.IndexFlatIP(dim)
    clustering.train(sample, quantizer)
    products, lists = (part[:, 0] for part in quantizer.search(sample, 1))
    counts = np.bincount(lists, minlength=num_lists)
    lengths = np.bincount(lists, weights=products, minlength=num_lists) / np.maximum(counts, 1)
    centres = faiss.vector_to_array(clustering.centroids).reshape(num_lists, dim)
    return np.asarray(centres * lengths[:, None], dtype=np.float32)


def build_graph(vectors: Tensor, num_links: int, build_width: int, is_augmented: bool) -> Any:
    """Build an index of kind "hnsw".

    Args:
        vectors: [V, D].
        num_links: links per item.
        build_width: items considered for each new one.
        is_augmented: distances instead of inner products.
    """
    faiss, items = faiss_library(), to_array(vectors)
    if is_augmented:
        items = augment_items(items)
    metric = faiss.METRIC_L2 if is_augmented else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexHNSWFlat(items.shape[1], num_links, metric)
    index.hnsw.efConstruction = build_width
    index.add(items)
    return index


def write_file(index: Any, file: Path) -> None:
    """Write an index.

    Raises:
        RuntimeError: it cannot be written.
    """
    faiss_library().write_index(index, str(file))


def faiss_library(index: str = "faiss") -> ModuleType:
    """Import FAISS and set its number of threads to that of torch.

    Args:
        index: the registered index that needs it, for the error message.

    Raises:
        ConfigError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            f"the index {index!r} needs FAISS, which is not installed; "
            "run pip install 'candid-retrieval[index]'"
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    module: ModuleType = faiss
    return module
