"""Candidates sampled by random Fourier features of query and items."""

from __future__ import annotations

import math
from typing import Final

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.errors import ConfigError
from candid.samplers.config import SamplerConfig
from candid.samplers.kernel_sampler import BLOCK_SIZE, REFRESH_EVERY, KernelSampler

NU: Final = 2.0
"""Default of ``nu``."""
MAX_NU = 80.0
"""Largest ``nu``: exp(-nu), the kernel of an orthogonal item, must be a normal float32."""

NUM_FEATURES: Final = 128
"""Default of ``num_features``."""

KERNEL_FLOOR: Final = 0.5
"""Default of ``kernel_floor``."""

SEED: Final = 0
"""Default of ``seed``."""


class RandomFourier(KernelSampler):
    """RF-softmax: Q(d|u) nearly ∝ exp(nu · cos(h, c)), for towers of unit vectors.

    Rawat et al., "Sampled softmax with random Fourier features" (NeurIPS 2019): with M
    frequencies w ~ N(0, nu·I) the features φ(x) = M^{-1/2} [cos(w·x), sin(w·x)] of the unit
    vectors of query and item have E φ(h)·φ(c) = exp(-nu·|h - c|² / 2). Because of noise a sum of
    features may be too low, or negative: a node's mass is then ``kernel_floor`` times that of
    items orthogonal to the query, and the stated probability is the one that was used. Inside a
    leaf items are weighed by the exponential of their true logit.

    Let tau be the length of the queries times that of the items, the inverse temperature of
    cosine towers. nu should be at most tau; a lower one is safer, because the features are noisy
    for a sharp kernel, while the leaves are exact for any nu (4,000 clustered items, tau 10,
    128 frequencies: the relative variance of Z from one sample is .64 for nu 2 and .56 for nu 4,
    against 26 for uniform samples; at nu 8 noise dominates). The tree depends
    only on directions: for items whose vectors differ much in length use ``Quadratic``.

    Args:
        num_items: V.
        num_candidates: n, samples for each row.
        nu: sharpness of the kernel.
        num_features: M, the number of frequencies; a node holds 2·M numbers.
        kernel_floor: least mass of an item, relative to that of an orthogonal one.
        block_size: S, items that a leaf of the tree weighs exactly.
        refresh_every: R, steps between refreshes.
        seed: of the frequencies.

    Raises:
        ConfigError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from candid.samplers import RandomFourier
        >>> sampler = RandomFourier(10, num_candidates=4)
        >>> sampler.refresh(torch.randn(10, 8))
        >>> sampler.sample(torch.tensor([0, 1]), query=torch.randn(2, 8)).ids.shape
        torch.Size([2, 4])
    """

    class Config(SamplerConfig):
        """Settings of ``RandomFourier``."""

        num_candidates: int = Field(64, ge=1, le=2**31, description="samples for each row")
        nu: float = Field(
            NU,
            gt=0,
            le=MAX_NU,
            description="sharpness of the kernel exp(nu · cosine): at most the inverse "
            "temperature of the scores",
        )
        num_features: int = Field(
            NUM_FEATURES,
            ge=1,
            le=2**31,
            description="number of frequencies; a node holds two numbers for each",
        )
        kernel_floor: float = Field(
            KERNEL_FLOOR,
            gt=0,
            le=1,
            description="least mass of an item, relative to that of one orthogonal to the query: "
            "higher trusts the features less",
        )
        block_size: int = Field(
            BLOCK_SIZE, ge=1, le=2**31, description="items that a leaf weighs exactly"
        )
        refresh_every: int = Field(
            REFRESH_EVERY, ge=1, description="steps between refreshes of the item vectors"
        )
        seed: int = Field(SEED, ge=0, lt=2**63, description="seed of the frequencies")

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return ``num_candidates``; see ``SamplerConfig``."""
            return self.num_candidates

        @property
        def samples_per_row(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> RandomFourier:
            """Build for a catalog of ``len(counts)`` items."""
            return RandomFourier(
                len(counts),
                num_candidates=self.num_candidates,
                nu=self.nu,
                num_features=self.num_features,
                kernel_floor=self.kernel_floor,
                block_size=self.block_size,
                refresh_every=self.refresh_every,
                seed=self.seed,
            )

    def __init__(
        self,
        num_items: int,
        *,
        num_candidates: int,
        nu: float = NU,
        num_features: int = NUM_FEATURES,
        kernel_floor: float = KERNEL_FLOOR,
        block_size: int = BLOCK_SIZE,
        refresh_every: int = REFRESH_EVERY,
        seed: int = SEED,
    ) -> None:
        super().__init__(
            num_items,
            num_candidates=num_candidates,
            block_size=block_size,
            refresh_every=refresh_every,
        )
        if not 0 < nu <= MAX_NU or not 0 < kernel_floor <= 1 or num_features < 1:
            raise ConfigError(
                f"nu must be above 0 and at most {MAX_NU:g}, kernel_floor above 0 and at most 1, "
                f"and num_features at least 1, got {nu}, {kernel_floor} and {num_features}"
            )
        self.nu = nu
        self.num_features = num_features
        self.kernel_floor = kernel_floor
        self.seed = seed

    def kernel(self, width: int, device: torch.device) -> FourierKernel:
        """Return the kernel for vectors of ``width`` D; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        frequencies = torch.randn(width, self.num_features, generator=generator)
        return FourierKernel(
            math.sqrt(self.nu) * frequencies.to(device), self.nu, self.kernel_floor
        )


class FourierKernel:
    """The kernel exp(-nu·|h - c|² / 2) of unit vectors by random features; see ``Kernel``.

    Args:
        frequencies: [D, F / 2].
        nu: sharpness.
        kernel_floor: least mass of an item, relative to that of an orthogonal one.
    """

    def __init__(self, frequencies: Tensor, nu: float, kernel_floor: float) -> None:
        self._frequencies = frequencies
        self._least = kernel_floor * math.exp(-nu)

    def query_features(self, query: Tensor) -> Tensor:
        """Return cosines and sines; see ``Kernel.query_features``."""
        angles = nn.functional.normalize(query, dim=-1) @ self._frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return features / math.sqrt(self._frequencies.shape[1])

    def block_sums(self, vectors: Tensor, is_item: Tensor) -> Tensor:
        """Return sums of features; see ``Kernel.block_sums``."""
        return torch.einsum("lsf,ls->lf", self.query_features(vectors), is_item.float())

    def mass(self, products: Tensor, num_items: Tensor) -> Tensor:
        """Return the products, at least the floor; see ``Kernel.mass``."""
        return torch.maximum(products, self._least * num_items)

    def log_weight(self, logits: Tensor) -> Tensor:
        """Return the logits; see ``Kernel.log_weight``."""
        return logits
