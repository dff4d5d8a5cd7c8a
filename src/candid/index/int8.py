"""Search in inverted lists with codes of 8 bits, then exact ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.numpy import save_file
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.index.approximate import ApproximateIndex, Floats, Ints, geometric_steps
from candid.index.array_files import damaged, map_arrays
from candid.index.clustering import assign_lists, fit_centres
from candid.index.int8_pass import BLOCK_ITEMS, CodedLists
from candid.index.protocol import IndexConfig

MIN_LISTED = 1000
"""Catalogs below this size are one list."""
OVERSAMPLES = (1.0, 1.05, 1.1, 1.25, 1.5, 2.0)


class Int8Index(ApproximateIndex):
    """Inverted lists with codes of 8 bits; the best items are ranked by their float32 vectors.

    Items are grouped around the centres of spherical k-means. A search reads the ``num_probes``
    lists whose centres have the largest products with the query. An item is stored as its
    difference to the centre in one byte per number and a scale, so that few more candidates than
    results suffice. It needs a C compiler, and a processor that multiplies bytes (AVX-512 VNNI) to
    be faster than FAISS; without a compiler it is slow.

    It may find fewer than k items even if there are more.

    Args:
        item_vectors: [V, D] float32; kept for ranking, not copied.
        num_lists: None for about the square root of V, one below 1,000 items;
            ``benchmark_index`` measures three numbers then.
        num_probes: lists that a search reads; all if there are fewer.
        oversample: candidates ranked exactly, as a multiple of k.
        file: of ``save``, read instead of building; None: build.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: vectors that are not a matrix with V, D ≥ 1, more lists than items, or a
            number below 1.
        ArtifactError: a vector is not finite, or a damaged file.

    Example:
        >>> index = Int8Index.Config().build(torch.eye(4))
        >>> index.search(torch.tensor([[0.0, 2.0, 1.0, 0.0]]), 2).item_ids
        tensor([[1, 2]])
    """

    has_file = True

    class Config(IndexConfig):
        """Settings of inverted lists with codes of 8 bits."""

        num_lists: int | None = Field(
            None, ge=1, description="clusters of items; none: from the catalog size"
        )
        num_probes: int = Field(16, ge=1, description="clusters that a search reads")
        oversample: float = Field(
            1.1, ge=1, description="candidates ranked exactly, as a multiple of k"
        )

        def build_choices(self, num_items: int) -> Sequence[Mapping[str, Any]]:
            """Return numbers of lists if none is given; see ``IndexConfig.build_choices``."""
            if self.num_lists is not None or num_items < MIN_LISTED:
                return [{}]
            root = math.isqrt(num_items)
            return [{"num_lists": lists} for lists in (root // 4, root, 2 * root)]

        def build(self, item_vectors: Tensor) -> Int8Index:
            """Build the index over ``item_vectors`` [V, D]."""
            return Int8Index(item_vectors, **self.model_dump())

        def open(self, item_vectors: Tensor, file: Path) -> Int8Index:
            """Open a file of ``Int8Index.save``; see ``IndexConfig.open``."""
            return Int8Index(item_vectors, **self.model_dump(), file=file)

    def __init__(
        self,
        item_vectors: Tensor,
        *,
        num_lists: int | None,
        num_probes: int,
        oversample: float,
        file: Path | None = None,
    ) -> None:
        super().__init__(item_vectors, is_checked=file is not None)
        if num_lists is None:
            num_lists = math.isqrt(self.num_items) if self.num_items >= MIN_LISTED else 1
        if not 1 <= num_lists <= self.num_items:
            raise ConfigError(
                f"num_lists must be between 1 and the number of items, {self.num_items}, "
                f"got {num_lists}"
            )
        if min(num_probes, oversample) < 1:
            raise ConfigError(
                f"num_probes and oversample must be at least 1, got {num_probes} and {oversample}"
            )
        self.num_probes = num_probes
        self.oversample = oversample
        if file is not None:
            self._lists = _read(file, self.num_items, self._dim)
            return
        with torch.inference_mode():
            centres = fit_centres(self._vectors, num_lists)
            lists = assign_lists(self._vectors, centres)
            self._lists = CodedLists.encode(self._vectors, centres, lists)

    def save(self, file: Path) -> None:
        """Write everything but the item vectors; see ``Index.save``."""
        lists = self._lists
        save_file(
            {
                "centres": lists.centres,
                "starts": lists.starts,
                "codes": lists.codes,
                "scales": lists.scales,
                "item_ids": lists.item_ids,
            },
            file,
        )

    def tuning_axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Return numbers of lists and of candidates; see ``Index.tuning_axes``."""
        return {
            "num_probes": geometric_steps(1, len(self._lists.centres), 1.2),
            "oversample": OVERSAMPLES,
        }

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        probes = min(int(self.num_probes), len(self._lists.centres))
        count = self._num_candidates(k, spare, self.oversample)
        return self._lists.search(torch.from_numpy(query), probes, count)


def _read(file: Path, num_items: int, dim: int) -> CodedLists:
    try:
        lists = CodedLists(**map_arrays(file))
        blocks, groups = len(lists.codes), -(-dim // 4)
        expected = {
            "centres": ((len(lists.starts) - 1, dim), np.float32),
            "starts": ((len(lists.centres) + 1,), np.int64),
            "codes": ((blocks, groups, BLOCK_ITEMS, 4), np.uint8),
            "scales": ((blocks, BLOCK_ITEMS), np.float32),
            "item_ids": ((blocks, BLOCK_ITEMS), np.int32),
        }
        for name, (shape, dtype) in expected.items():
            part = getattr(lists, name)
            if part.shape != shape or part.dtype != dtype:
                raise ValueError(name)
        if lists.starts[0] != 0 or lists.starts[-1] != blocks or (np.diff(lists.starts) < 0).any():
            raise ValueError("starts")
    except (TypeError, ValueError, IndexError) as error:
        raise damaged(file) from error
    stored = int((lists.item_ids >= 0).sum())
    if stored != num_items:
        raise ArtifactError(f"{file} is the index of {stored} items, not of these {num_items}")
    if lists.item_ids.max() >= num_items:
        raise damaged(file)
    return lists
