"""The rows that baselines are fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from candid.baselines import training_rows
from candid.batches import BatchesConfig
from candid.batches.new_targets import TargetPart
from candid.batches.windows import WindowUnits
from candid.data import Role
from candid.errors import DataError


def test_rows_are_those_up_to_the_last_training_target(shop, shop_rows):
    rows = training_rows(shop)
    expected = [(user, *row) for user, part in enumerate(shop_rows) for row in part]
    columns = rows.user_ids, rows.item_ids, rows.is_target, rows.times
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    counts = np.bincount([item for _, item, is_target, _ in expected if is_target], minlength=28)
    assert rows.target_counts.tolist() == counts.tolist() == shop.train_counts.tolist()


def test_rows_are_those_of_the_windows_of_a_loader(shop):
    config = BatchesConfig(max_length=100, empty_histories=True, windows="all")
    units = WindowUnits(TargetPart(shop), config)
    starts, stops, _, _ = units[np.arange(len(units))]
    is_read = np.zeros(len(shop.item_ids), dtype=bool)
    for start, stop in zip(starts, stops, strict=True):
        is_read[start:stop] = True
    rows = training_rows(shop)
    assert rows.item_ids.tolist() == shop.item_ids[is_read].tolist()


def test_matrix_has_each_pair_once(shop, shop_rows):
    rows = training_rows(shop)
    for targets_only in (False, True):
        dense = rows.matrix(targets_only=targets_only).toarray()
        for user, row in enumerate(shop_rows):
            items = {item for item, is_target, _ in row if is_target or not targets_only}
            assert np.flatnonzero(dense[user]).tolist() == sorted(items)
        assert set(np.unique(dense)) == {0, 1}


def test_dataset_without_training_rows_is_refused(make_dataset):
    dataset = make_dataset([[(0, Role.HISTORY), (1, Role.TEST)]], 2)
    with pytest.raises(DataError, match="no training interaction"):
        training_rows(dataset)
