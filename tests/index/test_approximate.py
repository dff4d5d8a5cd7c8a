"""What approximate indexes share, against plain arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.errors import ConfigError
from candid.index import Bfloat16Index, FaissIndex, KernelLsh, UsearchIndex
from candid.index.approximate import (
    augmented_items,
    augmented_queries,
    ladder,
    norms_are_alike,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(num=st.integers(1, 50), dim=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_distances_of_augmented_vectors_order_as_products_do(num, dim, seed):
    rng = np.random.default_rng(seed)
    items = (rng.standard_normal((num, dim)) * rng.exponential(size=(num, 1))).astype(np.float32)
    query = rng.standard_normal((3, dim)).astype(np.float32)
    there, asked = augmented_items(items), augmented_queries(query)
    lengths = np.linalg.norm(there.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, lengths.max(), rtol=1e-5)
    squares = np.square(asked[:, None].astype(np.float64) - there).sum(2)
    longest = np.square(items.astype(np.float64)).sum(1).max()
    expected = np.square(query).sum(1, keepdims=True) + longest - 2 * query @ items.T
    np.testing.assert_allclose(squares, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(1, 1, [1]), (1, 8, [1, 2, 4, 8]), (5, 5, [5]), (100, 400, [100, 200, 400])],
)
def test_a_ladder_climbs_by_its_ratio(first, last, expected):
    assert ladder(first, last, 2.0) == expected


def test_a_ladder_has_its_ends_and_no_rung_twice():
    rungs = ladder(1, 316, 1.2)
    assert (rungs[0], rungs[-1]) == (1, 316)
    assert rungs == sorted(set(rungs))
    assert all(b / a <= 1.5 for a, b in itertools.pairwise(rungs) if a > 3)


def test_few_long_items_are_no_matter_for_distances():
    unit = torch.nn.functional.normalize(torch.randn(100, 8))
    assert norms_are_alike(unit)
    unit[3] *= 5
    assert not norms_are_alike(unit)


@pytest.mark.parametrize(
    ("index", "settings", "words"),
    [
        (Bfloat16Index, {"oversample": 0.5}, "oversample"),
        (FaissIndex, {"oversample": 0.5}, "oversample"),
        (FaissIndex, {"kind": "pq", "num_codes": 3}, "num_codes 3 must divide the width 4"),
        (UsearchIndex, {"search_width": 0}, "search_width"),
        (KernelLsh, {"num_bits": 12}, "multiple of 8"),
    ],
)
def test_settings_that_cannot_work_are_refused(index, settings, words):
    with pytest.raises(ConfigError, match=words):
        index(torch.ones(5, 4), **settings)


def test_a_setting_that_is_none_of_the_search_is_refused():
    with pytest.raises(ConfigError, match="no setting 'num_links'"):
        UsearchIndex(torch.ones(5, 4)).with_settings(num_links=3)


def test_other_settings_leave_the_index_as_it_was():
    index = Bfloat16Index(torch.randn(50, 4), oversample=1.5)
    other = index.with_settings(oversample=3.0)
    assert (index.oversample, other.oversample) == (1.5, 3.0)
    assert other._half is index._half


def test_scores_are_products_of_float32_whatever_the_codes():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(2000, 16, generator=generator)
    query = torch.randn(5, 16, generator=generator)
    for index in (
        FaissIndex(items, "pq"),
        FaissIndex(items, "sq"),
        FaissIndex(items, "hnsw", augment=True),
        UsearchIndex(items, precision="int8"),
        Bfloat16Index(items),
        KernelLsh(items),
    ):
        found = index.search(query, 20)
        products = torch.einsum("bkd,bd->bk", items[found.item_ids], query)
        torch.testing.assert_close(found.scores, products, rtol=1e-5, atol=1e-5)


def test_a_kernel_may_rank():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(500, 6, generator=generator)
    query = torch.randn(4, 6, generator=generator)
    index = KernelLsh(items, kernel="rbf", rank_by="kernel", oversample=500 / 7)
    found = index.search(query, 7)
    squares = torch.cdist(query.double(), items.double()).square()
    assert torch.equal(found.item_ids, squares.topk(7, largest=False).indices)
    # γ is one over the median squared distance between the items of the sample, here all.
    pairs = torch.cdist(items.double(), items.double()).square()
    off_diagonal = pairs[~torch.eye(500, dtype=torch.bool)]
    gamma = 1 / np.median(off_diagonal.numpy())
    expected = (-gamma * squares.gather(1, found.item_ids)).exp().float()
    torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-6)
    assert math.isclose(float(index.search(items[:1], 1).scores), 1.0)
