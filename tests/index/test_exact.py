"""Exact search compared with a stable sort of dense float64 scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from candid.errors import ArtifactError, ConfigError
from candid.index import ExactIndex, Exclusions, exact, select_pass


@pytest.fixture(params=["torch", "native"], autouse=True, scope="module")
def selection(request):
    """Run every test with both ways of selection, also for small searches."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(exact, "native_selection_for", lambda *_: None)
        elif select_pass.native_selection() is None:
            pytest.skip("no C compiler")
        patch.setattr(select_pass, "MIN_SCORES", 0)
        yield request.param


def oracle(query, vectors, k, excluded):
    """Return ids and scores by NumPy: score descending, id ascending, without excluded items."""
    scores = (query.double().numpy() @ vectors.double().numpy().T).astype(np.float32)
    ids = np.full((len(query), k), -1)
    best = np.full((len(query), k), -np.inf, dtype=np.float32)
    for row, excluded_ids in enumerate(excluded):
        allowed = np.setdiff1d(np.arange(len(vectors)), excluded_ids)
        order = allowed[np.lexsort((allowed, -scores[row, allowed]))][:k]
        ids[row, : len(order)] = order
        best[row, : len(order)] = scores[row, order]
    return ids, best


def packed(excluded):
    lengths = [len(one) for one in excluded]
    flat = [item for one in excluded for item in one]
    return Exclusions(torch.tensor(flat, dtype=torch.int64), torch.tensor(np.cumsum([0, *lengths])))


@st.composite
def searches(draw):
    num_items = draw(st.integers(1, 90))
    num_rows = draw(st.integers(0, 6))
    # Small integers make most scores tie; floats make almost none.
    integers = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from([1, 3, 8]))
    vectors = torch.randn(num_items, shape, generator=generator)
    query = torch.randn(num_rows, shape, generator=generator)
    if integers:
        vectors, query = vectors.round(), query.round()
    excluded = draw(
        st.lists(
            st.lists(st.integers(0, num_items - 1), max_size=num_items),
            min_size=num_rows,
            max_size=num_rows,
        )
    )
    k = draw(st.integers(1, num_items))
    block_items = draw(st.integers(1, 100))
    block_rows = draw(st.integers(1, 8))
    return query, vectors, k, excluded, block_items, block_rows


@given(searches())
@settings(max_examples=200, deadline=None)
def test_search_equals_a_stable_sort(search):
    query, vectors, k, excluded, block_items, block_rows = search
    ids, scores = oracle(query, vectors, k, excluded)
    result = ExactIndex(vectors, block_items=block_items, block_rows=block_rows).search(
        query, k, packed(excluded)
    )
    np.testing.assert_array_equal(result.item_ids.numpy(), ids)
    np.testing.assert_array_equal(result.scores.numpy(), scores)


def random_search(num_items=3000, num_rows=70, dim=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_items, dim, generator=generator)
    vectors *= torch.rand(num_items, 1, generator=generator)
    return torch.randn(num_rows, dim, generator=generator), vectors


@pytest.mark.parametrize("k", [1, 10, 100, 3000])
def test_search_of_several_blocks_equals_a_stable_sort(k):
    query, vectors = random_search()
    rng = np.random.default_rng(0)
    excluded = [rng.integers(0, 3000, rng.integers(0, 400)).tolist() for _ in query]
    ids, scores = oracle(query, vectors, k, excluded)
    result = ExactIndex(vectors, block_items=700, block_rows=32).search(query, k, packed(excluded))
    np.testing.assert_array_equal(result.item_ids.numpy(), ids)
    np.testing.assert_array_equal(result.scores.numpy(), scores)


def test_results_do_not_depend_on_blocks_or_batches():
    query, vectors = random_search(dim=129)
    # Copies of one vector tie exactly, also across blocks.
    vectors[torch.arange(5, 3000, 7)] = vectors[5].clone()
    query[0] = vectors[5] * 3
    whole = ExactIndex(vectors, block_items=3000, block_rows=70).search(query, 50)
    assert (whole.item_ids[0] == torch.arange(5, 3000, 7)[:50]).all()
    for block_items, block_rows in ((1, 70), (37, 16), (1000, 1), (2999, 69)):
        result = ExactIndex(vectors, block_items=block_items, block_rows=block_rows).search(
            query, 50
        )
        assert torch.equal(result.item_ids, whole.item_ids)
        assert torch.equal(result.scores, whole.scores)
    alone = [ExactIndex(vectors).search(one, 50) for one in query.split(1)]
    assert torch.equal(torch.cat([one.item_ids for one in alone]), whole.item_ids)
    assert torch.equal(torch.cat([one.scores for one in alone]), whole.scores)


