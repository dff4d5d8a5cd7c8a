"""FAISS compared with plain products, with exclusions, which FAISS does not support."""

import math
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.errors import ArtifactError, ConfigError
from candid.index import Exclusions, FaissIndex


def vectors_of(num, dim=8, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def best_allowed(query, items, k, excluded):
    """Return the k best allowed items of each row by float64 products, one row at a time."""
    ids, scores = [], []
    for row, excluded_ids in zip(query.double(), excluded, strict=True):
        of_row = items.double() @ row
        allowed = [d for d in of_row.argsort(descending=True).tolist() if d not in excluded_ids][:k]
        fill = k - len(allowed)
        ids.append(allowed + [-1] * fill)
        scores.append(of_row[allowed].tolist() + [-math.inf] * fill)
    return torch.tensor(ids), torch.tensor(scores)


def packed(excluded):
    lengths = torch.tensor([0, *map(len, excluded)])
    flat = [d for row in excluded for d in row]
    return Exclusions(torch.tensor(flat, dtype=torch.int64), lengths.cumsum(0))


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    num_items=st.integers(1, 300),
    num_excluded=st.lists(st.integers(0, 299), min_size=4, max_size=4),
    k=st.integers(1, 20),
    seed=st.integers(0, 10**6),
)
def test_search_of_all_clusters_equals_plain_products(kind, num_items, num_excluded, k, seed):
    items, query = vectors_of(num_items, seed=seed), vectors_of(4, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_items, generator=generator).tolist()
    excluded = [order[:number] + order[: number // 2] for number in num_excluded]
    index = FaissIndex.Config(kind=kind, num_probes=num_items).build(items)
    result = index.search(query, min(k, num_items), packed(excluded))
    ids, scores = best_allowed(query, items, min(k, num_items), excluded)
    assert torch.equal(result.item_ids, ids)
    torch.testing.assert_close(result.scores, scores, rtol=1e-5, atol=1e-5)


def test_search_of_few_clusters_finds_most_items_and_no_excluded_ones():
    items, query = vectors_of(4000, seed=1), vectors_of(50, seed=2)
    index = FaissIndex.Config(num_lists=64, num_probes=16).build(items)
    best = (query @ items.T).topk(20).indices
    result = index.search(query, 20).item_ids
    shares = [
        len(set(a) & set(b)) / 20 for a, b in zip(result.tolist(), best.tolist(), strict=True)
    ]
    assert 0.5 < sum(shares) / 50 < 1
    without = index.search(query, 20, packed(result.tolist())).item_ids
    assert not any(set(a) & set(b) for a, b in zip(without.tolist(), result.tolist(), strict=True))
    assert bool((without >= 0).all())


@pytest.mark.parametrize("num_queries", [1, 64])
def test_flat_multiplies_batches_and_scans_single_queries(num_queries):
    faiss = pytest.importorskip("faiss")
    items, query = vectors_of(3000, seed=1), vectors_of(num_queries, seed=2)
    result = FaissIndex.Config(kind="flat").build(items).search(query, 20)
    assert faiss.cvar.distance_compute_blas_threshold in (4, 4 * 8)
    assert torch.equal(result.item_ids, (query.double() @ items.double().T).topk(20).indices)


def test_small_cluster_leaves_the_rest_of_a_row_empty():
    items = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 2]])
    index = FaissIndex.Config(num_lists=2, num_probes=1).build(items)
    result = index.search(torch.tensor([[1.0, 0.1]]), 3, packed([[0]]))
    assert result.item_ids.tolist() == [[1, -1, -1]]
    assert result.scores.tolist() == [[2, -math.inf, -math.inf]]


def test_build_copies_the_vectors_and_prints_nothing(capfd):
    items = vectors_of(100)
    index = FaissIndex.Config().build(items.T.contiguous().T)  # not contiguous
    before = index.search(items[:3], 1)
    items.zero_()
    after = index.search(vectors_of(100)[:3], 1)
    assert torch.equal(before.scores, after.scores)
    assert index.search(vectors_of(3).bfloat16(), 2).scores.dtype == torch.float32
    assert capfd.readouterr() == ("", "")


