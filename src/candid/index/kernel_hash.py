"""Hash bits that preserve the neighbours of a kernel: random projections after kernel PCA.

Hashing by the signs of random projections preserves angles (Charikar 2002), also in the feature
space of any kernel. Jiang, Que and Kulis (2014, "Revisiting kernelized locality-sensitive
hashing for improved large-scale image retrieval") show that the projections are best sampled in
the span of the leading components of a kernel PCA: φ(x) is projected onto r components fitted to
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
"""Items hashed at a time."""
MIN_EIGENVALUE = 1e-6
"""Eigenvalues below this share of the largest are rounding noise and are dropped."""


@dataclass(frozen=True)
class KernelHash:
    """A fitted hash function.

    Attributes:
        kernel: the similarity.
        gamma: γ of the kernel; without meaning for "linear".
        length: mean length of the sample.
        landmarks: [p, D] float32, the sample.
        projection: [p, b] float32, from centred kernel values to bits before the sign.
        offset: [b] float32, the constant term of centring.
    """

    kernel: Kernel
    gamma: float
    length: float
    landmarks: Floats
    projection: Floats
    offset: Floats

    @classmethod
    def fit(
        cls,
        vectors: Floats,
        kernel: Kernel,
        *,
        num_bits: int,
        num_landmarks: int,
        num_components: int,
        seed: int,
    ) -> KernelHash:
        """Fit to a sample of vectors [V, D].

        Args:
            vectors: [V, D].
            kernel: the similarity.
            num_bits: b.
            num_landmarks: p, size of the sample.
            num_components: r; fewer if the sample has fewer components.
            seed: of the sample and the directions.
        """
        rng = np.random.default_rng(seed)
        sample = rng.choice(len(vectors), min(num_landmarks, len(vectors)), replace=False)
        landmarks = vectors[np.sort(sample)]
        gamma = _gamma(landmarks)
        values = kernel_values(kernel, gamma, landmarks, landmarks).astype(np.float64)
        means = values.mean(axis=0)
        centred = values - means - means[:, None] + means.mean()
        weights, components = np.linalg.eigh(centred)
        leading = np.flatnonzero(weights > MIN_EIGENVALUE * max(weights[-1], 0.0))[-num_components:]
        # A single item, or equal items, have no component: the projection is then zero.
        directions = components[:, leading] / np.sqrt(weights[leading])
        normals = rng.standard_normal((len(leading), num_bits))
        projection = directions @ normals
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
        """Return the bits of vectors [n, D], packed: [n, b / 8] uint8."""
        codes = np.empty((len(vectors), self.projection.shape[1] // 8), dtype=np.uint8)
        for begin in range(0, len(vectors), BLOCK):
            rows = vectors[begin : begin + BLOCK]
            values = kernel_values(self.kernel, self.gamma, rows, self.landmarks)
            codes[begin : begin + BLOCK] = np.packbits(
                values @ self.projection + self.offset > 0, axis=1
            )
        return codes


def kernel_values(kernel: Kernel, gamma: float, x: Floats, y: Floats) -> Floats:
    """Return the kernel between every row of x [n, D] and of y [m, D]: [n, m] float32."""
    if kernel == "linear":
        return x @ y.T
    return kernel_of_distances(kernel, gamma, _squared_distances(x, y))


def kernel_of_distances(kernel: Kernel, gamma: float, squares: Floats) -> Floats:
    """Return the kernel at squared distances of any shape, float32."""
    scaled = np.float32(gamma) * squares
    values: Floats = np.exp(-scaled if kernel == "rbf" else -np.sqrt(scaled))
    return values


def _squared_distances(x: Floats, y: Floats) -> Floats:
    """Return squared distances [n, m]."""
    lengths = np.einsum("vd,vd->v", x, x)[:, None] + np.einsum("md,md->m", y, y)
    squares: Floats = np.maximum(lengths - 2 * (x @ y.T), 0.0)
    return squares


def _gamma(landmarks: Floats) -> float:
    """Return one over the median squared distance; 1 if all distances are 0."""
    others = _squared_distances(landmarks, landmarks)[~np.eye(len(landmarks), dtype=np.bool_)]
    median = float(np.median(others)) if len(others) else 0.0
    return 1.0 / median if median > 0 else 1.0