def test_equal_items_are_ordered_by_id():
    index = ExactIndex(torch.ones(500, 4), block_items=64)
    result = index.search(torch.stack([torch.ones(4), torch.zeros(4), -torch.ones(4)]), 40)
    assert (result.item_ids == torch.arange(40)).all()
    assert result.scores[:, 0].tolist() == [4, 0, -4]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarser_matrix_products_give_the_same_results(precision):
    query, vectors = random_search()
    ids, scores = oracle(query, vectors, 100, [[]] * len(query))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        result = ExactIndex(vectors).search(query, 100)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(result.item_ids.numpy(), ids)
    np.testing.assert_array_equal(result.scores.numpy(), scores)


def test_inexact_scan_is_detected_and_repeated(monkeypatch):
    """A row of the scan is accepted only if the error bound proves it."""
    query, vectors = random_search(num_items=400)
    ids, _ = oracle(query, vectors, 10, [[]] * len(query))
    exact_mm = torch.mm

    def coarse(a, b, *, out):
        scores = exact_mm(a, b)
        error = 2.0**-9 * a.norm(dim=1, keepdim=True) * b.norm(dim=0, keepdim=True)
        noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        return out.copy_(scores + error * noise)

    torch.set_float32_matmul_precision("medium")
    monkeypatch.setattr(torch, "mm", coarse)
    try:
        result = ExactIndex(vectors).search(query, 10)
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(result.item_ids.numpy(), ids)


class LargestTensor(TorchDispatchMode):
    """Recorder of the largest number of elements that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("dim", [4, 64])
def test_search_does_not_hold_all_scores(dim):
    query, vectors = random_search(num_items=20_000, num_rows=300, dim=dim)
    index = ExactIndex(vectors, block_items=1024, block_rows=64)
    with LargestTensor() as watch:
        index.search(query, 50)
    assert watch.largest <= 64 * 1024 < len(query) * len(vectors)


def test_search_of_ties_does_not_hold_all_scores():
    index = ExactIndex(torch.ones(20_000, 4), block_items=1024, block_rows=64)
    with LargestTensor() as watch:
        index.search(torch.ones(300, 4), 10)
    # Ties pass the scan: up to two tiles of them wait before they are merged.
    assert watch.largest <= 3 * 64 * 1024 < 300 * 20_000


def test_bfloat16_vectors_are_searched_in_float32():
    query, vectors = random_search()
    vectors = vectors.bfloat16()
    ids, _ = oracle(query, vectors, 10, [[]] * len(query))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ExactIndex(vectors).search(query, 10)
    np.testing.assert_array_equal(result.item_ids.numpy(), ids)


def test_results_carry_no_gradient_and_can_be_used_by_autograd():
    vectors = torch.randn(20, 4, requires_grad=True)
    query = torch.randn(2, 4, requires_grad=True)
    result = ExactIndex(vectors).search(query, 3)
    assert not result.scores.requires_grad
    loss = (query.unsqueeze(1) * vectors[result.item_ids]).sum() + result.scores.sum()
    loss.backward()
    assert query.grad is not None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vectors_that_are_not_finite_are_refused(bad):
    vectors = torch.ones(5, 2)
    vectors[3, 1] = bad
    with pytest.raises(ArtifactError, match="item vectors contain NaN or infinite"):
        ExactIndex(vectors)
    with pytest.raises(ArtifactError, match="query vectors contain NaN or infinite"):
        ExactIndex(torch.ones(5, 2)).search(vectors, 2)


def test_scores_beyond_float32_are_refused():
    with pytest.raises(ArtifactError, match="beyond float32"):
        ExactIndex(torch.full((5, 2), 1e20)).search(torch.full((1, 2), 1e20), 2)


def test_zero_query_returns_ties_by_id():
    result = ExactIndex(torch.full((5, 2), 1e30)).search(torch.zeros(1, 2), 5)
    assert result.item_ids.tolist() == [[0, 1, 2, 3, 4]]


def test_unreported_precision_counts_as_coarse(monkeypatch):
    def mixed():
        raise RuntimeError("mix of the legacy and new APIs")

    query, vectors = random_search()
    ids, _ = oracle(query, vectors, 20, [[]] * len(query))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    result = ExactIndex(vectors).search(query, 20)
    np.testing.assert_array_equal(result.item_ids.numpy(), ids)


def test_queries_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r"\[B, 2\].*\[1, 3\]"):
        ExactIndex(torch.ones(5, 2)).search(torch.ones(1, 3), 2)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_empty_catalog_is_refused(shape):
    with pytest.raises(ConfigError, match="at least one item"):
        ExactIndex(torch.ones(shape))


@pytest.mark.parametrize("settings", [{"block_items": 0}, {"block_rows": 0}])
def test_empty_blocks_are_refused(settings):
    with pytest.raises(ConfigError, match="at least 1"):
        ExactIndex(torch.ones(3, 2), **settings)
