"""The native kernel for selection, compared with NumPy and torch; search without the kernel."""

import logging
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import candid.native
from candid.errors import ArtifactError
from candid.index import ExactIndex, Exclusions, select_pass
from candid.index.order import decode

HAS_COMPILER = select_pass.native_selection() is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Simulate a process that has not compiled yet, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CANDID_NATIVE", raising=False)
    select_pass.native_selection.cache_clear()
    yield tmp_path / "candid" / "native"
    select_pass.native_selection.cache_clear()


def messages_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "candid.index"]


@st.composite
def tables(draw):
    """Scores [rows, items], excluded ids, width of a tile and k."""
    rows, items = draw(st.integers(1, 4)), draw(st.integers(1, 3000))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    scores = generator.standard_normal((rows, items)).astype(np.float32)
    kind = draw(st.sampled_from(["normal", "tied", "rising", "falling", "wide", "zeros", "tiny"]))
    if kind == "tied":
        scores = scores.round()
    if kind in ("rising", "falling"):
        scores = np.sort(scores, axis=1)[:, :: 1 if kind == "rising" else -1]
    if kind == "wide":
        scores = np.exp(np.abs(20 * scores).clip(max=80)) * np.sign(scores)
    if kind == "zeros":
        scores = np.where(scores > 2, 0.0, -0.0)
    if kind == "tiny":
        scores = np.float32(1e-42) * scores
    share = draw(st.sampled_from([0.0, 0.1, 0.97, 1.0]))
    excluded = [np.flatnonzero(generator.random(items) < share) for _ in range(rows)]
    excluded = [generator.permutation(np.concatenate([one, one[:3]])) for one in excluded]
    width = draw(st.integers(1, items))
    k = draw(st.integers(1, min(items, 300)))
    return np.ascontiguousarray(scores, dtype=np.float32), excluded, width, k


