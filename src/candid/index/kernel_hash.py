"""Bits that keep the neighbours of a kernel: random projections after kernel PCA.

Hashing by the signs of random projections keeps angles (Charikar 2002), and it does so in the
feature space of any kernel. Jiang, Que and Kulis (2014, "Revisiting kernelized locality-sensitive
hashing for improved large-scale image retrieval") show that the projections are best drawn in
the span of the leading components of a kernel PCA: φ(x) is projected onto r components learnt from
p sampled items, then onto random directions of that r-dimensional space. With α the leading
eigenvectors of the centred kernel matrix of the sample, each over the root of its eigenvalue,
component i of x is Σ_j α_ji k̃(x_j, x), and bit b is the sign of Σ_i g_ib Σ_j α_ji k̃(x_j, x),
with g normal and k̃ the centred kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from candid.index.approximate import Floats

Kernel = Literal["linear", "rbf", "laplacian"]
Codes = npt.NDArray[np.uint8]

BLOCK = 8192
"""Items hashed at once."""
SMALLEST = 1e-6
"""Eigenvalues below this share of the largest are noise: the sample has no such component."""


@dataclass(frozen=True)
class KernelHash:
    """A learnt hash function.

    Attributes:
        kernel: the similarity.
        gamma: γ of the kernel; without meaning for "linear".
        length: mean length of the sample.
        landmarks: [p, D] float32, the sample.
        projection: [p, b] float32, from centred kernel values to bits before the sign.
        offset: [b] float32, what centring adds.
    """

    kernel: Kernel
    gamma: float
    length: float
    landmarks: Floats
    projection: Floats
    offset: Floats

    @classmethod
    def learn(
        cls,
        vectors: Floats,
        kernel: Kernel,
        *,
        num_bits: int,
        num_landmarks: int,
        num_components: int,
        seed: int,
    ) -> KernelHash:
        """Learn from a sample of vectors [V, D]; fewer components where the sample has fewer."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(vectors), min(num_landmarks, len(vectors)), replace=False)
        landmarks = vectors[np.sort(chosen)]
        gamma = _gamma(landmarks)
        values = kernel_values(kernel, gamma, landmarks, landmarks).astype(np.float64)
        means = values.mean(axis=0)
        centred = values - means - means[:, None] + means.mean()
        weights, components = np.linalg.eigh(centred)
        kept = np.flatnonzero(weights > SMALLEST * max(weights[-1], 0.0))[-num_components:]
        # One item, or items that are all alike, have no component; one of zeros does no harm.
        directions = components[:, kept] / np.sqrt(weights[kept])
        draws = rng.standard_normal((len(kept), num_bits))
        projection = directions @ draws
        # k̃ = k - mean of the landmarks' k - mean of x's k + mean: linear in the values of x.
        projection -= projection.mean(axis=0)
        return cls(
            kernel,
            gamma,
            float(np.linalg.norm(landmarks, axis=1).mean()),
            landmarks,
            projection.astype(np.float32),
            (-means @ projection).astype(np.float32),
        )

    def codes(self, vectors: Floats) -> Codes:
        """The bits of vectors [n, D], packed: [n, b / 8] uint8."""
        codes = np.empty((len(vectors), self.projection.shape[1] // 8), dtype=np.uint8)
        for begin in range(0, len(vectors), BLOCK):
            rows = vectors[begin : begin + BLOCK]
            values = kernel_values(self.kernel, self.gamma, rows, self.landmarks)
            codes[begin : begin + BLOCK] = np.packbits(
                values @ self.projection + self.offset > 0, axis=1
            )
        return codes


def kernel_values(kernel: Kernel, gamma: float, x: Floats, y: Floats) -> Floats:
    """The kernel between every row of x [n, D] and of y [m, D]: [n, m] float32."""
    return x @ y.T if kernel == "linear" else of_distances(kernel, gamma, _squares(x, y))


def of_distances(kernel: Kernel, gamma: float, squares: Floats) -> Floats:
    """The kernel at squared distances."""
    scaled = np.float32(gamma) * squares
    values: Floats = np.exp(-scaled if kernel == "rbf" else -np.sqrt(scaled))
    return values


def _squares(x: Floats, y: Floats) -> Floats:
    """Squared distances [n, m]."""
    lengths = np.einsum("vd,vd->v", x, x)[:, None] + np.einsum("md,md->m", y, y)
    squares: Floats = np.maximum(lengths - 2 * (x @ y.T), 0.0)
    return squares


def _gamma(landmarks: Floats) -> float:
    """One over the median squared distance, where there is any."""
    others = _squares(landmarks, landmarks)[~np.eye(len(landmarks), dtype=np.bool_)]
    median = float(np.median(others)) if len(others) else 0.0
    return 1.0 / median if median > 0 else 1.0
