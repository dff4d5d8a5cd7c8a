"""Properties of a prepared dataset."""

import numpy as np
import polars as pl

from candid.data import PreparedDataset, Role

TRAIN, HISTORY, TEST = Role.TRAIN, Role.HISTORY, Role.TEST


def dataset_of(*users):
    """A dataset of one item with a list of roles per user."""
    roles = [role for user in users for role in user]
    return PreparedDataset(
        item_ids=np.zeros(len(roles), dtype=np.int32),
        user_offsets=np.cumsum([0, *(len(user) for user in users)]).astype(np.int64),
        roles=np.array(roles, dtype=np.uint8),
        users=pl.DataFrame({"source_id": range(len(users))}),
        items=pl.DataFrame({"source_id": [0]}),
    )


def test_user_is_trained_if_it_has_a_training_row():
    dataset = dataset_of([HISTORY, TEST], [], [TRAIN], [], [HISTORY, TRAIN, TEST], [TEST], [])
    assert dataset.user_is_trained.tolist() == [False, False, True, False, True, False, False]


def test_user_is_trained_is_empty_without_interactions():
    assert dataset_of([], []).user_is_trained.tolist() == [False, False]
