"""Candidates drawn by random Fourier features of query and items."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.errors import ConfigError
from candid.samplers.config import SamplerConfig
from candid.samplers.kernel_sampler import KernelSampler


class RandomFourier(KernelSampler):
    """RF-softmax: Q(d|u) nearly ∝ exp(nu · cos(h, c)), for towers of unit vectors.

    Rawat et al., "Sampled softmax with random Fourier features" (NeurIPS 2019): with D
    frequencies w ~ N(0, nu·I) the features φ(x) = D^{-1/2} [cos(w·x), sin(w·x)] of the unit
    vectors of query and item have E φ(h)·φ(c) = exp(-nu·|h - c|² / 2). A sum of features may
    turn out too low, or negative, by their noise: a node's mass is then ``kernel_floor`` times what
    items orthogonal to the query would have, and the stated probability is that of the branch
    as it was weighed. Inside a leaf items are weighed by the exponential of their true logit.

    Let tau be the length of the queries times that of the items, the inverse temperature of
    cosine towers. nu should be at most tau; a lower one is safer, since the features are noisy
    where the kernel is sharp and the exact leaves bring the rest (4,000 clustered items, tau 10,
    128 frequencies: one draw's relative variance of Z is .64 for nu 2 and .56 for nu 4, against
    26 for uniform draws; at nu 8 noise wins). Only directions steer the tree: items whose
    vectors differ much in length are better served by ``Quadratic``.

    Args:
        num_items: V.
        num_candidates: n, draws for each row.
        nu: sharpness of the kernel.
        num_features: D, frequencies; a node holds 2·D numbers.
        kernel_floor: least mass of an item, relative to that of an orthogonal one.
        block_size: S, items that a leaf of the tree weighs exactly.
        refresh_every: R, steps between refreshes.
        seed: of the frequencies.

    Raises:
        ConfigError: a setting out of its range.
    """

    class Config(SamplerConfig):
        """Settings of ``RandomFourier``."""

        num_candidates: int = Field(64, ge=1, description="draws for each row")
        nu: float = Field(
            2.0,
            gt=0,
            description="sharpness of the kernel exp(nu · cosine): at most the inverse "
            "temperature of the scores",
        )
        num_features: int = Field(128, ge=1, description="frequencies, two numbers each a node")
        kernel_floor: float = Field(
            0.5,
            gt=0,
            le=1,
            description="least mass of an item, relative to that of one orthogonal to the query: "
            "higher trusts the features less",
        )
        block_size: int = Field(32, ge=1, description="items that a leaf weighs exactly")
        refresh_every: int = Field(100, ge=1, description="steps between refreshes of the items")
        seed: int = Field(0, ge=0, description="seed of the frequencies")

        def candidates_per_row(self, batch_rows: int) -> int:
            """``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def samples_per_row(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> RandomFourier:
            """Build for a catalog of ``len(counts)`` items."""
            return RandomFourier(
                len(counts),
                self.num_candidates,
                self.nu,
                self.num_features,
                self.kernel_floor,
                self.block_size,
                self.refresh_every,
                self.seed,
            )

    def __init__(
        self,
        num_items: int,
        num_candidates: int,
        nu: float = 2.0,
        num_features: int = 128,
        kernel_floor: float = 0.5,
        block_size: int = 32,
        refresh_every: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(num_items, num_candidates, block_size, refresh_every)
        if not (math.isfinite(nu) and nu > 0) or not 0 < kernel_floor <= 1 or num_features < 1:
            raise ConfigError(
                "nu must be finite and above 0, kernel_floor above 0 and at most 1, and num_features at "
                f"least 1, got {nu}, {kernel_floor} and {num_features}"
            )
        self.nu = nu
        self.num_features = num_features
        self.kernel_floor = kernel_floor
        self.seed = seed

    def kernel(self, width: int, device: torch.device) -> FourierKernel:
        """The kernel for vectors of ``width`` D; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        frequencies = torch.randn(width, self.num_features, generator=generator)
        return FourierKernel(
            math.sqrt(self.nu) * frequencies.to(device), self.nu, self.kernel_floor
        )


class FourierKernel:
    """exp(-nu·|h - c|² / 2) of unit vectors by random features; see ``Kernel``.

    Args:
        frequencies: [D, F / 2].
        nu: sharpness.
        kernel_floor: least mass of an item, relative to that of an orthogonal one.
    """

    def __init__(self, frequencies: Tensor, nu: float, kernel_floor: float) -> None:
        self._frequencies = frequencies
        self._least = kernel_floor * math.exp(-nu)

    def query_features(self, query: Tensor) -> Tensor:
        """See ``Kernel.query_features``."""
        angles = nn.functional.normalize(query, dim=-1) @ self._frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return features / math.sqrt(self._frequencies.shape[1])

    def block_sums(self, vectors: Tensor, is_item: Tensor) -> Tensor:
        """See ``Kernel.block_sums``."""
        return torch.einsum("lsf,ls->lf", self.query_features(vectors), is_item.float())

    def mass(self, products: Tensor, num_items: Tensor) -> Tensor:
        """See ``Kernel.mass``."""
        return torch.maximum(products, self._least * num_items)

    def log_weight(self, logits: Tensor) -> Tensor:
        """See ``Kernel.log_weight``."""
        return logits
