"""Exhaustive search in bfloat16, then exact ranking of the best: half the memory traffic.

Products of bfloat16 are off by up to 2⁻⁸ of ‖q‖‖v‖, which reorders neighbours near the cut and
hardly ever brings in one from far below it: a few more candidates than wanted make up for it.
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

    Worth it where the processor multiplies bfloat16 (AMX, AVX-512 BF16, most GPUs).

    Args:
        item_vectors: [V, D] float32; kept for ranking, and copied in bfloat16.
        oversample: candidates ranked exactly, as a multiple of k.
        block_items: items scored at once, more where there are fewer than ``block_rows`` queries.
        block_rows: queries scored at once.

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
            4096, ge=1, description="items scored at once, more where there are few queries"
        )
        block_rows: int = Field(256, ge=1, description="queries scored at once")

        def build(self, item_vectors: Tensor) -> Bfloat16Index:
            """Make the index over ``item_vectors`` [V, D]."""
            return Bfloat16Index(item_vectors, **self.model_dump())

        def bytes_beside(self, item_vectors: Tensor) -> int:
            """The copy; see ``IndexConfig.bytes_beside``."""
            return 2 * item_vectors.numel()

    def __init__(
        self,
        item_vectors: Tensor,
        oversample: float = 1.5,
        block_items: int = 4096,
        block_rows: int = 256,
    ) -> None:
        if min(oversample, block_items, block_rows) < 1:
            raise ConfigError(
                "oversample, block_items and block_rows must be at least 1, got "
                f"{oversample}, {block_items} and {block_rows}"
            )
        super().__init__(item_vectors)
        self.oversample = oversample
        self._half = self._vectors.bfloat16()
        self._block_items = -(-min(block_items, self.num_items) // GROUP) * GROUP
        self._block_rows = block_rows

    def axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Candidates to rank; see ``TunableIndex``."""
        return {"oversample": (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)}

    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        asked = torch.from_numpy(query).bfloat16()
        width = self._width(k, spare, self.oversample)
        found = [self._scan(rows, width) for rows in asked.split(self._block_rows)]
        return torch.cat(found).numpy()

    def _scan(self, query: Tensor, width: int) -> Tensor:
        """Candidates [b, width], unordered, -1 where there are fewer."""
        best = RunningTopK(len(query), width, query.device)
        # Fewer queries, wider tiles: what a tile costs beside its products does not depend on it.
        wide = self._block_items * max(1, self._block_rows // max(1, len(query)))
        wide = min(wide, -(-self.num_items // GROUP) * GROUP)
        tile = torch.empty(len(query), wide)
        for begin in range(0, self.num_items, wide):
            items = self._half[begin : begin + wide]
            tile[:, : len(items)] = query @ items.T
            tile[:, len(items) :] = -torch.inf
            best.add(tile, begin)
        return best.result()[0]
