"""The native kernel for ranking candidates: the same items as NumPy, without excluded ones."""

import shutil

import numpy as np
import pytest
import torch

from candid.index import Bfloat16Index, Exclusions, FaissIndex, rerank_pass
from candid.index.approximate import ApproximateIndex
from candid.index.rerank_pass import native_rerank, rerank

pytestmark = pytest.mark.skipif(native_rerank() is None, reason="no C compiler")


@pytest.mark.parametrize("dim", [1, 7, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_ranks_candidates_exactly(dim, threads):
    rng = np.random.default_rng(dim)
    vectors = torch.from_numpy(rng.standard_normal((300, dim)).astype(np.float32))
    vectors[::3] = vectors[0]  # equal scores: the lower id comes first
    vectors[1] = 0.0
    query = rng.standard_normal((5, dim)).astype(np.float32)
    query[4] = -0.0
    candidates = np.stack([rng.permutation(300)[:90] for _ in range(5)])
    candidates[2, 40:] = -1
    candidates[3] = -1
    excluded = np.sort(rng.permutation(300)[:60]), np.array([0, 0, 60, 60, 60, 60])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ids, scores = rerank(native_rerank(), vectors, query, candidates, 50, excluded)
    finally:
        torch.set_num_threads(before)
    for row in range(5):
        allowed = [i for i in candidates[row] if i >= 0]
        if row == 1:
            allowed = sorted(set(allowed) - set(excluded[0].tolist()))
        products = (vectors[allowed].double() @ torch.from_numpy(query[row]).double()).float()
        best = sorted(zip((-products).tolist(), allowed, strict=True))[:50]
        missing = 50 - len(best)
        assert ids[row].tolist() == [item for _, item in best] + [-1] * missing
        expected = [-score for score, _ in best] + [-np.inf] * missing
        np.testing.assert_allclose(scores[row], np.float32(expected), rtol=1e-6, atol=1e-6)


def test_kernel_without_queries_returns_empty_arrays():
    ids, scores = rerank(
        native_rerank(), torch.ones(4, 2), np.empty((0, 2), np.float32), np.empty((0, 3), int), 2
    )
    assert (ids.shape, scores.shape) == ((0, 2), (0, 2))


@pytest.mark.parametrize(
    "config", [FaissIndex.Config(kind="pq", num_lists=4), Bfloat16Index.Config()]
)
@pytest.mark.parametrize("many", [False, True])
def test_search_equals_the_search_without_the_kernel(config, many, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 16, generator=generator)
    query = torch.randn(9, 16, generator=generator)
    index = config.build(vectors)
    if isinstance(index, FaissIndex):
        index = index.with_settings(num_probes=4)
    # More exclusions than spare candidates: short rows are searched again.
    best = index.search(query, 300 if many else 20).item_ids
    lengths = torch.tensor([0, len(best[0]), 3, 0, 17, 1, 0, 2, 5])
    excluded = torch.cat([best[row, :n] for row, n in enumerate(lengths.tolist())])
    exclude = Exclusions(excluded, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))
    results = {}
    for floor in (0, 10**9):
        monkeypatch.setattr(rerank_pass, "MIN_ITEMS", floor)
        results[floor] = [index.search(query, 20, exclude), index.search(query, 20)]
    for native, plain in zip(results[0], results[10**9], strict=True):
        assert torch.equal(native.item_ids, plain.item_ids)
        torch.testing.assert_close(native.scores, plain.scores, rtol=1e-5, atol=1e-5)
    assert not set(results[0][0].item_ids[1].tolist()) & set(best[1].tolist())
    assert isinstance(index, ApproximateIndex)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("id < 0 ||", "id < -9 ||"),
        ("id >= num_items ||", "id > num_items ||"),
        ("key > heap[0]", "key < heap[0]"),
        ("INT32_MAX - id", "id"),
    ],
)
def test_wrong_kernel_is_refused(tmp_path, monkeypatch, right, wrong):
    source = rerank_pass.SOURCE.read_text()
    assert right in source
    changed = tmp_path / "wrong.c"
    changed.write_text(source.replace(right, wrong))
    shutil.copy(rerank_pass.SOURCE.with_name("order.h"), tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rerank_pass, "SOURCE", changed)
    assert rerank_pass.native_rerank.__wrapped__() is None
