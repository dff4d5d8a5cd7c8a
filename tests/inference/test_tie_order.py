"""The order of items with equal scores, against a sort of all items."""

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import offsets_of
from candid.data import PreparedDataset, Role
from candid.index import ExactIndex, Exclusions, LiveIndex
from candid.inference import recommend, search_with_tie_order, tie_ranks
from candid.inference import tie_order as module
from candid.serve.search import ItemSearch

NUM = 400


def tied_vectors(num=NUM, distinct=5, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        rng.integers(-3, 4, (distinct, 3)).astype(np.float32)[rng.integers(0, distinct, num)]
    )


def by_sorting(scores, ranks, k, excluded=()):
    order = [i for i in np.lexsort((ranks, -scores)).tolist() if i not in set(excluded)]
    return order[:k]


def test_popular_items_come_first_and_equal_ones_by_hash():
    counts = np.array([1, 5, 1, 1, 0, 1])
    ids = pl.Series(["a", "b", "c", "d", "", "f"])
    ranks = tie_ranks(counts, ids)
    assert sorted(ranks.tolist()) == list(range(6))
    assert ranks[1] == 0
    assert ranks[4] == 5
    # The rank follows the id of the item, not its place in the table.
    order = np.array([3, 5, 0, 4, 1, 2])
    assert tie_ranks(counts[order], ids.gather(order)).tolist() == ranks[order].tolist()


@pytest.mark.parametrize("ids", [pl.Series(range(1000)), pl.Series(map(str, range(1000)))])
def test_hash_is_unrelated_to_the_name(ids):
    ranks = tie_ranks(np.ones(1000, dtype=np.int64), ids)
    assert abs(np.corrcoef(ranks, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("k", [1, 7, 60, NUM])
@pytest.mark.parametrize("pairs", [2**22, 100])
def test_lists_follow_the_order_of_ties(monkeypatch, k, pairs):
    monkeypatch.setattr(module, "MAX_PAIRS", pairs)
    vectors = tied_vectors()
    rng = np.random.default_rng(1)
    query = torch.from_numpy(rng.integers(-2, 3, (6, 3)).astype(np.float32))
    ranks = rng.permutation(NUM)
    excluded = [np.sort(rng.choice(NUM, size, replace=False)) for size in (0, 3, 50, 1, 390, 0)]
    exclude = Exclusions(
        torch.from_numpy(np.concatenate(excluded)),
        torch.from_numpy(offsets_of(np.array([len(ids) for ids in excluded]))),
    )
    index = ExactIndex(vectors)
    result = search_with_tie_order(index, query, k, exclude, lambda: ranks)
    scores = (query @ vectors.T).numpy()
    for row, ids in enumerate(result.item_ids.tolist()):
        expected = by_sorting(scores[row], ranks, k, excluded[row])
        assert ids == expected + [-1] * (k - len(expected))
        assert result.scores[row, : len(expected)].tolist() == scores[row, expected].tolist()


def test_lists_without_ties_do_not_need_the_order(monkeypatch):
    vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 4)).astype("f"))
    index = ExactIndex(vectors)
    result = search_with_tie_order(index, vectors[:3], 9, None, None)
    assert torch.equal(result.item_ids, index.search(vectors[:3], 9).item_ids)


def test_depth_of_the_search_is_bounded():
    """Among 400 tied items the best of the first 100 by id is found."""
    index, ranks = ExactIndex(torch.ones(NUM, 2)), np.arange(NUM)[::-1].copy()
    result = search_with_tie_order(index, torch.ones(1, 2), 3, None, lambda: ranks, max_depth=100)
    assert result.item_ids.tolist() == [[99, 98, 97]]


class Model:
    needs_history = False

    def encode_queries(self, queries):
        return torch.ones(len(queries.user_ids), 2)

    def encode_catalog(self, progress=None):
        return torch.ones(20, 2)


