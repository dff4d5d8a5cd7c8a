"""A small dataset in memory, and a model of fixed vectors."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from candid.data import PreparedDataset, Role


class FixedModel:
    """One vector per user and one per item; the history is not read."""

    def __init__(self, users, items, needs_history=True):
        self.users, self.items, self.needs_history = users, items, needs_history
        self.longest = 0

    def encode_queries(self, queries):
        offsets = queries.history.offsets
        if len(offsets) > 1:
            self.longest = max(self.longest, int(offsets.diff().max()))
        return self.users[queries.user_ids]

    def encode_catalog(self, progress=None):
        return self.items


def dataset_of(histories, num_items):
    """Build a dataset from one list [(item, role), …] per user."""
    flat = [event for history in histories for event in history]
    return PreparedDataset(
        item_ids=np.array([item for item, _ in flat], dtype=np.int32),
        user_offsets=np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64),
        roles=np.array([role for _, role in flat], dtype=np.uint8),
        users=pl.DataFrame({"source_id": [f"u{i}" for i in range(len(histories))]}),
        items=pl.DataFrame({"source_id": [f"i{i}" for i in range(num_items)]}),
    )


def random_dataset(num_users=60, num_items=50, seed=0, max_targets=1, repeats=False):
    """Zipf items; per user 0 to 11 training interactions, then 1 to ``max_targets`` of test."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, num_items + 1)
    popularity /= popularity.sum()
    histories = []
    for _ in range(num_users):
        num_train, num_test = rng.integers(0, 12), rng.integers(1, max_targets + 1)
        size = num_train + num_test
        items = rng.choice(num_items, size, replace=repeats, p=popularity).tolist()
        roles = [Role.TRAIN] * num_train + [Role.TEST] * num_test
        histories.append(list(zip(items, roles, strict=True)))
    return dataset_of(histories, num_items)


def random_model(dataset, seed=0, dim=8, needs_history=True):
    generator = torch.Generator().manual_seed(seed)
    return FixedModel(
        torch.randn(dataset.num_users, dim, generator=generator),
        torch.randn(dataset.num_items, dim, generator=generator),
        needs_history,
    )


@pytest.fixture(name="make_dataset", scope="session")
def _make_dataset():
    return dataset_of


@pytest.fixture(name="make_random", scope="session")
def _make_random():
    def make(**settings):
        dataset = random_dataset(**settings)
        return dataset, random_model(dataset)

    return make


@pytest.fixture(name="make_model", scope="session")
def _make_model():
    return FixedModel
