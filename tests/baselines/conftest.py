"""Small datasets in memory, and queries of their users."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import Queries, pack_histories
from candid.data import PreparedDataset, Role


def dataset_of(histories, num_items, times=None):
    """Build a dataset from one list [(item, role), …] per user."""
    flat = [event for history in histories for event in history]
    return PreparedDataset(
        item_ids=np.array([item for item, _ in flat], dtype=np.int32),
        user_offsets=np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64),
        roles=np.array([role for _, role in flat], dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(len(histories))}),
        items=pl.DataFrame({"source_id": np.arange(num_items)}),
        timestamps=None if times is None else np.asarray(times, dtype=np.int64),
    )


@pytest.fixture(name="make_dataset", scope="session")
def _make_dataset():
    return dataset_of


@pytest.fixture(name="make_queries", scope="session")
def _make_queries():
    def make(histories, user_ids=None) -> Queries:
        """Pack one query per history; anonymous users without ``user_ids``."""
        users = np.full(len(histories), -1) if user_ids is None else np.asarray(user_ids)
        return pack_histories(
            users.astype(np.int64),
            np.array([item for history in histories for item in history], dtype=np.int64),
            np.array([len(history) for history in histories], dtype=np.int64),
        )

    return make


@pytest.fixture(name="shop", scope="session")
def _shop():
    """40 users with repeats, interactions that are history only, and held-out targets."""
    rng = np.random.default_rng(3)
    histories = []
    for user in range(40):
        items = rng.choice(25, rng.integers(1, 12), p=np.arange(25, 0, -1) / 325).tolist()
        roles = rng.choice([Role.TRAIN, Role.HISTORY], len(items), p=[0.8, 0.2]).tolist()
        held_out = [Role.VALIDATION, Role.TEST] if user % 4 else [Role.HISTORY, Role.TEST]
        items += rng.choice(25, 2).tolist()
        histories.append(list(zip(items, roles + held_out, strict=True)))
    num_rows = sum(len(history) for history in histories)
    times = np.concatenate([np.sort(rng.integers(0, 10**6, len(history))) for history in histories])
    assert len(times) == num_rows
    return dataset_of(histories, 28, times)


@pytest.fixture(name="shop_rows", scope="session")
def _shop_rows(shop):
    """The training rows of each user by a loop: [(item, is_target, time), …]."""
    rows = []
    for user in range(shop.num_users):
        events = range(*shop.user_offsets[user : user + 2])
        targets = [e for e in events if shop.roles[e] == Role.TRAIN]
        last = targets[-1] if targets else -1
        rows.append(
            [
                (int(shop.item_ids[e]), shop.roles[e] == Role.TRAIN, int(shop.timestamps[e]))
                for e in events
                if e <= last and shop.roles[e] <= Role.HISTORY
            ]
        )
    return rows


@pytest.fixture(name="shop_histories", scope="session")
def _shop_histories():
    """Histories with repeats, one without an item, and one of an item without training rows."""
    rng = np.random.default_rng(4)
    histories = [rng.choice(25, rng.integers(1, 9)).tolist() for _ in range(30)]
    return [*histories, [], [27], [3, 3, 3], list(range(25))]


@pytest.fixture(name="by_popularity", scope="session")
def _by_popularity():
    """Put the items of score 0 below the others, by their number of targets, in float64."""

    def complete(scores, shop_rows):
        counts = np.zeros(scores.shape[1])
        for row in shop_rows:
            for item, is_target, _ in row:
                counts[item] += is_target
        return np.where(scores == 0, -1 / (1 + counts), scores)

    return complete


@pytest.fixture(name="assert_same_order", scope="session")
def _assert_same_order():
    """Compare scores with those of an oracle, whose scores below 0 have another scale."""

    def check(scores: torch.Tensor, expected: np.ndarray):
        values = scores.numpy().astype(np.float64)
        assert values.shape == expected.shape
        has_score = expected > 0
        np.testing.assert_allclose(values[has_score], expected[has_score], rtol=2e-6)
        assert (values[~has_score] < 0).all()
        for row in range(len(expected)):
            below, oracle = values[row][~has_score[row]], expected[row][~has_score[row]]
            assert (np.sign(below[:, None] - below) == np.sign(oracle[:, None] - oracle)).all()

    return check
