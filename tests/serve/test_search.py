"""Searches against all dot products by NumPy, item updates included."""

import numpy as np
import pytest
import torch

from candid.index import ExactIndex, LiveIndex
from candid.serve import search as module
from candid.serve.search import ItemSearch

NUM, DIM = 50, 6
NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(name="vectors")
def _vectors():
    return np.random.default_rng(0).standard_normal((NUM, DIM)).astype(np.float32)


@pytest.fixture(name="search", params=["as built", "updated"])
def _search(request, vectors):
    """A search, and the current vectors of its items, NaN for a deleted item."""
    index = LiveIndex(ExactIndex(torch.from_numpy(vectors)), torch.from_numpy(vectors))
    now = vectors.copy()
    if request.param == "updated":
        more = np.random.default_rng(1).standard_normal((3, DIM)).astype(np.float32)
        index.add(torch.from_numpy(more))
        index.update(torch.tensor([4]), torch.from_numpy(more[:1] * 0.5))
        index.delete(torch.tensor([7, NUM + 1]))
        now = np.concatenate([now, more])
        now[4], now[7], now[NUM + 1] = more[0] * 0.5, np.nan, np.nan
    return ItemSearch(index), now


def ranking(scores, k):
    """Best first; NaN marks a deleted item."""
    order = sorted(np.flatnonzero(~np.isnan(scores)), key=lambda i: (-scores[i], i))
    return order[:k]


QUERY = np.random.default_rng(2).standard_normal((3, DIM)).astype(np.float32)


def test_live_mask(search):
    items, now = search
    assert (items.live_mask() == ~np.isnan(now[:, 0])).all()


def test_nearest_leaves_out_excluded_items(search):
    items, now = search
    excluded = [np.array([1, 2, 3]), NONE, np.array([0, len(now) - 1])]
    for row, (ids, scores) in enumerate(items.nearest(torch.from_numpy(QUERY), 9, excluded)):
        expected = now @ QUERY[row]
        expected[excluded[row]] = np.nan
        assert ids.tolist() == ranking(expected, 9)
        assert scores == pytest.approx(expected[ids], abs=1e-5)


def test_nearest_returns_all_items_for_a_larger_k(search):
    items, now = search
    [(ids, _)] = items.nearest(torch.from_numpy(QUERY[:1]), 999, [NONE])
    assert ids.tolist() == ranking(now @ QUERY[0], 999)


@pytest.mark.parametrize("max_scored", [0, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_nearest_allowed(search, max_scored, share, monkeypatch):
    monkeypatch.setattr(module, "MAX_SCORED", max_scored)  # 0: search the index beyond k first
    items, now = search
    allowed = np.random.default_rng(3).random(len(now)) < share
    before, excluded = allowed.copy(), np.array([5, 6, 7])
    ids, scores = items.nearest_allowed(torch.from_numpy(QUERY[0]), 4, allowed, excluded)
    expected = np.where(allowed, now @ QUERY[0], np.nan)
    expected[excluded] = np.nan
    assert ids.tolist() == ranking(expected, 4)
    assert scores == pytest.approx(expected[ids], abs=1e-5)
    assert (allowed == before).all()


def test_similar_orders_by_cosine_without_the_item_itself(search):
    items, now = search
    cosines = now @ now[0] / (np.linalg.norm(now, axis=1) * np.linalg.norm(now[0]))
    cosines[[0, 9]] = np.nan
    ids, scores = items.similar(0, 5, None, np.array([9]))
    assert ids.tolist() == ranking(cosines, 5)
    assert scores == pytest.approx(cosines[ids], abs=1e-5)
    allowed = np.arange(NUM) % 2 == 1  # items added after the filter are not allowed
    ids, _ = items.similar(0, 99, allowed, np.array([9]))
    odd = cosines.copy()
    odd[[i for i in range(len(now)) if i >= NUM or i % 2 == 0]] = np.nan
    assert ids.tolist() == ranking(odd, 99)


def test_log_partition(search, monkeypatch):
    monkeypatch.setattr(module, "LOG_PARTITION_BLOCK", 8)
    items, now = search
    scores = 40 * QUERY.astype(np.float64) @ now[~np.isnan(now[:, 0])].T.astype(np.float64)
    largest = scores.max(1, keepdims=True)
    expected = largest[:, 0] + np.log(np.exp(scores - largest).sum(1))
    assert items.log_partition(40 * torch.from_numpy(QUERY)).numpy() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("k", [3, NUM])
def test_nearest_with_log_partition_equals_both_alone(search, k):
    items, _ = search
    query, excluded = torch.from_numpy(QUERY), [np.array([1, 5, 6])] * len(QUERY)
    found, log_z = items.nearest_with_log_partition(query, k, excluded)
    for (ids, scores), (plain_ids, plain_scores) in zip(
        found, items.nearest(query, k, excluded), strict=True
    ):
        assert ids.tolist() == plain_ids.tolist()
        assert scores.tolist() == plain_scores.tolist()
    assert log_z.numpy() == pytest.approx(items.log_partition(query).numpy(), abs=1e-6)


def test_nearest_with_log_partition_after_a_second_search_is_that_of_all_queries():
    vectors = torch.zeros(NUM, DIM)
    vectors[:, 0] = torch.arange(NUM) / 10
    search = ItemSearch(LiveIndex(ExactIndex(vectors), vectors))
    query = torch.zeros(2, DIM)
    query[0, 0] = 1.0  # all items have the same score for the second query: it is searched again
    _, log_z = search.nearest_with_log_partition(query, 3, [NONE, NONE])
    expected = np.logaddexp.reduce(np.arange(NUM) / 10), np.log(NUM)
    assert log_z.numpy() == pytest.approx(expected)


def test_log_partition_without_items(vectors):
    index = LiveIndex(ExactIndex(torch.from_numpy(vectors)), torch.from_numpy(vectors))
    index.delete(torch.arange(NUM))
    assert ItemSearch(index).log_partition(torch.from_numpy(QUERY)).isneginf().all()
    assert not len(ItemSearch(index).nearest(torch.from_numpy(QUERY), 3, [NONE] * 3)[0][0])


def test_best_of_skips_items_deleted_meanwhile(vectors, monkeypatch):
    index = LiveIndex(ExactIndex(torch.from_numpy(vectors)), torch.from_numpy(vectors))
    items, real, calls = ItemSearch(index), index.vectors_of, []

    def late(item_ids):
        if not calls:  # between the check and the look-up
            calls.append(index.delete(torch.tensor([3])))
        return real(item_ids)

    monkeypatch.setattr(index, "vectors_of", late)
    ids, scores = items.best_of(torch.from_numpy(QUERY[0]), 9, np.array([2, 3, 4]))
    assert sorted(ids.tolist()) == [2, 4]
    assert scores == pytest.approx((vectors @ QUERY[0])[ids], abs=1e-5)
    assert len(items.similar(3, 5, None, NONE)[0]) == 0


def test_filter_mask_longer_than_the_index(search):
    items, now = search
    allowed, excluded = np.ones(len(now) + 2, dtype=np.bool_), np.array([1, len(now) + 1])
    expected = now @ QUERY[0]
    expected[1] = np.nan
    ids, _ = items.nearest_allowed(torch.from_numpy(QUERY[0]), 5, allowed, excluded)
    assert ids.tolist() == ranking(expected, 5)
    ids, _ = items.similar(0, 99, allowed, excluded)
    assert set(ids.tolist()) == set(np.flatnonzero(~np.isnan(expected)).tolist()) - {0}
