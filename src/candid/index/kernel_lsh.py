"""Kernelized locality-sensitive hashing: items as bits, compared by Hamming distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator
from safetensors.numpy import save_file
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
from candid.index.array_files import damaged, map_arrays
from candid.index.faiss_build import faiss_library
from candid.index.kernel_hash import Codes, KernelHash, sample_landmarks
from candid.index.kernels import (
    Kernel,
    KernelName,
    build_kernel,
    check_values,
    checked_kernel,
    scale_of,
)
from candid.index.protocol import IndexConfig
from candid.index.rerank_pass import NativeRerank

RankBy = Literal["inner_product", "kernel"]


KERNEL: KernelName = "linear"
NUM_BITS = 512
NUM_LANDMARKS = 512
NUM_COMPONENTS = 128
OVERSAMPLE = 10.0
RANK_BY: RankBy = "inner_product"


class KernelLsh(ApproximateIndex):
    """Exhaustive search over hash bits, then exact ranking of the nearest items.

    For inner products the linear kernel is best: under the others a query outside the items is
    equally far from all of them; these kernels are for similarities of their own form.

    An item takes ``num_bits`` bits, and a comparison takes two instructions per word. With
    ``rank_by`` "kernel" items are ranked by the kernel itself, for similarities other than the
    inner product; the scores are then values of the kernel.

    Args:
        item_vectors: [V, D] float32; kept for ranking, not copied.
        kernel: "linear" Σ q·v, "rbf" exp(-γ Σ (q - v)²), "laplacian" exp(-γ Σ |q - v|), or for
            histograms, with values of at least 0, "intersection" Σ min(q, v) and "chi2"
            exp(-γ Σ (q - v)² / (q + v)); γ is one over the median distance between sampled items,
            with the kernel's own distance. Or a function of float32 arrays X [n, D] and Y [m, D]
            that returns [n, m], symmetric and positive semi-definite; it is called with blocks of
            items, and with ``rank_by`` "kernel" once for each query. An index with a function
            cannot be saved, and a recipe cannot name one.
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
        ConfigError: FAISS is not installed, a number out of range, vectors that are not a matrix
            with V, D ≥ 1, a function that returns another shape, or a function with ``file``.
        UnknownNameError: there is no such kernel.
        DataError: a negative value, with a kernel of histograms.
        ArtifactError: a vector is not finite, or a damaged file.
    """

    has_file = True

    class Config(IndexConfig):
        """Settings of kernelized hashing."""

        kernel: KernelName = Field(KERNEL, description="similarity that the bits preserve")
        num_bits: int = Field(NUM_BITS, ge=8, multiple_of=8, description="bits per item")
        num_landmarks: int = Field(
            NUM_LANDMARKS, ge=1, description="items that the components are fitted to"
        )
        num_components: int = Field(
            NUM_COMPONENTS, ge=1, description="leading components of kernel PCA"
        )
        oversample: float = Field(
            OVERSAMPLE, ge=1, description="candidates ranked exactly, as a multiple of k"
        )
        rank_by: RankBy = Field(RANK_BY, description="the scores of results")
        augment: bool | None = Field(
            None,
            description="hash vectors augmented to one length, so that a small angle means a large "
            "inner product; none: for the linear kernel ranked by inner products",
        )
        seed: int = Field(
            0, ge=0, lt=2**63, description="seed of the sampled items and the projections"
        )

        @field_validator("kernel", mode="before")
        @classmethod
        def _kernel_has_a_name(cls, kernel: Any) -> Any:
            if callable(kernel):
                raise ValueError(
                    "a function cannot be stored in a recipe or a folder; name a kernel, or pass "
                    "the function to KernelLsh(item_vectors, kernel=...)"
                )
            return kernel

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
        kernel: KernelName | Kernel = KERNEL,
        num_bits: int = NUM_BITS,
        num_landmarks: int = NUM_LANDMARKS,
        num_components: int = NUM_COMPONENTS,
        oversample: float = OVERSAMPLE,
        rank_by: RankBy = RANK_BY,
        augment: bool | None = None,
        seed: int = 0,
        file: Path | None = None,
    ) -> None:
        if min(num_landmarks, num_components, oversample, num_bits) < 1 or num_bits % 8:
            raise ConfigError(
                "num_landmarks, num_components and oversample must be at least 1 and num_bits a "
                f"multiple of 8, got {num_landmarks}, {num_components}, {oversample} and {num_bits}"
            )
        if not (isinstance(kernel, str) or callable(kernel)):
            raise ConfigError(f"kernel must be a name or a function of X and Y, not {kernel!r}")
        faiss_library("kernel_lsh")
        super().__init__(item_vectors, is_checked=file is not None)
        self.oversample = oversample
        self._name = kernel if isinstance(kernel, str) else None
        self._rank_by = rank_by
        self._is_augmented = augment
        if augment is None:
            self._is_augmented = rank_by == "inner_product" and self._name == "linear"
        if file is not None:
            if self._name is None:
                raise ConfigError("a file cannot hold the function of a kernel; name the kernel")
            self._gamma, self._hash, codes = _read(file, self._name)
            if len(codes) != self.num_items:
                raise ArtifactError(
                    f"{file} is the index of {len(codes)} items, not of these {self.num_items}"
                )
        else:
            items = to_array(self._vectors)
            items = augment_items(items) if self._is_augmented else items
            self._gamma = 1.0
            if isinstance(kernel, str):
                # The same seed gives the landmarks that the hash function is fitted to.
                landmarks = sample_landmarks(items, num_landmarks, np.random.default_rng(seed))
                check_values(kernel, items, "item")
                self._gamma = scale_of(kernel, landmarks)
                function = build_kernel(kernel, self._gamma)
            else:
                function = checked_kernel(kernel)
            self._hash = KernelHash.fit(
                items,
                function,
                num_bits=num_bits,
                num_landmarks=num_landmarks,
                num_components=num_components,
                seed=seed,
            )
            codes = self._hash.codes(items)
        self._codes = codes

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; see ``Index.save``.

        Raises:
            ConfigError: the kernel is a function.
        """
        if self._name is None:
            raise ConfigError(
                "an index with a function as kernel cannot be saved, because code cannot be stored "
                "safely; name a kernel, or build the index again in each process"
            )
        hash_function = self._hash
        content = {
            "gamma": np.array([self._gamma]),
            "length": np.array([hash_function.length]),
            "landmarks": hash_function.landmarks,
            "projection": hash_function.projection,
            "offset": hash_function.offset,
            "codes": self._codes,
        }
        save_file(content, file)

    def settings(self) -> Mapping[str, Any]:
        """Return the kernel, the ranking and the settings of the search."""
        return {
            "kernel": self._name or "a function",
            "rank_by": self._rank_by,
            **super().settings(),
        }

    def tuning_axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Return numbers of candidates; see ``Index.tuning_axes``."""
        return {"oversample": (1, 2, 3, 5, 8, 12, 20, 35, 60, 100, 200)}

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        if self._name is not None:
            check_values(self._name, query, "query")
        if self._rank_by == "inner_product":
            # The order by inner product does not depend on the length of the query, but the
            # kernel does: a query far outside the items is equally far from all of them.
            lengths = np.linalg.norm(query, axis=1, keepdims=True)
            query = query * (self._hash.length / np.maximum(lengths, np.float32(1e-30)))
        if self._is_augmented:
            query = augment_queries(query)
        count = self._num_candidates(k, spare, self.oversample)
        # Not an index of FAISS, which would copy the codes.
        search = faiss_library("kernel_lsh").knn_hamming
        candidates: Ints = search(self._hash.codes(query), self._codes, count)[1]
        return candidates

    def _native_rerank(self) -> NativeRerank | None:
        return super()._native_rerank() if self._ranks_by_product else None

    @property
    def _ranks_by_product(self) -> bool:
        return self._rank_by == "inner_product" or self._name == "linear"

    def _scores(self, query: Floats, item_ids: Ints) -> Floats:
        if self._ranks_by_product:
            return super()._scores(query, item_ids)
        vectors = self._vectors.numpy().take(item_ids, axis=0)
        return self._hash.kernel(query[:, None, :], vectors)[:, 0]


def _read(file: Path, kernel: str) -> tuple[float, KernelHash, Codes]:
    content = map_arrays(file)
    try:
        codes, num_bits = content["codes"], content["projection"].shape[1]
        if codes.dtype != np.uint8 or codes.shape[1:] != (num_bits // 8,):
            raise KeyError("codes")
        gamma = float(content["gamma"][0])
        hash_function = KernelHash(
            build_kernel(kernel, gamma),
            float(content["length"][0]),
            content["landmarks"],
            content["projection"],
            content["offset"],
        )
        return gamma, hash_function, codes
    except (KeyError, IndexError) as error:
        raise damaged(file) from error
