"""The native kernel for lists of 8-bit codes, compared with plain arithmetic."""

import logging
import shutil

import numpy as np
import pytest
import torch

from candid.index import int8_pass
from candid.index.int8_pass import CodedLists, native_int8, round_to_int8

needs_compiler = pytest.mark.skipif(native_int8() is None, reason="no C compiler")


def lists_of(num_items, dim, num_lists, seed=0):
    """Vectors [V, D], centres, lists [V] of very different sizes, and their codes."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_items, dim, generator=generator)
    vectors[::7] *= 5
    centres = torch.randn(num_lists, dim, generator=generator)
    share = torch.rand(num_items, generator=generator).square()
    lists = (share * num_lists).long().clamp(max=num_lists - 1)
    return vectors, centres, lists, CodedLists.encode(vectors, centres, lists)


def decoded(index, num_items, dim):
    """Return the vectors [V, D] float64 that the codes stand for, and the list of each item."""
    vectors = np.full((num_items, dim), np.nan)
    lists = np.full(num_items, -1)
    for number in range(len(index.centres)):
        for block in range(index.starts[number], index.starts[number + 1]):
            for at, item in enumerate(index.item_ids[block]):
                if item < 0:
                    continue
                code = index.codes[block, :, at, :].reshape(-1)[:dim].astype(np.float64) - 128
                vectors[item] = index.centres[number] + index.scales[block, at] * code
                lists[item] = number
    return vectors, lists


@pytest.mark.parametrize("dim", [1, 6, 64])
def test_codes_are_within_half_a_step_of_the_vectors(dim):
    vectors, centres, lists, index = lists_of(700, dim, 9)
    found, found_lists = decoded(index, 700, dim)
    assert found_lists.tolist() == lists.tolist()
    largest = (vectors - centres[lists]).abs().amax(1).double().numpy()
    errors = np.abs(found - vectors.double().numpy()).max(1)
    assert (errors <= largest / 254 * 1.001 + 1e-6).all()


def best_ids(index, query, num_items, probes, wanted):
    """The best items of the nearest lists by enumeration, with both sides rounded: sets of ids."""
    dim = query.shape[1]
    numbers, scales = round_to_int8(query)
    rounded = numbers.double().numpy() * scales.double().numpy()[:, None]
    vectors, lists = decoded(index, num_items, dim)
    products = query.double().numpy() @ index.centres.astype(np.float64).T
    results = []
    for row in range(len(query)):
        nearest = np.argsort(-products[row])[:probes]
        members = np.flatnonzero(np.isin(lists, nearest))
        rest = vectors[members] - index.centres[lists[members]]
        scores = rest @ rounded[row] + products[row][lists[members]]
        results.append(set(members[np.argsort(-scores)[:wanted]].tolist()))
    return results


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("num_queries", [1, 5, 29])
@pytest.mark.parametrize(("probes", "wanted"), [(1, 30), (4, 7), (9, 90), (9, 700)])
def test_search_returns_the_best_items_of_the_nearest_lists(
    is_native, num_queries, probes, wanted, monkeypatch
):
    monkeypatch.setattr(int8_pass, "MIN_ITEMS", 0 if is_native else 10**9)
    _, _, _, index = lists_of(700, 13, 9, seed=num_queries)
    query = torch.randn(num_queries, 13, generator=torch.Generator().manual_seed(1))
    found = index.search(query, probes, wanted)
    assert found.shape == (num_queries, wanted)
    assert found.dtype == np.int64
    for ids, best in zip(found.tolist(), best_ids(index, query, 700, probes, wanted), strict=True):
        # Missing items stand at the end; no id is repeated.
        assert ids[len(best) :] == [-1] * (wanted - len(best))
        assert len(set(ids[: len(best)])) == len(best)
        assert set(ids[: len(best)]) == best


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_long_lists_and_many_ties_fill_every_row_once(threads):
    # 20,000 items of which many have equal scores: buffers are shrunk many times.
    vectors = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).repeat(500, 1)
    index = CodedLists.encode(
        vectors, torch.zeros(2, 8), (torch.arange(20_000) % 2).to(torch.int64)
    )
    query = torch.randn(11, 8, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = torch.from_numpy(index.search(query, 2, 600))
    finally:
        torch.set_num_threads(before)
    scores = (vectors[:40].double() @ query.double().T).T
    assert all(len(set(row)) == 600 for row in found.tolist())
    # The best 600 are all 500 copies of the best vector and 100 of the next.
    ranks = (-scores).argsort(1).argsort(1).gather(1, found % 40)
    assert (ranks == 0).sum(1).tolist() == [500] * 11
    assert (ranks == 1).sum(1).tolist() == [100] * 11


@needs_compiler
def test_batch_finds_what_single_queries_find():
    _, _, _, index = lists_of(30_000, 16, 40)
    query = torch.randn(21, 16, generator=torch.Generator().manual_seed(2))
    batch = index.search(query, 12, 50)
    for row in range(len(query)):
        single = index.search(query[row : row + 1], 12, 50)
        assert set(single[0].tolist()) == set(batch[row].tolist())


def test_vectors_of_zeros_have_a_score_of_zero():
    numbers, scales = round_to_int8(torch.zeros(2, 3))
    assert (numbers.tolist(), scales.tolist()) == ([[0, 0, 0]] * 2, [0, 0])
    index = CodedLists.encode(torch.zeros(3, 2), torch.zeros(1, 2), torch.zeros(3, dtype=int))
    assert sorted(index.search(torch.ones(1, 2), 1, 3)[0].tolist()) == [0, 1, 2]


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("-128 * sum", "-127 * sum"),
        (
            "members[ends[lists[i * probes + p]]++] = (int32_t)i",
            "members[ends[lists[i * probes + p]]++] = 0",
        ),
        ("query_scales[first + i]", "query_scales[first]"),
        ("first + STRIP < last ? first + STRIP : last", "first + 1"),
        ("row->stored[j] : -1", "row->stored[0] : -1"),
    ],
)
def test_wrong_kernel_is_refused(tmp_path, monkeypatch, caplog, right, wrong):
    source = int8_pass.SOURCE.read_text()
    assert right in source
    for header in int8_pass.SOURCE.parent.glob("*.h"):
        shutil.copy(header, tmp_path)
    changed = tmp_path / "wrong.c"
    changed.write_text(source.replace(right, wrong))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(int8_pass, "SOURCE", changed)
    with caplog.at_level(logging.INFO):
        assert int8_pass.native_int8.__wrapped__() is None
    assert caplog.records[0].getMessage().endswith("returns other items than NumPy")
