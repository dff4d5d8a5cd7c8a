"""Candidates drawn by a quadratic kernel of the logit."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ConfigError
from candid.samplers.config import SamplerConfig
from candid.samplers.kernel_sampler import KernelSampler


class Quadratic(KernelSampler):
    """Q(d|u) ∝ scale·(h·c)² + 1, exactly.

    Blanc and Rendle, "Adaptive sampled softmax with kernel based sampling" (ICML 2018). A node
    of the tree holds the second moments Σ c·cᵀ of its items, D·(D + 1) / 2 numbers, so that
    leaves are blocks: with blocks of 32 a million items of width 64 take 545 MB. Items with a
    large negative logit are drawn as often as those with a large positive one.

    Args:
        num_items: V.
        num_candidates: n, draws for each row.
        scale: how much the logit counts beside the uniform part.
        block_size: S, items that a leaf of the tree weighs exactly.
        refresh_every: R, steps between refreshes.

    Raises:
        ConfigError: a setting out of its range.
    """

    class Config(SamplerConfig):
        """Settings of ``Quadratic``."""

        num_candidates: int = Field(64, ge=1, description="draws for each row")
        scale: float = Field(
            100.0, gt=0, description="how much a squared logit counts beside the uniform 1"
        )
        block_size: int = Field(32, ge=1, description="items that a leaf weighs exactly")
        refresh_every: int = Field(100, ge=1, description="steps between refreshes of the items")

        def candidates_per_row(self, batch_rows: int) -> int:
            """``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def samples_per_row(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> Quadratic:
            """Build for a catalog of ``len(counts)`` items."""
            return Quadratic(
                len(counts), self.num_candidates, self.scale, self.block_size, self.refresh_every
            )

    def __init__(
        self,
        num_items: int,
        num_candidates: int,
        scale: float = 100.0,
        block_size: int = 32,
        refresh_every: int = 100,
    ) -> None:
        super().__init__(num_items, num_candidates, block_size, refresh_every)
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"scale must be finite and above 0, got {scale}")
        self.scale = scale

    def kernel(self, width: int, device: torch.device) -> QuadraticKernel:
        """The kernel for vectors of ``width`` D."""
        return QuadraticKernel(width, self.scale, device)


class QuadraticKernel:
    """scale·(h·c)² + 1 by second moments; see ``Kernel``.

    Args:
        width: D.
        scale: how much the logit counts.
        device: where the vectors are.
    """

    def __init__(self, width: int, scale: float, device: torch.device) -> None:
        self._alpha = scale
        self._rows, self._columns = torch.triu_indices(width, width, device=device)
        # The upper triangle stands for both.
        self._times = torch.where(self._rows == self._columns, 1.0, 2.0)

    def query_features(self, query: Tensor) -> Tensor:
        """See ``Kernel.query_features``."""
        return query[:, self._rows] * query[:, self._columns] * self._times

    def block_sums(self, vectors: Tensor, is_item: Tensor) -> Tensor:
        """See ``Kernel.block_sums``; fillers are zero and add nothing."""
        moments = vectors.mT @ (vectors * is_item[..., None])
        return moments[:, self._rows, self._columns]

    def mass(self, products: Tensor, num_items: Tensor) -> Tensor:
        """See ``Kernel.mass``; the +1 of each item is its floor."""
        return self._alpha * products.clamp(min=0.0) + num_items

    def log_weight(self, logits: Tensor) -> Tensor:
        """See ``Kernel.log_weight``."""
        return torch.log1p(self._alpha * logits.square())
