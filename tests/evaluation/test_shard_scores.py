"""Scores over items on several processes against scores on one."""

import numpy as np
import pytest
import torch

from candid.distributed import current_group
from candid.distributed.exchange import RowRanges
from candid.evaluation.catalog_scores import VectorScores
from candid.evaluation.shard_scores import ShardedItems, ShardScores
from candid.index import Exclusions
from candid.inference import ItemSubset

V, B, D = 13, 6, 3
RANKED = {
    "all": np.ones(V, dtype=bool),
    "some": np.arange(V) % 3 != 0,
    "one process": np.arange(V) >= V - 2,
}


def check(rank, num_ranks, is_ranked):
    generator = torch.Generator().manual_seed(0)
    # Small integers, so that scores tie within and across the processes.
    items = torch.randint(-1, 2, (V, D), generator=generator).float()
    query = torch.randint(-1, 2, (B, D), generator=generator).float()
    own = RowRanges(V, num_ranks).of(rank)
    vectors = items[own.start : own.stop]
    shards = ShardScores(ShardedItems(vectors, own, is_ranked, current_group()), query)
    whole = VectorScores(ItemSubset(items, is_ranked), query)
    assert shards.num_items == whole.num_items
    excluded = torch.tensor([12, 0, 3, 11, 7, 12])
    exclude = Exclusions(excluded, torch.tensor([0, 1, 1, 3, 3, 5, 6]))
    for k in {1, whole.num_items}:
        for given in (None, exclude):
            found, log_z = shards.search(k, given, with_log_partition=True)
            expected, expected_log_z = whole.search(k, given, with_log_partition=True)
            assert torch.equal(found.item_ids, expected.item_ids)
            assert torch.equal(found.scores, expected.scores)
            torch.testing.assert_close(log_z, expected_log_z, rtol=0, atol=1e-6)
            again, none = shards.search(k, given, with_log_partition=False)
            assert torch.equal(again.item_ids, found.item_ids)
            assert none is None
    rows, cut = np.array([0, 2, 5]), expected.scores[[0, 2, 5], 0]
    given = Exclusions(excluded[:1], torch.tensor([0, 1, 1, 1]))
    equal = [blocks(scores.equal_scores(rows, cut, given)) for scores in (shards, whole)]
    assert equal[0] == equal[1]
    targets = torch.from_numpy(np.flatnonzero(is_ranked))
    target_rows = torch.arange(len(targets)) % B
    nll = shards.target_nll(target_rows, targets, expected_log_z)
    torch.testing.assert_close(nll, whole.target_nll(target_rows, targets, expected_log_z))


def blocks(found):
    """Return pairs of row and item, which do not depend on the blocks."""
    pairs = [
        (row, int(ids[column]))
        for ids, is_equal in found
        for row, column in is_equal.nonzero().tolist()
    ]
    return sorted(pairs)


def all_cases(rank, num_ranks):
    for is_ranked in RANKED.values():
        check(rank, num_ranks, is_ranked)
    return True


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_results_equal_those_of_one_process(on_ranks, num_ranks):
    assert all(on_ranks(all_cases, num_ranks))
