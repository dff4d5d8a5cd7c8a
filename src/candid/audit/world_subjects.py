"""The synthetic world as a subject: its true model, and a model before any training."""

from __future__ import annotations

import numpy as np
import torch

from candid.audit.subject import Subject
from candid.synthetic import SyntheticConfig, SyntheticData

WORLD = SyntheticConfig(num_users=3_000, interactions_mean=20.0)
"""5,000 items of Zipf popularity."""


def world_subjects(num_rows: int, config: SyntheticConfig = WORLD, seed: int = 0) -> list[Subject]:
    """A model at initialisation and the true one, over the same rows of the world.

    A row is a user's interaction with what came before it, one a user. The true vectors make
    the softmax that the world's users really choose by: a model that has learnt everything.
    The other model has logits of mean 0 and variance 1 that know nothing.

    Args:
        num_rows: Q, users at most.
        config: the world; mode ``softmax``, all items there from the start.
        seed: of the choice of rows and of the untrained model.

    Raises:
        ConfigError: a world whose truth is not a dot product.
    """
    world = SyntheticData(config)
    log = world.interactions(0, config.num_users)
    users, items = (log[name].to_numpy().copy() for name in ("user_id", "item_id"))
    rng = np.random.default_rng(seed)
    starts = np.searchsorted(users, np.arange(config.num_users + 1))
    chosen = np.sort(rng.permutation(config.num_users)[:num_rows])
    # A row needs something before it.
    targets = starts[chosen] + rng.integers(1, np.diff(starts)[chosen])
    query = world.query(chosen, *_histories(items, starts[chosen], targets))
    vectors = world.item_vectors(np.arange(config.num_items))
    shared = {
        "positive_ids": torch.from_numpy(items[targets]),
        "user_ids": torch.from_numpy(chosen),
        "counts": torch.from_numpy(np.bincount(items, minlength=config.num_items)),
        "training_positive_ids": torch.from_numpy(items),
        "training_user_ids": torch.from_numpy(users),
    }
    generator = torch.Generator().manual_seed(seed)
    scale = config.dim**-0.25
    untrained = (
        torch.randn(rows, config.dim, generator=generator) * scale
        for rows in (len(chosen), config.num_items)
    )
    true = (
        torch.from_numpy(np.hstack([query, np.ones((len(query), 1))])).float(),
        torch.from_numpy(vectors).float(),
    )
    return [
        Subject("at initialisation", *untrained, **shared),
        Subject("the truth", *true, **shared),
    ]


def _histories(
    items: np.ndarray, starts: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Packed items before each target, and their offsets."""
    lengths = targets - starts
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return items[places], offsets
