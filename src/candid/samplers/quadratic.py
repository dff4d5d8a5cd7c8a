"""Candidates sampled from a quadratic kernel of the logit."""

from __future__ import annotations

from typing import Final

import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ConfigError
from candid.samplers.config import SamplerConfig
from candid.samplers.kernel_sampler import BLOCK_SIZE, REFRESH_EVERY, KernelSampler

SCALE: Final = 100.0
"""Default of ``scale``."""
MAX_SCALE = 1e12
"""Largest ``scale``: sums of scale · logit² over a catalog must be finite in float32."""


class Quadratic(KernelSampler):
    """Q(d|u) ∝ scale·(h·c)² + 1, exactly.

    Blanc and Rendle, "Adaptive sampled softmax with kernel based sampling" (ICML 2018). A node
    of the tree holds the second moments Σ c·cᵀ of its items, D·(D + 1) / 2 numbers, so that
    leaves are blocks: with blocks of 32 a million items of width 64 take 545 MB. Items with a
    large negative logit are sampled as often as those with a large positive one.

    Args:
        num_items: V.
        num_candidates: n, samples for each row.
        scale: weight of the squared logit beside the uniform part.
        block_size: S, items that a leaf of the tree weighs exactly.
        refresh_every: R, steps between refreshes.

    Raises:
        ConfigError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from candid.samplers import Quadratic
        >>> sampler = Quadratic(10, num_candidates=4)
        >>> sampler.refresh(torch.randn(10, 8))
        >>> sampler.sample(torch.tensor([0, 1]), query=torch.randn(2, 8)).ids.shape
        torch.Size([2, 4])
    """

    class Config(SamplerConfig):
        """Settings of ``Quadratic``."""

        num_candidates: int = Field(64, ge=1, le=2**31, description="samples for each row")
        scale: float = Field(
            SCALE,
            gt=0,
            le=MAX_SCALE,
            description="weight of the squared logit beside the uniform 1",
        )
        block_size: int = Field(
            BLOCK_SIZE, ge=1, le=2**31, description="items that a leaf weighs exactly"
        )
        refresh_every: int = Field(
            REFRESH_EVERY, ge=1, description="steps between refreshes of the item vectors"
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return ``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def samples_per_row(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> Quadratic:
            """Build for a catalog of ``len(counts)`` items."""
            return Quadratic(
                len(counts),
                num_candidates=self.num_candidates,
                scale=self.scale,
                block_size=self.block_size,
                refresh_every=self.refresh_every,
            )

    def __init__(
        self,
        num_items: int,
        *,
        num_candidates: int,
        scale: float = SCALE,
        block_size: int = BLOCK_SIZE,
        refresh_every: int = REFRESH_EVERY,
    ) -> None:
        super().__init__(
            num_items,
            num_candidates=num_candidates,
            block_size=block_size,
            refresh_every=refresh_every,
        )
        if not 0 < scale <= MAX_SCALE:
            raise ConfigError(f"scale must be above 0 and at most {MAX_SCALE:g}, got {scale}")
        self.scale = scale

    def kernel(self, width: int, device: torch.device) -> QuadraticKernel:
        """Return the kernel for vectors of ``width`` D."""
        return QuadraticKernel(width, self.scale, device)


class QuadraticKernel:
    """The kernel scale·(h·c)² + 1 by second moments; see ``Kernel``.

    Args:
        width: D.
        scale: weight of the squared logit.
        device: device of the vectors.
    """

    def __init__(self, width: int, scale: float, device: torch.device) -> None:
        self._scale = scale
        self._rows, self._columns = torch.triu_indices(width, width, device=device)
        # The upper triangle stands for both triangles.
        self._multiplicity = torch.where(self._rows == self._columns, 1.0, 2.0)

    def query_features(self, query: Tensor) -> Tensor:
        """Return the products of coordinates; see ``Kernel.query_features``."""
        return query[:, self._rows] * query[:, self._columns] * self._multiplicity

    def block_sums(self, vectors: Tensor, is_item: Tensor) -> Tensor:
        """Return second moments; padding is zero and adds nothing; see ``Kernel.block_sums``."""
        moments = vectors.mT @ (vectors * is_item[..., None])
        return moments[:, self._rows, self._columns]

    def mass(self, products: Tensor, num_items: Tensor) -> Tensor:
        """Return the mass; the +1 of each item is its floor; see ``Kernel.mass``."""
        return self._scale * products.clamp(min=0.0) + num_items

    def log_weight(self, logits: Tensor) -> Tensor:
        """Return the log of the kernel; see ``Kernel.log_weight``."""
        return torch.log1p(self._scale * logits.square())