def test_index_of_the_same_vectors_is_the_same():
    items, query = vectors_of(2000), vectors_of(20, seed=3)
    one, other = (FaissIndex.Config(num_probes=2).build(items).search(query, 10) for _ in range(2))
    assert torch.equal(one.item_ids, other.item_ids)
    again = pickle.loads(pickle.dumps(FaissIndex.Config(num_probes=2).build(items))).search(
        query, 10
    )
    assert torch.equal(one.item_ids, again.item_ids)


def test_missing_library_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'candid-retrieval\[index\]'"):
        FaissIndex.Config().build(vectors_of(5))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_are_not_finite_are_refused(value):
    items = vectors_of(5)
    query = vectors_of(2)
    query[1, 0] = value
    with pytest.raises(ArtifactError, match="query vectors contain NaN"):
        FaissIndex.Config().build(items).search(query, 1)
    items[3, 2] = value
    with pytest.raises(ArtifactError, match="item vectors contain NaN"):
        FaissIndex.Config().build(items)


def test_impossible_settings_are_refused():
    items, defaults = vectors_of(5), FaissIndex.Config().model_dump()
    with pytest.raises(ConfigError, match="num_lists must be between 1 and the number of items, 5"):
        FaissIndex(items, **defaults | {"num_lists": 6})
    with pytest.raises(ConfigError, match="num_probes"):
        FaissIndex(items, **defaults | {"num_probes": 0})
    with pytest.raises(ConfigError, match="item_vectors"):
        FaissIndex.Config().build(torch.zeros(0, 3))
    with pytest.raises(ConfigError, match=r"queries must be \[B, 8\]"):
        FaissIndex.Config().build(items).search(vectors_of(2, dim=7), 1)


@pytest.mark.parametrize("length", [1.0, 10.0])
def test_pq_orders_items_around_centres_by_codes_alone(length):
    # Items of a cluster differ little compared with their length: codes of whole vectors, or of
    # differences to centres of another length, cannot order them.
    centres = length * torch.nn.functional.normalize(vectors_of(8, dim=16, seed=3))
    items = centres.repeat(500, 1) + 0.05 * length * vectors_of(4000, dim=16, seed=4)
    query = centres.repeat(8, 1) + 0.05 * length * vectors_of(64, dim=16, seed=5)
    config = FaissIndex.Config(kind="pq", num_lists=16, num_probes=16, oversample=1)
    ids = config.build(items).search(query, 20).item_ids
    expected = (query.double() @ items.double().T).topk(20).indices
    found = (ids[:, :, None] == expected[:, None]).any(1).double().mean()
    assert found >= 0.8


@pytest.mark.parametrize("kind", ["flat", "ivf", "sq", "pq"])
def test_merged_parts_return_the_results_of_one_index(kind, tmp_path):
    items, query = vectors_of(2000, seed=1), vectors_of(40, seed=2)
    config = FaissIndex.Config(kind=kind, num_lists=20)
    assert config.has_parts
    trained, file = tmp_path / "trained", tmp_path / "merged"
    config.train_parts(items, trained)
    parts = []
    for begin, stop in ((0, 701), (701, 701), (701, 730), (730, 2000)):
        parts.append(tmp_path / f"{stop}-{len(parts)}")
        config.build_part(items[begin:stop], trained, parts[-1])
    config.merge_parts(parts, file)
    whole, merged = config.build(items), config.open(items, file)
    for probes in (2, 20):
        chosen = {} if kind == "flat" else {"num_probes": probes}
        expected = whole.with_settings(**chosen).search(query, 30)
        result = merged.with_settings(**chosen).search(query, 30)
        assert torch.equal(result.item_ids, expected.item_ids)
        assert torch.equal(result.scores, expected.scores)
        assert bool((result.item_ids >= 730).any())


def test_parts_with_settings_that_cannot_work_are_refused(tmp_path):
    assert not FaissIndex.Config(kind="hnsw").has_parts
    with pytest.raises(ConfigError, match="num_lists must be between 1 and the number of items, 9"):
        FaissIndex.Config(num_lists=10).train_parts(vectors_of(9), tmp_path / "trained")
    assert not list(tmp_path.iterdir())
