"""Hash bits after kernel PCA, compared with explicit features."""

import numpy as np
import pytest

from candid.index.kernel_hash import KernelHash
from candid.index.kernels import build_kernel, scale_of

KINDS = ["linear", "intersection", "rbf", "laplacian", "chi2"]


def fit(vectors, kernel, num_bits=64, **settings):
    options = {"num_landmarks": 200, "num_components": 20, "seed": 0} | settings
    function = build_kernel(kernel, scale_of(kernel, vectors))
    return KernelHash.fit(vectors, function, num_bits=num_bits, **options)


def bits(codes):
    return np.unpackbits(codes, axis=1).astype(bool)


def vectors_of(num=200, dim=6, seed=0):
    """Histograms for kernels of histograms; other kernels take them too."""
    return np.random.default_rng(seed).exponential(size=(num, dim)).astype(np.float32)


def kernel_of(kernel, gamma, x, y):
    """Return the kernel in float64 by loops over pairs."""
    values = np.empty((len(x), len(y)))
    for i, a in enumerate(x.astype(np.float64)):
        for j, b in enumerate(y.astype(np.float64)):
            values[i, j] = {
                "linear": a @ b,
                "intersection": np.minimum(a, b).sum(),
                "rbf": np.exp(-gamma * ((a - b) ** 2).sum()),
                "laplacian": np.exp(-gamma * np.abs(a - b).sum()),
                "chi2": np.exp(-gamma * ((a - b) ** 2 / (a + b)).sum()),
            }[kernel]
    return values


def components_of(kernel, gamma, sample, x, num):
    """Return textbook kernel PCA: [n, r] coordinates in the leading components."""
    p = len(sample)
    values = kernel_of(kernel, gamma, sample, sample)
    centre = np.eye(p) - np.ones((p, p)) / p
    weights, directions = np.linalg.eigh(centre @ values @ centre)
    weights, directions = weights[::-1][:num], directions[:, ::-1][:, :num]
    cross = kernel_of(kernel, gamma, x, sample)
    cross = (cross - np.ones((len(x), p)) / p @ values) @ centre
    return cross @ directions / np.sqrt(weights)


@pytest.mark.parametrize("kernel", KINDS)
def test_bits_are_signs_of_random_directions_in_the_leading_components(kernel):
    """Items at angle θ share a bit with probability 1 - θ/π, for any sample of directions."""
    sample, x = vectors_of(60), vectors_of(40, seed=1)
    hashed = fit(sample, kernel, num_bits=16384, num_landmarks=60, num_components=5)
    coordinates = components_of(kernel, scale_of(kernel, sample), sample, x, 5)
    unit = coordinates / np.linalg.norm(coordinates, axis=1, keepdims=True)
    angles = np.arccos(np.clip(unit @ unit.T, -1, 1))
    codes = bits(hashed.codes(x))
    shared = (codes[:, None] == codes[None]).mean(axis=2)
    # Binomial over 16,384 bits: standard error at most 0.0039.
    np.testing.assert_allclose(shared, 1 - angles / np.pi, atol=0.02)


@pytest.mark.parametrize("kernel", KINDS)
def test_near_vectors_share_more_bits(kernel):
    x = vectors_of()
    hashed = fit(x, kernel, num_bits=1024)
    here, near, far = (bits(hashed.codes(v)) for v in (x, x + 0.05, vectors_of(seed=7)))
    assert (here != near).mean() < 0.1 < 0.3 < (here != far).mean()


@pytest.mark.parametrize("kernel", KINDS)
@pytest.mark.parametrize("vectors", [np.ones((5, 3)), np.zeros((1, 2)), np.eye(2)])
def test_equal_vectors_can_be_hashed(kernel, vectors):
    codes = fit(vectors.astype(np.float32), kernel).codes(vectors.astype(np.float32))
    assert codes.shape == (len(vectors), 8)


def test_seed_determines_the_codes():
    x = vectors_of()
    one, same, other = (fit(x, "rbf", seed=s).codes(x) for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
