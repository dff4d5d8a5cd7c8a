"""Kernelized locality-sensitive hashing: items as bits, compared by Hamming distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.index.approximate import (
    ApproximateIndex,
    Floats,
    Ints,
    augment_items,
    augment_queries,
    to_array,
)
from candid.index.faiss import faiss_library
from candid.index.kernel_hash import Codes, Kernel, KernelHash, kernel_of_distances
from candid.index.protocol import IndexConfig
from candid.index.rerank_pass import NativeRerank

RankBy = Literal["inner_product", "kernel"]


class KernelLsh(ApproximateIndex):
    """Exhaustive search over hash bits, then exact ranking of the nearest items.

    For inner products the linear kernel is best: under "rbf" and "laplacian" a query outside the
    items is equally far from all of them; these kernels are for similarities of their own form.

    An item takes ``num_bits`` bits, and a comparison takes two instructions per word. With
    ``rank_by`` "kernel" items are ranked by the kernel itself, for similarities other than the
    inner product; the scores are then values of the kernel.

    Args:
        item_vectors: [V, D] float32; kept for ranking, not copied.
        kernel: "linear" q·v, "rbf" exp(-γ‖q - v‖²) or "laplacian" exp(-√γ‖q - v‖), with γ one over
            the median squared distance between sampled items.
        num_bits: bits per item, a multiple of 8.
        num_landmarks: p, items that the components are fitted to.
        num_components: r, number of leading components.
        oversample: candidates ranked exactly, as a multiple of k.
        rank_by: "inner_product" or "kernel".
        augment: hash vectors augmented to one length (``augment_items``), so that a small angle
            means a large inner product; None: for the linear kernel with ``rank_by``
            "inner_product".
        seed: of the sample and the projections.
        file: of ``save``, read instead of building; None: build.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: FAISS is not installed, a number out of range, or vectors that are not a
            matrix with V, D ≥ 1.
        ArtifactError: a vector is not finite, or a damaged file.
    """

    has_file = True

    class Config(IndexConfig):
        """Settings of kernelized hashing."""

        kernel: Kernel = Field("linear", description="similarity that the bits preserve")
        num_bits: int = Field(512, ge=8, multiple_of=8, description="bits per item")
        num_landmarks: int = Field(512, ge=1, description="items that the components are fitted to")
        num_components: int = Field(128, ge=1, description="leading components of kernel PCA")
        oversample: float = Field(
            10.0, ge=1, description="candidates ranked exactly, as a multiple of k"
        )
        rank_by: RankBy = Field("inner_product", description="the scores of results")
        augment: bool | None = Field(
            None,
            description="hash vectors augmented to one length, so that a small angle means a large "
            "inner product; none: for the linear kernel ranked by inner products",
        )
        seed: int = Field(0, ge=0, description="seed of the sampled items and the projections")

        def build(self, item_vectors: Tensor) -> KernelLsh:
            """Build the index over ``item_vectors`` [V, D]."""
            return KernelLsh(item_vectors, **self.model_dump())

        def open(self, item_vectors: Tensor, file: Path) -> KernelLsh:
            """Open a file of ``KernelLsh.save``; see ``IndexConfig.open``."""
            return KernelLsh(item_vectors, **self.model_dump(), file=file)

    def __init__(
        self,
        item_vectors: Tensor,
        *,
        kernel: Kernel,
        num_bits: int,
        num_landmarks: int,
        num_components: int,
        oversample: float,
        rank_by: RankBy,
        augment: bool | None,
        seed: int,
        file: Path | None = None,
    ) -> None:
        if min(num_landmarks, num_components, oversample, num_bits) < 1 or num_bits % 8:
            raise ConfigError(
                "num_landmarks, num_components and oversample must be at least 1 and num_bits a "
                f"multiple of 8, got {num_landmarks}, {num_components}, {oversample} and {num_bits}"
            )
        super().__init__(item_vectors, is_checked=file is not None)
        self.oversample = oversample
        self._kernel: Kernel = kernel
        self._rank_by = rank_by
        self._is_augmented = augment
        if augment is None:
            self._is_augmented = rank_by == "inner_product" and kernel == "linear"
        if file is not None:
            self._hash, codes = _read(file, kernel)
            if len(codes) != self.num_items:
                raise ArtifactError(
                    f"{file} is the index of {len(codes)} items, not of these {self.num_items}"
                )
        else:
            items = to_array(self._vectors)
            items = augment_items(items) if self._is_augmented else items
            self._hash = KernelHash.fit(
                items,
                kernel,
                num_bits=num_bits,
                num_landmarks=num_landmarks,
                num_components=num_components,
                seed=seed,
            )
            codes = self._hash.codes(items)
        self._codes = codes
        self._index: Any = faiss_library("kernel_lsh").IndexBinaryFlat(8 * codes.shape[1])
        self._index.add(codes)

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; see ``Index.save``."""
        hash_function = self._hash
        content = {
            "gamma": np.array([hash_function.gamma]),
            "length": np.array([hash_function.length]),
            "landmarks": hash_function.landmarks,
            "projection": hash_function.projection,
            "offset": hash_function.offset,
            "codes": self._codes,
        }
        save_file(content, file)

    def settings(self) -> Mapping[str, Any]:
        """Return the kernel, the ranking and the settings of the search."""
        return {"kernel": self._kernel, "rank_by": self._rank_by, **super().settings()}

    def tuning_axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Return numbers of candidates; see ``Index.tuning_axes``."""
        return {"oversample": (1, 2, 3, 5, 8, 12, 20, 35, 60, 100, 200)}

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        faiss_library("kernel_lsh")
        if self._rank_by == "inner_product":
            # The order by inner product does not depend on the length of the query, but the
            # kernel does: a query far outside the items is equally far from all of them.
            lengths = np.linalg.norm(query, axis=1, keepdims=True)
            query = query * (self._hash.length / np.maximum(lengths, np.float32(1e-30)))
        if self._is_augmented:
            query = augment_queries(query)
        count = self._num_candidates(k, spare, self.oversample)
        candidates: Ints = self._index.search(self._hash.codes(query), count)[1]
        return candidates

    def _native_rerank(self) -> NativeRerank | None:
        return super()._native_rerank() if self._ranks_by_product else None

    @property
    def _ranks_by_product(self) -> bool:
        return self._rank_by == "inner_product" or self._hash.kernel == "linear"

    def _scores(self, query: Floats, item_ids: Ints) -> Floats:
        if self._ranks_by_product:
            return super()._scores(query, item_ids)
        vectors = self._vectors.numpy().take(item_ids, axis=0)
        squares = np.square(vectors - query[:, None, :]).sum(axis=2)
        return kernel_of_distances(self._hash.kernel, self._hash.gamma, squares)


def _read(file: Path, kernel: Kernel) -> tuple[KernelHash, Codes]:
    try:
        content = load_file(file)
        hash_function = KernelHash(
            kernel,
            float(content["gamma"][0]),
            float(content["length"][0]),
            content["landmarks"],
            content["projection"],
            content["offset"],
        )
        return hash_function, content["codes"]
    except (OSError, KeyError, IndexError, SafetensorError) as error:
        raise ArtifactError(f"{file} is damaged; build it again with candid index") from error