@needs_compiler
@given(tables())
@settings(max_examples=150, deadline=None)
def test_proven_rows_equal_a_stable_sort(table):
    """One item vector per column of the scores, one unit query per row: scores are exact."""
    scores, excluded, width, k = table
    rows, items = scores.shape
    exclude = Exclusions(
        torch.from_numpy(np.concatenate(excluded)),
        torch.tensor(np.cumsum([0, *map(len, excluded)])),
    )
    best = select_pass.NativeTopK(select_pass.native_selection(), rows, min(k + 16, items))
    for begin in range(0, items, width):
        tile = torch.from_numpy(scores[:, begin : begin + width].copy())
        best.add(tile, begin, exclude)
    keys = torch.empty(rows, k, dtype=torch.int64)
    vectors = torch.tensor(scores.T.copy())
    proven = best.rank(torch.eye(rows), vectors, torch.zeros(rows, dtype=torch.float64), keys)
    ids, best_scores = decode(keys)
    for row in range(rows):
        allowed = np.setdiff1d(np.arange(items), excluded[row])
        order = allowed[np.lexsort((allowed, -scores[row, allowed]))]
        expected = np.full(k, -np.inf, dtype=np.float32)
        expected[: len(order)] = scores[row, order[:k]]
        # The scores are always the best ones; the choice among ties with the k-th is open.
        np.testing.assert_array_equal(best_scores[row].numpy(), expected)
        if proven[row]:
            assert ids[row, : len(order)].tolist() == order[:k].tolist()
            assert (ids[row, len(order) :] == -1).all()
        else:
            assert np.sum(scores[row, allowed] == expected[-1]) > 16
    distinct = all(len(np.unique(scores[r])) == items for r in range(rows))
    assert bool(proven.all()) or not distinct


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(1, 9000),
    rows=st.integers(1, 6),
    width=st.integers(1, 40),
    parts=st.integers(1, 5),
    k=st.integers(1, 300),
    is_tied=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_scan_of_few_queries_equals_a_sort_of_float64_products(
    num_items, rows, width, parts, k, is_tied, seed
):
    k, generator = min(k, num_items), np.random.default_rng(seed)
    vectors = generator.standard_normal((num_items, width)).astype(np.float32)
    query = generator.standard_normal((rows, width)).astype(np.float32)
    if is_tied:
        vectors, query = vectors.round(), query.round()
    excluded = [np.flatnonzero(generator.random(num_items) < 0.3) for _ in range(rows)]
    exclude = Exclusions(
        torch.from_numpy(np.concatenate(excluded)),
        torch.tensor(np.cumsum([0, *map(len, excluded)])),
    )
    functions, surplus = select_pass.native_selection(), min(k + 16, num_items)
    best = select_pass.NativeTopK(functions, rows, surplus, parts=parts)
    best.scan(torch.from_numpy(query), torch.from_numpy(vectors), exclude)
    keys = torch.empty(rows, k, dtype=torch.int64)
    lengths = np.linalg.norm(query, axis=1) * np.linalg.norm(vectors, axis=1).max()
    errors = torch.from_numpy(lengths.astype(np.float64) * (width + 4) * 2.0**-23)
    proven = best.rank(torch.from_numpy(query), torch.from_numpy(vectors), errors, keys)
    ids, scores = decode(keys)
    exact = (query.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    for row in range(rows):
        allowed = np.setdiff1d(np.arange(num_items), excluded[row])
        order = allowed[np.lexsort((allowed, -exact[row, allowed]))][:k]
        np.testing.assert_allclose(scores[row, : len(order)], exact[row, order], rtol=1e-6)
        assert (ids[row, len(order) :] == -1).all()
        if proven[row] and is_tied:  # integers: products are exact
            assert ids[row, : len(order)].tolist() == order.tolist()


@needs_compiler
@pytest.mark.parametrize("tied_part", [0, 1])
def test_scan_does_not_prove_ties_that_one_part_dropped(tied_part):
    """So few items are stored that ranking drops no further one and must use the bound."""
    values, items = torch.full((8000,), 5.0), torch.arange(8000)
    is_allowed = (items // 4000 == tied_part) & (items % 32 == 0)
    exclude = Exclusions(items[~is_allowed], torch.tensor([0, int((~is_allowed).sum())]))
    best = select_pass.NativeTopK(select_pass.native_selection(), 1, 26, parts=2)
    best.scan(torch.ones(1, 1), values.view(-1, 1), exclude)
    keys = torch.empty(1, 10, dtype=torch.int64)
    errors = torch.zeros(1, dtype=torch.float64)
    assert not best.rank(torch.ones(1, 1), values.view(-1, 1), errors, keys)


@needs_compiler
@pytest.mark.parametrize("num_rows", [1, select_pass.SCANNED_ROWS, select_pass.SCANNED_ROWS + 1])
def test_few_queries_get_the_results_of_many(num_rows):
    generator = torch.Generator().manual_seed(6)
    vectors = torch.randn(110_000, 9, generator=generator)
    query = torch.randn(40, 9, generator=generator)
    seen = torch.randint(110_000, (40 * 50,), generator=generator)
    offsets, index = torch.arange(0, 40 * 50 + 1, 50), ExactIndex(vectors)
    expected = index.search(query, 100, Exclusions(seen, offsets))
    exclude = Exclusions(seen, offsets[: num_rows + 1])
    result = index.search(query[:num_rows], 100, exclude)
    assert torch.equal(result.item_ids, expected.item_ids[:num_rows])
    assert torch.equal(result.scores, expected.scores[:num_rows])


@needs_compiler
@pytest.mark.parametrize("exponent", [0, 40, -40])
def test_several_threads_give_the_same_results(exponent):
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(5000, 19, generator=generator) * 2.0**exponent
    query = torch.randn(301, 19, generator=generator)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        try:
            results.append(ExactIndex(vectors, block_items=1000, block_rows=64).search(query, 1500))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0].item_ids, results[1].item_ids)
    assert torch.equal(results[0].scores, results[1].scores)


def test_search_with_and_without_the_kernel_agrees(fresh, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3000, 33, generator=generator)
    vectors[100:200] = vectors[7]
    query = torch.randn(200, 33, generator=generator)
    query[3] = vectors[7]
    seen = torch.randint(3000, (200 * 50,), generator=generator)
    exclude = Exclusions(seen, torch.arange(0, 200 * 50 + 1, 50))
    assert select_pass.MIN_SCORES <= 200 * 3000
    for k in (1, 20, 2000):
        results = []
        for switch in ("1", "0"):
            monkeypatch.setenv("CANDID_NATIVE", switch)
            select_pass.native_selection.cache_clear()
            result = ExactIndex(vectors, block_items=700, block_rows=64).search(query, k, exclude)
            assert select_pass.native_selection.cache_info().currsize == 1
            assert (select_pass.native_selection() is None) == (switch == "0" or not HAS_COMPILER)
            results.append(result)
        assert torch.equal(results[0].item_ids, results[1].item_ids)
        assert torch.equal(results[0].scores, results[1].scores)


def test_small_search_does_not_start_the_compiler(fresh):
    ExactIndex(torch.ones(50, 4)).search(torch.ones(3, 4), 5)
    assert select_pass.native_selection.cache_info().currsize == 0


