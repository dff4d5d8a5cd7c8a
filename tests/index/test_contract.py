"""What every registered index promises, on vectors with a known answer."""

from __future__ import annotations

import threading

import polars as pl
import pytest
import torch

from candid.component import lookup
from candid.errors import ArtifactError, ConfigError, UnknownNameError
from candid.index import (
    INDEXES,
    Exclusions,
    IndexConfig,
    LiveIndex,
    SearchResult,
    StoredIndex,
    TunableIndex,
    open_snapshot,
    write_snapshot,
)

# An index under other settings than its own makes the same promises.
SETTINGS = {name: (name, {}) for name in INDEXES} | {
    "faiss-flat": ("faiss", {"kind": "flat"}),
    "faiss-hnsw": ("faiss", {"kind": "hnsw", "augment": False}),
    "faiss-hnsw-distances": ("faiss", {"kind": "hnsw", "augment": True}),
    "faiss-pq": ("faiss", {"kind": "pq"}),
    "faiss-sq": ("faiss", {"kind": "sq"}),
    "usearch-int8": ("usearch", {"precision": "int8"}),
    "usearch-distances": ("usearch", {"augment": True}),
    "kernel_lsh-rbf": ("kernel_lsh", {"kernel": "rbf"}),
}
indexes = pytest.mark.parametrize("name", sorted(SETTINGS))


def config_of(name):
    component, settings = SETTINGS[name]
    return INDEXES[component].Config(**settings)


def built(name, vectors):
    return config_of(name).build(vectors)


def checkerboard(num_items=12):
    """Even items point along the first axis, odd ones along the second; longer with the id."""
    vectors = torch.zeros(num_items, 2)
    ids = torch.arange(num_items)
    vectors[ids, ids % 2] = 1.0 + ids
    return vectors


@indexes
def test_finds_the_known_answer(name):
    found = built(name, checkerboard()).search(torch.eye(2), 3)
    assert found.item_ids.tolist() == [[10, 8, 6], [11, 9, 7]]
    assert found.scores.tolist() == [[11, 9, 7], [12, 10, 8]]
    assert found.item_ids.dtype == torch.int64
    assert found.scores.dtype == torch.float32


