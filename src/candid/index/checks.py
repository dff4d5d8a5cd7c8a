"""Validation that all indexes share, with the same messages."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.errors import ArtifactError, ConfigError

BLOCK_NUMBERS = 1 << 22
"""Numbers compared at a time: temporary copies of them take 20 MiB."""


def check_item_vectors(item_vectors: Tensor) -> None:
    """Refuse vectors that do not form a matrix.

    Raises:
        ConfigError: the shape is not [V, D] with V, D ≥ 1.
    """
    if item_vectors.ndim != 2 or 0 in item_vectors.shape:
        raise ConfigError(
            f"item_vectors must be [V, D] with at least one item, not {list(item_vectors.shape)}"
        )


def check_finite_items(item_vectors: Tensor) -> None:
    """Refuse vectors [V, D] with NaN or infinite values, without a copy of all of them.

    Raises:
        ArtifactError: a value is not finite.
    """
    rows = max(1, BLOCK_NUMBERS // max(1, item_vectors.shape[1]))
    for block in item_vectors.split(rows):
        if not bool(torch.isfinite(block).all()):
            raise diverged_items()


def check_search(query: Tensor, k: int, num_items: int, dim: int) -> None:
    """Refuse a k or a query that does not fit the index.

    Raises:
        ConfigError: k is outside 1..V, or the queries are not as wide as the items.
    """
    if not 1 <= k <= num_items:
        raise ConfigError(f"k {k} must be between 1 and the number of items, {num_items}")
    if query.ndim != 2 or query.shape[1] != dim:
        raise ConfigError(
            f"queries must be [B, {dim}] like the item vectors, not {list(query.shape)}"
        )


def diverged_items() -> ArtifactError:
    """Return the error for item vectors that are not finite."""
    return ArtifactError(
        "item vectors contain NaN or infinite values: the model has diverged; "
        "take an earlier checkpoint or train with a lower learning rate"
    )


def diverged_queries() -> ArtifactError:
    """Return the error for queries or scores that are not finite."""
    return ArtifactError(
        "query vectors contain NaN or infinite values, or scores are beyond float32: the "
        "model has diverged; take an earlier checkpoint or train with a lower "
        "learning rate"
    )
