"""Spherical k-means: the centres of inverted lists."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 10
SAMPLED = 64
"""Items per centre that the centres are fitted to."""
SPLIT_UNTIL = 6
"""Iterations after which small clusters keep their centre."""
SMALL = 0.25
"""Clusters below this share of the mean size restart inside large ones."""
CHUNK = 1024
"""Items multiplied at a time, so that their products stay in the cache."""


def fit_centres(vectors: Tensor, num_lists: int, *, seed: int = 0) -> Tensor:
    """Return centres [num_lists, D] of spherical k-means, as long as their items on average.

    Items join the centre of the largest cosine. A random start leaves several groups of items in
    one cluster and few items in others; in the first iterations small clusters therefore restart
    at an item of the largest ones. The length of a centre is the mean product of its items with
    the centre of length 1.

    Args:
        vectors: [V, D] float32, V ≥ num_lists.
        num_lists: clusters.
        seed: of the sample and the restarts.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(vectors), generator=generator)[: SAMPLED * num_lists]
    sample = vectors[order]
    centres = torch.nn.functional.normalize(sample[:num_lists])
    for iteration in range(ITERATIONS):
        lists = assign_lists(sample, centres)
        counts = torch.bincount(lists, minlength=num_lists)
        sums = torch.zeros_like(centres).index_add_(0, lists, sample)
        centres = torch.where((counts > 0)[:, None], torch.nn.functional.normalize(sums), centres)
        if iteration < SPLIT_UNTIL:
            _restart_small(centres, sample, lists, counts, generator)
    lists = assign_lists(sample, centres)
    counts = torch.bincount(lists, minlength=num_lists)
    products = (sample * centres[lists]).sum(1)
    sums = torch.zeros(num_lists).index_add_(0, lists, products)
    return centres * (sums / counts.clamp(min=1))[:, None]


def assign_lists(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return the nearest centre [V] by distance for each of the vectors [V, D]."""
    lists = torch.empty(len(vectors), dtype=torch.int64)
    offsets = -centres.square().sum(1) / 2
    for chosen, rows in zip(lists.split(CHUNK), vectors.split(CHUNK), strict=True):
        torch.argmax(torch.addmm(offsets, rows, centres.T), dim=1, out=chosen)
    return lists


def _restart_small(
    centres: Tensor, sample: Tensor, lists: Tensor, counts: Tensor, generator: torch.Generator
) -> None:
    """Move the centres of small clusters to random items of the largest ones, in place."""
    mean = len(sample) / len(centres)
    small = (counts < SMALL * mean).nonzero().flatten()
    large = (counts > 1.5 * mean).nonzero().flatten()
    large = large[counts[large].argsort(descending=True, stable=True)]
    num_moved = min(len(small), len(large))
    if num_moved == 0:
        return
    by_list = torch.argsort(lists, stable=True)
    starts = counts.cumsum(0) - counts
    chosen = large[:num_moved]
    at = torch.rand(num_moved, generator=generator) * counts[chosen]
    items = by_list[starts[chosen] + at.long().clamp(max=counts[chosen] - 1)]
    centres[small[:num_moved]] = torch.nn.functional.normalize(sample[items])
