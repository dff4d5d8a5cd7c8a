"""Searches of a catalog against every product by NumPy, changes included."""

import numpy as np
import pytest
import torch

from candid.index import ExactIndex, LiveIndex
from candid.serve import catalog as module
from candid.serve.catalog import Catalog

NUM, DIM = 50, 6
NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(name="vectors")
def _vectors():
    return np.random.default_rng(0).standard_normal((NUM, DIM)).astype(np.float32)


@pytest.fixture(name="catalog", params=["as built", "changed"])
def _catalog(request, vectors):
    """The catalog, and the vectors that its items have now, NaN where there is none."""
    index = LiveIndex(ExactIndex(torch.from_numpy(vectors)), torch.from_numpy(vectors))
    now = vectors.copy()
    if request.param == "changed":
        more = np.random.default_rng(1).standard_normal((3, DIM)).astype(np.float32)
        index.add(torch.from_numpy(more))
        index.update(torch.tensor([4]), torch.from_numpy(more[:1] * 0.5))
        index.delete(torch.tensor([7, NUM + 1]))
        now = np.concatenate([now, more])
        now[4], now[7], now[NUM + 1] = more[0] * 0.5, np.nan, np.nan
    return Catalog(index), now


def ranking(scores, k):
    """Best first; NaN is no item."""
    order = sorted(np.flatnonzero(~np.isnan(scores)), key=lambda i: (-scores[i], i))
    return order[:k]


QUERY = np.random.default_rng(2).standard_normal((3, DIM)).astype(np.float32)


def test_live_items(catalog):
    found, now = catalog
    assert (found.is_live() == ~np.isnan(now[:, 0])).all()


def test_nearest_leaves_out_what_is_excluded(catalog):
    found, now = catalog
    excluded = [np.array([1, 2, 3]), NONE, np.array([0, len(now) - 1])]
    for row, (ids, scores) in enumerate(found.nearest(torch.from_numpy(QUERY), 9, excluded)):
        expected = now @ QUERY[row]
        expected[excluded[row]] = np.nan
        assert ids.tolist() == ranking(expected, 9)
        assert scores == pytest.approx(expected[ids], abs=1e-5)


def test_k_beyond_the_catalog_gives_all_there_is(catalog):
    found, now = catalog
    [(ids, _)] = found.nearest(torch.from_numpy(QUERY[:1]), 999, [NONE])
    assert ids.tolist() == ranking(now @ QUERY[0], 999)


@pytest.mark.parametrize("few", [0, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_among_allowed(catalog, few, share, monkeypatch):
    monkeypatch.setattr(module, "FEW", few)  # 0: the index is asked for some beyond k first
    found, now = catalog
    allowed = np.random.default_rng(3).random(len(now)) < share
    before, excluded = allowed.copy(), np.array([5, 6, 7])
    ids, scores = found.nearest_allowed(torch.from_numpy(QUERY[0]), 4, allowed, excluded)
    expected = np.where(allowed, now @ QUERY[0], np.nan)
    expected[excluded] = np.nan
    assert ids.tolist() == ranking(expected, 4)
    assert scores == pytest.approx(expected[ids], abs=1e-5)
    assert (allowed == before).all()


def test_similar_is_by_cosine_without_the_item_itself(catalog):
    found, now = catalog
    cosines = now @ now[0] / (np.linalg.norm(now, axis=1) * np.linalg.norm(now[0]))
    cosines[[0, 9]] = np.nan
    ids, scores = found.similar(0, 5, None, np.array([9]))
    assert ids.tolist() == ranking(cosines, 5)
    assert scores == pytest.approx(cosines[ids], abs=1e-5)
    allowed = np.arange(NUM) % 2 == 1  # whoever came after the filter is not among them
    ids, _ = found.similar(0, 99, allowed, np.array([9]))
    odd = cosines.copy()
    odd[[i for i in range(len(now)) if i >= NUM or i % 2 == 0]] = np.nan
    assert ids.tolist() == ranking(odd, 99)


def test_log_partition(catalog, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    found, now = catalog
    scores = 40 * QUERY.astype(np.float64) @ now[~np.isnan(now[:, 0])].T.astype(np.float64)
    largest = scores.max(1, keepdims=True)
    expected = largest[:, 0] + np.log(np.exp(scores - largest).sum(1))
    assert found.log_partition(40 * torch.from_numpy(QUERY)).numpy() == pytest.approx(
        expected, rel=1e-5
    )


def test_nothing_left_has_an_empty_partition(vectors):
    index = LiveIndex(ExactIndex(torch.from_numpy(vectors)), torch.from_numpy(vectors))
    index.delete(torch.arange(NUM))
    assert Catalog(index).log_partition(torch.from_numpy(QUERY)).isneginf().all()
    assert not len(Catalog(index).nearest(torch.from_numpy(QUERY), 3, [NONE] * 3)[0][0])


def test_items_deleted_while_others_ask_are_passed_over(vectors, monkeypatch):
    index = LiveIndex(ExactIndex(torch.from_numpy(vectors)), torch.from_numpy(vectors))
    found, real, calls = Catalog(index), index.vectors_of, []

    def late(item_ids):
        if not calls:  # between the look at what is live and the look-up
            calls.append(index.delete(torch.tensor([3])))
        return real(item_ids)

    monkeypatch.setattr(index, "vectors_of", late)
    ids, scores = found.best_of(torch.from_numpy(QUERY[0]), 9, np.array([2, 3, 4]))
    assert sorted(ids.tolist()) == [2, 4]
    assert scores == pytest.approx((vectors @ QUERY[0])[ids], abs=1e-5)
    assert len(found.similar(3, 5, None, NONE)[0]) == 0


def test_filters_that_know_an_item_before_the_index_does(catalog):
    found, now = catalog
    allowed, excluded = np.ones(len(now) + 2, dtype=np.bool_), np.array([1, len(now) + 1])
    expected = now @ QUERY[0]
    expected[1] = np.nan
    ids, _ = found.nearest_allowed(torch.from_numpy(QUERY[0]), 5, allowed, excluded)
    assert ids.tolist() == ranking(expected, 5)
    ids, _ = found.similar(0, 99, allowed, excluded)
    assert set(ids.tolist()) == set(np.flatnonzero(~np.isnan(expected)).tolist()) - {0}
