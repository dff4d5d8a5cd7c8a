"""Kernels of kernelized hashing: similarities of vectors, by name, and their scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch

from candid.component import lookup
from candid.errors import ConfigError, DataError
from candid.index.approximate import Floats

KernelName = Literal["linear", "intersection", "rbf", "laplacian", "chi2"]
"""The names of ``KERNELS``."""
Kernel = Callable[[Floats, Floats], Floats]
"""Returns the similarity of every row of X [n, D] and of Y [m, D]: [n, m]; or of X [b, n, D] and
Y [b, m, D]: [b, n, m]. A user's function needs only the first."""
ScaledKernel = Callable[[Floats, Floats, float], Floats]
"""As ``Kernel`` for X [..., n, D] and Y [..., m, D], with the scale γ."""


def linear(x: Floats, y: Floats, gamma: float) -> Floats:
    """Return inner products; γ has no meaning."""
    return x @ y.swapaxes(-1, -2)


def intersection(x: Floats, y: Floats, gamma: float) -> Floats:
    """Return histogram intersections Σ min(x, y); γ has no meaning.

    Swain & Ballard, "Color indexing" (IJCV 1991). Computed as half of Σ x + Σ y - Σ |x - y|.
    """
    totals = x.sum(axis=-1)[..., :, None] + y.sum(axis=-1)[..., None, :]
    values: Floats = (totals - l1_distances(x, y)) / 2
    return values


def rbf(x: Floats, y: Floats, gamma: float) -> Floats:
    """Return exp(-γ Σ (x - y)²)."""
    return _decay(squared_distances(x, y), gamma)


def laplacian(x: Floats, y: Floats, gamma: float) -> Floats:
    """Return exp(-γ Σ |x - y|)."""
    return _decay(l1_distances(x, y), gamma)


def chi2(x: Floats, y: Floats, gamma: float) -> Floats:
    """Return exp(-γ Σ (x - y)² / (x + y)), where 0 / 0 is 0.

    Zhang, Marszałek, Lazebnik & Schmid, "Local features and kernels for classification of texture
    and object categories" (IJCV 2007), without their factor 1/2.
    """
    return _decay(chi2_distances(x, y), gamma)


KERNELS: Mapping[str, ScaledKernel] = {
    "linear": linear,
    "intersection": intersection,
    "rbf": rbf,
    "laplacian": laplacian,
    "chi2": chi2,
}
"""Kernels by the name used in recipes."""


def squared_distances(x: Floats, y: Floats) -> Floats:
    """Return Σ (x - y)² of X [..., n, D] and Y [..., m, D]: [..., n, m]."""
    lengths = np.square(x).sum(axis=-1)[..., :, None] + np.square(y).sum(axis=-1)[..., None, :]
    # Rounding of nearly equal vectors may give a negative difference.
    squares: Floats = np.maximum(lengths - 2 * (x @ y.swapaxes(-1, -2)), 0.0)
    return squares


def l1_distances(x: Floats, y: Floats) -> Floats:
    """Return Σ |x - y| of X [..., n, D] and Y [..., m, D]: [..., n, m]."""
    left, right = (torch.from_numpy(np.ascontiguousarray(one)) for one in (x, y))
    distances: Floats = torch.cdist(left, right, p=1.0).numpy()
    return distances


def chi2_distances(x: Floats, y: Floats) -> Floats:
    """Return Σ (x - y)² / (x + y) of X [..., n, D] and Y [..., m, D]: [..., n, m]."""
    shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2])
    total, difference, mass = (np.zeros(shape, dtype=np.float32) for _ in range(3))
    # One column at a time, contiguous and in place: without temporaries of n·m·D numbers.
    columns = (np.ascontiguousarray(np.moveaxis(one, -1, 0)) for one in (x, y))
    for left, right in zip(*columns, strict=True):
        np.subtract(left[..., :, None], right[..., None, :], out=difference)
        np.square(difference, out=difference)
        np.add(left[..., :, None], right[..., None, :], out=mass)
        # Where both values are 0, so is the difference.
        np.maximum(mass, np.finfo(np.float32).tiny, out=mass)
        np.divide(difference, mass, out=difference)
        total += difference
    return total


DISTANCES: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "rbf": squared_distances,
    "laplacian": l1_distances,
    "chi2": chi2_distances,
}
"""The distances d of the kernels exp(-γ·d)."""
NON_NEGATIVE = frozenset({"intersection", "chi2"})
"""Kernels of histograms, for values of at least 0."""


def build_kernel(name: str, gamma: float) -> Kernel:
    """Return a kernel of two arguments.

    Raises:
        UnknownNameError: there is no such kernel.
    """
    function = lookup(KERNELS, "kernel", name)
    return lambda x, y: function(x, y, gamma)


def checked_kernel(function: Kernel) -> Kernel:
    """Return a user's function of X [n, D] and Y [m, D] as a kernel, with its results checked.

    The kernel raises ConfigError where the result has another shape than [n, m] or is not finite.
    """

    def pairs(x: Floats, y: Floats) -> Floats:
        values = np.asarray(function(x, y), dtype=np.float32)
        if values.shape != (len(x), len(y)):
            raise ConfigError(
                f"the function of the kernel returned shape {list(values.shape)} for X "
                f"{list(x.shape)} and Y {list(y.shape)}; it must return [{len(x)}, {len(y)}]"
            )
        if not np.isfinite(values).all():
            raise ConfigError("the function of the kernel returned a value that is not finite")
        return values

    def kernel(x: Floats, y: Floats) -> Floats:
        if x.ndim == 2:
            return pairs(x, y)
        return np.stack([pairs(*one) for one in zip(x, y, strict=True)])

    return kernel


def scale_of(name: str, vectors: Floats) -> float:
    """Return γ: one over the median distance of a kernel between vectors [p, D].

    1 if all distances are 0, and for kernels without a scale.

    Raises:
        UnknownNameError: there is no such kernel.
    """
    lookup(KERNELS, "kernel", name)
    if name not in DISTANCES:
        return 1.0
    distances = DISTANCES[name](vectors, vectors)
    others = distances[~np.eye(len(vectors), dtype=np.bool_)]
    median = float(np.median(others)) if len(others) else 0.0
    return 1.0 / median if median > 0 else 1.0


def check_values(name: str, vectors: Floats, owner: str) -> None:
    """Refuse vectors [n, D] outside the domain of a kernel.

    Args:
        name: of the kernel.
        vectors: to check.
        owner: name of a row for the message, such as "item".

    Raises:
        DataError: a value is negative and the kernel compares histograms.
    """
    if name not in NON_NEGATIVE or vectors.size == 0:
        return
    row, column = np.unravel_index(np.argmin(vectors), vectors.shape)
    if vectors[row, column] < 0:
        raise DataError(
            f"kernel {name!r} compares histograms and needs values of at least 0, got "
            f"{vectors[row, column]:.4g} in column {column} of {owner} {row}; choose kernel "
            "'rbf' or 'laplacian', or make the values non-negative"
        )


def _decay(distances: Floats, gamma: float) -> Floats:
    values: Floats = np.exp(-np.float32(gamma) * distances)
    return values
