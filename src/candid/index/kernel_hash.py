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

import numpy as np
import numpy.typing as npt

from candid.index.approximate import Floats
from candid.index.kernels import Kernel

Codes = npt.NDArray[np.uint8]

BLOCK = 1024
"""Items hashed at a time: with 512 landmarks the kernel values stay in the cache of a CPU."""
MIN_EIGENVALUE = 1e-6
"""Eigenvalues below this share of the largest are rounding noise and are dropped."""


@dataclass(frozen=True)
class KernelHash:
    """A fitted hash function.

    Attributes:
        kernel: the similarity, a function of X [n, D] and Y [m, D] that returns [n, m].
        length: mean length of the sample.
        landmarks: [p, D] float32, the sample.
        projection: [p, b] float32, from centred kernel values to bits before the sign.
        offset: [b] float32, the constant term of centring.
    """

    kernel: Kernel
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
        landmarks = sample_landmarks(vectors, num_landmarks, rng)
        values = np.asarray(kernel(landmarks, landmarks), dtype=np.float64)
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
            values = np.asarray(self.kernel(rows, self.landmarks), dtype=np.float32)
            codes[begin : begin + BLOCK] = np.packbits(
                values @ self.projection + self.offset > 0, axis=1
            )
        return codes


def sample_landmarks(vectors: Floats, num: int, rng: np.random.Generator) -> Floats:
    """Sample p rows of vectors [V, D] without replacement, in their order: [p, D]."""
    rows = rng.choice(len(vectors), min(num, len(vectors)), replace=False)
    landmarks: Floats = vectors[np.sort(rows)]
    return landmarks
