"""Ragged arrays."""

import numpy as np
import torch

from candid.batches import History, ranges


def test_ranges_concatenates():
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []


def test_history_on_another_device_keeps_its_offsets_on_the_cpu():
    offsets = torch.tensor([0, 2, 3])
    history = History(item_ids=torch.arange(3), offsets=offsets, query_positions=torch.tensor([2]))
    moved = history.to(torch.device("meta"))
    assert moved.offsets.device.type == moved.item_ids.device.type == "meta"
    assert moved.cpu_offsets is offsets
    assert moved.to(torch.device("meta")).cpu_offsets is offsets
    assert history.to(torch.device("cpu")).cpu_offsets is None