@needs_compiler
@pytest.mark.parametrize(
    "change",
    [
        lambda e: Exclusions(e.item_ids.int(), e.offsets),
        lambda e: Exclusions(e.item_ids.repeat_interleave(2)[::2], e.offsets),
    ],
)
def test_other_layouts_of_exclusions_use_torch(change):
    vectors, query = torch.randn(2000, 5), torch.randn(60, 5)
    exclude = Exclusions(torch.arange(600), torch.arange(0, 601, 10))
    index = ExactIndex(vectors)
    assert select_pass.native_selection_for(query, vectors, 26, exclude) is not None
    assert select_pass.native_selection_for(query, vectors, 26, change(exclude)) is None
    expected = index.search(query, 10, exclude)
    assert torch.equal(index.search(query, 10, change(exclude)).item_ids, expected.item_ids)


@pytest.mark.parametrize(
    "offsets",
    [
        torch.arange(0, 600, 10),
        torch.arange(0, 611, 10),
        torch.arange(0, 1201, 20),
        torch.arange(600, -1, -10),
        torch.arange(-10, 591, 10),
    ],
    ids=["too few", "too many", "too long", "falling", "negative"],
)
def test_kernel_does_not_read_malformed_exclusions(offsets):
    query, vectors = torch.randn(60, 5), torch.randn(2000, 5)
    exclude = Exclusions(torch.arange(600), offsets)
    assert select_pass.native_selection_for(query, vectors, 26, exclude) is None


@needs_compiler
def test_vectors_that_are_not_contiguous_use_torch():
    vectors, query = torch.randn(5, 2000).T, torch.randn(60, 5)
    assert select_pass.native_selection_for(query, vectors, 26, None) is None
    expected = ExactIndex(vectors.contiguous()).search(query, 10)
    assert torch.equal(ExactIndex(vectors).search(query, 10).item_ids, expected.item_ids)
    strided = torch.randn(5, 60).T
    expected = ExactIndex(vectors.contiguous()).search(strided.contiguous(), 10)
    result = ExactIndex(vectors.contiguous()).search(strided, 10)
    assert torch.equal(result.item_ids, expected.item_ids)


def test_large_batch_with_a_query_that_is_not_finite_is_refused():
    query = torch.ones(60, 5)
    query[59, 4] = torch.nan
    with pytest.raises(ArtifactError, match="query vectors contain NaN"):
        ExactIndex(torch.ones(2000, 5)).search(query, 2)


def test_missing_compiler_logs_one_line(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CC", "/nowhere/cc")
    with caplog.at_level(logging.INFO):
        result = ExactIndex(torch.eye(400)).search(torch.eye(400), 1)
        ExactIndex(torch.eye(400)).search(torch.eye(400), 1)
    assert result.item_ids.flatten().tolist() == list(range(400))
    assert messages_of(caplog) == [
        "exact search runs without its native kernel, somewhat slower: no C compiler found"
    ]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("select_pass.c", "scores[column] = -INFINITY;", "continue;"),
        ("shrink.h", "ids[stored] = id;", "ids[stored] = ids[0];"),
        ("select_pass.c", "n += count;", "n = count;"),
        ("select_pass.c", "positions[i] += key > keys[i]", "positions[i] += key < keys[i]"),
        (
            "select_pass.c",
            "_CMP_GT_OQ" if "avx2" in candid.native._cpu() else "scores[j] > bound",
            "_CMP_LT_OQ",
        ),
    ],
)
def test_wrong_kernel_is_refused(fresh, monkeypatch, caplog, name, right, wrong):
    folder = fresh.parents[1]
    for file in ("select_pass.c", "order.h", "shrink.h"):
        shutil.copy(select_pass.SOURCE.with_name(file), folder)
    source = (folder / name).read_text()
    assert right in source
    (folder / name).write_text(source.replace(right, wrong))
    monkeypatch.setattr(select_pass, "SOURCE", folder / "select_pass.c")
    with caplog.at_level(logging.INFO):
        assert select_pass.native_selection() is None
    assert messages_of(caplog)[0].endswith("the compiled code returns other items than torch")


@needs_compiler
@pytest.mark.parametrize("features", ["-mno-avx2 -mno-avx512f", "-mno-avx512f"])
def test_kernel_for_other_processors_gives_the_same_results(fresh, monkeypatch, features):
    monkeypatch.setattr(candid.native, "FLAGS", (*candid.native.FLAGS, *features.split()))
    if "x86_64" not in candid.native._cpu():
        pytest.skip("flags of another processor")
    portable = select_pass.native_selection()
    assert portable is not None
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(64, 7, generator=generator).round()
    index = ExactIndex(
        torch.randn(4099, 7, generator=generator).round(), block_items=1000, block_rows=50
    )
    result = index.search(query, 100)
    monkeypatch.setenv("CANDID_NATIVE", "0")
    select_pass.native_selection.cache_clear()
    expected = index.search(query, 100)
    assert torch.equal(result.item_ids, expected.item_ids)