def around_centres(num_items, num_queries, dim=16, seed=0):
    """Items and queries around 30 centres: each query has about 100 near items."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(30, dim, generator=generator))

    def around(count):
        noise = 0.1 * torch.randn(count, dim, generator=generator)
        return centres[torch.randint(30, (count,), generator=generator)] + noise

    return around(num_items), around(num_queries)


def plain(query, items, k):
    return (query.double() @ items.double().T).topk(k).indices


def share_found(found, expected):
    pairs = zip(found.tolist(), expected.tolist(), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / expected.numel()


@indexes
def test_finds_nearly_all_where_near_is_clear(name):
    items, query = around_centres(3000, 64)
    found = built(name, items).search(query, 10)
    assert share_found(found.item_ids, plain(query, items, 10)) >= 0.9
    products = torch.einsum("bkd,bd->bk", items[found.item_ids], query)
    torch.testing.assert_close(found.scores, products, rtol=1e-4, atol=1e-5)
    assert bool((found.scores.diff(dim=1) <= 0).all())
    assert all(len(set(row)) == 10 for row in found.item_ids.tolist())


@indexes
def test_leaves_out_what_is_excluded_among_many(name):
    items, query = around_centres(3000, 8)
    index, best = built(name, items), plain(query, items, 30)
    exclude = Exclusions(best[:, :20].flatten(), torch.arange(0, 161, 20))
    found = index.search(query, 10, exclude).item_ids
    assert not any(set(a) & set(b[:20]) for a, b in zip(found.tolist(), best.tolist(), strict=True))
    assert share_found(found, best[:, 20:]) >= 0.8


@indexes
def test_items_come_go_and_change(name):
    items, query = around_centres(1200, 8)
    live = LiveIndex(built(name, items), items)
    best = plain(query, items, 1)[:, 0]
    live.delete(best)
    assert not torch.isin(live.search(query, 5).item_ids, best).any()
    added = live.add(3 * query)
    assert added.tolist() == list(range(1200, 1208))
    assert torch.equal(
        live.search(3 * query, 1).item_ids[:, 0], plain(query, query, 1)[:, 0] + 1200
    )
    live.update(best[:1], 9 * query[:1])
    assert int(live.search(query[:1], 1).item_ids) == int(best[0])
    exclude = Exclusions(torch.stack([best[0], added[0]]), torch.tensor([0, 2]))
    assert not torch.isin(live.search(query[:1], 5, exclude).item_ids, exclude.item_ids).any()
    assert live.num_items == 1208
    assert live.num_live == 1208 - len(best.unique()) + 1


@indexes
def test_comes_back_from_disk_as_it_was(name, tmp_path):
    items, query = around_centres(1200, 8)
    config, index = config_of(name), built(name, items)
    names = pl.Series("source_id", [f"i{n}" for n in range(1200)])
    write_snapshot(tmp_path / "index", index, items, names, config=config, fingerprint="ours")
    opened = open_snapshot(tmp_path / "index", fingerprint="ours", verify=True)
    assert opened.config == config
    expected, found = index.search(query, 10), opened.index.search(query, 10)
    assert torch.equal(found.item_ids, expected.item_ids)
    assert torch.equal(found.scores, expected.scores)


@indexes
def test_a_damaged_file_of_its_own_is_refused_in_one_sentence(name, tmp_path):
    items, _ = around_centres(1200, 1)
    index = built(name, items)
    if not isinstance(index, StoredIndex):
        pytest.skip("has no file of its own")
    index.save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"nothing of the kind" * 9):
        file = tmp_path / "file"
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="file is damaged"):
            config_of(name).open(items, file)


@indexes
def test_the_file_of_other_items_is_refused(name, tmp_path):
    items, _ = around_centres(1200, 1)
    index = built(name, items)
    if not isinstance(index, StoredIndex):
        pytest.skip("has no file of its own")
    index.save(tmp_path / "file")
    with pytest.raises(ArtifactError, match="1200 items"):
        config_of(name).open(items[:1100], tmp_path / "file")


@indexes
def test_every_setting_of_the_search_is_a_key_and_finds_more_at_its_end(name):
    items, query = around_centres(3000, 32)
    index, best = built(name, items), plain(query, items, 20)
    if not isinstance(index, TunableIndex):
        assert share_found(index.search(query, 20).item_ids, best) == 1
        return
    axes = index.axes(20)
    assert set(axes) <= set(type(config_of(name)).model_fields)
    assert all(list(values) == sorted(set(values)) for values in axes.values())
    least, most = (
        index.with_settings(**{axis: values[place] for axis, values in axes.items()})
        for place in (0, -1)
    )
    found = [share_found(i.search(query, 20).item_ids, best) for i in (least, most)]
    assert found[1] >= max(found[0], 0.95)


@indexes
def test_threads_may_ask_at_once(name):
    items, query = around_centres(1500, 40)
    index = built(name, items)
    expected, found = index.search(query, 5).item_ids, {}

    def ask(row):
        found[row] = index.search(query[row : row + 1], 5).item_ids[0]

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(len(query))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.stack([found[row] for row in range(len(query))]), expected)


@indexes
def test_knows_its_size(name):
    assert built(name, checkerboard(7)).num_items == 7


@indexes
def test_leaves_out_what_is_excluded(name):
    exclude = Exclusions(torch.tensor([8, 10, 11]), torch.tensor([0, 2, 3]))
    found = built(name, checkerboard()).search(torch.eye(2), 2, exclude)
    assert found.item_ids.tolist() == [[6, 4], [9, 7]]


@indexes
def test_fills_up_with_minus_one(name):
    exclude = Exclusions(torch.arange(11), torch.tensor([0, 11]))
    found = built(name, checkerboard()).search(torch.tensor([[1.0, 1.0]]), 3, exclude)
    assert found.item_ids.tolist() == [[11, -1, -1]]
    assert found.scores.tolist() == [[12, -torch.inf, -torch.inf]]


@indexes
@pytest.mark.parametrize("k", [0, 13])
def test_refuses_a_k_outside_the_catalog(name, k):
    with pytest.raises(ConfigError, match=rf"k {k} .*12"):
        built(name, checkerboard()).search(torch.eye(2), k)


@indexes
def test_answers_no_queries(name):
    found = built(name, checkerboard()).search(torch.empty(0, 2), 3)
    assert found.item_ids.shape == found.scores.shape == (0, 3)


@indexes
def test_leaves_its_arguments_alone(name):
    vectors, query = checkerboard(), torch.eye(2)
    exclude = Exclusions(torch.tensor([8, 3, 8, 11]), torch.tensor([0, 3, 4]))
    before = [t.clone() for t in (vectors, query, exclude.item_ids, exclude.offsets)]
    built(name, vectors).search(query, 3, exclude)
    for now, then in zip((vectors, query, exclude.item_ids, exclude.offsets), before, strict=True):
        assert torch.equal(now, then)


@indexes
def test_config_is_frozen_and_described(name):
    config = INDEXES[SETTINGS[name][0]].Config
    assert issubclass(config, IndexConfig)
    assert all(field.description for field in config.model_fields.values())


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="exact"):
        lookup(INDEXES, "index", "exakt")


def test_a_new_index_is_one_class_and_one_line(monkeypatch):
    class Constant:
        """Returns the first items whatever is asked."""

        class Config(IndexConfig):
            def build(self, item_vectors):
                return Constant(item_vectors)

        def __init__(self, item_vectors):
            self.num_items = len(item_vectors)

        def search(self, query, k, exclude=None):
            return SearchResult(torch.arange(k).expand(len(query), k), torch.zeros(len(query), k))

    monkeypatch.setitem(INDEXES, "constant", Constant)
    index = lookup(INDEXES, "index", "constant").Config().build(checkerboard())
    assert index.search(torch.eye(2), 2).item_ids.tolist() == [[0, 1], [0, 1]]