def test_recommended_items_of_equal_score_do_not_depend_on_names():
    """Items that are renamed among themselves keep their places by popularity."""
    counts = np.arange(20) // 4
    items = np.repeat(np.arange(20), counts).astype(np.int32)
    dataset = PreparedDataset(
        item_ids=items,
        user_offsets=np.array([0, len(items)]),
        roles=np.full(len(items), Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": ["u"]}),
        items=pl.DataFrame({"source_id": [f"i{i:02}" for i in range(20)]}),
    )
    lists = recommend(
        Model(), dataset, user_ids=[0], k=6, max_length=5, filter_seen=False
    ).item_ids[0]
    assert counts[lists].tolist() == [4, 4, 4, 4, 3, 3]
    expected = np.argsort(tie_ranks(counts, dataset.items["source_id"]))[:6]
    assert lists.tolist() == expected.tolist()
    allowed = np.arange(20) < 6
    subset = recommend(
        Model(), dataset, user_ids=[0], k=3, max_length=5, filter_seen=False, is_allowed=allowed
    ).item_ids[0]
    assert sorted(subset[:2]) == [4, 5]
    assert subset[2] < 4


@pytest.mark.parametrize("max_scored", [5, 1000])
@pytest.mark.parametrize("max_depth", [20, 10_000])
@pytest.mark.parametrize("block", [7, 10_000])
def test_served_lists_follow_the_order_of_ties(monkeypatch, max_scored, max_depth, block):
    monkeypatch.setattr("candid.serve.search.MAX_SCORED", max_scored)
    monkeypatch.setattr("candid.serve.search.MAX_TIE_DEPTH", max_depth)
    monkeypatch.setattr("candid.serve.search.BLOCK", block)
    vectors = tied_vectors(seed=3)
    ranks = np.random.default_rng(2).permutation(NUM)
    search = ItemSearch(LiveIndex(ExactIndex(vectors), vectors), ranks)
    query = torch.tensor([[1.0, -2.0, 1.0]])
    scores = (vectors @ query[0]).numpy()
    none = np.zeros(0, dtype=np.int64)
    [(ids, _)] = search.nearest(query, 12, [np.arange(5)])
    assert ids.tolist() == by_sorting(scores, ranks, 12, range(5))
    allowed = np.arange(NUM) % 3 == 0
    ids, _ = search.nearest_allowed(query[0], 12, allowed.copy(), none)
    assert ids.tolist() == by_sorting(scores, ranks, 12, np.flatnonzero(~allowed))
    ids, _ = search.best_of(query[0], 12, np.arange(0, 100))
    assert ids.tolist() == by_sorting(scores[:100], ranks[:100], 12)
    ids, _ = search.similar(0, 12, None, none)
    same = np.flatnonzero((vectors == vectors[0]).all(1))
    by_rank = sorted(same.tolist(), key=lambda item: ranks[item])
    assert ids.tolist() == [item for item in by_rank if item != 0][:12]
    # Several queries at once; all items have the same score for a query of zeros.
    queries = torch.stack([torch.zeros(3), query[0], torch.zeros(3)])
    lists = search.nearest(queries, 12, [none, np.arange(5), np.arange(NUM - 7)])
    zeros = np.zeros(NUM, dtype=np.float32)
    assert lists[0][0].tolist() == by_sorting(zeros, ranks, 12)
    assert lists[1][0].tolist() == by_sorting(scores, ranks, 12, range(5))
    assert lists[2][0].tolist() == by_sorting(zeros, ranks, 12, range(NUM - 7))
    assert lists[2][1].tolist() == [0.0] * 7
    # Items added later come after all others of the same score, the earliest first.
    search.index.add(torch.cat([vectors[:1], vectors[:1]]))
    [(ids, _)] = search.nearest(vectors[:1] * 9, NUM + 2, [none])
    tied = ids[(search.index.vectors_of(torch.from_numpy(ids)) == vectors[0]).all(1).numpy()]
    assert tied[-2:].tolist() == [NUM, NUM + 1]
    assert tied[:-2].tolist() == by_rank
