"""The base of approximate indexes, compared with plain arithmetic."""

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
    augment_items,
    augment_queries,
    geometric_steps,
    has_similar_norms,
    scale_rows,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(num=st.integers(1, 50), dim=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_augmented_distances_have_the_order_of_products(num, dim, seed):
    rng = np.random.default_rng(seed)
    items = (rng.standard_normal((num, dim)) * rng.exponential(size=(num, 1))).astype(np.float32)
    query = rng.standard_normal((3, dim)).astype(np.float32)
    item_points, query_points = augment_items(items), augment_queries(query)
    lengths = np.linalg.norm(item_points.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, lengths.max(), rtol=1e-5)
    squares = np.square(query_points[:, None].astype(np.float64) - item_points).sum(2)
    longest = np.square(items.astype(np.float64)).sum(1).max()
    expected = np.square(query).sum(1, keepdims=True) + longest - 2 * query @ items.T
    np.testing.assert_allclose(squares, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(1, 1, [1]), (1, 8, [1, 2, 4, 8]), (5, 5, [5]), (100, 400, [100, 200, 400])],
)
def test_geometric_steps_grow_by_their_ratio(first, last, expected):
    assert geometric_steps(first, last, 2.0) == expected


def test_geometric_steps_are_distinct_and_reach_both_ends():
    steps = geometric_steps(1, 316, 1.2)
    assert (steps[0], steps[-1]) == (1, 316)
    assert steps == sorted(set(steps))
    assert all(b / a <= 1.5 for a, b in itertools.pairwise(steps) if a > 3)


def test_scaled_rows_have_one_length_and_their_direction():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [3e-30, 4e-30], [-3e30, 4e30]], dtype=np.float32)
    expected = [[6.0, 8.0], [0.0, 0.0], [6.0, 8.0], [-6.0, 8.0]]
    np.testing.assert_allclose(scale_rows(rows, 10.0), expected, rtol=1e-6)


def test_long_items_make_norms_dissimilar():
    unit = torch.nn.functional.normalize(torch.randn(100, 8))
    assert has_similar_norms(unit)
    unit[3] *= 1.2
    assert has_similar_norms(unit)
    unit[3] *= 1.2
    assert not has_similar_norms(unit)


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
def test_impossible_settings_are_refused(index, settings, words):
    with pytest.raises(ConfigError, match=words):
        index(torch.ones(5, 4), **{**index.Config().model_dump(), **settings})


def test_unknown_setting_of_a_search_is_refused():
    with pytest.raises(ConfigError, match="no setting 'num_links'"):
        UsearchIndex.Config().build(torch.ones(5, 4)).with_settings(num_links=3)


def test_with_settings_does_not_change_the_index():
    index = Bfloat16Index.Config(oversample=1.5).build(torch.randn(50, 4))
    other = index.with_settings(oversample=3.0)
    assert (index.oversample, other.oversample) == (1.5, 3.0)
    assert other._half_vectors is index._half_vectors


def test_scores_are_float32_products_for_every_code():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(2000, 16, generator=generator)
    query = torch.randn(5, 16, generator=generator)
    for config in (
        FaissIndex.Config(kind="pq"),
        FaissIndex.Config(kind="sq"),
        FaissIndex.Config(kind="hnsw", augment=True),
        UsearchIndex.Config(precision="int8"),
        Bfloat16Index.Config(),
        KernelLsh.Config(),
    ):
        result = config.build(items).search(query, 20)
        products = torch.einsum("bkd,bd->bk", items[result.item_ids], query)
        torch.testing.assert_close(result.scores, products, rtol=1e-5, atol=1e-5)


def test_kernel_lsh_ranks_by_the_kernel():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(500, 6, generator=generator)
    query = torch.randn(4, 6, generator=generator)
    index = KernelLsh.Config(kernel="rbf", rank_by="kernel", oversample=500 / 7).build(items)
    result = index.search(query, 7)
    squares = torch.cdist(query.double(), items.double()).square()
    assert torch.equal(result.item_ids, squares.topk(7, largest=False).indices)
    # γ is one over the median squared distance between the items of the sample, here all.
    pairs = torch.cdist(items.double(), items.double()).square()
    off_diagonal = pairs[~torch.eye(500, dtype=torch.bool)]
    gamma = 1 / np.median(off_diagonal.numpy())
    expected = (-gamma * squares.gather(1, result.item_ids)).exp().float()
    torch.testing.assert_close(result.scores, expected, rtol=1e-4, atol=1e-6)
    assert math.isclose(float(index.search(items[:1], 1).scores), 1.0)
