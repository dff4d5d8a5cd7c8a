"""Exhaustive search in bfloat16, then exact ranking of the best: half the memory traffic.

Products of bfloat16 are off by up to 2⁻⁸ of ‖q‖‖v‖. Such an error reorders items close to the cut
but rarely moves an item over a large distance, so a few more candidates than results suffice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ConfigError
from candid.index.approximate import ApproximateIndex, Floats, Ints
from candid.index.protocol import IndexConfig
from candid.index.scan import GROUP, RunningTopK


class Bfloat16Index(ApproximateIndex):
    """All inner products in bfloat16, block by block; the best are ranked in float32.

    Faster than exact search on processors that multiply bfloat16 (AMX, AVX-512 BF16, most GPUs).

    Args:
        item_vectors: [V, D] float32; kept for ranking, and copied in bfloat16.
        oversample: candidates ranked exactly, as a multiple of k.
        block_items: items scored at a time, more for fewer than ``block_rows`` queries.
        block_rows: queries scored at a time.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: a number below 1, or vectors that are not a matrix with V, D ≥ 1.
        ArtifactError: a vector is not finite.
    """

    class Config(IndexConfig):
        """Settings of exhaustive search in bfloat16."""

        oversample: float = Field(
            1.5, ge=1, description="candidates ranked exactly, as a multiple of k"
        )
        block_items: int = Field(
            4096, ge=1, description="items scored at a time, more for few queries"
        )
        block_rows: int = Field(256, ge=1, description="queries scored at a time")

        def build(self, item_vectors: Tensor) -> Bfloat16Index:
            """Build the index over ``item_vectors`` [V, D]."""
            return Bfloat16Index(item_vectors, **self.model_dump())

        def extra_bytes(self, item_vectors: Tensor) -> int:
            """Return the size of the copy; see ``IndexConfig.extra_bytes``."""
            return 2 * item_vectors.numel()

    def __init__(
        self, item_vectors: Tensor, *, oversample: float, block_items: int, block_rows: int
    ) -> None:
        if min(oversample, block_items, block_rows) < 1:
            raise ConfigError(
                "oversample, block_items and block_rows must be at least 1, got "
                f"{oversample}, {block_items} and {block_rows}"
            )
        super().__init__(item_vectors)
        self.oversample = oversample
        self._half_vectors = self._vectors.bfloat16()
        self._block_items = -(-min(block_items, self.num_items) // GROUP) * GROUP
        self._block_rows = block_rows

    def tuning_axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Return numbers of candidates; see ``Index.tuning_axes``."""
        return {"oversample": (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)}

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        half_query = torch.from_numpy(query).bfloat16()
        count = self._num_candidates(k, spare, self.oversample)
        ids = [self._scan(rows, count) for rows in half_query.split(self._block_rows)]
        return torch.cat(ids).numpy()

    def _scan(self, query: Tensor, count: int) -> Tensor:
        """Return candidates [b, count], unordered, -1 where fewer exist."""
        best = RunningTopK(len(query), count, query.device)
        # Fewer queries, wider tiles: the fixed cost of a tile does not depend on its width.
        width = self._block_items * max(1, self._block_rows // max(1, len(query)))
        width = min(width, -(-self.num_items // GROUP) * GROUP)
        tile = torch.empty(len(query), width)
        for begin in range(0, self.num_items, width):
            items = self._half_vectors[begin : begin + width]
            tile[:, : len(items)] = query @ items.T
            tile[:, len(items) :] = -torch.inf
            best.add(tile, begin)
        return best.result()[0]
