"""Synthetic data as audit inputs: its true model, and a model before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from candid.audit.audit_input import AuditInput
from candid.synthetic import SyntheticConfig, SyntheticData

SYNTHETIC = SyntheticConfig(num_users=3_000, interactions_mean=20.0)
"""5,000 items with Zipf popularity."""


def synthetic_inputs(
    num_rows: int, config: SyntheticConfig = SYNTHETIC, *, seed: int = 0
) -> list[AuditInput]:
    """Return a model at initialisation and the true model, over the same rows.

    Each row is one interaction of a user, with the earlier interactions as history. The softmax
    of the true vectors is the distribution from which the users choose, so training cannot
    improve this model. The other model has random logits of mean 0 and variance 1.

    Args:
        num_rows: Q, maximum number of users.
        config: settings of the data; mode ``softmax`` without release times.
        seed: of the choice of rows and of the untrained model.

    Raises:
        ConfigError: the true logits are not dot products.
    """
    data = SyntheticData(config)
    interactions = data.interactions(0, config.num_users)
    users, items = (interactions[name].to_numpy().copy() for name in ("user_id", "item_id"))
    rng = np.random.default_rng(seed)
    starts = np.searchsorted(users, np.arange(config.num_users + 1))
    chosen = np.sort(rng.permutation(config.num_users)[:num_rows])
    # A row needs at least one earlier interaction.
    targets = starts[chosen] + rng.integers(1, np.diff(starts)[chosen])
    query = data.query(chosen, *_histories(items, starts[chosen], targets))
    vectors = data.item_vectors(np.arange(config.num_items))
    shared: dict[str, Any] = {
        "positive_ids": torch.from_numpy(items[targets]),
        "user_ids": torch.from_numpy(chosen),
        "counts": torch.from_numpy(np.bincount(items, minlength=config.num_items)),
        "training_positive_ids": torch.from_numpy(items),
        "training_user_ids": torch.from_numpy(users),
    }
    generator = torch.Generator().manual_seed(seed)
    scale = config.dim**-0.25
    untrained_query, untrained_vectors = (
        torch.randn(rows, config.dim, generator=generator) * scale
        for rows in (len(chosen), config.num_items)
    )
    return [
        AuditInput(
            name="at initialisation",
            query=untrained_query,
            item_vectors=untrained_vectors,
            **shared,
        ),
        AuditInput(
            name="true model",
            query=torch.from_numpy(np.hstack([query, np.ones((len(query), 1))])).float(),
            item_vectors=torch.from_numpy(vectors).float(),
            **shared,
        ),
    ]


def _histories(
    items: np.ndarray, starts: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the packed items before each target, and their offsets."""
    lengths = targets - starts
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return items[positions], offsets
