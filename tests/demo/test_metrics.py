"""Recommendation counts of items with equal scores."""

import numpy as np
import polars as pl
import torch

from candid.data import PreparedDataset, Role, held_out
from candid.demo.metrics import recommended_counts
from candid.inference import tie_ranks


class Model(torch.nn.Module):
    needs_history = False

    def encode_queries(self, queries):
        return torch.ones(len(queries.user_ids), 2)

    def encode_catalog(self, progress=None):
        return torch.ones(20, 2)


def test_recommended_items_of_equal_score_follow_the_order_of_ties():
    items = np.concatenate([np.repeat(np.arange(20), np.arange(20) // 4), [0, 7]])
    roles = np.full(len(items), Role.TRAIN, dtype=np.uint8)
    roles[-2:] = Role.TEST
    # Two users: the second has the last item alone, so both have a target.
    dataset = PreparedDataset(
        item_ids=items.astype(np.int32),
        user_offsets=np.array([0, len(items) - 1, len(items)]),
        roles=roles,
        users=pl.DataFrame({"source_id": ["u", "v"]}),
        items=pl.DataFrame({"source_id": [f"i{i:02}" for i in range(20)]}),
    )
    counts = recommended_counts(Model(), dataset, held_out(dataset, Role.TEST), 5, 6)
    best = np.argsort(tie_ranks(dataset.train_counts, dataset.items["source_id"]))[:6]
    assert counts.tolist() == [2 if item in best else 0 for item in range(20)]
    assert best.min() >= 12
